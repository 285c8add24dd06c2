//! Kinds of addresses: what the internet's registries keep for special uses.
//!
//! Sources: IANA's registries of special-purpose addresses for IPv4 and IPv6 (RFC 6890), and the pages of clouds for
//! the addresses of their metadata services.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::cidr::Cidr;

/// What an address is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// An address of the internet. The ranges for documentation count as such.
    Public,
    /// The host itself, or an address that means "this host".
    Loopback,
    /// Valid only on one link.
    LinkLocal,
    /// A service that hands out a cloud machine's credentials.
    Metadata,
    /// Groups of receivers, and broadcasts.
    Multicast,
    /// Not in use, or an IPv6 form that hides an IPv4 address.
    Reserved,
    /// Networks that are not connected to the internet (RFC 1918, RFC 4193), and those for benchmarks.
    Private,
    /// Between a provider and its customers (RFC 6598).
    Shared,
}

/// A range of addresses that are not public.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    /// The range.
    pub cidr: Cidr,
    /// What it is for.
    pub class: Class,
}

/// All ranges that are not public. If two overlap, the narrower one is first. IPv6 addresses outside 2000::/3 and these
/// ranges are reserved too.
pub const BLOCKS: [Block; 30] = [
    block(Cidr::v4([100, 100, 100, 200], 32), Class::Metadata),
    block(Cidr::v4([168, 63, 129, 16], 32), Class::Metadata),
    block(Cidr::v4([169, 254, 169, 254], 32), Class::Metadata),
    block(Cidr::v4([192, 0, 0, 192], 32), Class::Metadata),
    block(Cidr::v4([0, 0, 0, 0], 8), Class::Loopback),
    block(Cidr::v4([10, 0, 0, 0], 8), Class::Private),
    block(Cidr::v4([100, 64, 0, 0], 10), Class::Shared),
    block(Cidr::v4([127, 0, 0, 0], 8), Class::Loopback),
    block(Cidr::v4([169, 254, 0, 0], 16), Class::LinkLocal),
    block(Cidr::v4([172, 16, 0, 0], 12), Class::Private),
    block(Cidr::v4([192, 0, 0, 0], 24), Class::Private),
    block(Cidr::v4([192, 88, 99, 0], 24), Class::Private),
    block(Cidr::v4([192, 168, 0, 0], 16), Class::Private),
    block(Cidr::v4([198, 18, 0, 0], 15), Class::Private),
    block(Cidr::v4([224, 0, 0, 0], 4), Class::Multicast),
    block(Cidr::v4([255, 255, 255, 255], 32), Class::Multicast),
    block(Cidr::v4([240, 0, 0, 0], 4), Class::Reserved),
    block(Cidr::v6(0xfd00_00c1_0000_0000_0000_0000_a9fe_a9fe, 128), Class::Metadata),
    block(Cidr::v6(0xfd00_0ec2_0000_0000_0000_0000_0000_0254, 128), Class::Metadata),
    block(Cidr::v6(0xfd20_00ce_0000_0000_0000_0000_0000_0254, 128), Class::Metadata),
    block(Cidr::v6(0, 127), Class::Loopback),
    block(Cidr::v6(0, 96), Class::Reserved),
    block(Cidr::v6(0x2001 << 112, 32), Class::Reserved),
    block(Cidr::v6(0x2002 << 112, 16), Class::Reserved),
    block(Cidr::v6(0x0064_ff9b_0001 << 80, 48), Class::Reserved),
    block(Cidr::v6(0x0100 << 112, 64), Class::Reserved),
    block(Cidr::v6(0xfc00 << 112, 7), Class::Private),
    block(Cidr::v6(0xfe80 << 112, 10), Class::LinkLocal),
    block(Cidr::v6(0xfec0 << 112, 10), Class::LinkLocal),
    block(Cidr::v6(0xff00 << 112, 8), Class::Multicast),
];

/// Global unicast addresses of IPv6.
const GLOBAL_V6: Cidr = Cidr::v6(0x2000 << 112, 3);

/// The prefix of NAT64 (RFC 6052): the last 32 bits are an IPv4 address.
const NAT64: Cidr = Cidr::v6(0x0064_ff9b << 96, 96);

impl Class {
    /// What this address is for. Forms that carry an IPv4 address are judged by that address, see [`unwrapped`].
    pub fn of(address: IpAddr) -> Self {
        let address = unwrapped(address);
        match BLOCKS.iter().find(|block| block.cidr.contains(address)) {
            Some(block) => block.class,
            None if address.is_ipv4() || GLOBAL_V6.contains(address) => Self::Public,
            None => Self::Reserved,
        }
    }

    /// The kind of the narrowest range that has all addresses of this network. `None` if no such range does, as for
    /// public networks and for those that are wider than any range.
    pub fn around(cidr: Cidr) -> Option<Self> {
        let cidr = unwrapped_network(cidr);
        BLOCKS.iter().find(|block| block.cidr.covers(cidr)).map(|block| block.class)
    }

    /// Whether no rule can open such an address.
    pub fn never_opens(self) -> bool {
        match self {
            Self::Loopback | Self::LinkLocal | Self::Metadata | Self::Multicast | Self::Reserved => true,
            Self::Public | Self::Private | Self::Shared => false,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "a public address",
            Self::Loopback => "the host's loopback",
            Self::LinkLocal => "a link-local address",
            Self::Metadata => "a cloud's metadata service",
            Self::Multicast => "a multicast or broadcast address",
            Self::Reserved => "a reserved address",
            Self::Private => "a private address",
            Self::Shared => "an address between a provider and its customers",
        })
    }
}

/// The IPv4 address that a mapped (`::ffff:192.0.2.1`) or NAT64 (`64:ff9b::192.0.2.1`) address leads to. Any other
/// address is returned as it is.
pub fn unwrapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) if NAT64.contains(address) => last_bits(v6).into(),
        other => other.to_canonical(),
    }
}

/// The same for a network.
pub(super) fn unwrapped_network(cidr: Cidr) -> Cidr {
    let address = unwrapped(cidr.address());
    match cidr.prefix().checked_sub(96) {
        Some(prefix) if cidr.address().is_ipv6() && address.is_ipv4() => Cidr::new(address, prefix).unwrap_or(cidr),
        _ => cidr,
    }
}

fn last_bits(address: Ipv6Addr) -> Ipv4Addr {
    let [.., a, b, c, d] = address.octets();
    Ipv4Addr::new(a, b, c, d)
}

const fn block(cidr: Cidr, class: Class) -> Block {
    Block { cidr, class }
}
