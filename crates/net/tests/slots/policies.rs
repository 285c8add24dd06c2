//! What a guest reaches.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::sync::Mutex;
use std::time::Duration;

use kiln_net::gate::Gate;
use kiln_net::names::{Grant, Opens};
use kiln_net::policy::{Destination, Domain, Opening, Protocol};
use kiln_net::slots::{RulesFault, Slot};

use crate::support::{
    ELSEWHERE, Guest, HOST, METADATA, OTHER, PATIENCE, PUBLIC, World, echo, policy, serve, sh, wait_until,
};

const DENY: &str = r#"{"default":"deny"}"#;
const OPEN: &str = r#"{"default":"public"}"#;
const BY_NAME: &str = r#"{"default":"deny","allow":["example.org:80"]}"#;

fn opening(lasts: Duration) -> Opening {
    Opening { name: Domain::new("example.org").expect("a name"), address: PUBLIC.parse().expect("an address"), lasts }
}

fn counted(slot: &mut Slot, name: &str) -> u64 {
    let counters = slot.counters().expect("are listed");
    counters.iter().find(|counter| counter.name == name).expect("is one").packets
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn a_guest_reaches_what_its_policy_opens_and_is_refused_the_rest_at_once() {
    let world = World::new();
    for (at, word) in [(PUBLIC, "public"), (OTHER, "other"), (ELSEWHERE, "private"), (METADATA, "metadata")] {
        world.internet.serve(&format!("{at}:80"), word);
    }
    world.internet.serve_udp(&format!("{PUBLIC}:99"));
    let slots = world.slots();
    let (mut slot, guest) = world.guest(&slots, OPEN);
    assert_eq!(guest.fetch(&format!("{PUBLIC}:80")).expect("is open"), "public");
    guest.datagram(&format!("{PUBLIC}:99")).expect("is open");
    guest.space.sh(&format!("busybox ping -c 1 -W 20 {PUBLIC}; busybox ping -c 1 -W 20 169.254.0.22"));
    for closed in [ELSEWHERE, METADATA, HOST] {
        let error = guest.fetch(&format!("{closed}:80")).expect_err("is closed");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{closed}: {error}");
    }
    assert!(counted(&mut slot, "public") >= 3 && counted(&mut slot, "never") == 1);

    slot.apply(&policy(DENY), &[]).expect("is applied");
    let error = guest.fetch(&format!("{PUBLIC}:80")).expect_err("is closed");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    guest.datagram(&format!("{PUBLIC}:99")).expect_err("is refused by a message of ICMP");

    let rules = format!(r#"{{"default":"public","allow":["{ELSEWHERE}:80"],"deny":["{OTHER}/32","*:99"]}}"#);
    slot.apply(&policy(&rules), &[]).expect("is applied");
    assert_eq!(guest.fetch(&format!("{ELSEWHERE}:80")).expect("is open"), "private");
    assert_eq!(guest.fetch(&format!("{PUBLIC}:80")).expect("is open"), "public");
    for closed in [format!("{OTHER}:80"), format!("{ELSEWHERE}:81"), format!("{METADATA}:80")] {
        guest.fetch(&closed).expect_err("is closed");
    }
    guest.datagram(&format!("{PUBLIC}:99")).expect_err("is refused");
    let denials = slot.denials().expect("are listed");
    let noted = |address: &str, protocol, port| {
        let destination = Destination { address: address.parse().expect("is one"), protocol, port };
        denials.iter().any(|denial| denial.destination() == destination)
    };
    assert!(noted(OTHER, Protocol::Tcp, 80) && noted(PUBLIC, Protocol::Udp, 99), "{denials:?}");
    let counters = slot.counters().expect("are listed");
    let through: Vec<&str> =
        counters.iter().filter(|counter| !counter.is_refusal()).map(|counter| &*counter.name).collect();
    assert_eq!(through, ["allowed", "learned", "public"]);
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn the_hosts_own_addresses_are_closed_except_to_a_rule_that_names_one() {
    let world = World::new();
    sh("ip addr add 203.0.113.77/32 dev wan0; ip addr add 10.44.0.1/24 dev wan0");
    for at in ["0.0.0.0:80", "0.0.0.0:81"] {
        serve(TcpListener::bind(at).expect("is free"), "host");
    }
    let slots = world.slots();
    let rules = r#"{"default":"public","allow":["0.0.0.0/0","10.0.0.0/8","203.0.113.77:80"]}"#;
    let (slot, guest) = world.guest(&slots, rules);
    assert_eq!(guest.fetch("203.0.113.77:80").expect("a rule names it"), "host");
    // The last one is the host's end of the slot's link.
    let about = slots.list().expect("are listed")[0].1.clone().expect("is ready");
    let gateway = std::net::Ipv4Addr::from_bits(about.address.to_bits() - 1).to_string();
    for closed in ["203.0.113.77:81", "203.0.113.5:80", "10.44.0.1:80", "169.254.0.22:80", &format!("{gateway}:80")] {
        let error = guest.fetch(closed).expect_err("is closed");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{closed}: {error}");
    }
    // It was not there when the policy was applied, and a rule opens its network.
    sh("ip addr add 10.55.0.1/24 dev wan0; ip addr add 203.0.113.78/32 dev wan0");
    for closed in ["10.55.0.1:80", "203.0.113.78:80"] {
        guest.fetch(closed).expect_err("is closed");
    }
    drop((guest, slot));
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn another_sender_and_ipv6_do_not_leave_the_slot() {
    let world = World::new();
    world.internet.serve_udp(&format!("{PUBLIC}:99"));
    let (mut slot, guest) = world.guest(&world.slots(), OPEN);
    guest.space.sh("ip addr add 192.0.2.77/32 dev eth0; ip -6 addr add 2001:db8::2/64 dev eth0 nodad");
    guest.space.sh("ip -6 route add default dev eth0 via fe80::1 || true; ip -6 neigh add fe80::1 lladdr 02:6b:69:6c:6e:16 dev eth0 || true");
    let received = guest.space.run(|| {
        let socket = std::net::UdpSocket::bind("192.0.2.77:0").expect("is its own");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("is set");
        socket.send_to(b"ping", format!("{PUBLIC}:99")).expect("is sent");
        socket.recv(&mut [0; 16])
    });
    received.expect_err("the sender is not the guest's address");
    assert_eq!(counted(&mut slot, "spoofed"), 1);
    let inside = format!("--net={}", slot.tap().namespace);
    assert_eq!(sh(&format!("nsenter {inside} ip -6 addr")), "", "IPv6 is off");
    guest.datagram(&format!("{PUBLIC}:99")).expect("with its own address it is open");
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn a_learned_address_opens_its_port_only_and_its_end_keeps_the_connection() {
    let world = World::new();
    world.internet.serve(&format!("{PUBLIC}:80"), "public");
    world.internet.serve(&format!("{PUBLIC}:81"), "other port");
    let (mut slot, guest) = world.guest(&world.slots(), BY_NAME);
    let at = format!("{PUBLIC}:80");
    guest.fetch(&at).expect_err("nothing was learned");
    slot.open(&[opening(Duration::from_secs(2))]).expect("opens");
    let (mut stream, word) = guest.connect(&at).expect("was learned");
    assert_eq!(word, "public");
    guest.fetch(&format!("{PUBLIC}:81")).expect_err("another port");
    guest.fetch(&format!("{OTHER}:80")).expect_err("another address");
    wait_until("the end of the opening", || guest.fetch(&at).is_err());
    echo(&mut stream).expect("the connection goes on");
    assert!(slot.flows().expect("are listed").contains(&PUBLIC.parse().expect("an address")));

    // A second answer makes it last longer, and a shorter one does not shorten it.
    slot.open(&[opening(Duration::from_secs(1))]).expect("opens");
    slot.open(&[opening(Duration::from_secs(3600)), opening(Duration::from_secs(1))]).expect("opens");
    slot.open(&[opening(Duration::from_secs(1))]).expect("opens");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(guest.fetch(&at).expect("lasts"), "public");
    assert_eq!(slot.check().expect("reads"), Ok(()), "openings are no change of the rules");

    // An opening whose name has no rule any more is not carried over.
    slot.apply(&policy(r#"{"default":"deny","allow":["example.net:80"]}"#), &[opening(PATIENCE)]).expect("applies");
    guest.fetch(&at).expect_err("its name has no rule");
    slot.apply(&policy(BY_NAME), &[opening(PATIENCE)]).expect("applies");
    assert_eq!(guest.fetch(&at).expect("is carried over"), "public");
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn an_opening_that_the_resolver_made_lasts_while_it_is_used() {
    let world = World::new();
    world.internet.serve(&format!("{PUBLIC}:80"), "public");
    let (slot, guest) = world.guest(&world.slots(), BY_NAME);
    let at = format!("{PUBLIC}:80");
    let gate = Gate::new(policy(BY_NAME));
    let slot = Mutex::new(slot);
    let grant = Grant { opening: opening(Duration::from_secs(2)), rules: policy(BY_NAME).allow().to_vec() };
    gate.learn([&grant.opening]);
    Opens::open(&slot, &[grant]).expect("opens");
    let (mut stream, _) = guest.connect(&at).expect("is open");
    let mut slot = slot.into_inner().expect("no panic");
    slot.renew(&gate).expect("is renewed");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(guest.fetch(&at).expect("is in use"), "public");
    echo(&mut stream).expect("goes on");
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn a_new_policy_resets_the_flows_it_closes_and_keeps_the_others() {
    let world = World::new();
    world.internet.serve(&format!("{PUBLIC}:80"), "public");
    world.internet.serve(&format!("{OTHER}:80"), "other");
    let (mut slot, guest) = world.guest(&world.slots(), OPEN);
    let (mut kept, _) = guest.connect(&format!("{PUBLIC}:80")).expect("is open");
    let (mut asking, _) = guest.connect(&format!("{OTHER}:80")).expect("is open");
    slot.apply(&policy(&format!(r#"{{"default":"public","deny":["{OTHER}"]}}"#)), &[]).expect("is applied");
    let error = echo(&mut asking).expect_err("is closed");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    echo(&mut kept).expect("is open under both");
    assert_eq!(slot.check().expect("reads"), Ok(()));
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn a_guest_that_only_reads_learns_the_reset_from_the_next_segment() {
    let world = World::new();
    let listener = world.internet.run(|| TcpListener::bind(format!("{PUBLIC}:80")).expect("is free"));
    let (mut slot, guest) = world.guest(&world.slots(), OPEN);
    let reader = guest
        .space
        .run(|| std::net::TcpStream::connect_timeout(&format!("{PUBLIC}:80").parse().expect("an address"), PATIENCE))
        .expect("is open");
    let (mut peer, _) = listener.accept().expect("is connected");
    slot.apply(&policy(DENY), &[]).expect("is applied");
    std::io::Write::write_all(&mut peer, b"more").expect("is sent");
    reader.set_read_timeout(Some(PATIENCE)).expect("is set");
    let error = std::io::Read::read(&mut (&reader), &mut [0; 16]).expect_err("is closed");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    // The peer's next segment, or its repetition, is answered with a reset too.
    wait_until("the end of the peer", || std::io::Write::write_all(&mut peer, b"more").is_err());
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn rules_that_another_program_flushed_or_changed_are_found_and_applied_again() {
    let world = World::new();
    let (mut slot, _guest) = world.guest(&world.slots(), OPEN);
    let inside = format!("nsenter --net={}", slot.tap().namespace);
    let link = slot.id().link();
    let attacks = [
        (format!("{inside} nft flush ruleset"), RulesFault::Removed),
        (format!("{inside} nft insert rule inet kiln forward accept"), RulesFault::Changed),
        (format!("{inside} nft flush chain inet kiln asked"), RulesFault::Changed),
        (format!("{inside} nft delete element inet kiln private '{{ 10.0.0.0/8 }}'"), RulesFault::Changed),
        (format!("nft delete table inet {link}"), RulesFault::HostRemoved),
        (format!("nft flush chain inet {link} local"), RulesFault::HostChanged),
    ];
    for (attack, fault) in attacks {
        assert_eq!(slot.check().expect("reads"), Ok(()));
        sh(&attack);
        assert_eq!(slot.check().expect("reads"), Err(fault), "{attack}");
        slot.apply(&policy(OPEN), &[]).expect("is applied");
    }
    assert_eq!(slot.check().expect("reads"), Ok(()));
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn a_closed_slot_passes_nothing_until_a_policy_is_applied() {
    let world = World::new();
    world.internet.serve(&format!("{PUBLIC}:80"), "public");
    let slots = world.slots();
    let mut slot = slots.prepare("test").expect("is made");
    let inside = format!("nsenter --net={}", slot.tap().namespace);
    let is_up = || sh(&format!("{inside} ip link show tap0")).contains(",UP");
    assert!(!is_up(), "no policy yet");
    assert_eq!(slot.check().expect("reads"), Err(RulesFault::NoPolicy));
    slot.apply(&policy(OPEN), &[]).expect("is applied");
    assert!(is_up());
    let guest = Guest::on(&slot);
    slot.close().expect("is closed");
    assert!(!is_up());
    slot.apply(&policy(OPEN), &[]).expect("is applied");
    assert_eq!(guest.fetch(&format!("{PUBLIC}:80")).expect("is open"), "public");
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn ten_thousand_networks_are_applied_in_one_transaction() {
    let world = World::new();
    world.internet.serve(&format!("{PUBLIC}:443"), "public");
    let (mut slot, guest) = world.guest(&world.slots(), DENY);
    let many = |index: u32| format!("\"{}/30:443\"", std::net::Ipv4Addr::from_bits((11 << 24) + index * 8));
    let mut rules: Vec<String> = (0..10_000).map(many).collect();
    rules.push(format!("\"{PUBLIC}:443\""));
    slot.apply(&policy(&format!(r#"{{"default":"deny","allow":[{}]}}"#, rules.join(","))), &[]).expect("is applied");
    assert_eq!(guest.fetch(&format!("{PUBLIC}:443")).expect("is open"), "public");
    assert_eq!(slot.check().expect("reads"), Ok(()));
    let listed = sh(&format!("nsenter --net={} nft list ruleset | grep -c '/30'", slot.tap().namespace));
    assert!(listed.trim().parse::<u32>().expect("a number") >= 5000, "{listed}");
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn segments_fit_a_narrow_uplink_and_slots_do_not_reach_each_other() {
    let world = World::new();
    world.internet.serve(&format!("{PUBLIC}:80"), "public");
    let slots = world.slots();
    let (one, first) = world.guest(&slots, OPEN);
    let (other, second) = world.guest(&slots, r#"{"default":"public","allow":["10.0.0.0/8"]}"#);
    let (stream, _) = first.connect(&format!("{PUBLIC}:80")).expect("is open");
    let segment = first.space.sh("ss -tino dst 198.51.100.7");
    drop(stream);
    assert!(segment.contains("mss:1348") || segment.contains("mss:1360"), "{segment}");
    let addresses: Vec<_> =
        slots.list().expect("are listed").into_iter().map(|(_, about)| about.expect("is ready").address).collect();
    assert_eq!(addresses.len(), 2);
    for address in addresses {
        second.fetch(&format!("{address}:80")).expect_err("slots are apart");
    }
    drop((one, other));
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn the_resolver_listens_at_the_gateway_and_a_published_port_reaches_the_guest() {
    let world = World::new();
    let (mut slot, guest) = world.guest(&world.slots(), DENY);
    let (datagrams, listener) = slot.resolver_sockets().expect("are bound");
    serve(listener, "names");
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((bytes, from)) = datagrams.recv_from(&mut buffer) {
            drop(datagrams.send_to(&buffer[..bytes], from));
        }
    });
    assert_eq!(guest.fetch("169.254.0.22:53").expect("is open"), "names");
    guest.datagram("169.254.0.22:53").expect("is open");
    guest.fetch("169.254.0.22:54").expect_err("is closed");
    guest.space.serve("0.0.0.0:8080", "guest");
    let mut stream = slot.connect_to_guest(8080, PATIENCE).expect("is connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("is set");
    let mut word = [0; 5];
    std::io::Read::read_exact(&mut stream, &mut word).expect("reads");
    assert_eq!(&word, b"guest");
    echo(&mut stream).expect("both ways");
    slot.connect_to_guest(8081, PATIENCE).expect_err("nothing listens");
}
