//! Known traps of resolvers that open addresses: each was a fault of another program.

use super::*;

const ALLOWED: &str = "example.org:443";

#[test]
fn an_answer_opens_only_the_ports_of_the_rule_that_allowed_its_name() {
    let policy = policy(PolicyDefault::Deny, &[ALLOWED, "*.example.org:80", "203.0.113.9:22"], &[]);
    let (addresses, grants) = opened(judged(&policy, "example.org", &[a("example.org", 300, [203, 0, 113, 1])]));
    assert_eq!(addresses, ["203.0.113.1"]);
    assert_eq!(grants, ["example.org 203.0.113.1 300s example.org:443"]);
}

#[test]
fn records_of_names_that_were_not_asked_for_open_nothing() {
    let policy = policy(PolicyDefault::Deny, &[ALLOWED, "bank.example.org"], &[]);
    let records = [a("example.org", 60, [203, 0, 113, 1]), a("bank.example.org", 60, [203, 0, 113, 66])];
    let (addresses, grants) = opened(judged(&policy, "example.org", &records));
    assert_eq!((addresses.len(), grants.len()), (1, 1));
}

#[test]
fn an_alias_gives_its_address_to_the_name_that_was_asked_for_alone() {
    // The alias's name has a rule with more ports. Only a query for it may use that rule.
    let policy = policy(PolicyDefault::Deny, &[ALLOWED, "edge.example.net"], &[]);
    let records = [alias("example.org", "edge.example.net"), a("edge.example.net", 60, [203, 0, 113, 1])];
    let (_, grants) = opened(judged(&policy, "example.org", &records));
    assert_eq!(grants, ["example.org 203.0.113.1 60s example.org:443"]);
}

#[test]
fn an_alias_with_a_denied_name_is_refused() {
    let policy = policy(PolicyDefault::Public, &["example.org"], &["*.ads.example"]);
    let records = [alias("example.org", "x.ads.example"), a("x.ads.example", 60, [203, 0, 113, 1])];
    assert_eq!(judged(&policy, "example.org", &records), Judged::Denied(domain("x.ads.example")));
}

#[test]
fn an_answer_never_opens_a_private_address() {
    let private =
        [[10, 0, 0, 1], [127, 0, 0, 1], [169, 254, 169, 254], [100, 64, 0, 1], [192, 168, 1, 1], [0, 0, 0, 0]];
    for default in [PolicyDefault::Deny, PolicyDefault::Public] {
        for address in private {
            let policy = policy(default, &["example.org", "*:80"], &[]);
            let records = [a("example.org", 60, address), a("example.org", 60, [203, 0, 113, 1])];
            let (addresses, grants) = opened(judged(&policy, "example.org", &records));
            assert_eq!((addresses, grants.len()), (vec!["203.0.113.1".to_owned()], 1), "{default} {address:?}");
        }
    }
}

#[test]
fn a_private_address_that_is_open_by_address_stays_in_the_answer_and_gains_no_port() {
    let policy = policy(PolicyDefault::Deny, &["example.org", "10.1.0.0/16:5432"], &[]);
    let (addresses, grants) = opened(judged(&policy, "example.org", &[a("example.org", 60, [10, 1, 2, 3])]));
    assert_eq!((addresses, grants), (vec!["10.1.2.3".to_owned()], vec![]));
}

#[test]
fn an_address_of_the_host_is_not_opened_by_a_name() {
    let mut learned = Learned::default();
    learned.set_host_addresses(["203.0.113.5".parse().expect("an address")]);
    let answer = read_reply("example.org", A, &[a("example.org", 60, [203, 0, 113, 5])]).expect("the answer is right");
    let policy = policy(PolicyDefault::Deny, &["example.org"], &[]);
    let (addresses, grants) = opened(judge(&read_query(&query("example.org", A)), answer, &policy, &learned));
    assert_eq!((addresses.len(), grants.len()), (0, 0));
}

#[test]
fn hidden_ipv4_addresses_are_judged_as_what_they_are() {
    let mut octets = [0; 16];
    octets[..4].copy_from_slice(&[0, 0x64, 0xff, 0x9b]);
    octets[12..].copy_from_slice(&[10, 0, 0, 1]);
    let mapped: [u8; 16] = "::ffff:10.0.0.1".parse::<std::net::Ipv6Addr>().expect("an address").octets();
    let rules = vec!["example.org".parse().expect("a rule")];
    let policy = Policy::new(PolicyDefault::Public, true, rules, vec![]).expect("a policy");
    for octets in [octets, mapped] {
        let record = Sent { name: wire("example.org"), kind: AAAA, ttl: 60, data: octets.to_vec() };
        let answer = read_reply("example.org", AAAA, &[record]).expect("the answer is right");
        let (addresses, grants) =
            opened(judge(&read_query(&query("example.org", AAAA)), answer, &policy, &Learned::default()));
        assert_eq!((addresses.len(), grants.len()), (0, 0));
    }
}

#[test]
fn times_are_bounded_on_both_sides() {
    let policy = policy(PolicyDefault::Deny, &["example.org"], &[]);
    let seconds = |ttl| {
        let records = [a("example.org", ttl, [203, 0, 113, 1])];
        let (_, grants) = opened(judged(&policy, "example.org", &records));
        let sent = read_reply("example.org", A, &records).expect("the answer is right").records[0].ttl;
        (grants[0].clone(), sent)
    };
    let line = |lasts: u32, sent: u32| (format!("example.org 203.0.113.1 {lasts}s example.org"), sent);
    assert_eq!(seconds(0), line(60, 0));
    assert_eq!(seconds(59), line(60, 59));
    assert_eq!(seconds(61), line(61, 61));
    assert_eq!(seconds(86_401), line(86_400, 86_400));
    assert_eq!(seconds(i32::MAX as u32), line(86_400, 86_400));
    assert_eq!(seconds(1 << 31), line(60, 60), "the high bit counts as 0");
    assert_eq!(seconds(u32::MAX), line(60, 60));
}
