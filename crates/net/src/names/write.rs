//! Answers for a guest.

use super::answer::{Answer, Item};
use super::message::{
    CLASS_IN, Code, FLAG_ANSWER, FLAG_RECURSION_AVAILABLE, FLAG_RECURSION_DESIRED, FLAG_TRUNCATED, HEADER_BYTES, Head,
    Query, Refusal,
};

/// A pointer to the name of the question.
const QUESTION_NAME: [u8; 2] = [0xc0, HEADER_BYTES as u8];

/// The size of answers that is offered in options, and their record: the root's name, its type, and no time.
const OPTIONS_BYTES: u16 = 1232;
const TYPE_OPT: u16 = 41;

/// Extended errors (RFC 8914), so that a guest sees why.
const OPTION_ERROR: u16 = 15;

/// A reason that a guest sees if it has asked with options, as `dig` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The policy denies the name.
    Blocked = 15,
    /// The policy denies all addresses of the name.
    Filtered = 17,
}

impl Refusal {
    /// The message.
    pub(super) fn bytes(&self) -> Vec<u8> {
        write(&self.head, self.code, &[], None, usize::from(u16::MAX))
    }
}

impl Query {
    /// An answer without records.
    pub(super) fn refusal(&self, code: Code, reason: Option<Reason>) -> Vec<u8> {
        write(&self.head, code, &[], reason, usize::from(u16::MAX))
    }

    /// The message of an answer, as a guest gets it. If it is longer than this, it has no records and is marked as
    /// truncated.
    pub fn answered(&self, answer: &Answer, bytes_max: usize) -> Vec<u8> {
        self.answer(answer, None, bytes_max)
    }

    /// The same with a reason for what is absent.
    pub(super) fn answer(&self, answer: &Answer, reason: Option<Reason>, bytes_max: usize) -> Vec<u8> {
        let code = if answer.no_such_name { Code::NoSuchName } else { Code::NoError };
        let items: Vec<&Item> = answer.aliases.iter().chain(&answer.records).collect();
        write(&self.head, code, &items, reason, bytes_max)
    }
}

fn write(head: &Head, code: Code, items: &[&Item], reason: Option<Reason>, bytes_max: usize) -> Vec<u8> {
    let records: Vec<u8> = items.iter().flat_map(|item| record(head, item)).collect();
    let options = options(head, reason);
    let fits = HEADER_BYTES + head.question.len() + records.len() + options.len() <= bytes_max;
    let flag = |flag, is_set| if is_set { flag } else { 0 };
    let flags = FLAG_ANSWER
        | FLAG_RECURSION_AVAILABLE
        | flag(FLAG_RECURSION_DESIRED, head.recursion_desired)
        | flag(FLAG_TRUNCATED, !fits)
        | code as u16;
    // An answer has up to 80 records, so the number fits.
    let count = if fits { items.len() as u16 } else { 0 };
    let mut bytes =
        Vec::with_capacity(bytes_max.min(HEADER_BYTES + head.question.len() + records.len() + options.len()));
    for field in [head.id, flags, u16::from(!head.question.is_empty()), count, 0, u16::from(!options.is_empty())] {
        bytes.extend(field.to_be_bytes());
    }
    bytes.extend_from_slice(&head.question);
    if fits {
        bytes.extend(records);
    }
    bytes.extend(options);
    bytes
}

fn record(head: &Head, item: &Item) -> Vec<u8> {
    let mut bytes = Vec::new();
    let question = head.question.get(..item.name.bytes().len());
    if question.is_some_and(|question| question.eq_ignore_ascii_case(item.name.bytes())) {
        bytes.extend(QUESTION_NAME);
    } else {
        bytes.extend_from_slice(item.name.bytes());
    }
    bytes.extend(item.kind.number().to_be_bytes());
    bytes.extend(CLASS_IN.to_be_bytes());
    bytes.extend(item.ttl.to_be_bytes());
    // Data is that of one record, whose length is 16 bits; without pointers it is up to 529 bytes longer.
    let length = u16::try_from(item.data.len()).unwrap_or(u16::MAX);
    bytes.extend(length.to_be_bytes());
    bytes.extend_from_slice(&item.data[..usize::from(length)]);
    bytes
}

fn options(head: &Head, reason: Option<Reason>) -> Vec<u8> {
    if head.options.is_none() {
        return Vec::new();
    }
    let mut data = Vec::new();
    if let Some(reason) = reason {
        for field in [OPTION_ERROR, 2, reason as u16] {
            data.extend(field.to_be_bytes());
        }
    }
    let mut bytes = vec![0];
    for field in [TYPE_OPT, OPTIONS_BYTES, 0, 0, data.len() as u16] {
        bytes.extend(field.to_be_bytes());
    }
    bytes.extend(data);
    bytes
}
