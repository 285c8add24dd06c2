//! Links, addresses and routes as netlink messages, and lists of those of this host.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::netlink::{ACK, Answer, CREATE, Message, Netlink};

/// `struct ifinfomsg`: family, type, index, flags, mask of the flags to change.
const LINK_BYTES: usize = 16;
/// `struct ifaddrmsg`.
const ADDRESS_BYTES: usize = 8;
/// `struct rtmsg`.
const ROUTE_BYTES: usize = 12;
const VETH_INFO_PEER: u16 = 1;
const AF_INET: u8 = libc::AF_INET as u8;
const UP: u32 = libc::IFF_UP as u32;

/// A link of this namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mtu: u32,
}

/// An IPv4 address or route of this namespace: a network, and the link it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) link: u32,
}

/// A pair of virtual links. The second is made in another namespace.
pub(super) struct Pair<'a> {
    pub(super) name: &'a str,
    pub(super) peer: &'a str,
    pub(super) peer_namespace: BorrowedFd<'a>,
    pub(super) mtu: u32,
}

impl Pair<'_> {
    pub(super) fn create(&self) -> Message {
        let mtu = self.mtu.to_ne_bytes();
        let namespace = self.peer_namespace.as_raw_fd().to_ne_bytes();
        let peer = |nest: Message| {
            nest.raw(&[0; LINK_BYTES])
                .text(libc::IFLA_IFNAME, self.peer)
                .put(libc::IFLA_MTU, &mtu)
                .put(libc::IFLA_NET_NS_FD, &namespace)
        };
        Message::new(libc::RTM_NEWLINK, ACK | CREATE, &[0; LINK_BYTES])
            .text(libc::IFLA_IFNAME, self.name)
            .put(libc::IFLA_MTU, &mtu)
            .nest(libc::IFLA_LINKINFO, |info| {
                info.text(libc::IFLA_INFO_KIND, "veth")
                    .nest(libc::IFLA_INFO_DATA, |data| data.nest(VETH_INFO_PEER, peer))
            })
    }
}

/// Makes a bridge.
pub(super) fn create_bridge(name: &str) -> Message {
    Message::new(libc::RTM_NEWLINK, ACK | CREATE, &[0; LINK_BYTES])
        .text(libc::IFLA_IFNAME, name)
        .nest(libc::IFLA_LINKINFO, |info| info.text(libc::IFLA_INFO_KIND, "bridge"))
}

/// Makes a link a port of a bridge.
pub(super) fn enslave(name: &str, bridge: u32) -> Message {
    Message::new(libc::RTM_NEWLINK, ACK, &[0; LINK_BYTES])
        .text(libc::IFLA_IFNAME, name)
        .put(libc::IFLA_MASTER, &bridge.to_ne_bytes())
}

/// Brings a link up.
pub(super) fn up(name: &str) -> Message {
    set_flags(name, UP)
}

/// Takes a link down.
pub(super) fn down(name: &str) -> Message {
    set_flags(name, 0)
}

fn set_flags(name: &str, flags: u32) -> Message {
    let mut header = [0; LINK_BYTES];
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&UP.to_ne_bytes());
    Message::new(libc::RTM_NEWLINK, ACK, &header).text(libc::IFLA_IFNAME, name)
}

/// Sets the hardware address of a link.
pub(super) fn set_mac(name: &str, mac: [u8; 6]) -> Message {
    Message::new(libc::RTM_NEWLINK, ACK, &[0; LINK_BYTES]).text(libc::IFLA_IFNAME, name).put(libc::IFLA_ADDRESS, &mac)
}

/// Deletes a link. That of a pair takes the other with it.
pub(super) fn delete(name: &str) -> Message {
    Message::new(libc::RTM_DELLINK, ACK, &[0; LINK_BYTES]).text(libc::IFLA_IFNAME, name)
}

/// Gives a link an address.
pub(super) fn add_address(link: u32, address: Ipv4Addr, prefix: u8) -> Message {
    let mut header = [AF_INET, prefix, 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&link.to_ne_bytes());
    Message::new(libc::RTM_NEWADDR, ACK | CREATE, &header)
        .put(libc::IFA_LOCAL, &address.octets())
        .put(libc::IFA_ADDRESS, &address.octets())
}

