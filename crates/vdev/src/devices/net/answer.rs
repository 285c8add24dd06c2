//! A host of a few hundred bytes: it answers ARP (RFC 826) and ICMP echo (RFC 792) at one IPv4 address, so that a guest can
//! be pinged from without a network. Frames come from a guest, so every length in them is checked.

use std::net::Ipv4Addr;

/// The host's own address on the wire.
const MAC: [u8; 6] = [0x02, 0x6b, 0x69, 0x6c, 0x6e, 0xfe];
const ETHERNET_BYTES: usize = 14;
const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_ARP: [u8; 2] = [0x08, 0x06];
const TYPE_RARP: [u8; 2] = [0x80, 0x35];
/// Ethernet, IPv4, addresses of 6 and 4 bytes.
const ARP_KIND: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const ARP_BYTES: usize = 28;
const PROTOCOL_ICMP: u8 = 1;
const ICMP_ECHO: u8 = 8;
const ICMP_ECHO_REPLY: u8 = 0;

/// A host that answers ARP and pings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Host {
    address: Ipv4Addr,
}

impl Host {
    /// A host at this address.
    pub(super) const fn new(address: Ipv4Addr) -> Self {
        Self { address }
    }

    /// Puts the answer to a frame into `answer`. Returns whether there is one.
    pub(super) fn answer(&self, frame: &[u8], answer: &mut Vec<u8>) -> bool {
        answer.clear();
        let Some((ethernet, rest)) = frame.split_first_chunk::<ETHERNET_BYTES>() else { return false };
        let [.., t0, t1] = *ethernet;
        let from = &ethernet[6..12];
        match [t0, t1] {
            TYPE_ARP => self.answer_arp(from, rest, answer),
            TYPE_IPV4 => self.answer_ping(from, rest, answer),
            _ => false,
        }
    }

    fn answer_arp(&self, from: &[u8], packet: &[u8], answer: &mut Vec<u8>) -> bool {
        let Some(packet) = packet.first_chunk::<ARP_BYTES>() else { return false };
        let (kind, asks, target) = (&packet[..6], &packet[6..8], &packet[24..28]);
        if *kind != ARP_KIND || *asks != [0, 1] || *target != self.address.octets() {
            return false;
        }
        let asker = &packet[8..18];
        for part in [from, &MAC[..], &TYPE_ARP, &ARP_KIND, &[0, 2], &MAC, &self.address.octets(), asker] {
            answer.extend_from_slice(part);
        }
        true
    }

    fn answer_ping(&self, from: &[u8], packet: &[u8], answer: &mut Vec<u8>) -> bool {
        let Some(header) = packet.first_chunk::<20>() else { return false };
        let header_bytes = usize::from(header[0] & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let is_whole = header[6] & 0x3f == 0 && header[7] == 0;
        let is_ours = header[0] >> 4 == 4 && header[9] == PROTOCOL_ICMP && header[16..20] == self.address.octets();
        if !is_ours || !is_whole || header_bytes < 20 || total > packet.len() || total < header_bytes + 8 {
            return false;
        }
        let icmp = &packet[header_bytes..total];
        if icmp[0] != ICMP_ECHO || icmp[1] != 0 || checksum(&[icmp]) != 0 {
            return false;
        }
        for part in [from, &MAC[..], &TYPE_IPV4] {
            answer.extend_from_slice(part);
        }
        let reply_bytes = u16::try_from(20 + icmp.len()).expect("no more than `total`, which had 16 bits");
        let reply_bytes = reply_bytes.to_be_bytes();
        let mut reply =
            [0x45, 0, reply_bytes[0], reply_bytes[1], 0, 0, 0, 0, 64, PROTOCOL_ICMP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        reply[12..16].copy_from_slice(&self.address.octets());
        reply[16..20].copy_from_slice(&header[12..16]);
        let sum = checksum(&[&reply]).to_be_bytes();
        reply[10..12].copy_from_slice(&sum);
        answer.extend_from_slice(&reply);
        let body = &icmp[4..];
        let sum = checksum(&[&[ICMP_ECHO_REPLY, 0, 0, 0], body]).to_be_bytes();
        answer.extend_from_slice(&[ICMP_ECHO_REPLY, 0, sum[0], sum[1]]);
        answer.extend_from_slice(body);
        true
    }
}

/// The frame that shows every switch where a guest with this address is now.
pub(super) fn reverse_arp(mac: [u8; 6]) -> [u8; 60] {
    let mut frame = [0; 60];
    let parts: [&[u8]; 8] = [&[0xff; 6], &mac, &TYPE_RARP, &ARP_KIND, &[0, 3], &mac, &[0; 4], &mac];
    let mut at = 0;
    for part in parts {
        frame[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    frame
}

/// The Internet checksum (RFC 1071) over parts of which all but the last are even.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u64::from(u16::from_be_bytes([pair[0], low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("was folded")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const HOST: Host = Host::new(Ipv4Addr::new(10, 0, 2, 1));

    fn ping(body: &[u8]) -> Vec<u8> {
        let mut icmp = [&[8, 0, 0, 0, 0, 7, 0, 1][..], body].concat();
        let sum = checksum(&[&icmp]).to_be_bytes();
        icmp[2..4].copy_from_slice(&sum);
        let total = u16::try_from(20 + icmp.len()).expect("is short").to_be_bytes();
        let header = [0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, 1, 0, 0, 10, 0, 2, 15, 10, 0, 2, 1];
        [&MAC[..], &GUEST, &TYPE_IPV4, &header, &icmp].concat()
    }

    #[test]
    fn who_has_the_address_is_told() {
        let question = [0, 0, 0, 0, 0, 0, 10, 0, 2, 1];
        let asker = [&GUEST[..], &[10, 0, 2, 15]].concat();
        let frame = [&[0xff; 6][..], &GUEST, &TYPE_ARP, &ARP_KIND, &[0, 1], &asker, &question].concat();
        let mut answer = Vec::new();
        assert!(HOST.answer(&frame, &mut answer));
        assert_eq!(answer[..6], GUEST);
        assert_eq!(answer[20..32], [&[0, 2][..], &MAC, &[10, 0, 2, 1]].concat());
        assert_eq!(answer[32..42], asker);
        let other = Host::new(Ipv4Addr::new(10, 0, 2, 2));
        assert!(!other.answer(&frame, &mut answer));
    }

    #[test]
    fn a_ping_comes_back_with_what_it_carried() {
        for body in [&b"odd"[..], b"even", &[0xff; 1400]] {
            let mut answer = Vec::new();
            assert!(HOST.answer(&ping(body), &mut answer));
            assert_eq!(checksum(&[&answer[14..34]]), 0);
            assert_eq!(checksum(&[&answer[34..]]), 0);
            assert_eq!((answer[34], &answer[42..]), (0, body));
            assert_eq!(answer[26..34], [10, 0, 2, 1, 10, 0, 2, 15]);
        }
    }

    #[test]
    fn a_ping_that_is_torn_is_not_answered() {
        let whole = ping(b"body");
        let mut torn = whole.clone();
        torn[45] ^= 1;
        let mut answer = Vec::new();
        assert!(!HOST.answer(&torn, &mut answer));
        for length in 0..whole.len() {
            assert!(!HOST.answer(&whole[..length], &mut answer), "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_frame_is_too_wild(mut frame in proptest::collection::vec(any::<u8>(), 0..200), as_ping: bool, at in 0_usize..60, byte: u8) {
            if as_ping {
                frame = ping(&frame);
                let at = at % frame.len();
                frame[at] = byte;
            }
            HOST.answer(&frame, &mut Vec::new());
        }
    }
}
