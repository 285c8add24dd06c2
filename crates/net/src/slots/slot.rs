//! One VM's network.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;

use super::build::{Parts, random_mark};
use super::error::{NftError, SlotError};
use super::expression::Transaction;
use super::home::Inner;
use super::host::Survey;
use super::journal::{Entry, SlotId};
use super::link;
use super::nftables::{self, Element};
use super::program;
use super::rules::{self, COUNTERS, DENIED, HostSide, OPENING_COUNTERS, TABLE, TAP};
use super::steps::{self, Context, LEARNED};
use crate::gate::Gate;
use crate::inner::{GUEST, RESOLVER_PORT};
use crate::names::{Grant, Opens};
use crate::policy::{Destination, Opening, Policy, Protocol};

/// Ends of openings that are remembered. It is the size of the kernel's set.
const LASTING_MAX: usize = 4096;

/// One VM's network: a namespace with a TAP device, its rules, and its way out. It is removed when it is dropped.
#[derive(Debug)]
pub struct Slot {
    home: Arc<Inner>,
    /// `None` once the slot was removed or left.
    entry: Option<Entry>,
    /// Sockets keep a namespace alive, so they are closed before the removal.
    parts: Option<Parts>,
    id: SlotId,
    file: Utf8PathBuf,
}

/// The device that the engine opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotTap {
    /// Its name.
    pub device: String,
    /// The file of its namespace.
    pub namespace: Utf8PathBuf,
}

/// What the rules of a slot counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counter {
    /// Its name in the table.
    pub name: String,
    /// What it counts.
    pub about: &'static str,
    /// Packets: the first ones of flows.
    pub packets: u64,
}

/// A destination that the guest was refused lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The address.
    pub address: Ipv4Addr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// The rules are not those that were applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RulesFault {
    /// No policy was applied yet.
    #[error("no policy was applied")]
    NoPolicy,
    /// The rules inside the namespace are gone.
    #[error("another program removed the rules of the network slot")]
    Removed,
    /// The rules inside the namespace are others.
    #[error("another program changed the rules of the network slot")]
    Changed,
    /// The rules on the host are gone.
    #[error("another program removed the rules of the network slot on the host")]
    HostRemoved,
    /// The rules on the host are others.
    #[error("another program changed the rules of the network slot on the host")]
    HostChanged,
}

/// The policy in the kernel.
#[derive(Debug)]
pub(super) struct Applied {
    policy: Policy,
    own: Vec<Ipv4Addr>,
    inner: u64,
    host: u64,
    /// When each opening in a set ends. An answer with a shorter life must not shorten it.
    lasting: HashMap<(String, Ipv4Addr), Instant>,
}

impl Counter {
    /// Whether it counts packets that were refused.
    pub fn is_refusal(&self) -> bool {
        !OPENING_COUNTERS.contains(&self.name.as_str())
    }
}

impl Denial {
    /// What the guest tried to reach.
    pub fn destination(&self) -> Destination {
        Destination { address: self.address.into(), protocol: self.protocol, port: self.port }
    }
}

impl Slot {
    pub(super) fn new(home: Arc<Inner>, entry: Entry, parts: Parts) -> Self {
        let (id, file) = (entry.id().clone(), parts.namespace.file().to_owned());
        Self { home, entry: Some(entry), parts: Some(parts), id, file }
    }

    /// Its id.
    pub fn id(&self) -> &SlotId {
        &self.id
    }

    /// The TAP device for the VM's network card.
    pub fn tap(&self) -> SlotTap {
        SlotTap { device: TAP.into(), namespace: self.file.clone() }
    }

    /// The policy that was applied last.
    pub fn policy(&self) -> Option<&Policy> {
        self.parts.as_ref()?.applied.as_ref().map(|applied| &applied.policy)
    }

