//! Claims about policies, and the texts that people read.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use insta::assert_snapshot;
use proptest::prelude::*;

use super::*;

fn rules(texts: &[&str]) -> Vec<Rule> {
    texts.iter().map(|text| text.parse().expect("the rule is right")).collect()
}

fn policy(default: PolicyDefault, allow: &[&str], deny: &[&str]) -> Policy {
    Policy::new(default, false, rules(allow), rules(deny)).expect("the rules make a policy")
}

/// `tcp/192.0.2.1:443`, `udp/[::1]:53` or `icmp/192.0.2.1`.
fn destination(text: &str) -> Destination {
    let (protocol, rest) = text.split_once('/').expect("a protocol comes first");
    match protocol {
        "icmp" => Destination::echo(rest.parse().expect("an address")),
        "udp" => Destination::udp(rest.parse().expect("an address and a port")),
        _ => Destination::tcp(rest.parse().expect("an address and a port")),
    }
}

fn name(text: &str) -> Domain {
    Domain::new(text).expect("a name")
}

fn learned(name: &str, address: &str, now: Instant) -> Learned {
    let mut learned = Learned::default();
    learned.learn(&opening(name, address.parse().expect("an address"), 60), now);
    learned
}

fn opening(text: &str, address: IpAddr, seconds: u64) -> Opening {
    Opening { name: name(text), address, lasts: Duration::from_secs(seconds) }
}

/// A line for each destination.
fn table(policy: &Policy, learned: &Learned, destinations: &[&str]) -> String {
    let now = Instant::now();
    let line = |text: &&str| {
        let decision = policy.decide(&destination(text), learned, now);
        format!("{text:<34} {}: {}", decision.verdict, decision.by)
    };
    destinations.iter().map(line).collect::<Vec<_>>().join("\n")
}

const PLACES: [&str; 24] = [
    "tcp/203.0.113.1:443",
    "udp/203.0.113.1:443",
    "icmp/203.0.113.1",
    "udp/203.0.113.1:53",
    "tcp/203.0.113.1:853",
    "tcp/10.1.2.3:5432",
    "tcp/10.2.0.1:5432",
    "tcp/192.168.1.1:80",
    "tcp/100.64.0.1:80",
    "tcp/127.0.0.1:22",
    "tcp/0.0.0.0:22",
    "tcp/169.254.169.254:80",
    "tcp/100.100.100.200:80",
    "tcp/169.254.0.22:22",
    "udp/169.254.0.22:53",
    "icmp/169.254.0.22",
    "udp/224.0.0.251:5353",
    "udp/255.255.255.255:67",
    "tcp/[2001:db8::1]:443",
    "tcp/[::1]:22",
    "tcp/[fe80::1]:22",
    "tcp/[::ffff:10.1.2.3]:5432",
    "tcp/[64:ff9b::a01:203]:5432",
    "tcp/[2002:a01:203::1]:5432",
];

#[test]
fn without_a_policy_only_the_gateway_is_open() {
    assert_snapshot!(table(&Policy::default(), &Learned::default(), &PLACES));
}

#[test]
fn public_has_public_addresses_and_nothing_else() {
    assert_snapshot!(table(&policy(PolicyDefault::Public, &[], &[]), &Learned::default(), &PLACES));
}

#[test]
fn a_rule_for_a_private_network_opens_it_and_nothing_else() {
    let policy = policy(PolicyDefault::Public, &["10.1.0.0/16:5432"], &[]);
    assert_snapshot!(table(&policy, &Learned::default(), &PLACES));
}

#[test]
fn wide_rules_open_only_public_addresses() {
    for wide in [&["0.0.0.0/0", "::/0"][..], &["*"], &["8.0.0.0/5", "0.0.0.0/1"]] {
        let policy = Policy::new(PolicyDefault::Deny, true, rules(wide), vec![]).expect("the rules make a policy");
        for place in ["tcp/10.1.2.3:5432", "tcp/127.0.0.1:22", "tcp/169.254.169.254:80", "tcp/[fd00::1]:22"] {
            let decision = policy.decide(&destination(place), &Learned::default(), Instant::now());
            assert!(!decision.is_allowed(), "{wide:?} opens {place}: {}", decision.by);
        }
    }
}

