//! Answers of resolvers.

use proptest::prelude::*;

use super::*;

#[test]
fn an_answer_for_another_query_is_not_ours() {
    let query = read_query(&query("example.org", A));
    let records = [a("example.org", 60, [203, 0, 113, 1])];
    let right = reply(&query.upstream(9), 0, &records);
    assert!(read(&query, 9, &right).is_ok());
    assert_eq!(read(&query, 10, &right), Err(AnswerFault::NotOurs), "another number");
    let other = reply(&read_query(&super::query("example.com", A)).upstream(9), 0, &records);
    assert_eq!(read(&query, 9, &other), Err(AnswerFault::NotOurs), "another question");
    let kind = reply(&read_query(&super::query("example.org", AAAA)).upstream(9), 0, &records);
    assert_eq!(read(&query, 9, &kind), Err(AnswerFault::NotOurs), "another type");
    assert_eq!(read(&query, 9, &query.upstream(9)), Err(AnswerFault::NotOurs), "the query itself");
    assert_eq!(read(&query, 9, &[]), Err(AnswerFault::NotOurs));
}

#[test]
fn codes_and_truncation_are_seen() {
    let query = read_query(&query("example.org", A));
    let answer = |flags: u16| {
        let mut bytes = reply(&query.upstream(9), 0, &[]);
        bytes[2..4].copy_from_slice(&flags.to_be_bytes());
        read(&query, 9, &bytes)
    };
    assert_eq!(answer(0x8183), Ok(Answer { no_such_name: true, ..Answer::default() }));
    assert_eq!(answer(0x8182), Err(AnswerFault::Failed));
    assert_eq!(answer(0x8380), Err(AnswerFault::Truncated));
}

#[test]
fn aliases_are_followed_in_any_order() {
    let records = [
        a("c.example.net", 60, [203, 0, 113, 1]),
        alias("b.example.net", "c.example.net"),
        alias("example.org", "b.example.net"),
    ];
    let answer = read_reply("example.org", A, &records).expect("the answer is right");
    assert_eq!((answer.aliases.len(), answer.addresses().count()), (2, 1));
}

#[test]
fn aliases_that_never_end_are_refused() {
    let circle = [alias("example.org", "a.example.org"), alias("a.example.org", "example.org")];
    assert_eq!(read_reply("example.org", A, &circle), Err(AnswerFault::Malformed));
    let mut long: Vec<Sent> =
        (0..30).map(|n| alias(&format!("n{n}.example.org"), &format!("n{}.example.org", n + 1))).collect();
    long.push(a("n30.example.org", 60, [203, 0, 113, 1]));
    assert_eq!(read_reply("n0.example.org", A, &long), Err(AnswerFault::Malformed));
    assert!(read_reply("n20.example.org", A, &long).is_ok());
}

#[test]
fn data_of_a_wrong_form_is_refused() {
    let wrong = |kind, data: &[u8]| {
        let record = Sent { name: wire("example.org"), kind, ttl: 60, data: data.to_vec() };
        read_reply("example.org", A, &[record]) == Err(AnswerFault::Malformed)
    };
    assert!(wrong(A, &[1, 2, 3]));
    assert!(wrong(AAAA, &[0; 15]));
    assert!(wrong(CNAME, &[1, b'a']));
    assert!(wrong(CNAME, &[1, b'a', 0, 0]));
    assert!(wrong(15, &[0, 1]));
    assert!(wrong(6, &[0, 0, 1]));
}

#[test]
fn names_in_data_lose_their_pointers() {
    // The name of the question is at offset 12.
    let record = Sent { name: vec![0xc0, 12], kind: 15, ttl: 60, data: vec![0, 10, 1, b'm', 0xc0, 12] };
    let answer = read_reply("example.org", 15, &[record]).expect("the answer is right");
    let data = [&[0, 10], wire("m.example.org").as_slice()].concat();
    assert_eq!(answer.records[0].data, data);
    let written = read_query(&query("example.org", 15)).answer(&answer, None, 512);
    assert_eq!(written[written.len() - data.len()..], data);
}

#[test]
fn an_answer_that_does_not_fit_is_truncated_to_nothing() {
    let records: Vec<Sent> = (0..60).map(|number| a("example.org", 60, [203, 0, 113, number])).collect();
    let answer = read_reply("example.org", A, &records).expect("the answer is right");
    let query = read_query(&query("example.org", A));
    let (small, large) = (query.answer(&answer, None, 512), query.answer(&answer, None, 65_535));
    assert_eq!((small.len(), small[2] & 2, received(&small).1), (29, 2, 0));
    assert_eq!((large[2] & 2, received(&large).2.len()), (0, 60));
}

#[test]
fn an_answer_of_64_kib_costs_a_bounded_number_of_records() {
    let records: Vec<Sent> = (0..200).map(|number| a("example.org", 60, [203, 0, 113, number])).collect();
    assert_eq!(read_reply("example.org", A, &records).expect("the answer is right").addresses().count(), 64);
    let many: Vec<Sent> =
        (0..4000).map(|_| Sent { name: vec![0xc0, 12], kind: A, ttl: 1, data: vec![203, 0, 113, 1] }).collect();
    assert_eq!(read_reply("example.org", A, &many), Err(AnswerFault::Malformed));
    let text = Sent { name: wire("example.org"), kind: 16, ttl: 60, data: vec![b'x'; 65_000] };
    let answer = read_reply("example.org", 16, &[text]).expect("the answer is right");
    assert!(read_query(&query("example.org", 16)).answer(&answer, None, 65_535).len() <= 65_535);
}

proptest! {
    #[test]
    fn any_bytes_as_an_answer_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), count in 0..8_u16) {
        let query = read_query(&query("example.org", A));
        let mut message = reply(&query.upstream(9), 0, &[]);
        message[6..8].copy_from_slice(&count.to_be_bytes());
        message.extend(bytes);
        if let Ok(answer) = read(&query, 9, &message) {
            let written = query.answer(&answer, None, 65_535);
            prop_assert_eq!(usize::from(received(&written).1), answer.aliases.len() + answer.records.len());
        }
    }
}