    /// The addresses of the host that the policy was applied with. They are closed, except to rules that name them.
    pub fn own_addresses(&self) -> &[Ipv4Addr] {
        self.parts.as_ref().and_then(|parts| parts.applied.as_ref()).map_or(&[], |applied| &applied.own)
    }

    /// Replaces the policy in one transaction. Flows that it does not open end at their next packet. `openings` are the
    /// addresses that are open for names now. If it fails, the old policy stays.
    pub fn apply(&mut self, policy: &Policy, openings: &[Opening]) -> Result<(), SlotError> {
        let id = self.id.clone();
        let home = Arc::clone(&self.home);
        let parts = self.parts();
        let survey = Survey::take(&mut parts.host).map_err(SlotError::Links)?;
        let own = survey.own_addresses();
        let sets = nftables::sets(&mut parts.sockets.rules, TABLE).map_err(SlotError::Netfilter)?;
        let mut table = Transaction::new(TABLE);
        if sets.is_empty() {
            // Another program removed the table.
            rules::close(&mut table, parts.place, parts.mtu);
        }
        let mark = random_mark().map_err(SlotError::Netfilter)?;
        rules::replace(&mut table, &Context { policy, own: &own, openings, mark }, &sets)?;
        let host_old = parts.applied.as_ref().map(|applied| steps::own_open(&applied.policy, &applied.own));
        let own_open = steps::own_open(policy, &own);
        // The host's side goes first. Both sides must agree to open something, so nothing is open in between that the
        // old and the new policy both close.
        let host_now = nftables::fingerprint(&mut parts.host_rules, &id.link(), &[]).map_err(SlotError::Netfilter)?;
        let host_kept = host_old.unwrap_or_default() == own_open && host_now.is_some();
        let host_is_ours = parts.applied.as_ref().is_none_or(|applied| Some(applied.host) == host_now);
        if !host_kept || !host_is_ours {
            let guarded = home.shared.hold().map_err(SlotError::Links)?.forward(&survey.forwarding_links())?;
            let link = id.link();
            let side = HostSide {
                link: &link,
                replaces: true,
                address: parts.about.address,
                guarded: &guarded,
                own_open: &own_open,
            };
            program::apply(&rules::host(&side))?;
        }
        let json = table.into_json();
        parts.namespace.run(move || program::apply(&json)).map_err(SlotError::Namespace)??;
        parts.open_link(&id, policy, own)?;
        let elements = steps::elements(policy, openings);
        let parts = self.parts();
        parts.applied.as_mut().expect("was just applied").note(&elements, Instant::now());
        parts.about.policy = Some(policy.clone());
        let about = parts.about.clone();
        let entry = self.entry.as_ref().expect("it is taken when the slot is removed, and then there is no slot");
        entry.note(&about).map_err(|source| home.journal_failed(source))
    }

    /// Takes the link down, so that nothing passes until the next [`Slot::apply`]. For rules that can't be trusted.
    pub fn close(&mut self) -> Result<(), SlotError> {
        let parts = self.parts();
        let link = parts.place.link;
        parts.sockets.links.send([link::down(link)]).map_err(SlotError::Links)
    }

    /// Opens addresses for names, as the policy has it. They are open when this returns.
    pub fn open(&mut self, openings: &[Opening]) -> Result<(), SlotError> {
        let parts = self.parts();
        let Some(applied) = parts.applied.as_mut() else { return Ok(()) };
        let now = Instant::now();
        // An address of two names stays as long as the one that ends last.
        let mut elements: Vec<Element> = Vec::new();
        for element in steps::elements(&applied.policy, openings) {
            let is_same = |other: &&mut Element| other.set == element.set && other.address == element.address;
            match elements.iter_mut().find(is_same) {
                Some(other) => other.lasts = other.lasts.max(element.lasts),
                None if applied.ends(&element).is_some_and(|end| end >= now + element.lasts) => {}
                None => elements.push(element),
            }
        }
        if elements.is_empty() {
            return Ok(());
        }
        nftables::put_elements(&mut parts.sockets.rules, TABLE, &elements).map_err(SlotError::Netfilter)?;
        applied.note(&elements, now);
        Ok(())
    }

