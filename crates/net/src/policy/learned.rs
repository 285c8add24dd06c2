//! What is known about addresses at this moment: the names that the resolver learned, and the host's own addresses.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::class::unwrapped;
use super::domain::Domain;

/// Addresses that are remembered. If more are learned, those that end first are forgotten.
pub const LEARNED_ADDRESSES_MAX: usize = 4096;

/// Names that are remembered for one address.
pub const LEARNED_NAMES_MAX: usize = 16;

/// One address of a name that a rule allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The name that was asked for. The names of its aliases are not in any rule, and do not count.
    pub name: Domain,
    /// The address of the answer.
    pub address: IpAddr,
    /// How long it is open, from now on.
    pub lasts: Duration,
}

/// Openings until they end, and addresses of the host.
///
/// Only an answer adds an opening. A flow that uses it makes it last longer, up to `renewed_max` after the last answer:
/// programs keep a pool of connections and connect again without asking. That bound exists because an address may go
/// over to another owner, and a guest could hold it open forever.
#[derive(Debug, Clone, Default)]
pub struct Learned {
    addresses: HashMap<IpAddr, Vec<Known>>,
    host: HashSet<IpAddr>,
}

#[derive(Debug, Clone)]
struct Known {
    name: Domain,
    answered: Instant,
    until: Instant,
}

impl Learned {
    /// Sets the addresses of the host's interfaces. Services of the host listen there, so they are not public.
    pub fn set_host_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.host = addresses.into_iter().map(unwrapped).collect();
    }

    /// Notes whether an address is one of the host's.
    pub fn note_host_address(&mut self, address: IpAddr, is_own: bool) {
        // Only addresses of interfaces are in the set, so the host bounds it.
        if is_own {
            self.host.insert(unwrapped(address));
        } else {
            self.host.remove(&unwrapped(address));
        }
    }

    /// Whether the host has this address.
    pub fn is_host_address(&self, address: IpAddr) -> bool {
        self.host.contains(&unwrapped(address))
    }

    /// The same host, with nothing learned except that this name has this address.
    pub(crate) fn only(&self, opening: &Opening, now: Instant) -> Self {
        let mut learned = Self { host: self.host.clone(), ..Self::default() };
        learned.learn(opening, now);
        learned
    }

    /// Adds an opening, or makes it last longer.
    pub fn learn(&mut self, opening: &Opening, now: Instant) {
        let until = now + opening.lasts;
        self.make_room(opening.address, now);
        let known = self.addresses.entry(unwrapped(opening.address)).or_default();
        if let Some(known) = known.iter_mut().find(|known| known.name == opening.name) {
            known.answered = now;
            known.until = known.until.max(until);
            return;
        }
        known.retain(|known| known.until > now);
        if known.len() >= LEARNED_NAMES_MAX {
            let first = known.iter().enumerate().min_by_key(|(_, known)| known.until).map(|(index, _)| index);
            first.map(|index| known.swap_remove(index));
        }
        known.push(Known { name: opening.name.clone(), answered: now, until });
    }

    /// Makes the openings of an address that is in use last at least this long, but not longer than `renewed_max` after
    /// their answer. An opening that has ended stays ended.
    pub fn renew(&mut self, address: IpAddr, lasts: Duration, renewed_max: Duration, now: Instant) {
        for known in self.addresses.get_mut(&unwrapped(address)).into_iter().flatten() {
            if known.until > now {
                known.until = known.until.max((now + lasts).min(known.answered + renewed_max));
            }
        }
    }

    /// The names that have this address now, with the end of each.
    pub fn names(&self, address: IpAddr, now: Instant) -> impl Iterator<Item = (&Domain, Instant)> {
        let known = self.addresses.get(&unwrapped(address)).into_iter().flatten();
        known.filter(move |known| known.until > now).map(|known| (&known.name, known.until))
    }

    /// All openings that have not ended, each with the time that is left.
    pub fn openings(&self, now: Instant) -> Vec<Opening> {
        let all = self.addresses.iter().flat_map(|(address, known)| known.iter().map(move |known| (*address, known)));
        let open = all.filter(|(_, known)| known.until > now);
        open.map(|(address, known)| Opening { name: known.name.clone(), address, lasts: known.until - now }).collect()
    }

    /// The addresses that a name has now, with the end of each, in order.
    pub fn addresses(&self, name: &Domain, now: Instant) -> Vec<(IpAddr, Instant)> {
        let all = self.addresses.keys().map(|address| (*address, self.names(*address, now)));
        let mut found: Vec<_> = all
            .flat_map(|(address, names)| {
                names.filter(|(known, _)| *known == name).map(move |(_, until)| (address, until))
            })
            .collect();
        found.sort_unstable();
        found
    }

    /// Keeps the table within its bound. What has ended goes first, then a quarter of the rest: those that end first.
    fn make_room(&mut self, address: IpAddr, now: Instant) {
        if self.addresses.len() < LEARNED_ADDRESSES_MAX || self.addresses.contains_key(&unwrapped(address)) {
            return;
        }
        self.addresses.retain(|_, known| known.iter().any(|known| known.until > now));
        if self.addresses.len() < LEARNED_ADDRESSES_MAX {
            return;
        }
        let last = |known: &[Known]| known.iter().map(|known| known.until).max();
        let mut ends: Vec<_> = self.addresses.values().filter_map(|known| last(known)).collect();
        let (_, cut, _) = ends.select_nth_unstable(LEARNED_ADDRESSES_MAX / 4);
        let cut = *cut;
        self.addresses.retain(|_, known| last(known).is_some_and(|end| end > cut));
    }
}
