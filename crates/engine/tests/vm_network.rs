//! Guests on TAP devices of the host: what they reach, and what happens to that when they are saved, forked and
//! stopped.

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;

use kiln_engine::kept::{KeepPolicy, KeptState, KeptVm, Temperature, WakeError};
use kiln_engine::link::GuestLink;
use kiln_engine::snapshot::{AfterSave, Snapshot};
use kiln_engine::{
    Attachment, Engine, ErrorKind, Fork, ForkPart, ForkPool, ForkSpec, LaunchError, Nic, NicPart, OwnerLoss, PoolSpec,
    QemuEngine, RestoreError, Tap, TapError, VmSpec,
};

use support::guest::{connect, ready_made, save, shell, spec};
use support::network::{DEVICE, GUEST, HOST, Network, PORT};
use support::{Lab, helper_process, is_alive};

/// An address that only the second network has.
const ELSEWHERE: &str = "10.77.0.9";
/// At boot; forks get others.
const MAC: &str = "52:54:00:77:00:01";

fn with_card(attachment: Attachment) -> VmSpec {
    let nics = vec![Nic { mac: MAC.parse().expect("an address"), attachment }];
    VmSpec { nics, ..spec() }
}

fn on(attachment: Attachment) -> ForkPart {
    ForkPart { nics: vec![NicPart { mac: None, attachment }], ..ForkPart::default() }
}

async fn fork_on(engine: &QemuEngine, snapshot: &Snapshot, attachment: Attachment) -> Result<Fork, RestoreError> {
    let forks = ForkSpec { parts: vec![on(attachment)], ..ForkSpec::default() };
    engine.restore(snapshot, forks).await.map(|mut forks| forks.remove(0))
}

/// Gives the guest its address.
async fn set_up(link: &GuestLink) {
    shell(link, &format!("ip addr add {GUEST}/24 dev eth0 && ip link set eth0 up")).await;
}

