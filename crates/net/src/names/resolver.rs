//! The resolver of one VM.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::Semaphore;

use super::answer::{Answer, Judged, judge};
use super::limits::{IN_FLIGHT_MAX, Rate};
use super::message::{Code, Kind, Query, QueryFault};
use super::opens::{Grant, Neighbours, Opens};
use super::upstream::Upstream;
use super::write::Reason;
use crate::gate::{Denied, Gate};
use crate::policy::{Class, Domain, NameDecision};

/// The time that names of VMs may be kept: they come and go.
const NEIGHBOURS_TTL_SECONDS: u32 = 5;

/// What a query came over. It bounds the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Datagrams: what does not fit is marked as truncated.
    Udp,
    /// A stream.
    Tcp,
}

/// Answers one guest's queries.
pub struct Resolver {
    gate: Arc<Gate>,
    opens: Arc<dyn Opens>,
    upstream: Upstream,
    neighbours: Option<Arc<dyn Neighbours>>,
    rate: Mutex<Rate>,
    in_flight: Semaphore,
}

impl Resolver {
    /// A resolver under this gate. What it learns is in the gate and, before the guest gets the answer, in `opens`.
    pub fn new(gate: Arc<Gate>, opens: Arc<dyn Opens>, upstream: Upstream) -> Self {
        Self {
            gate,
            opens,
            upstream,
            neighbours: None,
            rate: Mutex::new(Rate::new(Instant::now())),
            in_flight: Semaphore::new(IN_FLIGHT_MAX),
        }
    }

    /// A resolver that also knows the VMs of the same network.
    pub fn with_neighbours(self, neighbours: Arc<dyn Neighbours>) -> Self {
        Self { neighbours: Some(neighbours), ..self }
    }

    /// The answer to a query. `None` if there must not be one: the bytes are no query, or the guest asks too fast.
    pub async fn answer(&self, bytes: &[u8], over: Transport) -> Option<Vec<u8>> {
        if !self.rate.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()) {
            return None;
        }
        match Query::read(bytes) {
            Ok(query) => Some(self.resolve(&query, over).await),
            Err(QueryFault::NotAQuery) => None,
            Err(QueryFault::Answer(refusal)) => Some(refusal.bytes()),
        }
    }

    async fn resolve(&self, query: &Query, over: Transport) -> Vec<u8> {
        let bytes_max = match over {
            Transport::Udp => query.udp_bytes(),
            Transport::Tcp => usize::from(u16::MAX),
        };
        let addresses = self.neighbours_of(&query.name).await;
        if !addresses.is_empty() {
            return query.answered(&Answer::of_table(query, &addresses, NEIGHBOURS_TTL_SECONDS), bytes_max);
        }
        let policy = self.gate.policy();
        match policy.decide_name(&query.name) {
            NameDecision::Allowed { rules } if rules.is_empty() && is_reverse_of_closed(&query.name) => {
                return self.refuse(query, "it is the reverse name of an address that is not public".into());
            }
            NameDecision::Allowed { .. } => {}
            NameDecision::Denied { rule } => return self.refuse(query, format!("rule `--deny {rule}`")),
            NameDecision::NoRule => return self.refuse(query, "no rule allows the name".into()),
        }
        let is_empty = match query.kind {
            Kind::Https | Kind::Svcb => true,
            Kind::Aaaa => !policy.may_use_ipv6(),
            _ => false,
        };
        if is_empty {
            return query.answered(&Answer::default(), bytes_max);
        }
        let Ok(_permit) = self.in_flight.try_acquire() else { return query.refusal(Code::ServerFailure, None) };
        match self.upstream.ask(query).await {
            Ok(answer) => self.judged(query, answer, bytes_max).await,
            Err(_) => query.refusal(Code::ServerFailure, None),
        }
    }

    async fn neighbours_of(&self, name: &Domain) -> Vec<IpAddr> {
        let Some(neighbours) = self.neighbours.clone() else { return Vec::new() };
        let name = name.clone();
        tokio::task::spawn_blocking(move || neighbours.addresses(&name)).await.unwrap_or_default()
    }

    /// Opens what an answer has, and writes it. The policy may have changed while the query was on its way, so the one
    /// of this moment decides.
    async fn judged(&self, query: &Query, answer: Answer, bytes_max: usize) -> Vec<u8> {
        let judged = judge(query, answer, &self.gate.policy(), &self.gate.learned());
        let (answer, grants, dropped) = match judged {
            Judged::Answer { answer, grants, dropped } => (answer, grants, dropped),
            Judged::Denied(name) => return self.refuse(query, format!("the name `{name}` in its answer is denied")),
        };
        for address in &dropped {
            self.gate.deny(Denied::Answer(query.name.clone(), *address), "the address is not open".into());
        }
        let bytes = query.answer(&answer, filtered(&answer, &dropped), bytes_max);
        if self.open(grants).await { bytes } else { query.refusal(Code::ServerFailure, None) }
    }

    async fn open(&self, grants: Vec<Grant>) -> bool {
        if grants.is_empty() {
            return true;
        }
        self.gate.learn(grants.iter().map(|grant| &grant.opening));
        let opens = Arc::clone(&self.opens);
        tokio::task::spawn_blocking(move || opens.open(&grants).is_ok()).await.unwrap_or(false)
    }

    fn refuse(&self, query: &Query, by: String) -> Vec<u8> {
        self.gate.deny(Denied::Name(query.name.clone()), by);
        query.refusal(Code::Refused, Some(Reason::Blocked))
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("gate", &self.gate).field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

/// Whether a name below `arpa` is the reverse name of something else than one public IPv4 address. The host's resolvers
/// know names of private networks, which are none of a guest's business.
fn is_reverse_of_closed(name: &Domain) -> bool {
    let Some(rest) = name.as_str().strip_suffix(".arpa") else { return false };
    let reversed: Option<Vec<&str>> = rest.strip_suffix(".in-addr").map(|labels| labels.rsplit('.').collect());
    let address = reversed.and_then(|labels| labels.join(".").parse::<Ipv4Addr>().ok());
    address.is_none_or(|address| Class::of(address.into()) != Class::Public)
}

fn filtered(answer: &Answer, dropped: &[IpAddr]) -> Option<Reason> {
    (!dropped.is_empty() && answer.addresses().next().is_none()).then_some(Reason::Filtered)
}
