//! The link as smoltcp sees it: packets of IPv4 without their Ethernet headers.

use smoltcp::phy::{self, Checksum, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use super::link::Link;
use super::packet::{ETHERNET_BYTES, ethernet};

/// A link for one call into smoltcp, with at most one packet that was received.
pub(super) struct Device<'a> {
    pub(super) link: &'a mut Link,
    pub(super) received: Option<&'a [u8]>,
    pub(super) guest_mac: [u8; 6],
    pub(super) mtu: usize,
}

pub(super) struct Received<'a>(&'a [u8]);

pub(super) struct Sender<'a> {
    link: &'a mut Link,
    guest_mac: [u8; 6],
}

impl phy::Device for Device<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Sender<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sender<'_>)> {
        let received = self.received.take()?;
        Some((Received(received), Sender { link: self.link, guest_mac: self.guest_mac }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        let has_room = self.link.has_room();
        has_room.then_some(Sender { link: self.link, guest_mac: self.guest_mac })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        // The link is memory of this machine, so a segment that was sent is the one that arrives. The headers of IPv4
        // were checked before.
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

impl phy::TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        self.link.push(ETHERNET_BYTES + length, |frame| {
            let (header, packet) = frame.split_at_mut(ETHERNET_BYTES);
            header.copy_from_slice(&ethernet(self.guest_mac));
            write(packet)
        })
    }
}