#[test]
fn a_deny_rule_wins_over_every_allow_rule() {
    let allow = ["10.1.2.3", "10.1.2.3:5432", "*:443", "203.0.113.1", "a.example.org"];
    let policy = policy(PolicyDefault::Public, &allow, &["10.0.0.0/8", "203.0.113.0/24:443", "*.example.org", "udp/*"]);
    let learned = learned("a.example.org", "198.51.100.1", Instant::now());
    let places = ["tcp/10.1.2.3:5432", "tcp/203.0.113.1:443", "tcp/203.0.113.1:80", "udp/203.0.113.1:80"];
    assert_snapshot!(table(&policy, &learned, &places));
    assert_eq!(
        policy.decide_name(&name("a.example.org")),
        NameDecision::Denied { rule: "*.example.org".parse().expect("a rule") }
    );
}

#[test]
fn a_star_does_not_come_before_a_deny_rule() {
    let policy = policy(PolicyDefault::Deny, &["*"], &["203.0.113.7", "bad.example.org"]);
    let decide = |text| policy.decide(&destination(text), &Learned::default(), Instant::now()).is_allowed();
    assert!(decide("tcp/203.0.113.6:1"));
    assert!(!decide("tcp/203.0.113.7:1"));
    assert!(matches!(policy.decide_name(&name("bad.example.org")), NameDecision::Denied { .. }));
    assert!(matches!(policy.decide_name(&name("good.example.org")), NameDecision::Allowed { .. }));
}

#[test]
fn a_learned_address_is_open_on_the_ports_of_its_rule_alone() {
    let policy = policy(PolicyDefault::Deny, &["example.org:443"], &[]);
    let learned = learned("example.org", "203.0.113.1", Instant::now());
    let places =
        ["tcp/203.0.113.1:443", "udp/203.0.113.1:443", "tcp/203.0.113.1:22", "icmp/203.0.113.1", "tcp/203.0.113.2:443"];
    assert_snapshot!(table(&policy, &learned, &places));
}

#[test]
fn a_learned_private_address_stays_closed() {
    let policy = policy(PolicyDefault::Deny, &["example.org"], &[]);
    for address in
        ["10.0.0.1", "127.0.0.1", "169.254.169.254", "100.64.0.1", "::ffff:10.0.0.1", "fd00::1", "64:ff9b::a00:1"]
    {
        let learned = learned("example.org", address, Instant::now());
        let address: IpAddr = address.parse().expect("an address");
        let decision = policy.decide(&Destination::tcp(SocketAddr::new(address, 443)), &learned, Instant::now());
        assert!(!decision.is_allowed(), "{address}: {}", decision.by);
    }
}

#[test]
fn a_learned_address_closes_with_the_rule_that_allowed_it() {
    let before = policy(PolicyDefault::Deny, &["example.org:443"], &[]);
    let now = Instant::now();
    let learned = learned("example.org", "203.0.113.1", now);
    let change = Change { remove: rules(&["example.org:443"]), ..Change::default() };
    let after = before.changed(&change).expect("the change is right");
    let place = destination("tcp/203.0.113.1:443");
    assert!(before.decide(&place, &learned, now).is_allowed());
    assert_eq!(after.decide(&place, &learned, now).by, DecidedBy::Default(PolicyDefault::Deny));
}

#[test]
fn an_opening_ends_and_use_makes_it_last_longer_but_not_forever() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let address: IpAddr = "203.0.113.1".parse().expect("an address");
    let mut learned = learned("example.org", "203.0.113.1", start);
    assert_eq!(learned.names(address, at(59)).count(), 1);
    assert_eq!(learned.names(address, at(60)).count(), 0);
    let renew = |learned: &mut Learned, second| {
        learned.renew(address, Duration::from_secs(60), Duration::from_secs(100), at(second));
    };
    renew(&mut learned, 30);
    assert_eq!(learned.names(address, at(89)).count(), 1);
    renew(&mut learned, 80);
    assert_eq!(learned.names(address, at(99)).count(), 1);
    assert_eq!(learned.names(address, at(100)).count(), 0, "longer than its bound after the answer");
    renew(&mut learned, 101);
    assert_eq!(learned.names(address, at(101)).count(), 0, "use opened it again");
}

