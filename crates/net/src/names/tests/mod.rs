//! Claims about the resolver: its parts on bytes, and the whole of it against a resolver on loopback.

mod answers;
mod messages;
mod service;
mod traps;

use std::net::Ipv4Addr;

use super::name::WireName;
use super::*;
use crate::policy::{Domain, Learned, Policy, PolicyDefault};

const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
const OPT: u16 = 41;

/// A record: its name, type, time and data.
struct Sent {
    name: Vec<u8>,
    kind: u16,
    ttl: u32,
    data: Vec<u8>,
}

fn domain(text: &str) -> Domain {
    Domain::new(text).expect("a name")
}

/// A name as in a message.
fn wire(text: &str) -> Vec<u8> {
    WireName::of(&domain(text)).bytes().to_vec()
}

fn a(name: &str, ttl: u32, address: [u8; 4]) -> Sent {
    Sent { name: wire(name), kind: A, ttl, data: address.to_vec() }
}

fn alias(name: &str, to: &str) -> Sent {
    Sent { name: wire(name), kind: CNAME, ttl: 300, data: wire(to) }
}

fn message(fields: [u16; 6], question: &[u8], records: &[Sent]) -> Vec<u8> {
    let mut bytes: Vec<u8> = fields.iter().flat_map(|field| field.to_be_bytes()).collect();
    bytes.extend_from_slice(question);
    for record in records {
        bytes.extend_from_slice(&record.name);
        bytes.extend([record.kind, 1].iter().flat_map(|field| field.to_be_bytes()));
        bytes.extend(record.ttl.to_be_bytes());
        bytes.extend((record.data.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&record.data);
    }
    bytes
}

fn question(name: &str, kind: u16) -> Vec<u8> {
    [wire(name), kind.to_be_bytes().to_vec(), vec![0, 1]].concat()
}

/// A guest's query, without options.
fn query(name: &str, kind: u16) -> Vec<u8> {
    message([7, 0x0100, 1, 0, 0, 0], &question(name, kind), &[])
}

/// The same with options, as `dig` sends it.
fn query_with_options(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = message([7, 0x0100, 1, 0, 0, 1], &question(name, kind), &[]);
    bytes.extend([0, 0, OPT as u8, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
    bytes
}

/// The answer of a resolver to a query that it received.
fn reply(query: &[u8], code: u16, records: &[Sent]) -> Vec<u8> {
    let id = u16::from_be_bytes([query[0], query[1]]);
    message([id, 0x8180 | code, 1, records.len() as u16, 0, 0], &query[12..], records)
}

fn read_query(bytes: &[u8]) -> Query {
    Query::read(bytes).expect("a query")
}

fn read_reply(name: &str, kind: u16, records: &[Sent]) -> Result<Answer, AnswerFault> {
    let query = read_query(&query(name, kind));
    read(&query, 9, &reply(&query.upstream(9), 0, records))
}

fn policy(default: PolicyDefault, allow: &[&str], deny: &[&str]) -> Policy {
    let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a rule")).collect();
    Policy::new(default, false, rules(allow), rules(deny)).expect("a policy")
}

/// What a policy makes of these records.
fn judged(policy: &Policy, name: &str, records: &[Sent]) -> Judged {
    let answer = read_reply(name, A, records).expect("the answer is right");
    judge(&read_query(&query(name, A)), answer, policy, &Learned::default())
}

/// The addresses of an answer, and what it opens: address, seconds and rules.
fn opened(judged: Judged) -> (Vec<String>, Vec<String>) {
    let Judged::Answer { answer, grants, .. } = judged else { panic!("it is denied") };
    let grant = |grant: &Grant| {
        let rules: Vec<String> = grant.rules.iter().map(ToString::to_string).collect();
        let Grant { opening, .. } = grant;
        format!("{} {} {}s {}", opening.name, opening.address, opening.lasts.as_secs(), rules.join(" "))
    };
    (answer.addresses().map(|address| address.to_string()).collect(), grants.iter().map(grant).collect())
}

/// The code, the number of answers, and the addresses in a message that a guest received.
fn received(bytes: &[u8]) -> (u16, u16, Vec<Ipv4Addr>) {
    let header = message::Header::read(bytes).expect("a header");
    let (_, mut at) = message::Question::read(bytes).expect("a question");
    let mut addresses = Vec::new();
    for _ in 0..header.counts[1] {
        let record = message::Record::read(bytes, at).expect("a record");
        if let Ok(octets) = <[u8; 4]>::try_from(&bytes[record.data.0..record.data.1]) {
            addresses.push(Ipv4Addr::from(octets));
        }
        at = record.data.1;
    }
    (header.flags & message::RCODE, header.counts[1], addresses)
}
