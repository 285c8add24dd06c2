//! Any bytes as a guest's query and as a resolver's answer: both are read or refused, no private address is opened, and
//! what is written can be read again.
#![no_main]

use std::time::Duration;

use kiln_net::names::{Judged, LASTS_MAX, LASTS_MIN, Query, QueryFault, judge, read};
use kiln_net::policy::{Class, Learned, Policy, PolicyDefault};
use libfuzzer_sys::fuzz_target;

/// The query that the answers are for.
const QUERY: &[u8] = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03org\x00\x00\x01\x00\x01";
const ID: u16 = 9;

fn policy(ipv6: bool) -> Policy {
    let allow = ["*.example.org:443", "*.example.net"].map(|rule| rule.parse().expect("a rule")).to_vec();
    let deny = vec!["ads.example.net".parse().expect("a rule")];
    Policy::new(PolicyDefault::Deny, ipv6, allow, deny).expect("a policy")
}

fn check_answer(query: &Query, message: &[u8], ipv6: bool) {
    let Ok(answer) = read(query, ID, message) else { return };
    let Judged::Answer { answer, grants, .. } = judge(query, answer, &policy(ipv6), &Learned::default()) else { return };
    for address in answer.addresses() {
        assert_eq!(Class::of(address), Class::Public, "{address} is in the answer");
    }
    for grant in &grants {
        assert_eq!(Class::of(grant.opening.address), Class::Public);
        assert_eq!(grant.opening.name, query.name);
        assert!(grant.opening.lasts >= LASTS_MIN && grant.opening.lasts <= LASTS_MAX.max(Duration::ZERO));
        assert!(!grant.rules.is_empty());
    }
    let written = query.answered(&answer, usize::from(u16::MAX));
    assert!(written.len() <= usize::from(u16::MAX));
    let again = read(query, query.id, &written).expect("what was written can be read");
    assert_eq!(again.addresses().collect::<Vec<_>>(), answer.addresses().collect::<Vec<_>>());
}

// The first byte chooses. Even: the rest is a query, and answers for it are built from the same bytes. Odd: the rest
// follows the header and the question of a right answer, or is the whole answer.
fuzz_target!(|input: &[u8]| {
    let Some((choice, rest)) = input.split_first() else { return };
    let ipv6 = choice & 2 != 0;
    let fixed = Query::read(QUERY).expect("a query");
    if choice & 1 == 0 {
        match Query::read(rest) {
            Ok(query) => {
                assert!(query.upstream(ID).len() <= rest.len());
                let mut message = query.upstream(ID);
                message[2] |= 0x80;
                check_answer(&query, &message, ipv6);
            }
            Err(QueryFault::NotAQuery | QueryFault::Answer(_)) => {}
        }
        return;
    }
    check_answer(&fixed, rest, ipv6);
    let mut message = fixed.upstream(ID);
    message[2] |= 0x80;
    message[7] = choice >> 2;
    message.extend_from_slice(rest);
    check_answer(&fixed, &message, ipv6);
});