#[test]
fn learned_openings_are_bounded() {
    let now = Instant::now();
    let mut learned = Learned::default();
    for number in 0..20_000_u32 {
        let address = IpAddr::from((0xcb00_7100 + number).to_be_bytes());
        learned.learn(&opening("example.org", address, 60 + u64::from(number)), now);
    }
    let known = learned.addresses(&name("example.org"), now);
    assert!(known.len() <= LEARNED_ADDRESSES_MAX);
    let last = IpAddr::from((0xcb00_7100 + 19_999_u32).to_be_bytes());
    assert!(known.iter().any(|(address, _)| *address == last), "the newest was forgotten");
    for number in 0..100 {
        learned.learn(&opening(&format!("n{number}.example.org"), last, 60), now);
    }
    assert_eq!(learned.names(last, now).count(), LEARNED_NAMES_MAX);
}

#[test]
fn openings_are_listed_with_the_time_that_is_left() {
    let now = Instant::now();
    let mut learned = Learned::default();
    let address = |last| IpAddr::from([203, 0, 113, last]);
    learned.learn(&opening("example.org", address(1), 60), now);
    learned.learn(&opening("example.org", address(2), 120), now);
    assert_eq!(learned.openings(now + Duration::from_secs(60)), [opening("example.org", address(2), 60)]);
    assert!(learned.openings(now + Duration::from_secs(120)).is_empty());
}

#[test]
fn names_are_resolved_only_if_something_can_open_for_them() {
    let decide = |default, allow: &[&str], text| policy(default, allow, &["ads.example.net"]).decide_name(&name(text));
    let rule = |text: &str| vec![text.parse().expect("a rule")];
    let deny = PolicyDefault::Deny;
    assert_eq!(decide(deny, &[], "example.org"), NameDecision::NoRule);
    assert_eq!(decide(deny, &["203.0.113.0/24"], "example.org"), NameDecision::NoRule);
    assert_eq!(decide(deny, &["*.example.org"], "example.org"), NameDecision::NoRule);
    assert_eq!(decide(deny, &["*.example.org"], "notexample.org"), NameDecision::NoRule);
    assert_eq!(
        decide(deny, &["*.example.org:1"], "A.b.example.org."),
        NameDecision::Allowed { rules: rule("*.example.org:1") }
    );
    assert_eq!(decide(deny, &["*:443"], "example.org"), NameDecision::Allowed { rules: vec![] });
    assert_eq!(decide(PolicyDefault::Public, &[], "example.org"), NameDecision::Allowed { rules: vec![] });
    assert!(matches!(decide(PolicyDefault::Public, &[], "ads.example.net"), NameDecision::Denied { .. }));
}

#[test]
fn resolvers_elsewhere_are_closed_if_rules_are_by_name() {
    let places = ["udp/203.0.113.1:53", "tcp/203.0.113.1:853", "udp/198.51.100.1:53", "tcp/203.0.113.1:443"];
    let policy = policy(PolicyDefault::Public, &["udp/198.51.100.1:53"], &["ads.example.net"]);
    assert_snapshot!(table(&policy, &Learned::default(), &places));
}

#[test]
fn the_hosts_own_addresses_are_not_public() {
    let mut learned = Learned::default();
    learned.set_host_addresses(["203.0.113.5".parse().expect("an address")]);
    let place = ["tcp/203.0.113.5:22", "tcp/203.0.113.6:22"];
    assert_snapshot!(table(&policy(PolicyDefault::Public, &["203.0.113.0/24:22"], &[]), &learned, &place));
    let named = policy(PolicyDefault::Deny, &["203.0.113.5:22"], &[]);
    assert!(named.decide(&destination(place[0]), &learned, Instant::now()).is_allowed());
}

#[test]
fn ipv6_is_open_only_if_it_was_asked_for() {
    let places = [
        "tcp/[2001:db8::1]:443",
        "tcp/[2001:db8:1::1]:443",
        "tcp/[64:ff9b::cb00:7101]:443",
        "tcp/[::ffff:203.0.113.1]:443",
    ];
    let decide = |ipv6, allow: &[&str]| {
        let policy = Policy::new(PolicyDefault::Public, ipv6, rules(allow), vec![]).expect("the rules make a policy");
        table(&policy, &Learned::default(), &places)
    };
    let texts = [decide(false, &["203.0.113.1:443"]), decide(false, &["[2001:db8:1::/48]:443"]), decide(true, &[])];
    assert_snapshot!(texts.join("\n\n"));
}

