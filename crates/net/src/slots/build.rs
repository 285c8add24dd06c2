//! How a slot is made.
//!
//! ```text
//!   journal ─▶ namespace ─┬─▶ inside: settings ─▶ TAP device ─▶ rules ─┐
//!                         └─▶ host: links ─▶ forwarding ─▶ rules ──────┴─▶ addresses, links up
//! ```
//! The two sides run at the same time, because each starts `nft`. No link is up before both tables are in the kernel.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use super::device;
use super::error::SlotError;
use super::expression::Transaction;
use super::home::{About, Inner, Step};
use super::host::{Survey, set, set_if_present};
use super::journal::{Entry, SlotId};
use super::link::{self, Pair};
use super::namespace::Namespace;
use super::netlink::Netlink;
use super::program;
use super::rules::{self, BRIDGE, HostSide, Place, TABLE, UPLINK};
use super::slot::{Applied, Slot};
use super::steps::{self, Context};
use crate::inner::GATEWAY_MAC;
use crate::policy::Policy;

/// The slot's prefix on its link to the host: two addresses.
const PAIR_PREFIX: u8 = 31;

/// Makes a slot. If that fails, nothing of it is left.
pub(super) fn slot(home: &Arc<Inner>, label: &str, place: Place, policy: Option<&Policy>) -> Result<Slot, SlotError> {
    let entry = home.journal.create().map_err(|source| home.journal_failed(source))?;
    home.step(Step::Journaled);
    slot_of(home, entry, label, place, policy).map_err(|(entry, error)| {
        // The first error is the one to report. The journal keeps what can't be removed now.
        let _ = home.remove(entry);
        error
    })
}

/// The same, with a place in the journal already. If that fails, parts of it may be left.
pub(super) fn slot_of(
    home: &Arc<Inner>,
    entry: Entry,
    label: &str,
    place: Place,
    policy: Option<&Policy>,
) -> Result<Slot, (Entry, SlotError)> {
    match parts(home, &entry, label, place, policy) {
        Ok(parts) => Ok(Slot::new(Arc::clone(home), entry, parts)),
        Err(error) => Err((entry, error)),
    }
}

/// A slot that exists. It is as its last owner left it.
pub(super) fn existing(home: &Arc<Inner>, entry: Entry, place: Place, about: &About) -> Result<Slot, SlotError> {
    let namespace = Namespace::existing(&entry.namespace());
    let sockets = namespace.run(Sockets::open).and_then(|sockets| sockets).map_err(SlotError::Namespace)?;
    let mut host = Netlink::route().map_err(SlotError::Links)?;
    let survey = Survey::take(&mut host).map_err(SlotError::Links)?;
    let host_rules = Netlink::netfilter().map_err(SlotError::Netfilter)?;
    let about = About { owner: std::process::id(), ..about.clone() };
    entry.note(&about).map_err(|source| home.journal_failed(source))?;
    let mtu = survey.mtu();
    let parts = Parts { namespace, place, sockets, host, host_rules, about, mtu, applied: None };
    Ok(Slot::new(Arc::clone(home), entry, parts))
}

/// What a slot has.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) namespace: Namespace,
    pub(super) place: Place,
    /// Sockets in the namespace.
    pub(super) sockets: Sockets,
    /// Sockets on the host.
    pub(super) host: Netlink,
    pub(super) host_rules: Netlink,
    pub(super) about: About,
    pub(super) mtu: u32,
    pub(super) applied: Option<Applied>,
}

/// Netlink sockets of a namespace.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) links: Netlink,
    pub(super) rules: Netlink,
}

impl Sockets {
    fn open() -> io::Result<Self> {
        Ok(Self { links: Netlink::route()?, rules: Netlink::netfilter()? })
    }
}

fn parts(
    home: &Arc<Inner>,
    entry: &Entry,
    label: &str,
    place: Place,
    policy: Option<&Policy>,
) -> Result<Parts, SlotError> {
    let (namespace, descriptor) = Namespace::create(&entry.namespace()).map_err(SlotError::Namespace)?;
    home.step(Step::Namespace);
    let mut host = Netlink::route().map_err(SlotError::Links)?;
    let survey = Survey::take(&mut host).map_err(SlotError::Links)?;
    let (own, mtu) = (survey.own_addresses(), survey.mtu());
    let mark = random_mark().map_err(SlotError::Netfilter)?;
    let mut table = Transaction::new(TABLE);
    rules::close(&mut table, place, mtu);
    if let Some(policy) = policy {
        let context = Context { policy, own: &own, openings: &[], mark };
        rules::replace(&mut table, &context, &[])?;
    }
    let on_step = home.config.on_step;
    let inside = namespace.start(move || inside(&table.into_json(), place, on_step)).map_err(SlotError::Namespace)?;
    let outside = outside(home, entry.id(), &mut host, &descriptor, mtu, policy);
    // Both must have ended before a removal, so the error of one waits for the other.
    let inside = inside.wait().map_err(SlotError::Namespace)?;
    let (address, gateway) = outside?;
    let mut sockets = inside?;
    connect(&mut host, &mut sockets.links, &entry.id().link(), place, (gateway, address))?;
    home.step(Step::Addresses);
    let about = About { label: label.to_owned(), owner: std::process::id(), address, policy: policy.cloned() };
    let host_rules = Netlink::netfilter().map_err(SlotError::Netfilter)?;
    let mut parts = Parts { namespace, place, sockets, host, host_rules, about, mtu, applied: None };
    if let Some(policy) = policy {
        parts.open_link(entry.id(), policy, own)?;
    }
    // The note comes last: a slot without one is not ready, and is nothing that a new owner could use.
    entry.note(&parts.about).map_err(|source| home.journal_failed(source))?;
    home.step(Step::Ready);
    Ok(parts)
}

