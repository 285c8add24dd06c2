//! Queries, and names in messages.

use proptest::prelude::*;

use super::*;

fn code(bytes: &[u8]) -> Option<message::Code> {
    match Query::read(bytes) {
        Err(QueryFault::Answer(refusal)) => Some(refusal.code),
        Err(QueryFault::NotAQuery) => None,
        Ok(query) => panic!("it is a query: {query:?}"),
    }
}

#[test]
fn a_query_is_read_and_sent_on_without_the_guests_options() {
    let query = read_query(&query_with_options("WWW.example.org", AAAA));
    assert_eq!((query.name.as_str(), query.kind, query.id), ("www.example.org", Kind::Aaaa, 7));
    assert_eq!(query.upstream(9), message([9, 0x0100, 1, 0, 0, 0], &question("www.example.org", AAAA), &[]));
}

#[test]
fn the_case_of_a_question_is_kept() {
    let bytes = [&query("x.example.org", A)[..12], b"\x07eXaMpLe\x03oRg\0\0\x01\0\x01"].concat();
    let answer = read_query(&bytes).refusal(message::Code::Refused, None);
    assert_eq!(answer[12..], bytes[12..]);
}

#[test]
fn queries_that_are_not_resolved_get_their_code() {
    use message::Code;
    let any = query("example.org", 255);
    let transfer = query("example.org", 252);
    let chaos = [&query("example.org", A)[..27], &[0, 3]].concat();
    assert_eq!([code(&any), code(&transfer), code(&chaos)], [Some(Code::Refused); 3]);
    let root = message([7, 0x0100, 1, 0, 0, 0], &[0, 0, 2, 0, 1], &[]);
    let dots = message([7, 0x0100, 1, 0, 0, 0], b"\x03a.b\x03org\0\0\x01\0\x01", &[]);
    let blanks = message([7, 0x0100, 1, 0, 0, 0], b"\x03a b\x03org\0\0\x01\0\x01", &[]);
    assert_eq!([code(&root), code(&dots), code(&blanks)], [Some(Code::Refused); 3]);
    let update = message([7, 0x2800, 1, 0, 0, 0], &question("example.org", A), &[]);
    assert_eq!(code(&update), Some(Code::NotImplemented));
    let two = message([7, 0x0100, 2, 0, 0, 0], &question("example.org", A), &[]);
    let long = [query("example.org", A), vec![0; QUERY_BYTES_MAX]].concat();
    let short = query("example.org", A)[..20].to_vec();
    let pointer = message([7, 0x0100, 1, 0, 0, 0], &[0xc0, 12, 0, 1, 0, 1], &[]);
    assert_eq!([code(&two), code(&long), code(&short), code(&pointer)], [Some(Code::FormatError); 4]);
    assert_eq!(code(&reply(&query("example.org", A), 0, &[])), None);
    assert_eq!(code(&[0; 11]), None);
}

#[test]
fn loops_of_pointers_end() {
    let read = |bytes: &[u8], at| WireName::read(bytes, at).map(|(name, end)| (name.bytes().to_vec(), end));
    assert_eq!(read(&[0xc0, 0], 0), None, "to itself");
    assert_eq!(read(&[0xc0, 2, 0xc0, 0], 2), None, "to each other");
    assert_eq!(read(&[1, b'a', 0xc0, 0], 0), None, "to its own start");
    assert_eq!(read(&[0xc0, 4, 0, 0, 0], 0), None, "forwards");
    assert_eq!(read(&[1, b'a', 0, 1, b'b', 0xc0, 0], 3), Some((vec![1, b'b', 1, b'a', 0], 7)));
    assert_eq!(read(&[0x40, 0], 0), None, "an unknown kind of label");
    assert_eq!(read(&[63; 64], 0), None, "an end that is absent");
}

#[test]
fn a_name_of_many_pointers_costs_no_more_than_a_name() {
    // Each name is one label and a pointer to the name before: the last one has 10,000 labels.
    let mut bytes = vec![0];
    for number in 0..10_000_usize {
        let before = if number == 0 { 0 } else { 1 + (number - 1) * 4 };
        bytes.extend([1, b'a', 0xc0 | (before >> 8) as u8 & 0x3f, before as u8]);
    }
    let reads: Vec<bool> = (0..4000).map(|number| WireName::read(&bytes, 1 + number * 4).is_some()).collect();
    assert_eq!(reads.iter().filter(|is_read| **is_read).count(), 127);
}

proptest! {
    #[test]
    fn any_bytes_are_a_query_or_an_answer_for_one(bytes in prop::collection::vec(any::<u8>(), 0..100), fix in any::<bool>()) {
        let mut bytes = bytes;
        if fix && bytes.len() >= 12 {
            bytes[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        }
        match Query::read(&bytes) {
            Ok(query) => prop_assert!(read_query(&query.upstream(1)).name == query.name),
            Err(QueryFault::Answer(refusal)) => {
                let answer = refusal.bytes();
                prop_assert_eq!(&answer[..2], &bytes[..2]);
                prop_assert!(answer.len() <= bytes.len() + 11);
            }
            Err(QueryFault::NotAQuery) => {}
        }
    }
}
