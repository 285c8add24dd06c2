//! The host's side: which addresses are free, which are its own, and the settings that let packets of slots pass.
//!
//! Linux routes a packet only if the link that it arrived on forwards. Kiln does not turn on `net.ipv4.ip_forward`,
//! because that makes the host a router between all its networks. It turns on forwarding of the links that have an
//! address, and the rules of each slot drop what would pass between other networks because of that (see `rules.rs`).
//! What was changed is noted first, in a file that all Kiln homes of the host share, and is taken back with the last
//! slot.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt as _;

use camino::{Utf8Path, Utf8PathBuf};

use super::error::{NftError, SlotError};
use super::journal::{PREFIX, wait_for_lock};
use super::link::{self, Link, Range};
use super::netlink::Netlink;
use super::program;
use crate::inner::MTU;

/// The least that IPv4 needs (RFC 791).
const MTU_MIN: u32 = 576;
const SETTINGS: &str = "/proc/sys/net/ipv4/conf";
const LOOPBACK: &str = "lo";

/// A range of addresses for the links between slots and the host. Each takes two addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotRange {
    /// Its first address.
    pub address: Ipv4Addr,
    /// The length of its prefix, at most 31.
    pub prefix: u8,
}

/// Ranges that few networks use, in the order in which they are tried.
pub const RANGES: [SlotRange; 4] = [
    SlotRange { address: Ipv4Addr::new(10, 213, 0, 0), prefix: 16 },
    SlotRange { address: Ipv4Addr::new(172, 30, 208, 0), prefix: 20 },
    SlotRange { address: Ipv4Addr::new(100, 111, 0, 0), prefix: 16 },
    SlotRange { address: Ipv4Addr::new(192, 168, 213, 0), prefix: 24 },
];

/// Something on the host that stops packets of slots, and that Kiln must not change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// The table, such as `ip filter`.
    pub table: String,
    /// Its chain for forwarded packets, which drops what no rule of it accepts.
    pub chain: String,
}

/// Links, addresses and routes of the host at one moment.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) links: Vec<Link>,
    addresses: Vec<Range>,
    routes: Vec<Range>,
}

/// What all Kiln homes of a host share.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    directory: Utf8PathBuf,
}

/// The shared part, held by this process alone.
#[derive(Debug)]
pub(super) struct Held {
    record: Utf8PathBuf,
    _lock: File,
}

impl Survey {
    pub(super) fn take(netlink: &mut Netlink) -> io::Result<Self> {
        let (links, addresses) = (link::links(netlink)?, link::addresses(netlink)?);
        Ok(Self { links, addresses, routes: link::routes(netlink)? })
    }

    /// The addresses of the host, except those of slots and those of loopback, which never open.
    pub(super) fn own_addresses(&self) -> Vec<Ipv4Addr> {
        let own = self.addresses.iter().filter(|range| self.is_outside(range.link));
        own.map(|range| range.address).filter(|address| !address.is_loopback()).collect()
    }

    /// The links with an address, except loopback and those of slots.
    pub(super) fn forwarding_links(&self) -> Vec<String> {
        let with_address: BTreeSet<u32> = self.addresses.iter().map(|range| range.link).collect();
        let links = self.links.iter().filter(|link| with_address.contains(&link.index));
        links.map(|link| link.name.clone()).filter(|name| is_outside(name)).collect()
    }

    /// The largest packet that the way to the internet takes.
    pub(super) fn mtu(&self) -> u32 {
        let uplink = self.routes.iter().find(|route| route.prefix == 0);
        let link = uplink.and_then(|route| self.links.iter().find(|link| link.index == route.link));
        link.map_or(MTU.into(), |link| link.mtu).clamp(MTU_MIN, MTU.into())
    }

    /// Two addresses that no address and no route of the host covers, except the default route: the host's and the
    /// slot's. The search begins at a random place, so that an address is not in use again right away.
    pub(super) fn free_pair(&self, ranges: &[SlotRange], random: u32) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let routes = self.routes.iter().filter(|route| route.prefix > 0);
        let used: Vec<&Range> = self.addresses.iter().chain(routes).collect();
        for range in ranges {
            let pairs = 1_u32 << (31 - u32::from(range.prefix.clamp(1, 31)));
            let first = range.address.to_bits() & !(2 * pairs - 1);
            // One route over the whole range would otherwise be compared with each pair of it.
            if used.iter().any(|used| used.prefix <= range.prefix && used.overlaps(range.address, range.prefix)) {
                continue;
            }
            let pair = |number: u32| Ipv4Addr::from_bits(first + 2 * (number % pairs));
            let mut all = (0..pairs).map(|step| pair(step.wrapping_add(random % pairs)));
            if let Some(host) = all.find(|host| !used.iter().any(|used| used.overlaps(*host, 31))) {
                return Some((host, Ipv4Addr::from_bits(host.to_bits() + 1)));
            }
        }
        None
    }

    fn is_outside(&self, index: u32) -> bool {
        self.links.iter().any(|link| link.index == index && is_outside(&link.name))
    }
}

fn is_outside(link: &str) -> bool {
    link != LOOPBACK && !link.starts_with(PREFIX)
}

impl Shared {
    pub(super) fn open(directory: &Utf8Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        Ok(Self { directory: directory.to_owned() })
    }

    pub(super) fn hold(&self) -> io::Result<Held> {
        let lock = wait_for_lock(&self.directory.join("lock"))?;
        Ok(Held { record: self.directory.join("forwarding"), _lock: lock })
    }
}

