//! Answers of the host's resolvers: which of their records a guest gets, and which addresses they open.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::message::{CLASS_IN, FLAG_ANSWER, FLAG_TRUNCATED, HEADER_BYTES, Header, Kind, OPCODE, Query, RCODE, Record};
use super::name::WireName;
use super::opens::Grant;
use crate::policy::{Class, Domain, Learned, NameDecision, Opening, Policy};

/// Records of an answer that are read. A real one has a few.
const RECORDS_MAX: u16 = 256;

/// Aliases that are followed.
const CHAIN_MAX: usize = 16;

/// Addresses that one answer may have. The guest does not get more either.
const ADDRESSES_MAX: usize = 64;

/// The shortest time that an address is open. A guest connects soon after the answer, but not at once.
pub const LASTS_MIN: Duration = Duration::from_secs(60);

/// The longest time, whatever the answer has. The guest's answer is not valid for longer either.
pub const LASTS_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// An answer whose form is right, reduced to what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// Whether the name does not exist.
    pub no_such_name: bool,
    /// The aliases from the name that was asked for to the one that has the records.
    pub(super) aliases: Vec<Item>,
    /// The records of the kind that was asked for.
    pub(super) records: Vec<Item>,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) name: WireName,
    pub(super) kind: Kind,
    pub(super) ttl: u32,
    /// Its data without pointers.
    pub(super) data: Vec<u8>,
}

/// Why an answer is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerFault {
    /// It is not the answer of this query: another number, another question, or no answer at all. Wait for the right
    /// one.
    NotOurs,
    /// It did not fit into a datagram.
    Truncated,
    /// The resolver can't answer.
    Failed,
    /// It breaks the rules of the format, or its aliases lead nowhere.
    Malformed,
}

/// What a guest gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// This answer, after the grants are in force.
    Answer {
        /// The records.
        answer: Answer,
        /// What they open.
        grants: Vec<Grant>,
        /// Addresses that were left out.
        dropped: Vec<IpAddr>,
    },
    /// Nothing: an alias in the answer has a name that the policy denies.
    Denied(Domain),
}

/// Reads an answer to this query.
pub fn read(query: &Query, id: u16, bytes: &[u8]) -> Result<Answer, AnswerFault> {
    let header = Header::read(bytes).ok_or(AnswerFault::NotOurs)?;
    let question = bytes.get(HEADER_BYTES..HEADER_BYTES + query.head.question.len());
    let is_ours = header.id == id
        && header.flags & FLAG_ANSWER != 0
        && header.flags & OPCODE == 0
        && header.counts[0] == 1
        && question.is_some_and(|question| question.eq_ignore_ascii_case(&query.head.question));
    if !is_ours {
        return Err(AnswerFault::NotOurs);
    }
    if header.flags & FLAG_TRUNCATED != 0 {
        return Err(AnswerFault::Truncated);
    }
    let no_such_name = match header.flags & RCODE {
        0 => false,
        3 => true,
        _ => return Err(AnswerFault::Failed),
    };
    let items =
        items(bytes, HEADER_BYTES + query.head.question.len(), header.counts[1]).ok_or(AnswerFault::Malformed)?;
    let mut answer = follow(query, items).ok_or(AnswerFault::Malformed)?;
    answer.no_such_name = no_such_name && answer.records.is_empty();
    Ok(answer)
}

/// Decides what of an answer a guest gets. The policy must have allowed the name.
pub fn judge(query: &Query, mut answer: Answer, policy: &Policy, learned: &Learned) -> Judged {
    let NameDecision::Allowed { rules } = policy.decide_name(&query.name) else {
        return Judged::Denied(query.name.clone());
    };
    if let Some(denied) = answer.aliases.iter().find_map(|alias| denied_alias(alias, policy)) {
        return Judged::Denied(denied);
    }
    let (mut grants, mut dropped) = (Vec::new(), Vec::new());
    answer.records.retain(|item| {
        let Some(address) = item.address() else { return true };
        let is_public = Class::of(address) == Class::Public && !learned.is_host_address(address);
        let by_name = !rules.is_empty() && is_public && (address.to_canonical().is_ipv4() || policy.has_ipv6());
        if by_name {
            let opening = Opening { name: query.name.clone(), address, lasts: lasts(item.ttl) };
            grants.push(Grant { opening, rules: rules.clone() });
        } else if !policy.may_reach(address, learned) {
            dropped.push(address);
            return false;
        }
        true
    });
    Judged::Answer { answer, grants, dropped }
}

