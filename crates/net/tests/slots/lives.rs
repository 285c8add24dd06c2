//! What is left of a slot, however its owner ends.

use std::process::{Command, Stdio};

use kiln_net::slots::{RulesFault, SlotError, SlotPool, Slots, SlotsConfig, Step};

use crate::support::{Guest, World, policy, sh, wait_until};

const OPEN: &str = r#"{"default":"public"}"#;

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn a_hundred_slots_leave_nothing() {
    let world = World::new();
    let before = world.listings();
    let slots = world.slots();
    for round in 0..100 {
        let slot = slots.acquire("test", &policy(OPEN)).expect("is made");
        if round % 2 == 0 { slot.release().expect("is removed") } else { drop(slot) }
    }
    assert_eq!(world.listings(), before);
    assert_eq!(slots.list().expect("are listed"), []);
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn slots_of_several_threads_have_addresses_of_their_own() {
    let world = World::new();
    let slots = world.slots();
    let before = world.listings();
    let made: Vec<_> = std::thread::scope(|scope| {
        let makers: Vec<_> =
            (0..8).map(|_| scope.spawn(|| slots.acquire("test", &policy(OPEN)).expect("is made"))).collect();
        makers.into_iter().map(|maker| maker.join().expect("no panic")).collect()
    });
    let mut addresses: Vec<_> =
        slots.list().expect("are listed").into_iter().map(|(_, about)| about.expect("is ready").address).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 8);
    drop(made);
    assert_eq!(world.listings(), before);
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn a_slot_whose_parts_others_removed_is_released() {
    let world = World::new();
    let slots = world.slots();
    let before = world.listings();
    let ruins: [fn(&str, &str) -> String; 4] = [
        |link, _| format!("ip link del {link}"),
        |_, file| format!("umount {file}; rm {file}"),
        |link, _| format!("nft delete table inet {link}"),
        |link, file| format!("nft flush ruleset; ip link del {link}; umount {file}"),
    ];
    for ruin in ruins {
        let slot = slots.acquire("test", &policy(OPEN)).expect("is made");
        sh(&ruin(&slot.id().link(), slot.tap().namespace.as_str()));
        slot.release().expect("is removed");
        assert_eq!(world.listings(), before);
    }
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn a_slot_in_use_without_an_owner_is_left_and_adopted() {
    let world = World::new();
    let before = world.listings();
    let slots = world.slots();
    let (slot, guest) = world.guest(&slots, OPEN);
    assert!(matches!(slots.adopt(slot.id()), Err(SlotError::NotFree(_))), "it has an owner");
    let id = slot.leave();
    let recovered = slots.recover().expect("reads");
    assert_eq!((recovered.in_use, recovered.removed), (vec![id.clone()], vec![]));
    let mut slot = slots.adopt(&id).expect("has no owner");
    assert_eq!(slot.check().expect("reads"), Err(RulesFault::NoPolicy));
    world.internet.serve("198.51.100.7:80", "public");
    slot.apply(&policy(OPEN), &[]).expect("is applied");
    assert_eq!(guest.fetch("198.51.100.7:80").expect("is open"), "public");
    let id = slot.leave();
    drop(guest);
    let recovered = slots.recover().expect("reads");
    assert_eq!((recovered.in_use, recovered.removed), (vec![], vec![id]));
    assert_eq!(world.listings(), before);
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn a_pool_hands_out_slots_that_are_ready_and_leaves_nothing() {
    let world = World::new();
    let before = world.listings();
    let pool = SlotPool::start(world.slots(), 3);
    wait_until("a full pool", || pool.ready_count() == 3);
    world.internet.serve("198.51.100.7:80", "public");
    let slot = pool.acquire(&policy(OPEN)).expect("is ready");
    let guest = Guest::on(&slot);
    assert_eq!(guest.fetch("198.51.100.7:80").expect("is open"), "public");
    wait_until("a full pool again", || pool.ready_count() == 3);
    drop((guest, slot, pool));
    assert_eq!(world.listings(), before);
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn without_nft_there_is_no_slot_and_nothing_is_left() {
    let world = World::new();
    let before = world.listings();
    let slots = world.slots();
    let path = std::env::var_os("PATH").expect("is set");
    #[expect(unsafe_code, reason = "the environment is shared with other threads")]
    // SAFETY: nextest runs each test in its own process, and no other thread of this one reads the environment.
    unsafe {
        std::env::set_var("PATH", "/none");
    }
    let error = slots.acquire("test", &policy(OPEN)).expect_err("there is no nft");
    #[expect(unsafe_code, reason = "the environment is shared with other threads")]
    // SAFETY: see above.
    unsafe {
        std::env::set_var("PATH", path);
    }
    assert_eq!(error.hint().expect("has one"), "install the package `nftables`");
    assert_eq!(world.listings(), before);
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn a_chain_of_docker_that_drops_is_reported() {
    let _world = World::new();
    assert_eq!(Slots::obstacles().expect("are listed"), []);
    sh("nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'");
    let obstacles = Slots::obstacles().expect("are listed");
    assert_eq!((obstacles[0].table.as_str(), obstacles[0].chain.as_str()), ("ip filter", "FORWARD"));
}

const DIRECTORY_VARIABLE: &str = "KILN_TEST_SLOTS";
const STEP_VARIABLE: &str = "KILN_TEST_STEP";

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn an_owner_that_is_killed_at_any_step_leaves_nothing_after_the_next_recovery() {
    let world = World::new();
    let before = world.listings();
    let slots = world.slots();
    let steps = [
        Step::Journaled,
        Step::Namespace,
        Step::Tap,
        Step::InnerRules,
        Step::Links,
        Step::Forwarding,
        Step::HostRules,
        Step::Addresses,
        Step::Ready,
        Step::LinksGone,
        Step::HostRulesGone,
        Step::NamespaceGone,
        Step::Forgotten,
    ];
    for step in steps {
        let name = serde_json::to_string(&step).expect("is text");
        let mut owner = Command::new(std::env::current_exe().expect("is there"))
            .args(["--exact", "lives::own_a_slot_and_be_killed", "--ignored"])
            .env(DIRECTORY_VARIABLE, world.config().directory.parent().expect("has one").as_str())
            .env(STEP_VARIABLE, &name)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("runs");
        let mut status = None;
        wait_until("the end of the owner", || {
            status = owner.try_wait().expect("is a child");
            status.is_some()
        });
        let signal = std::os::unix::process::ExitStatusExt::signal(&status.expect("it ended"));
        assert_eq!(signal, Some(libc::SIGKILL), "{name}");
        // Two processes may recover at once.
        std::thread::scope(|scope| {
            let other = scope.spawn(|| slots.recover().expect("reads"));
            let (one, other) = (slots.recover().expect("reads"), other.join().expect("no panic"));
            assert!(one.failed.is_empty() && other.failed.is_empty(), "{name}: {one:?} {other:?}");
            assert!(one.in_use.is_empty() && other.in_use.is_empty(), "{name}");
        });
        assert_eq!(world.listings(), before, "{name}");
        assert_eq!(slots.list().expect("are listed"), [], "{name}");
    }
}

#[test]
#[ignore = "the other half of the test above, started by it in a process of its own"]
fn own_a_slot_and_be_killed() {
    let variable = |name| std::env::var(name).expect("started by the test above");
    let directory = camino::Utf8PathBuf::from(variable(DIRECTORY_VARIABLE));
    let config = SlotsConfig {
        shared: directory.join("shared"),
        on_step: |step| {
            let last = std::env::var(STEP_VARIABLE).expect("started by the test above");
            if serde_json::to_string(&step).expect("is text") == last {
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
                    .expect("is itself");
            }
        },
        ..SlotsConfig::new(directory.join("net"))
    };
    let slots = Slots::open(config).expect("opens");
    drop(slots.acquire("test", &policy(OPEN)).expect("is made"));
    panic!("the step did not come");
}