#[test]
fn rules_have_one_form() {
    let texts = [
        "Example.ORG.",
        "*.example.org:443",
        "udp/192.0.2.1:53",
        "10.1.2.3/16:5432",
        "192.0.2.1/32",
        "tcp/*:25",
        "[2001:db8::1]:443",
        "2001:db8::1",
        "2001:db8:0:0::/32",
        "[2001:db8::/32]",
        "[2001:db8::/32]:8000-8080",
        "icmp/192.0.2.1",
        "[::ffff:10.1.2.3]:1",
        "64:ff9b::a00:0/104",
        "_srv.example.org",
        "db:5432-5432",
        "tcp:53",
    ];
    let line = |text: &&str| format!("{text:<28} {}", rules(&[text])[0]);
    assert_snapshot!(texts.iter().map(line).collect::<Vec<_>>().join("\n"));
}

#[test]
fn errors_of_rules_read_like_this() {
    let long = "a".repeat(301);
    let label = format!("{}.example.org", "a".repeat(64));
    let texts = [
        "",
        "udp/",
        ":443",
        &long,
        "https://example.org/simple/",
        "192.0.2.1:53/udp",
        "example.org:http",
        "example.org:0",
        "example.org:80,443",
        "example.org:70000",
        "example.org:+80",
        "example.org:90-80",
        "icmp/192.0.2.1:1",
        "10.0.0.0/33",
        "10.0.0.0/x",
        "2001:db8::/129",
        "[192.0.2.1]:80",
        "[2001:db8::1",
        "[2001:db8::1]443",
        "2001:db8::1:x:443",
        "a..example.org",
        "*example.org",
        "a.*.example.org",
        "bücher.example.org",
        "a b.example.org",
        "10.1.2",
        "1.2.3.4.5:80",
        "256.0.0.1",
        &label,
        "sctp/192.0.2.1",
        "example.org/24",
        "*.*",
    ];
    let line = |text: &&str| {
        let error = text.parse::<Rule>().expect_err("the rule is wrong");
        format!("{error}\n    hint: {}", error.hint().unwrap_or_default())
    };
    assert_snapshot!(texts.iter().map(line).collect::<Vec<_>>().join("\n"));
}

#[test]
fn errors_of_policies_read_like_this() {
    let allow = |text: &str| Policy::new(PolicyDefault::Deny, false, rules(&[text]), vec![]);
    let deny = |text: &str| Policy::new(PolicyDefault::Deny, false, vec![], rules(&[text]));
    let many = (0..=RULES_MAX).map(|number| format!("n{number}.example.org").parse().expect("a rule")).collect();
    let results = [
        allow("127.0.0.1:8080"),
        allow("[::1]:8080"),
        allow("169.254.169.254"),
        allow("169.254.0.0/16"),
        allow("224.0.0.0/4"),
        allow("64:ff9b::7f00:1"),
        allow("100.100.100.200:80"),
        deny("example.org:25"),
        deny("udp/*.example.org"),
        Policy::new(PolicyDefault::Deny, false, many, vec![]),
    ];
    let line = |result: Result<Policy, PolicyError>| {
        let error = result.expect_err("the rules make no policy");
        error.hint().map_or_else(|| error.to_string(), |hint| format!("{error}\n    hint: {hint}"))
    };
    assert_snapshot!(results.map(line).join("\n"));
}