    /// Makes openings last longer whose addresses are in use: programs keep a pool of connections and connect again
    /// without asking. The owner calls this several times per [`RENEWED_TIME`](crate::gate::RENEWED_TIME).
    pub fn renew(&mut self, gate: &Gate) -> Result<(), SlotError> {
        let now = Instant::now();
        let mut openings = Vec::new();
        for address in self.flows()? {
            gate.renew(address.into());
            let learned = gate.learned();
            let names = learned.names(address.into(), now);
            openings.extend(names.map(|(name, until)| Opening {
                name: name.clone(),
                address: address.into(),
                lasts: until - now,
            }));
        }
        self.open(&openings)
    }

    /// Whether the rules in the kernel are still those that were applied.
    pub fn check(&mut self) -> Result<Result<(), RulesFault>, SlotError> {
        let link = self.id.link();
        let parts = self.parts();
        let Some(applied) = &parts.applied else { return Ok(Err(RulesFault::NoPolicy)) };
        let inner = nftables::fingerprint(&mut parts.sockets.rules, TABLE, &[DENIED, LEARNED]);
        let host = nftables::fingerprint(&mut parts.host_rules, &link, &[]);
        let (inner, host) = (inner.map_err(SlotError::Netfilter)?, host.map_err(SlotError::Netfilter)?);
        Ok(match (inner, host) {
            (None, _) => Err(RulesFault::Removed),
            (Some(inner), _) if inner != applied.inner => Err(RulesFault::Changed),
            (_, None) => Err(RulesFault::HostRemoved),
            (_, Some(host)) if host != applied.host => Err(RulesFault::HostChanged),
            _ => Ok(()),
        })
    }

    /// The destinations of the guest's flows. Names whose addresses are among them are in use.
    pub fn flows(&mut self) -> Result<Vec<Ipv4Addr>, SlotError> {
        nftables::flows(&mut self.parts().sockets.rules).map_err(SlotError::Netfilter)
    }

    /// What the rules counted so far.
    pub fn counters(&mut self) -> Result<Vec<Counter>, SlotError> {
        let listed = self.list(&["counters", "table", "inet", TABLE])?;
        let packets = |name: &str| {
            let mut found = listed.iter().map(|entry| &entry["counter"]).filter(|counter| counter["name"] == name);
            found.next().and_then(|counter| counter["packets"].as_u64()).unwrap_or(0)
        };
        let counter = |(name, about)| Counter { name: String::from(name), about, packets: packets(name) };
        Ok(COUNTERS.into_iter().map(counter).collect())
    }

    /// Destinations that the guest was refused within the last minute.
    pub fn denials(&mut self) -> Result<Vec<Denial>, SlotError> {
        let listed = self.list(&["set", "inet", TABLE, DENIED])?;
        let elements = listed.iter().filter_map(|entry| entry["set"]["elem"].as_array()).flatten();
        let denial = |element: &serde_json::Value| {
            // With a timeout, the value is wrapped.
            let triple = element["elem"]["val"]["concat"].as_array().or_else(|| element["concat"].as_array())?;
            let [address, protocol, port] = triple.as_slice() else { return None };
            Some(Denial {
                address: address.as_str()?.parse().ok()?,
                protocol: if protocol == "tcp" { Protocol::Tcp } else { Protocol::Udp },
                port: u16::try_from(port.as_u64()?).ok()?,
            })
        };
        Ok(elements.filter_map(denial).collect())
    }

    /// The resolver's sockets: they are bound to the gateway's address in the slot.
    pub fn resolver_sockets(&mut self) -> Result<(UdpSocket, TcpListener), SlotError> {
        let at = SocketAddr::new(self.parts().place.gateway.0.into(), RESOLVER_PORT);
        let bind = move || Ok((UdpSocket::bind(at)?, TcpListener::bind(at)?));
        self.parts().namespace.run(bind).and_then(|bound: io::Result<_>| bound).map_err(SlotError::Socket)
    }

