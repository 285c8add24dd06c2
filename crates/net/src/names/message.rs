//! Queries of a guest, and the header that all messages have (RFC 1035, 4.1).

use super::name::WireName;
use crate::policy::Domain;

/// A longer query is not read: a name, its type and a few options fit.
pub const QUERY_BYTES_MAX: usize = 1024;

/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 12;

/// The class of the internet.
pub(super) const CLASS_IN: u16 = 1;

const TYPE_OPT: u16 = 41;
/// Additional records that are looked through for the options.
const ADDITIONAL_MAX: u16 = 4;
/// The size of an answer over UDP without options, and the largest that is sent: it is not fragmented on any path.
const UDP_BYTES: u16 = 512;
const UDP_BYTES_MAX: u16 = 1232;

/// Bits of the header's flags.
pub(super) const FLAG_ANSWER: u16 = 0x8000;
pub(super) const FLAG_TRUNCATED: u16 = 0x0200;
pub(super) const FLAG_RECURSION_DESIRED: u16 = 0x0100;
pub(super) const FLAG_RECURSION_AVAILABLE: u16 = 0x0080;
pub(super) const OPCODE: u16 = 0x7800;
pub(super) const RCODE: u16 = 0x000f;

/// What a query asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the records")]
pub enum Kind {
    A,
    Ns,
    Cname,
    Soa,
    Ptr,
    Mx,
    Txt,
    Aaaa,
    Srv,
    Svcb,
    Https,
    Caa,
}

/// A query that can be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Its number.
    pub id: u16,
    /// The name, in lower case.
    pub name: Domain,
    /// The type of record.
    pub kind: Kind,
    pub(super) head: Head,
}

/// What an answer repeats, also if the query can't be read to its end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Head {
    pub(super) id: u16,
    pub(super) recursion_desired: bool,
    /// The question as it was sent: programs compare its upper and lower case. Empty if it can't be read.
    pub(super) question: Vec<u8>,
    /// The largest answer over UDP, if the query has options.
    pub(super) options: Option<u16>,
}

/// Why a query is not resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryFault {
    /// It is no query, and gets no answer.
    NotAQuery,
    /// It gets an answer with this code.
    Answer(Refusal),
}

/// An answer without records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub(super) head: Head,
    pub(super) code: Code,
}

/// Codes of answers (RFC 1035, 4.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    NoError = 0,
    FormatError = 1,
    ServerFailure = 2,
    NoSuchName = 3,
    NotImplemented = 4,
    Refused = 5,
}

impl Kind {
    /// The kind of this number. `None` for those that are refused.
    pub(super) fn of(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::A,
            2 => Self::Ns,
            5 => Self::Cname,
            6 => Self::Soa,
            12 => Self::Ptr,
            15 => Self::Mx,
            16 => Self::Txt,
            28 => Self::Aaaa,
            33 => Self::Srv,
            64 => Self::Svcb,
            65 => Self::Https,
            257 => Self::Caa,
            _ => return None,
        })
    }

    pub(super) fn number(self) -> u16 {
        match self {
            Self::A => 1,
            Self::Ns => 2,
            Self::Cname => 5,
            Self::Soa => 6,
            Self::Ptr => 12,
            Self::Mx => 15,
            Self::Txt => 16,
            Self::Aaaa => 28,
            Self::Srv => 33,
            Self::Svcb => 64,
            Self::Https => 65,
            Self::Caa => 257,
        }
    }
}

