//! The guest as a program in it finds it: mounts, devices, clock, names.

use kiln_e2e::guest::{Guest, in_vm};
use kiln_engine::{ExitReason, Vm};
use kiln_wire::{ExecRequest, Identity, SessionSpec, Sync, Text};

#[test]
fn a_guest_has_what_programs_expect() {
    in_vm(async {
        let guest = Guest::boot(|spec| spec.cpus = 2).await;
        let script = "set -e; mount | cut -d' ' -f3 | sort | tr '\\n' ' '; nproc; cat /proc/1/oom_score_adj; \
             stat -c %a /tmp; ls -d /dev/shm /dev/pts /dev/null /dev/urandom | wc -l; hostname; \
             ip -o addr show lo | grep -c 127.0.0.1; cat /proc/self/oom_score_adj; cat /proc/1/cgroup";
        let seen = guest.text(script).await;
        let lines: Vec<&str> = seen.lines().collect();
        for mount in ["/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run", "/tmp", "/sys/fs/cgroup"] {
            assert!(lines[0].split(' ').any(|found| found == mount), "no {mount}: {seen}");
        }
        assert!(lines[0].ends_with('2'), "two CPUs: {seen}");
        assert_eq!(lines[1..6], ["-1000", "1777", "4", "kiln", "1"], "{seen}");
        assert_eq!(lines[6], "0", "commands can be killed for memory: {seen}");
        assert!(lines[7].starts_with("0::/") && lines[7].len() > 4, "a group of its own: {seen}");
    });
}

#[test]
fn modules_are_loaded_on_request_with_what_they_need() {
    in_vm(async {
        let guest = Guest::boot(|spec| spec.modules = vec!["overlay".into(), "squashfs".into()]).await;
        let seen = guest.text("grep -cE 'overlay|squashfs' /proc/filesystems").await;
        assert_eq!(seen, "2");
    });
}

#[test]
fn sync_sets_the_clock_and_the_names() {
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        let host_time_ns = 1_900_000_000_000_000_000;
        let identity =
            Identity { hostname: "other".into(), machine_id: "0123456789abcdef0123456789abcdef".into(), macs: vec![] };
        // 32 zero bytes. The agent credits any seed of the right length.
        let seed = format!("{}=", "A".repeat(43));
        guest
            .link
            .sync(Sync { host_time_ns, seed, identity: Some(identity), network: None, mounts: vec![] })
            .await
            .expect("all of it is done");
        let seen = guest.text("date +%s | cut -c1-8; hostname; cat /etc/machine-id").await;
        assert_eq!(seen, "19000000\nother\n0123456789abcdef0123456789abcdef");
        let seen = guest.text("hostname -i; grep -c kiln /etc/hosts; grep -w 127.0.0.1 /etc/hosts").await;
        assert_eq!(seen, "127.0.1.1\n0\n127.0.0.1\tlocalhost");
    });
}

#[test]
fn only_root_may_write_to_the_root_and_the_host_name_resolves() {
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        let seen = guest.text("stat -c %a /; hostname; hostname -i; ping -c 1 -W 5 localhost | head -n 1").await;
        assert!(seen.starts_with("755\nkiln\n127.0.1.1\nPING localhost ("), "{seen}");
    });
}

#[test]
fn a_fork_has_a_boot_id_of_its_own_wherever_it_is_read() {
    const ID: &str = "/proc/sys/kernel/random/boot_id";
    // All forks get the same seed, so a difference does not come from the seed.
    let sync = |identity: Option<Identity>| Sync {
        host_time_ns: 1_900_000_000_000_000_000,
        seed: format!("{}=", "A".repeat(43)),
        identity,
        network: None,
        mounts: vec![],
    };
    let named = |hostname: &str| {
        Some(Identity {
            hostname: hostname.into(),
            machine_id: "0123456789abcdef0123456789abcdef".into(),
            macs: vec![],
        })
    };
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        let before = guest.text(&format!("cat {ID}")).await;
        assert!(before.len() == 36 && before.matches('-').count() == 4, "a UUID: {before}");
        guest.shell(&format!("echo x > {ID}")).await.expect("it runs");
        assert_eq!(
            guest.text(&format!("cat {ID}")).await,
            before,
            "no program writes it, so it stays the same for a boot"
        );
        // It reads the id again on request, in a mount namespace from before the fork.
        let script = format!(
            "mkfifo /tmp/go; exec unshare -m sh -c 'touch /tmp/ready; read -r go < /tmp/go; cat {ID} > /tmp/seen'"
        );
        drop(guest.link.exec(in_a_session(&script)).await.expect("it starts"));
        guest.text("until [ -e /tmp/ready ]; do usleep 10000; done").await;
        guest.link.sync(sync(named("one"))).await.expect("is done");
        let after = guest.text(&format!("cat {ID}")).await;
        assert_ne!(after, before);
        let fresh = guest.text(&format!("echo > /tmp/go; unshare -m cat {ID}")).await;
        assert_eq!(fresh, after, "a mount namespace has the id of its machine");
        let seen = guest.text("until [ -s /tmp/seen ]; do usleep 10000; done; cat /tmp/seen").await;
        assert_eq!(seen, after, "so has an older one");

        // A resumed VM is the same machine, so it keeps its id.
        guest.link.sync(sync(None)).await.expect("is done");
        assert_eq!(guest.text(&format!("cat {ID}")).await, after);

        guest.text(&format!("umount {ID}")).await;
        guest.link.sync(sync(named("two"))).await.expect("is done");
        let covered = guest.text(&format!("cat {ID}; mount | grep -c boot_id")).await;
        assert!(!covered.starts_with(&after) && covered.ends_with("\n1"), "{covered}");
    });
}

/// A command that keeps running after its caller has exited.
fn in_a_session(script: &str) -> ExecRequest {
    let session = SessionSpec { name: Some("reader".into()), ..SessionSpec::default() };
    let argv = ["sh", "-c", script].map(Text::from).into();
    ExecRequest { argv, session: Some(session), ..ExecRequest::default() }
}

#[test]
fn no_exit_status_is_lost() {
    in_vm(async {
        let guest = Guest::boot(|_| {}).await;
        // Orphans of every command become children of PID 1, and end while others are waited for.
        let script = "for i in 1 2 3 4 5; do (sleep 0.0$i & exec true) & done; exit 7";
        for _ in 0..30 {
            let output = guest.shell(script).await.expect("it runs");
            assert_eq!(output.exited.status.shell_code(), 7);
        }
        // The agent is still killing the orphans of the last command, so the script waits for their end.
        let zombies = "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l";
        let script =
            format!("n=0; while [ $({zombies}) != 0 ] && [ $n -lt 500 ]; do usleep 10000; n=$((n+1)); done; {zombies}");
        assert_eq!(guest.text(&script).await, "0");
    });
}

#[test]
fn goodbye_powers_the_guest_off() {
    in_vm(async {
        let Guest { vm, link } = Guest::boot(|_| {}).await;
        link.shutdown().await;
        assert_eq!(ended(&vm).await, ExitReason::GuestPoweredOff);
    });
}

async fn ended(vm: &Vm) -> ExitReason {
    vm.wait().await.reason
}
