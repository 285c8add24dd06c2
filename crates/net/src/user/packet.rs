//! Packets of a guest, and packets for it: Ethernet (IEEE 802.3), ARP (RFC 826), IPv4 (RFC 791), UDP and ICMP.
//!
//! Only what a guest of ours sends is understood: IPv4 from its one address, without fragments, to the gateway's MAC
//! address.

use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::wire::{Icmpv4Packet, IpProtocol, Ipv4Packet, TcpPacket, UdpPacket};

use crate::inner::{GATEWAY, GATEWAY_MAC, GUEST};

/// Bytes of an Ethernet header.
pub(super) const ETHERNET_BYTES: usize = 14;

const IPV4_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const ICMP_BYTES: usize = 8;
const ARP_BYTES: usize = 28;

const ETHER_IPV4: [u8; 2] = [0x08, 0x00];
const ETHER_ARP: [u8; 2] = [0x08, 0x06];
const BROADCAST: [u8; 6] = [0xff; 6];

/// The start of an ARP request for IPv4 over Ethernet.
const ARP_REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
const ARP_REPLY: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 2];

const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_UDP: u8 = 17;
const TTL: u8 = 64;

pub(super) const ICMP_ECHO_REPLY: u8 = 0;
pub(super) const ICMP_ECHO: u8 = 8;
const ICMP_UNREACHABLE: u8 = 3;
/// The code of a destination that a rule closes (RFC 1812, 5.2.7.1).
const CODE_PROHIBITED: u8 = 13;

/// What a frame holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    /// A request for the gateway's MAC address.
    Arp,
    /// A segment of TCP.
    Tcp {
        /// The guest's port.
        port: u16,
        to: SocketAddrV4,
        /// Whether it asks for a new connection.
        is_new: bool,
    },
    /// A datagram.
    Udp {
        /// The guest's port.
        port: u16,
        to: SocketAddrV4,
        payload: &'a [u8],
    },
    /// A request for an echo.
    Echo {
        to: Ipv4Addr,
        /// The whole message of ICMP.
        message: &'a [u8],
    },
}

/// A frame that was understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    /// The guest's MAC address.
    pub(super) from: [u8; 6],
    /// The packet of IPv4, with its header. Empty for ARP.
    pub(super) ipv4: &'a [u8],
    pub(super) packet: Packet<'a>,
}

impl<'a> Frame<'a> {
    /// Reads a frame of the guest. `None` if it is to be dropped.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<ETHERNET_BYTES>()?;
        let (to, from) = (<[u8; 6]>::try_from(&header[..6]).ok()?, <[u8; 6]>::try_from(&header[6..12]).ok()?);
        let is_multicast = from[0] & 1 != 0;
        if is_multicast || (to != GATEWAY_MAC && to != BROADCAST) {
            return None;
        }
        if header[12..] == ETHER_ARP {
            return is_arp_request(rest).then_some(Self { from, ipv4: &[], packet: Packet::Arp });
        }
        if header[12..] != ETHER_IPV4 || to != GATEWAY_MAC {
            return None;
        }
        let ipv4 = Ipv4Packet::new_checked(rest).ok()?;
        let is_fragment = ipv4.more_frags() || ipv4.frag_offset() != 0;
        if ipv4.version() != 4 || ipv4.src_addr() != GUEST || is_fragment || !ipv4.verify_checksum() {
            return None;
        }
        let length = usize::from(ipv4.total_len());
        let packet = packet(&ipv4)?;
        Some(Self { from, ipv4: rest.get(..length)?, packet })
    }
}

fn is_arp_request(bytes: &[u8]) -> bool {
    let target = bytes.get(24..ARP_BYTES);
    bytes.starts_with(&ARP_REQUEST) && target == Some(GATEWAY.octets().as_slice())
}

fn packet<'a>(ipv4: &Ipv4Packet<&'a [u8]>) -> Option<Packet<'a>> {
    let (to, payload) = (ipv4.dst_addr(), ipv4.payload());
    match ipv4.next_header() {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(payload).ok()?;
            let to = SocketAddrV4::new(to, tcp.dst_port());
            let is_new = tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin();
            (tcp.src_port() != 0 && tcp.dst_port() != 0).then_some(Packet::Tcp { port: tcp.src_port(), to, is_new })
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(payload).ok()?;
            let to = SocketAddrV4::new(to, udp.dst_port());
            (udp.src_port() != 0 && udp.dst_port() != 0).then(|| Packet::Udp {
                port: udp.src_port(),
                to,
                payload: &payload[UDP_BYTES..usize::from(udp.len())],
            })
        }
        IpProtocol::Icmp => {
            let icmp = Icmpv4Packet::new_checked(payload).ok()?;
            let is_echo = payload.len() >= ICMP_BYTES && payload[0] == ICMP_ECHO && payload[1] == 0;
            (is_echo && icmp.verify_checksum()).then_some(Packet::Echo { to, message: payload })
        }
        _ => None,
    }
}