impl Query {
    /// Reads a guest's query.
    pub fn read(bytes: &[u8]) -> Result<Self, QueryFault> {
        let header = Header::read(bytes).ok_or(QueryFault::NotAQuery)?;
        if header.flags & FLAG_ANSWER != 0 {
            return Err(QueryFault::NotAQuery);
        }
        let mut head =
            Head { id: header.id, recursion_desired: header.flags & FLAG_RECURSION_DESIRED != 0, ..Head::default() };
        let fault = |head: &Head, code| Err(QueryFault::Answer(Refusal { head: head.clone(), code }));
        if header.flags & OPCODE != 0 {
            return fault(&head, Code::NotImplemented);
        }
        if bytes.len() > QUERY_BYTES_MAX || header.counts[..3] != [1, 0, 0] || header.counts[3] > ADDITIONAL_MAX {
            return fault(&head, Code::FormatError);
        }
        let Some((question, end)) = Question::read(bytes) else { return fault(&head, Code::FormatError) };
        head.question = bytes[HEADER_BYTES..end].to_vec();
        let Ok(options) = options(bytes, end, header.counts[3]) else { return fault(&head, Code::FormatError) };
        head.options = options;
        match (question.name.domain(), Kind::of(question.kind)) {
            (Some(name), Some(kind)) if question.class == CLASS_IN => Ok(Self { id: header.id, name, kind, head }),
            _ => fault(&head, Code::Refused),
        }
    }

    /// The query as it is sent to the host's resolvers, with another number and without the guest's options.
    pub fn upstream(&self, id: u16) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.head.question.len());
        for field in [id, FLAG_RECURSION_DESIRED, 1, 0, 0, 0] {
            bytes.extend(field.to_be_bytes());
        }
        bytes.extend_from_slice(&self.head.question);
        bytes
    }

    /// The largest answer over UDP.
    pub(super) fn udp_bytes(&self) -> usize {
        usize::from(self.head.options.map_or(UDP_BYTES, |size| size.clamp(UDP_BYTES, UDP_BYTES_MAX)))
    }
}

/// The first 12 bytes.
pub(super) struct Header {
    pub(super) id: u16,
    pub(super) flags: u16,
    /// Questions, answers, authorities, additional records.
    pub(super) counts: [u16; 4],
}

impl Header {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let field = |index: usize| u16_at(bytes, index * 2);
        Some(Self { id: field(0)?, flags: field(1)?, counts: [field(2)?, field(3)?, field(4)?, field(5)?] })
    }
}

pub(super) struct Question {
    pub(super) name: WireName,
    pub(super) kind: u16,
    pub(super) class: u16,
}

impl Question {
    /// Reads the question after the header. A pointer in it can't lead to an earlier name, so it is refused.
    pub(super) fn read(bytes: &[u8]) -> Option<(Self, usize)> {
        let (name, end) = WireName::read(bytes, HEADER_BYTES)?;
        if end != HEADER_BYTES + name.bytes().len() {
            return None;
        }
        Some((Self { name, kind: u16_at(bytes, end)?, class: u16_at(bytes, end + 2)? }, end + 4))
    }
}

/// A record, without its data.
pub(super) struct Record {
    pub(super) name: WireName,
    pub(super) kind: u16,
    pub(super) class: u16,
    pub(super) ttl: u32,
    /// Where its data starts and ends.
    pub(super) data: (usize, usize),
}

impl Record {
    /// Reads the record at this place. The next one starts at the end of its data.
    pub(super) fn read(bytes: &[u8], start: usize) -> Option<Self> {
        let (name, at) = WireName::read(bytes, start)?;
        let ttl = u32::from(u16_at(bytes, at + 4)?) << 16 | u32::from(u16_at(bytes, at + 6)?);
        let data = (at + 10, at + 10 + usize::from(u16_at(bytes, at + 8)?));
        (data.1 <= bytes.len()).then_some(Self {
            name,
            kind: u16_at(bytes, at)?,
            class: u16_at(bytes, at + 2)?,
            ttl,
            data,
        })
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*pair))
}

/// The size of answers from the options (RFC 6891), if there are any.
fn options(bytes: &[u8], mut at: usize, count: u16) -> Result<Option<u16>, ()> {
    let mut size = None;
    for _ in 0..count {
        let record = Record::read(bytes, at).ok_or(())?;
        if record.kind == TYPE_OPT {
            size = Some(record.class);
        }
        at = record.data.1;
    }
    Ok(size)
}