    /// Connects to a port of the guest, for a published port. The guest sees the gateway as the peer.
    pub fn connect_to_guest(&mut self, port: u16, timeout: Duration) -> Result<TcpStream, SlotError> {
        let to = SocketAddr::new(IpAddr::V4(GUEST), port);
        let connect = move || TcpStream::connect_timeout(&to, timeout);
        self.parts().namespace.run(connect).and_then(|stream| stream).map_err(SlotError::Socket)
    }

    /// Removes the slot and reports what failed. A drop does the same and reports nothing.
    pub fn release(mut self) -> Result<(), SlotError> {
        self.remove()
    }

    /// Leaves the slot to its VM, which outlives this process. [`Slots::adopt`](super::Slots::adopt) takes it over.
    pub fn leave(mut self) -> SlotId {
        self.entry = None;
        self.id.clone()
    }

    fn remove(&mut self) -> Result<(), SlotError> {
        let Some(entry) = self.entry.take() else { return Ok(()) };
        self.parts = None;
        self.home.remove(entry)
    }

    fn list(&mut self, what: &'static [&'static str]) -> Result<Vec<serde_json::Value>, SlotError> {
        let list = move || program::list(what);
        let mut listed = self.parts().namespace.run(list).map_err(SlotError::Namespace)??;
        match listed["nftables"].take() {
            serde_json::Value::Array(entries) => Ok(entries),
            _ => Err(NftError::Refused("the list is not a list".into()).into()),
        }
    }

    pub(super) fn parts(&mut self) -> &mut Parts {
        self.parts.as_mut().expect("it is taken when the slot is removed, and then there is no slot")
    }
}

/// The sink of the resolver. The policy of the slot decides which ports an address opens, so a policy that was replaced
/// a moment ago opens nothing any more.
impl Opens for Mutex<Slot> {
    fn open(&self, grants: &[Grant]) -> io::Result<()> {
        let openings: Vec<Opening> = grants.iter().map(|grant| grant.opening.clone()).collect();
        self.lock().unwrap_or_else(PoisonError::into_inner).open(&openings).map_err(io::Error::other)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The journal keeps what can't be removed now, for the next recovery.
        if let Err(error) = self.remove() {
            tracing::warn!(slot = %self.id, error = &error as &dyn std::error::Error, "failed to remove a network slot");
        }
    }
}

impl Parts {
    /// Notes the rules that were just applied and takes the TAP device up.
    pub(super) fn open_link(&mut self, id: &SlotId, policy: &Policy, own: Vec<Ipv4Addr>) -> Result<(), SlotError> {
        let inner = nftables::fingerprint(&mut self.sockets.rules, TABLE, &[DENIED, LEARNED]);
        let host = nftables::fingerprint(&mut self.host_rules, &id.link(), &[]);
        let gone = || NftError::Refused("the rules vanished at once".into());
        let inner = inner.map_err(SlotError::Netfilter)?.ok_or_else(gone)?;
        let host = host.map_err(SlotError::Netfilter)?.ok_or_else(gone)?;
        self.applied = Some(Applied { policy: policy.clone(), own, inner, host, lasting: HashMap::new() });
        self.sockets.links.send([link::up(self.place.link)]).map_err(SlotError::Links)
    }
}

impl Applied {
    fn ends(&self, element: &Element) -> Option<Instant> {
        self.lasting.get(&(element.set.clone(), element.address)).copied()
    }

    fn note(&mut self, elements: &[Element], now: Instant) {
        for element in elements {
            if self.lasting.len() >= LASTING_MAX {
                self.lasting.retain(|_, end| *end > now);
            }
            if self.lasting.len() < LASTING_MAX {
                self.lasting.insert((element.set.clone(), element.address), now + element.lasts);
            }
        }
    }
}