/// The inner side, on a thread in the namespace.
fn inside(rules: &str, place: Place, on_step: fn(Step)) -> Result<Sockets, SlotError> {
    for (name, value) in [
        ("ipv6/conf/all/disable_ipv6", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
        // A packet without a flow is then invalid, not the start of one.
        ("netfilter/nf_conntrack_tcp_loose", "0"),
        // Between guests of one bridge, the rules of the bridge decide.
        ("bridge/bridge-nf-call-iptables", "0"),
    ] {
        set_if_present(&format!("/proc/sys/net/{name}"), value)?;
    }
    // The kernel's check of senders comes before the rules. Here the rule about the guest's address is exact, and it
    // counts what it drops.
    for (name, value) in [("conf/all/rp_filter", "0"), ("conf/default/rp_filter", "0"), ("ip_forward", "1")] {
        set(&format!("/proc/sys/net/ipv4/{name}"), value)?;
    }
    if place.link == BRIDGE {
        Netlink::route().and_then(|mut links| links.send([link::create_bridge(BRIDGE)])).map_err(SlotError::Links)?;
    } else {
        device::create_tap(place.link).map_err(SlotError::Tap)?;
    }
    on_step(Step::Tap);
    program::apply(rules)?;
    on_step(Step::InnerRules);
    Sockets::open().map_err(SlotError::Links)
}

/// The host's side. Returns the slot's address and its gateway.
fn outside(
    home: &Inner,
    id: &SlotId,
    host: &mut Netlink,
    namespace: &OwnedFd,
    mtu: u32,
    policy: Option<&Policy>,
) -> Result<(Ipv4Addr, Ipv4Addr), SlotError> {
    let name = id.link();
    // The address is chosen and set while no other process does so.
    let held = home.shared.hold().map_err(SlotError::Links)?;
    let survey = Survey::take(host).map_err(SlotError::Links)?;
    let random = random_mark().map_err(SlotError::Links)?;
    let pair = survey.free_pair(&home.config.ranges, random);
    let (gateway, address) = pair.ok_or_else(|| no_address(home))?;
    let links = Pair { name: &name, peer: UPLINK, peer_namespace: namespace.as_fd(), mtu };
    host.send([links.create()]).map_err(SlotError::Links)?;
    home.step(Step::Links);
    let index = index_of(host, &name)?;
    host.send([link::add_address(index, gateway, PAIR_PREFIX)]).map_err(SlotError::Links)?;
    let guarded = held.forward(&survey.forwarding_links())?;
    drop(held);
    set_if_present(&format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1")?;
    set(&format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "1")?;
    set(&format!("/proc/sys/net/ipv4/conf/{name}/forwarding"), "1")?;
    home.step(Step::Forwarding);
    let own_open = policy.map(|policy| steps::own_open(policy, &survey.own_addresses())).unwrap_or_default();
    let side = HostSide { link: &name, replaces: false, address, guarded: &guarded, own_open: &own_open };
    program::apply(&rules::host(&side))?;
    home.step(Step::HostRules);
    Ok((address, gateway))
}

/// Gives both sides their addresses. The TAP device stays down until a policy is applied.
fn connect(
    host: &mut Netlink,
    inside: &mut Netlink,
    name: &str,
    place: Place,
    (gateway, address): (Ipv4Addr, Ipv4Addr),
) -> Result<(), SlotError> {
    let (guests, uplink) = (index_of(inside, place.link)?, index_of(inside, UPLINK)?);
    host.send([link::up(name)]).map_err(SlotError::Links)?;
    let changes = [
        link::up("lo"),
        link::set_mac(place.link, GATEWAY_MAC),
        link::add_address(guests, place.gateway.0, place.gateway.1),
        link::add_address(uplink, address, PAIR_PREFIX),
        link::up(UPLINK),
        link::default_route(gateway, uplink),
    ];
    inside.send(changes).map_err(SlotError::Links)
}

pub(super) fn index_of(netlink: &mut Netlink, name: &str) -> Result<u32, SlotError> {
    let links = link::links(netlink).map_err(SlotError::Links)?;
    let found = links.iter().find(|link| link.name == name);
    found.map(|link| link.index).ok_or_else(|| SlotError::Links(io::Error::from_raw_os_error(libc::ENODEV)))
}

/// A mark for one application of a policy. Small numbers have other meanings.
pub(super) fn random_mark() -> io::Result<u32> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u32::from_ne_bytes(bytes) | 1 << 31)
}

fn no_address(home: &Inner) -> SlotError {
    let ranges: Vec<String> =
        home.config.ranges.iter().map(|range| format!("{}/{}", range.address, range.prefix)).collect();
    SlotError::NoAddress { ranges: ranges.join(", ") }
}
