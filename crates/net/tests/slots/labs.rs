//! Lab networks in the kernel.

use std::process::{Command, Stdio};

use kiln_net::policy::Policy;
use kiln_net::slots::{Networks, SlotError, SlotsConfig};

use crate::support::{Guest, World, policy, sh, wait_until};

const OPEN: &str = r#"{"default":"public"}"#;

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn members_reach_each_other_under_their_own_addresses_and_no_other_network() {
    let world = World::new();
    let networks = Networks::open(world.config()).expect("opens");
    networks.create("lab", &Policy::default()).expect("is made");
    networks.create("other", &Policy::default()).expect("is made");
    let [one, two] = ["one", "two"].map(|name| networks.join("lab", name).expect("has a place"));
    let stranger = networks.join("other", "stranger").expect("has a place");
    let [first, second, third] = [&one, &two, &stranger].map(Guest::in_lab);
    second.space.serve("0.0.0.0:80", "two");
    third.space.serve("0.0.0.0:80", "stranger");
    let at = format!("{}:80", two.about().address);
    assert_eq!(first.fetch(&at).expect("is in the network"), "two");
    // The stranger has the address of `one` in its own network.
    assert_eq!(one.about().address, stranger.about().address);
    let listed = networks.list().expect("are listed");
    let names: Vec<_> = listed[0].members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!((listed[0].name.as_str(), names), ("lab", vec!["one", "two"]));

    // Another address, or another card, does not pass the bridge.
    first.space.sh("ip addr flush dev eth0; ip addr add 10.77.0.99/24 dev eth0");
    first.space.sh(&format!("! busybox ping -c 1 -W 2 {}", two.about().address));
    first.space.sh("ip addr flush dev eth0; ip addr add 10.77.0.2/24 dev eth0");
    first.space.sh(&format!("busybox ping -c 1 -W 20 {}", two.about().address));
    first.space.sh("ip link set eth0 address 02:00:00:00:00:99");
    first.space.sh(&format!("! busybox ping -c 1 -W 2 {}", two.about().address));
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn a_network_lets_out_what_its_policy_opens() {
    let world = World::new();
    world.internet.serve("198.51.100.7:80", "public");
    let networks = Networks::open(world.config()).expect("opens");
    networks.create("lab", &Policy::default()).expect("is made");
    let member = networks.join("lab", "one").expect("has a place");
    let guest = Guest::in_lab(&member);
    guest.fetch("198.51.100.7:80").expect_err("nothing leaves the network");
    networks.set_policy("lab", &policy(OPEN)).expect("is applied");
    assert_eq!(guest.fetch("198.51.100.7:80").expect("is open"), "public");
    guest.fetch("203.0.113.5:80").expect_err("the host stays closed");
    assert_eq!(networks.list().expect("are listed")[0].policy, policy(OPEN));
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn a_network_stays_until_it_is_removed_and_is_made_again_after_a_restart() {
    let world = World::new();
    let before = world.listings();
    let networks = Networks::open(world.config()).expect("opens");
    networks.create("lab", &policy(OPEN)).expect("is made");
    assert!(matches!(networks.create("lab", &Policy::default()), Err(SlotError::Exists(_))));
    for wrong in ["", "-x", "Lab", "a/b", &"x".repeat(33)] {
        assert!(matches!(networks.create(wrong, &Policy::default()), Err(SlotError::Name(_))), "{wrong}");
    }
    assert!(matches!(networks.join("none", "one"), Err(SlotError::NoNetwork(_))));
    let member = networks.join("lab", "one").expect("has a place");
    assert!(matches!(networks.remove("lab"), Err(SlotError::InUse { members: 1, .. })));
    let file = member.tap().namespace;
    member.leave().expect("is given up");

    // As after a restart of the host: the file is there, and all else is gone.
    let link = sh("ip -o link | grep -o 'kiln-[0-9a-f]*'");
    sh(&format!("ip link del {}; nft flush ruleset; umount {file}", link.trim()));
    world.internet.serve("198.51.100.7:80", "public");
    let member = networks.join("lab", "one").expect("is made again");
    assert_eq!(Guest::in_lab(&member).fetch("198.51.100.7:80").expect("under its policy"), "public");
    drop(member);
    networks.recover().expect("recovers");
    assert_eq!(networks.list().expect("are listed").len(), 1, "networks have no owner");
    networks.remove("lab").expect("is removed");
    assert_eq!(world.listings(), before);
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn a_place_whose_owner_is_killed_is_free_again() {
    let world = World::new();
    let networks = Networks::open(world.config()).expect("opens");
    networks.create("lab", &Policy::default()).expect("is made");
    let mut owner = Command::new(std::env::current_exe().expect("is there"))
        .args(["--exact", "labs::join_a_lab_and_be_killed", "--ignored"])
        .env(DIRECTORY_VARIABLE, world.config().directory.parent().expect("has one").as_str())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("runs");
    wait_until("the end of the owner", || owner.try_wait().expect("is a child").is_some());
    let listed = &networks.list().expect("are listed")[0];
    assert_eq!(listed.members.len(), 1, "the owner was killed as a member");
    networks.recover().expect("recovers");
    assert_eq!(networks.list().expect("are listed")[0].members, []);
    let member = networks.join("lab", "two").expect("has a place");
    assert_eq!(member.about().address.octets()[3], 2);
    let devices = sh(&format!("nsenter --net={} ip -o link | grep -c tap-", member.tap().namespace));
    assert_eq!(devices.trim(), "1");
}

const DIRECTORY_VARIABLE: &str = "KILN_TEST_LABS";

#[test]
#[ignore = "the other half of the test above, started by it in a process of its own"]
fn join_a_lab_and_be_killed() {
    let directory = camino::Utf8PathBuf::from(std::env::var(DIRECTORY_VARIABLE).expect("started by the test above"));
    let config = SlotsConfig { shared: directory.join("shared"), ..SlotsConfig::new(directory.join("net")) };
    let networks = Networks::open(config).expect("opens");
    let member = networks.join("lab", "one").expect("has a place");
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).expect("is itself");
    drop(member);
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn places_are_used_again_and_end_with_the_network() {
    let world = World::new();
    let networks = Networks::open(world.config()).expect("opens");
    networks.create("lab", &Policy::default()).expect("is made");
    for _ in 0..3 {
        let members = ["one", "two", "three"].map(|name| networks.join("lab", name).expect("has a place"));
        let addresses = members.each_ref().map(|member| member.about().address.octets()[3]);
        assert_eq!(addresses, [2, 3, 4]);
    }
    networks.remove("lab").expect("nothing uses it");
}
