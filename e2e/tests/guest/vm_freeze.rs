//! Guests that are frozen for a snapshot: none of their commands runs until they are thawed or synced.

use kiln_e2e::guest::{Guest, in_vm, shell};
use kiln_engine::ExitReason;
use kiln_engine::link::{Event, Exec, GuestLink, StreamError};
use kiln_wire::{ErrorCode, Identity, Message, SessionSpec, Sync};

/// Round trips in which a command that is not frozen would get very far.
const MANY: u32 = 200;
/// A name that only this guest has.
const HOSTNAME: &str = "fork-7";

/// Starts a session that counts in `/tmp/NAME`, after it ran `first`.
async fn counter(guest: &Guest, name: &str, first: &str) -> Exec {
    let script = format!(
        "{first}; n=0; while :; do n=$((n+1)); echo $n > /tmp/{name}.new; mv /tmp/{name}.new /tmp/{name}; done"
    );
    let mut request = shell(&script);
    request.session = Some(SessionSpec { name: Some(name.into()), ..SessionSpec::default() });
    let exec = guest.link.exec(request).await.expect("it starts");
    passes(&guest.link, name, 0).await;
    exec
}

/// Where a counter is, as the agent reads it.
async fn count(link: &GuestLink, name: &str) -> u32 {
    match link.read_file(format!("/tmp/{name}"), 64).await {
        Ok(text) => String::from_utf8_lossy(&text).trim().parse().expect("a number"),
        Err(StreamError::Fault(fault)) if fault.code == ErrorCode::NotFound => 0,
        Err(error) => panic!("no count: {error}"),
    }
}

/// Waits until a counter is past `before`.
async fn passes(link: &GuestLink, name: &str, before: u32) {
    while count(link, name).await <= before {}
}

/// Whether a counter stopped.
async fn stands(link: &GuestLink, name: &str) -> bool {
    let before = count(link, name).await;
    for _ in 0..MANY {
        link.ping().await.expect("the agent is not frozen");
    }
    count(link, name).await == before
}

fn new_self(seed: &str) -> Sync {
    let machine_id = "0123456789abcdef0123456789abcdef".into();
    let identity = Identity { hostname: HOSTNAME.into(), machine_id, macs: vec![] };
    Sync {
        host_time_ns: 1_900_000_000_000_000_000,
        seed: seed.into(),
        identity: Some(identity),
        network: None,
        mounts: vec![],
    }
}

/// A seed of 32 zero bytes.
fn seed() -> String {
    format!("{}=", "A".repeat(43))
}

#[test]
fn freezing_stops_every_command_and_thawing_resumes_them() {
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        let _plain = counter(&guest, "plain", "true").await;
        // Commands of root can leave the agent's groups.
        let elsewhere = "mkdir /sys/fs/cgroup/mine && echo $$ > /sys/fs/cgroup/mine/cgroup.procs";
        let _elsewhere = counter(&guest, "elsewhere", elsewhere).await;
        for _ in 0..3 {
            guest.link.freeze().await.expect("commands stand still");
            guest.link.freeze().await.expect("they do already");
            assert!(stands(&guest.link, "plain").await && stands(&guest.link, "elsewhere").await);
            let before = (count(&guest.link, "plain").await, count(&guest.link, "elsewhere").await);
            guest.link.thaw().await.expect("they go on");
            passes(&guest.link, "plain", before.0).await;
            passes(&guest.link, "elsewhere", before.1).await;
        }
        guest.link.thaw().await.expect("there is nothing to do");
    });
}

#[test]
fn a_guest_that_is_frozen_at_once_has_all_its_drivers() {
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        guest.link.freeze().await.expect("nothing runs yet");
        guest.link.stat("/sys/module/virtio_rng", true).await.expect("it is loaded, though no command waits for it");
        guest.link.thaw().await.expect("it goes on");
        let driverless = "for d in /sys/bus/virtio/devices/*; do [ -e $d/driver ] || cat $d/modalias; done";
        assert_eq!(guest.text(driverless).await, "");
    });
}

#[test]
fn a_command_requested_while_frozen_runs_after_the_thaw() {
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        guest.link.freeze().await.expect("nothing runs");
        let (cancelling, mut cancelled) = guest.link.open(&Message::Exec(Box::new(shell("true")))).expect("it is up");
        let mut waiting = Box::pin(guest.link.run(shell("echo late"), b"", 1024));
        tokio::select! {
            output = &mut waiting => panic!("it ran while everything was frozen: {output:?}"),
            stood = async {
                for _ in 0..MANY {
                    guest.link.ping().await.expect("the agent is not frozen");
                }
            } => stood,
        }
        assert_eq!(guest.link.streams_open(), 2);
        cancelling.cancel().expect("it waits");
        let end = cancelled.next().await;
        assert!(matches!(&end, Err(StreamError::Fault(fault)) if fault.code == ErrorCode::Cancelled), "{end:?}");
        guest.link.thaw().await.expect("it goes on");
        assert_eq!(waiting.await.expect("it runs now").stdout, b"late\n");
    });
}