impl Answer {
    /// An answer from a table of addresses.
    pub(super) fn of_table(query: &Query, addresses: &[IpAddr], ttl: u32) -> Self {
        let item = |address: &IpAddr| {
            let (kind, data) = match address {
                IpAddr::V4(address) => (Kind::A, address.octets().to_vec()),
                IpAddr::V6(address) => (Kind::Aaaa, address.octets().to_vec()),
            };
            Item { name: WireName::of(&query.name), kind, ttl, data }
        };
        let records = addresses.iter().map(item).filter(|item| item.kind == query.kind).take(ADDRESSES_MAX).collect();
        Self { records, ..Self::default() }
    }

    /// The addresses in it.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.records.iter().filter_map(Item::address)
    }
}

impl Item {
    fn address(&self) -> Option<IpAddr> {
        match self.kind {
            Kind::A => <[u8; 4]>::try_from(self.data.as_slice()).ok().map(|octets| Ipv4Addr::from(octets).into()),
            Kind::Aaaa => <[u8; 16]>::try_from(self.data.as_slice()).ok().map(|octets| Ipv6Addr::from(octets).into()),
            _ => None,
        }
    }
}

/// How long an address is open. Times with the high bit count as 0 (RFC 2181, 8).
fn lasts(ttl: u32) -> Duration {
    let ttl = if ttl > i32::MAX.unsigned_abs() { 0 } else { ttl };
    Duration::from_secs(ttl.into()).clamp(LASTS_MIN, LASTS_MAX)
}

/// The alias's name if a rule denies it. A name that is not one of a host is in no rule.
fn denied_alias(alias: &Item, policy: &Policy) -> Option<Domain> {
    let domain = WireName::read(&alias.data, 0)?.0.domain()?;
    matches!(policy.decide_name(&domain), NameDecision::Denied { .. }).then_some(domain)
}

/// The records of kinds that are known, in the order of the answer.
fn items(bytes: &[u8], mut at: usize, count: u16) -> Option<Vec<Item>> {
    if count > RECORDS_MAX {
        return None;
    }
    let mut items = Vec::new();
    for _ in 0..count {
        let record = Record::read(bytes, at)?;
        at = record.data.1;
        let Some(kind) = Kind::of(record.kind).filter(|_| record.class == CLASS_IN) else { continue };
        let data = data(bytes, kind, record.data)?;
        let ttl = u32::try_from(lasts(record.ttl).as_secs()).unwrap_or(0).min(record.ttl);
        items.push(Item { name: record.name, kind, ttl, data });
    }
    Some(items)
}

/// The data of a record without pointers. `None` if its form is not that of its kind.
fn data(bytes: &[u8], kind: Kind, (start, end): (usize, usize)) -> Option<Vec<u8>> {
    let raw = bytes.get(start..end)?;
    let (before, names, after) = match kind {
        Kind::A => return (raw.len() == 4).then(|| raw.to_vec()),
        Kind::Aaaa => return (raw.len() == 16).then(|| raw.to_vec()),
        Kind::Txt | Kind::Caa | Kind::Svcb | Kind::Https => return Some(raw.to_vec()),
        Kind::Cname | Kind::Ns | Kind::Ptr => (0, 1, 0),
        Kind::Mx => (2, 1, 0),
        Kind::Srv => (6, 1, 0),
        Kind::Soa => (0, 2, 20),
    };
    let mut data = raw.get(..before)?.to_vec();
    let mut at = start + before;
    for _ in 0..names {
        let (name, next) = WireName::read(bytes, at)?;
        data.extend_from_slice(name.bytes());
        at = next;
    }
    data.extend_from_slice(bytes.get(at..at + after)?);
    (at + after == end).then_some(data)
}

/// Follows aliases from the name that was asked for. Records of all other names are dropped: they answer questions that
/// the policy did not see.
fn follow(query: &Query, items: Vec<Item>) -> Option<Answer> {
    let mut answer = Answer::default();
    let mut name = WireName::of(&query.name);
    if query.kind != Kind::Cname {
        while let Some(alias) = items.iter().find(|item| item.kind == Kind::Cname && item.name.is(&name)) {
            if answer.aliases.len() >= CHAIN_MAX {
                return None;
            }
            name = WireName::read(&alias.data, 0)?.0;
            answer.aliases.push(alias.clone());
        }
    }
    let asked = items.into_iter().filter(|item| item.kind == query.kind && item.name.is(&name));
    answer.records = asked.take(ADDRESSES_MAX).collect();
    Some(answer)
}