impl Held {
    /// Turns on forwarding of these links. Returns all links that forward only because of Kiln.
    pub(super) fn forward(&self, links: &[String]) -> Result<Vec<String>, SlotError> {
        let mut ours = self.ours().map_err(|source| SlotError::Setting { path: self.record.clone(), source })?;
        let known = ours.len();
        let off = links.iter().filter(|link| forwards(link).is_ok_and(|forwards| !forwards));
        let off: Vec<&String> = off.collect();
        for link in &off {
            if !ours.contains(link) {
                ours.push((*link).clone());
            }
        }
        if ours.len() > known {
            // Noted before it is changed, so that a crash in between leaves no change without a note.
            let new = self.record.with_extension("new");
            let written = std::fs::write(&new, ours.join("\n")).and_then(|()| std::fs::rename(&new, &self.record));
            written.map_err(|source| SlotError::Setting { path: self.record.clone(), source })?;
        }
        for link in off {
            set(&format!("{SETTINGS}/{link}/forwarding"), "1")?;
        }
        Ok(ours)
    }

    /// Takes back what was changed, if no slot of any Kiln home is left.
    pub(super) fn restore(&self, netlink: &mut Netlink) -> io::Result<()> {
        if !self.record.exists() || link::links(netlink)?.iter().any(|link| link.name.starts_with(PREFIX)) {
            return Ok(());
        }
        // If the host became a router meanwhile, all its links forward for its own reasons.
        let is_router = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?.trim() == "1";
        for link in self.ours()?.iter().filter(|_| !is_router) {
            match std::fs::write(format!("{SETTINGS}/{link}/forwarding"), "0") {
                // The link is gone, and its settings with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        std::fs::remove_file(&self.record)
    }

    fn ours(&self) -> io::Result<Vec<String>> {
        match std::fs::read_to_string(&self.record) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => Ok(other?.lines().map(str::to_owned).collect()),
        }
    }
}

fn forwards(link: &str) -> io::Result<bool> {
    Ok(std::fs::read_to_string(format!("{SETTINGS}/{link}/forwarding"))?.trim() == "1")
}

/// Changes a setting of the kernel, in the namespace of this thread.
pub(super) fn set(path: &str, value: &str) -> Result<(), SlotError> {
    std::fs::write(path, value).map_err(|source| SlotError::Setting { path: path.into(), source })
}

/// Changes a setting that a kernel without IPv6 does not have.
pub(super) fn set_if_present(path: &str, value: &str) -> Result<(), SlotError> {
    match set(path, value) {
        Err(SlotError::Setting { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Chains of other programs that drop forwarded packets, such as docker's. An accept in a table of ours can't undo a
/// drop in another table, and their rules are not ours to change.
pub(super) fn obstacles() -> Result<Vec<Obstacle>, NftError> {
    let listed = program::list(&["chains"])?;
    let chains = listed["nftables"].as_array().into_iter().flatten().map(|entry| &entry["chain"]);
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let dropping = chains.filter(|chain| {
        let ours = chain["table"].as_str().is_some_and(|table| table.starts_with(PREFIX));
        !ours && chain["hook"] == "forward" && chain["policy"] == "drop" && chain["family"] != "ip6"
    });
    let obstacle = |chain: &serde_json::Value| Obstacle {
        table: format!("{} {}", text(&chain["family"]), text(&chain["table"])),
        chain: text(&chain["name"]),
    };
    Ok(dropping.map(obstacle).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(routes: &[([u8; 4], u8)]) -> Survey {
        let range = |(address, prefix): &([u8; 4], u8)| Range { address: (*address).into(), prefix: *prefix, link: 2 };
        let link = |index, name: &str, mtu| Link { index, name: name.into(), mtu };
        let addresses = vec![
            Range { address: [192, 0, 2, 2].into(), prefix: 24, link: 2 },
            Range { address: [127, 0, 0, 1].into(), prefix: 8, link: 1 },
            Range { address: [10, 213, 0, 0].into(), prefix: 31, link: 3 },
        ];
        let links = vec![link(1, "lo", 65_536), link(2, "eth0", 1400), link(3, "kiln-00aa00aa00", 1400)];
        Survey { links, addresses, routes: routes.iter().map(range).collect() }
    }

    #[test]
    fn a_pair_that_is_in_use_is_passed_over() {
        let pair = survey(&[([0, 0, 0, 0], 0)]).free_pair(&RANGES, 0).expect("is free");
        assert_eq!(pair, ([10, 213, 0, 2].into(), [10, 213, 0, 3].into()));
        let last = survey(&[]).free_pair(&RANGES, 0x7fff).expect("is free");
        assert_eq!(last, ([10, 213, 255, 254].into(), [10, 213, 255, 255].into()));
    }

    #[test]
    fn a_route_over_a_range_leads_to_the_next_range_and_in_the_end_to_none() {
        let pair = survey(&[([10, 0, 0, 0], 8)]).free_pair(&RANGES, 0).expect("is free");
        assert_eq!(pair.0, Ipv4Addr::new(172, 30, 208, 0));
        let all = [([10, 0, 0, 0], 8), ([172, 16, 0, 0], 12), ([100, 64, 0, 0], 10), ([192, 168, 0, 0], 16)];
        assert_eq!(survey(&all).free_pair(&RANGES, 0), None);
    }

    #[test]
    fn own_addresses_and_links_leave_out_loopback_and_slots() {
        let survey = survey(&[([0, 0, 0, 0], 0)]);
        assert_eq!(survey.own_addresses(), [Ipv4Addr::new(192, 0, 2, 2)]);
        assert_eq!(survey.forwarding_links(), ["eth0"]);
        assert_eq!(survey.mtu(), 1400);
    }
}