#[test]
fn a_policy_keeps_its_form_in_json() {
    let text = r#"{"default":"public","ipv6":true,"allow":["example.org:443"],"deny":["*:25","10.0.0.0/8"]}"#;
    let policy: Policy = serde_json::from_str(text).expect("the policy is right");
    assert_eq!(serde_json::to_string(&policy).expect("it is written"), text);
    assert_eq!(serde_json::from_str::<Policy>("{}").expect("all fields may be absent"), Policy::default());
    let wrong = [r#"{"default":"allow"}"#, r#"{"alow":[]}"#, r#"{"allow":["127.0.0.1"]}"#, r#"{"allow":["a b"]}"#];
    let errors = wrong.map(|text| serde_json::from_str::<Policy>(text).expect_err("it is wrong").to_string());
    assert_snapshot!(errors.join("\n"));
}

#[test]
fn changes_compose() {
    let base = policy(PolicyDefault::Public, &["10.0.0.0/8"], &["*:25"]);
    let change = Change { allow: rules(&["example.org", "10.0.0.0/8"]), ..Change::default() };
    let change = Change { default: Some(PolicyDefault::Deny), remove: rules(&["*:25"]), ..change };
    let changed = base.changed(&change).expect("the change is right");
    assert_eq!(changed, policy(PolicyDefault::Deny, &["10.0.0.0/8", "example.org"], &[]));
    assert_eq!(changed.changed(&Change::default()).expect("nothing changes"), changed);
}

#[test]
fn ten_thousand_names_cost_as_many_look_ups_as_ten() {
    let names = (0..10_000).map(|number| format!("*.n{number}.example.org:443").parse().expect("a rule")).collect();
    let networks = (0..10_000_u32).map(|number| Rule {
        target: IpAddr::from((0x1000_0000 + number * 7).to_be_bytes()).into(),
        ports: Ports::All,
        protocols: Protocols::All,
    });
    let policy = Policy::new(PolicyDefault::Deny, false, names, networks.collect()).expect("the rules make a policy");
    // A list that is read from its start takes 10^9 steps here.
    for number in 0..100_000 {
        let name = name(&format!("www.n{}.example.org", number % 20_000));
        let is_allowed = matches!(policy.decide_name(&name), NameDecision::Allowed { .. });
        assert_eq!(is_allowed, number % 20_000 < 10_000);
        let decision = policy.decide(&destination("tcp/203.0.113.1:443"), &Learned::default(), Instant::now());
        assert!(!decision.is_allowed());
    }
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    let near = prop::sample::select(BLOCKS.to_vec()).prop_flat_map(|block| {
        (Just(block.cidr), any::<u128>()).prop_map(|(cidr, noise)| match cidr.address() {
            IpAddr::V4(address) => IpAddr::from(
                (address.to_bits() | (noise as u32).checked_shr(cidr.prefix().into()).unwrap_or(0)).to_be_bytes(),
            ),
            IpAddr::V6(address) => {
                IpAddr::from((address.to_bits() | noise.checked_shr(cidr.prefix().into()).unwrap_or(0)).to_be_bytes())
            }
        })
    });
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from), near]
}

proptest! {
    #[test]
    fn a_rule_is_read_back_from_its_text(
        address in any_address(), prefix in 0..=128_u8, ports in any::<Option<(u16, u16)>>(), udp in any::<bool>(),
    ) {
        let Some(cidr) = Cidr::new(address, prefix) else { return Ok(()) };
        let ports = ports.map_or(Ports::All, |(a, b)| Ports::Range(a.min(b).max(1), a.max(b).max(1)));
        let protocols = if udp { Protocols::One(Protocol::Udp) } else { Protocols::All };
        let rule = Rule { target: Target::Network(cidr), ports, protocols };
        let read: Rule = rule.to_string().parse().expect("a rule's text is a rule");
        prop_assert_eq!(read.to_string().parse::<Rule>().expect("a rule"), read);
    }

    #[test]
    fn any_text_is_a_rule_or_an_error(text in "\\PC{0,40}|[a-z0-9.:/*\\[\\]-]{0,40}") {
        match text.parse::<Rule>() {
            Ok(rule) => prop_assert_eq!(rule.to_string().parse::<Rule>().expect("a rule"), rule),
            Err(error) => prop_assert!(error.hint().is_some()),
        }
    }

    #[test]
    fn no_rules_open_what_never_opens(address in any_address(), port in 1..=u16::MAX) {
        let all = ["*", "0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1", "2000::/2", "example.org"];
        let policy = Policy::new(PolicyDefault::Public, true, rules(&all), vec![]).expect("the rules make a policy");
        let now = Instant::now();
        let mut learned = Learned::default();
        learned.learn(&opening("example.org", address, 60), now);
        let decision = policy.decide(&Destination::tcp(SocketAddr::new(address, port)), &learned, now);
        let is_resolver = address == IpAddr::V4(crate::inner::GATEWAY) && port == 53;
        prop_assert_eq!(decision.is_allowed(), is_resolver || Class::of(address) == Class::Public, "{}", decision.by);
        prop_assert!(!policy.may_reach(address, &learned) || Class::of(address) == Class::Public);
    }
}