/// The header of a frame with IPv4 for the guest.
pub(super) fn ethernet(to: [u8; 6]) -> [u8; ETHERNET_BYTES] {
    header(to, ETHER_IPV4)
}

/// The answer to a request for the gateway's MAC address.
pub(super) fn arp_reply(to: [u8; 6]) -> Vec<u8> {
    let mut frame = header(to, ETHER_ARP).to_vec();
    frame.extend(ARP_REPLY);
    frame.extend(GATEWAY_MAC);
    frame.extend(GATEWAY.octets());
    frame.extend(to);
    frame.extend(GUEST.octets());
    frame
}

/// A datagram for the guest. `None` if it does not fit.
pub(super) fn udp(to: [u8; 6], from: SocketAddrV4, port: u16, payload: &[u8], mtu: usize) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP_BYTES + payload.len()).ok()?;
    let mut message = Vec::with_capacity(usize::from(length));
    for field in [from.port(), port, length, 0] {
        message.extend(field.to_be_bytes());
    }
    message.extend_from_slice(payload);
    let mut pseudo = [from.ip().octets(), GUEST.octets()].concat();
    pseudo.extend([0, PROTOCOL_UDP]);
    pseudo.extend(length.to_be_bytes());
    // 0 would mean that there is no checksum (RFC 768).
    let sum = match checksum(&[&pseudo, &message]) {
        0 => u16::MAX,
        sum => sum,
    };
    message[6..8].copy_from_slice(&sum.to_be_bytes());
    ipv4(to, *from.ip(), PROTOCOL_UDP, &message, mtu)
}

/// A message of ICMP for the guest, whose checksum is set here. `None` if it does not fit.
pub(super) fn icmp(to: [u8; 6], from: Ipv4Addr, mut message: Vec<u8>, mtu: usize) -> Option<Vec<u8>> {
    message.get_mut(2..4)?.fill(0);
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv4(to, from, PROTOCOL_ICMP, &message, mtu)
}

/// The reply to a request for an echo.
pub(super) fn echo_reply(request: &[u8]) -> Vec<u8> {
    let mut message = request.to_vec();
    message[0] = ICMP_ECHO_REPLY;
    message
}

/// The message that a rule closes the destination of this packet.
pub(super) fn prohibited(ipv4: &[u8]) -> Vec<u8> {
    // The start of the packet tells the guest which of its sockets is meant.
    let header = usize::from(ipv4.first().copied().unwrap_or_default() & 0xf) * 4;
    let quoted = &ipv4[..ipv4.len().min(header + ICMP_BYTES)];
    [&[ICMP_UNREACHABLE, CODE_PROHIBITED, 0, 0, 0, 0, 0, 0], quoted].concat()
}

fn header(to: [u8; 6], kind: [u8; 2]) -> [u8; ETHERNET_BYTES] {
    let mut header = [0; ETHERNET_BYTES];
    header[..6].copy_from_slice(&to);
    header[6..12].copy_from_slice(&GATEWAY_MAC);
    header[12..].copy_from_slice(&kind);
    header
}

fn ipv4(to: [u8; 6], from: Ipv4Addr, protocol: u8, payload: &[u8], mtu: usize) -> Option<Vec<u8>> {
    let length = IPV4_BYTES + payload.len();
    let total = u16::try_from(length).ok().filter(|_| length <= mtu)?;
    let mut header = [0; IPV4_BYTES];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&total.to_be_bytes());
    // Never fragmented.
    header[6] = 0x40;
    header[8] = TTL;
    header[9] = protocol;
    header[12..16].copy_from_slice(&from.octets());
    header[16..].copy_from_slice(&GUEST.octets());
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    Some([&ethernet(to)[..], &header, payload].concat())
}

/// The internet checksum (RFC 1071). All parts except the last have an even length.
pub(super) fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        let mut pairs = part.chunks_exact(2);
        sum += pairs.by_ref().map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u64>();
        sum += pairs.remainder().first().map_or(0, |byte| u64::from(*byte) << 8);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