#[test]
fn a_frozen_command_can_be_killed() {
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        let mut exec = guest.link.exec(shell("sleep 1000 & sleep 1000")).await.expect("it starts");
        guest.link.freeze().await.expect("it is frozen");
        exec.input.cancel().expect("it runs");
        let end = exec.output.next().await;
        assert!(matches!(&end, Err(StreamError::Fault(fault)) if fault.code == ErrorCode::Cancelled), "{end:?}");
        let gone = guest.link.stat(format!("/proc/{}", exec.started.pid), true).await;
        assert!(matches!(&gone, Err(StreamError::Fault(fault)) if fault.code == ErrorCode::NotFound), "{gone:?}");
        assert_eq!(guest.link.activity().await.expect("an answer").execs, 0);
        guest.link.thaw().await.expect("it goes on");
        assert_eq!(guest.text("pgrep sleep | wc -l").await, "0");
    });
}

#[test]
fn a_frozen_guest_can_be_powered_off() {
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        let counting = counter(&guest, "n", "true").await;
        guest.link.freeze().await.expect("it is frozen");
        let Guest { vm, link } = guest;
        drop(counting);
        link.shutdown().await;
        assert_eq!(vm.wait().await.reason, ExitReason::GuestPoweredOff);
    });
}

#[test]
fn a_frozen_guest_stays_so_under_a_new_link_until_it_is_synced() {
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        let counting = counter(&guest, "n", "true").await;
        guest.link.freeze().await.expect("it is frozen");
        let Guest { vm, link } = guest;
        drop((counting, link));
        let link = Guest::link(&vm).await;
        assert!(stands(&link, "n").await, "a new link changes nothing");
        let failed = link.sync(new_self("no seed")).await;
        assert!(matches!(failed, Err(StreamError::Fault(_))), "{failed:?}");
        assert!(stands(&link, "n").await, "a fork that is still a twin does not run");
        let before = count(&link, "n").await;
        link.sync(new_self(&seed())).await.expect("all of it is done");
        passes(&link, "n", before).await;
        assert_eq!(Guest { vm, link }.text("hostname").await, HOSTNAME);
    });
}

#[test]
fn addresses_are_set_in_the_kernel_s_order_or_not_at_all() {
    in_vm(async {
        let guest = Guest::boot(|spec| spec.modules = vec!["tun".into()]).await;
        guest.text("for n in 0 1 2; do tunctl -t tap$n; ip link set tap$n up; done").await;
        let macs = |last: &[&str]| Sync {
            identity: new_self("").identity.map(|identity| Identity {
                macs: last.iter().map(|last| format!("52:54:00:12:34:{last}")).collect(),
                ..identity
            }),
            ..new_self(&seed())
        };
        let seen = async || guest.text("cat /sys/class/net/tap0/address /sys/class/net/tap1/address").await;
        let before = seen().await;
        for wrong in [&["01", "02", "03", "04"][..], &["01", "0G"]] {
            assert!(matches!(guest.link.sync(macs(wrong)).await, Err(StreamError::Fault(_))), "{wrong:?}");
            assert_eq!((seen().await, guest.text("hostname").await), (before.clone(), "kiln".into()));
        }
        guest.link.sync(macs(&["01", "02"])).await.expect("all of it is done");
        assert_eq!(seen().await, "52:54:00:12:34:01\n52:54:00:12:34:02");
        assert!(!guest.text("cat /sys/class/net/tap2/address").await.starts_with("52:54:00:12:34"));
    });
}

#[test]
fn a_lease_of_a_program_is_reported_to_the_host() {
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        assert_eq!(guest.text("echo 600 > /run/kiln/leases/build; stat -c %a /run/kiln/leases").await, "1777");
        let activity = guest.link.activity().await.expect("an answer");
        let names: Vec<&str> = activity.leases.iter().map(|lease| lease.name.as_str()).collect();
        assert_eq!((names, activity.execs), (vec!["build"], 0));
        // The clock of a fork is days ahead of the snapshot's, and so the lease is over.
        guest.link.sync(new_self(&seed())).await.expect("all of it is done");
        assert_eq!(guest.link.activity().await.expect("an answer").leases, []);
    });
}

#[test]
fn a_session_in_a_guest_is_idle_while_its_shell_waits() {
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        let mut request = shell("echo ready; read line; sleep 1000");
        request.stdin = kiln_wire::Stdin::Stream;
        request.session = Some(SessionSpec { name: Some("work".into()), ..SessionSpec::default() });
        let mut exec = guest.link.exec(request).await.expect("it starts");
        assert!(matches!(exec.output.next().await, Ok(Event::Data(..))));
        while !guest.link.activity().await.expect("an answer").sessions.is_empty() {}
        exec.input.send(b"go\n").await.expect("it takes input");
        while guest.link.activity().await.expect("an answer").sessions != ["work"] {}
    });
}