/// The word that the host side serves to a guest.
async fn served(link: &GuestLink, address: &str) -> String {
    shell(link, &format!("nc -w 20 {address} {PORT} </dev/null")).await
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
async fn vm_saved_unplugged_is_forked_onto_several_tap_devices() {
    let lab = Lab::new();
    let engine = lab.engine();
    let [one, two] = [Network::serving("one"), Network::serving("two")];
    two.run(&format!("ip addr add {ELSEWHERE}/24 dev {DEVICE}"));
    two.serve(ELSEWHERE, "elsewhere");
    // The ready-made snapshot is made unplugged, whatever the spec's cards are attached to: that device does not exist.
    let nowhere = Attachment::Tap(Tap { device: "none".into(), namespace: None });
    let snapshot = ready_made(lab.home(), &with_card(nowhere)).await;
    assert_eq!(snapshot.manifest().spec.nics[0].attachment, Attachment::Unplugged);

    let parts = vec![on(one.tap()), on(two.tap()), on(Attachment::Unplugged)];
    let forks = ForkSpec { count: 3, parts, ..ForkSpec::default() };
    let forks = engine.restore(&snapshot, forks).await.expect("are restored");
    let mut addresses = Vec::new();
    for (fork, word) in forks.iter().zip(["one", "two"]) {
        set_up(&fork.link).await;
        assert_eq!(served(&fork.link, HOST).await, word);
        shell(&fork.link, &format!("ping -c 1 -W 20 {HOST}")).await;
        addresses.push(shell(&fork.link, "cat /sys/class/net/eth0/address").await);
    }
    assert!(addresses[0] != addresses[1] && !addresses.contains(&MAC.to_owned()), "{addresses:?}");
    // The second network has it, and there is no route to it from the first.
    assert_eq!(served(&forks[1].link, ELSEWHERE).await, "elsewhere");
    for unreached in [&forks[0], &forks[2]] {
        shell(&unreached.link, &format!("! ping -c 3 -W 1 {ELSEWHERE}")).await;
    }
    // The host reaches each by the same address, in its own namespace.
    for network in [&one, &two] {
        network.run(&format!("busybox ping -c 1 -W 20 {GUEST}"));
    }

    // The VMM is in none of these networks.
    let namespace = |file: String| std::fs::read_link(file).expect("is there");
    for fork in &forks {
        let of_vmm = namespace(format!("/proc/{}/ns/net", fork.vm.pid()));
        let others = [one.namespace().into_string(), two.namespace().into_string(), "/proc/self/ns/net".into()];
        assert!(others.into_iter().all(|other| namespace(other) != of_vmm), "{of_vmm:?}");
    }

    let error = fork_on(&engine, &snapshot, one.tap()).await.expect_err("a fork has it");
    let is_busy =
        matches!(&error, RestoreError::Launch(LaunchError::Attachment { index: 0, source: TapError::Busy, .. }));
    assert!(is_busy && error.kind() == ErrorKind::Busy, "{error:?}");
    let loopback = Tap { device: "lo".into(), namespace: Some(one.namespace()) };
    let error = fork_on(&engine, &snapshot, Attachment::Tap(loopback)).await.expect_err("is another kind of device");
    assert!(
        matches!(&error, RestoreError::Launch(LaunchError::Attachment { source: TapError::NotTap, .. })),
        "{error:?}"
    );
    assert_eq!(lab.vms().len(), 3, "nothing is left of those that were refused");
    let twice = ForkSpec { count: 2, parts: vec![on(two.tap()), on(two.tap())], ..ForkSpec::default() };
    let error = engine.restore(&snapshot, twice).await.expect_err("it is one device");
    assert!(matches!(error, RestoreError::Part { .. }), "{error:?}");
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
async fn vm_saved_idle_is_forked_onto_tap_devices_with_their_offloads() {
    let lab = Lab::new();
    let engine = lab.engine();
    let network = Network::serving("host");
    // Virtio's feature 0: the device takes packets without a checksum.
    let offloads = "cut -c 1 /sys/class/net/eth0/device/features";
    let idle = ready_made(lab.home(), &with_card(Attachment::Idle)).await;
    assert_eq!(idle.manifest().spec.nics[0].attachment, Attachment::Idle);
    let unplugged = ready_made(lab.home(), &with_card(Attachment::Unplugged)).await;
    assert_ne!(idle.id(), unplugged.id());
    for (snapshot, has_offloads) in [(&idle, "1"), (&unplugged, "0")] {
        let fork = fork_on(&engine, snapshot, network.tap()).await.expect("is restored");
        set_up(&fork.link).await;
        assert_eq!(served(&fork.link, HOST).await, "host");
        assert_eq!(shell(&fork.link, offloads).await, has_offloads);
        fork.vm.kill().await;
    }
    let alone = fork_on(&engine, &idle, Attachment::Idle).await.expect("needs no device of the host");
    set_up(&alone.link).await;
    shell(&alone.link, &format!("! ping -c 1 -W 1 {HOST}")).await;
    let error = fork_on(&engine, &idle, Attachment::Unplugged).await.expect_err("its guest counts on a TAP device");
    assert!(matches!(error, RestoreError::NoTap { index: 0, .. }), "{error:?}");
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
async fn vm_saved_on_a_tap_device_is_forked_onto_another_and_never_unplugged() {
    let lab = Lab::new();
    let engine = lab.engine();
    let [one, two] = [Network::serving("one"), Network::serving("two")];
    let vm = engine.launch(with_card(one.tap())).await.expect("starts");
    let link = connect(&vm).await;
    set_up(&link).await;
    assert_eq!(served(&link, HOST).await, "one");
    let snapshot = save(&vm, &link, AfterSave::GoOn).await.expect("is saved");
    assert_eq!(snapshot.manifest().spec.nics[0].attachment, one.tap());
    assert_eq!(served(&link, HOST).await, "one", "it goes on");

    // It has its address and routes from the start, and another card's address.
    let fork = fork_on(&engine, &snapshot, two.tap()).await.expect("is restored");
    assert_eq!(served(&fork.link, HOST).await, "two");
    assert_ne!(shell(&fork.link, "cat /sys/class/net/eth0/address").await, MAC);
    // A fork's own snapshot is bound to a TAP device as well.
    let diff = save(&fork.vm, &fork.link, AfterSave::End).await.expect("is saved");
    drop(fork);
    assert_eq!(diff.manifest().spec.nics[0].attachment, two.tap());
    let again = fork_on(&engine, &diff, two.tap()).await.expect("the device is free again");
    assert_eq!(served(&again.link, HOST).await, "two");

    for of in [&snapshot, &diff] {
        for forks in [ForkSpec::default(), ForkSpec { parts: vec![on(Attachment::Unplugged)], ..ForkSpec::default() }] {
            let error = engine.restore(of, forks).await.expect_err("its guest counts on a TAP device");
            assert!(matches!(&error, RestoreError::NoTap { id, index: 0 } if id == of.id()), "{error:?}");
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
        let pool = PoolSpec { ready: 1, bytes_max: 1 << 30 };
        let error = ForkPool::start(&engine, of, ForkSpec::default(), pool).await.expect_err("no card has a network");
        assert!(matches!(error, RestoreError::NoTap { .. }), "{error:?}");
    }
    assert_eq!(lab.vms().len(), 2, "nothing is left of those that were refused");
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
async fn vm_that_cooled_on_a_tap_device_wakes_once_the_device_exists_again() {
    let lab = Lab::new();
    let engine = Arc::new(lab.engine());
    let network = Network::serving("host");
    let snapshot = ready_made(lab.home(), &with_card(Attachment::Unplugged)).await;
    let fork = fork_on(&engine, &snapshot, network.tap()).await.expect("is restored");
    set_up(&fork.link).await;
    assert_eq!(served(&fork.link, HOST).await, "host");
    let address = shell(&fork.link, "cat /sys/class/net/eth0/address").await;
    let id = fork.vm.id().clone();
    let kept = KeptVm::keep(Arc::clone(&engine) as Arc<dyn Engine>, fork, KeepPolicy::default());
    for temperature in [Temperature::Warm, Temperature::Cold] {
        kept.cool(temperature).await.expect("cools");
        let hot = kept.ensure_hot().await.expect("wakes");
        assert_eq!(served(hot.link(), HOST).await, "host");
        assert_eq!(shell(hot.link(), "cat /sys/class/net/eth0/address").await, address);
    }

    kept.cool(Temperature::Cold).await.expect("cools");
    network.remove_device();
    let WakeError::Cold(error) = kept.ensure_hot().await.expect_err("its device is gone") else { panic!("it is cold") };
    let is_gone =
        matches!(&*error, RestoreError::Launch(LaunchError::Attachment { index: 0, source: TapError::NoDevice, .. }));
    assert!(is_gone && error.kind() == ErrorKind::NotFound, "{error:?}");
    assert_eq!((kept.state(), lab.vms()), (KeptState::Cold, vec![id.to_string()]), "it is as it was");
    network.make_device();
    let hot = kept.ensure_hot().await.expect("wakes");
    assert_eq!(served(hot.link(), HOST).await, "host");
    drop(hot);
    kept.destroy().await.expect("is destroyed");
}

const HOME_VARIABLE: &str = "KILN_TEST_NETWORK_HOME";
const NAMESPACE_VARIABLE: &str = "KILN_TEST_NETWORK_NAMESPACE";

/// A VMM without an owner. It is killed at the end, if the test did not do so.
struct Orphan(u32);

impl Drop for Orphan {
    fn drop(&mut self) {
        if is_alive(self.0) {
            // This was the VMM's pid a moment ago, and nothing else starts so many processes meanwhile.
            drop(Command::new("kill").args(["-9", &self.0.to_string()]).status());
        }
    }
}

#[tokio::test]
#[ignore = "the other half of the test below, started by it in a process of its own"]
async fn own_a_vm_and_wait_to_be_killed() {
    let variable = |name| std::env::var(name).expect("started by the test below");
    let engine = QemuEngine::find(variable(HOME_VARIABLE)).expect("QEMU is installed");
    let tap = Tap { device: DEVICE.into(), namespace: Some(variable(NAMESPACE_VARIABLE).into()) };
    let spec = VmSpec { owner_loss: OwnerLoss::KeepRunning, ..with_card(Attachment::Tap(tap)) };
    let vm = engine.launch(spec).await.expect("starts");
    let link = connect(&vm).await;
    set_up(&link).await;
    println!("\nready {} {}", vm.id(), vm.pid());
    std::io::stdout().flush().expect("written");
    vm.wait().await;
}

#[tokio::test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
async fn vm_that_is_adopted_has_kept_its_tap_device_open() {
    let lab = Lab::new();
    let network = Network::serving("host");
    let mut owner = helper_process("own_a_vm_and_wait_to_be_killed", HOME_VARIABLE, lab.home().as_str())
        .env(NAMESPACE_VARIABLE, network.namespace().as_str())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let lines = BufReader::new(owner.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let ready = lines.into_iter().find_map(|line| line.strip_prefix("ready ").map(str::to_owned));
    owner.kill().expect("SIGKILL");
    owner.wait().expect("ends");
    let ready = ready.expect("the owner started a VM");
    let (id, pid) = ready.split_once(' ').expect("two words");
    let orphan = Orphan(pid.parse().expect("a pid"));

    let vm = lab.engine().adopt(&id.parse().expect("an id")).await.expect("is adopted");
    let link = connect(&vm).await;
    assert_eq!(served(&link, HOST).await, "host");
    assert_eq!(vm.pid(), orphan.0);
    let snapshot = save(&vm, &link, AfterSave::End).await.expect("is saved");
    assert_eq!(snapshot.manifest().spec.nics[0].attachment, network.tap());
    drop(vm);
    let fork = fork_on(&lab.engine(), &snapshot, network.tap()).await.expect("the device is free again");
    assert_eq!(served(&fork.link, HOST).await, "host");
}