/// Sends everything else to this gateway.
pub(super) fn default_route(gateway: Ipv4Addr, link: u32) -> Message {
    let header = [AF_INET, 0, 0, 0, libc::RT_TABLE_MAIN, libc::RTPROT_STATIC, 0, libc::RTN_UNICAST, 0, 0, 0, 0];
    Message::new(libc::RTM_NEWROUTE, ACK | CREATE, &header)
        .put(libc::RTA_GATEWAY, &gateway.octets())
        .put(libc::RTA_OIF, &link.to_ne_bytes())
}

/// The links of the socket's namespace.
pub(super) fn links(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let mut links = Vec::new();
    netlink.dump(Message::new(libc::RTM_GETLINK, 0, &[0; LINK_BYTES]), |answer| links.extend(link_of(answer)))?;
    Ok(links)
}

/// The IPv4 addresses of the socket's namespace.
pub(super) fn addresses(netlink: &mut Netlink) -> io::Result<Vec<Range>> {
    let mut header = [0; ADDRESS_BYTES];
    header[0] = AF_INET;
    let mut found = Vec::new();
    netlink.dump(Message::new(libc::RTM_GETADDR, 0, &header), |answer| found.extend(address_of(answer)))?;
    Ok(found)
}

/// The IPv4 routes of the socket's namespace, of all tables, except those to its own addresses.
pub(super) fn routes(netlink: &mut Netlink) -> io::Result<Vec<Range>> {
    let mut header = [0; ROUTE_BYTES];
    header[0] = AF_INET;
    let mut found = Vec::new();
    netlink.dump(Message::new(libc::RTM_GETROUTE, 0, &header), |answer| found.extend(route_of(answer)))?;
    Ok(found)
}

fn link_of(answer: Answer<'_>) -> Option<Link> {
    let attributes = answer.attributes(LINK_BYTES);
    let name = attributes.get(libc::IFLA_IFNAME)?.strip_suffix(&[0])?;
    Some(Link {
        index: u32::from_ne_bytes(answer.body.get(4..8)?.try_into().ok()?),
        name: String::from_utf8_lossy(name).into_owned(),
        mtu: attributes.number(libc::IFLA_MTU)?,
    })
}

fn address_of(answer: Answer<'_>) -> Option<Range> {
    let attributes = answer.attributes(ADDRESS_BYTES);
    let address = attributes.get(libc::IFA_LOCAL).or_else(|| attributes.get(libc::IFA_ADDRESS))?;
    Some(Range {
        address: Ipv4Addr::from(<[u8; 4]>::try_from(address).ok()?),
        prefix: *answer.body.get(1)?,
        link: u32::from_ne_bytes(answer.body.get(4..8)?.try_into().ok()?),
    })
}

fn route_of(answer: Answer<'_>) -> Option<Range> {
    let attributes = answer.attributes(ROUTE_BYTES);
    let unicast = *answer.body.get(7)? == libc::RTN_UNICAST;
    let address = attributes.get(libc::RTA_DST).map_or(Some([0; 4]), |address| address.try_into().ok())?;
    // A route over several links has no link of its own.
    let link = attributes.number(libc::RTA_OIF).unwrap_or(0);
    unicast.then_some(Range { address: address.into(), prefix: *answer.body.get(1)?, link })
}

impl Range {
    /// Whether two networks share an address.
    pub(super) fn overlaps(&self, address: Ipv4Addr, prefix: u8) -> bool {
        let shorter = u32::from(self.prefix.min(prefix).min(32));
        let mask = u32::MAX.checked_shl(32 - shorter).unwrap_or(0);
        u32::from(self.address) & mask == u32::from(address) & mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_overlap_if_one_holds_the_other() {
        let of = |address: [u8; 4], prefix| Range { address: address.into(), prefix, link: 1 };
        assert!(of([10, 0, 0, 0], 8).overlaps([10, 213, 0, 2].into(), 31));
        assert!(of([10, 213, 0, 3], 32).overlaps([10, 213, 0, 2].into(), 31));
        assert!(of([0, 0, 0, 0], 0).overlaps([10, 213, 0, 2].into(), 31));
        assert!(!of([10, 213, 0, 4], 31).overlaps([10, 213, 0, 2].into(), 31));
    }

    #[test]
    fn the_loopback_address_is_found() {
        let mut netlink = Netlink::route().expect("opens");
        let found = addresses(&mut netlink).expect("lists");
        assert!(found.iter().any(|range| range.address == Ipv4Addr::LOCALHOST && range.prefix == 8), "{found:?}");
    }
}
