//! A card as a device: its network opened, its features and its configuration.

use std::io;
use std::net::Ipv4Addr;

use super::answer::{self, Host};
use super::handler;
use super::options::{Behind, NetOptions};
use super::tap::Tap;
use super::wire::Wire;
use crate::backend::{Device, DeviceError, QueueHandler};
use crate::protocol::ProtocolFeatures;
use crate::virtio::{DeviceKind, feature};

/// The longest frame that is taken, either way: the largest IP packet with its Ethernet header.
pub(super) const FRAME_BYTES_MAX: usize = 65_535 + 14;
/// The most pairs of queues: the number of a queue has 8 bits in `SET_VRING_KICK` and its like.
const PAIRS_MAX: u16 = 128;

/// The largest packet of a frame, from the configuration.
const MTU: u16 = 1500;
/// In `status`: there is a link.
const LINK_UP: u16 = 1;

/// A network card.
#[derive(Debug)]
pub struct Net {
    options: NetOptions,
    network: Network,
}

/// The network behind a card, opened.
#[derive(Debug)]
enum Network {
    Tap(Tap),
    Host(Ipv4Addr),
    Reflection,
}

impl Net {
    /// A card, with the network behind it.
    ///
    /// # Errors
    /// If the TAP can't be opened.
    pub fn new(options: NetOptions) -> io::Result<Self> {
        let network = match &options.behind {
            Behind::Tap(name) => Network::Tap(Tap::open(name)?),
            Behind::Host(address) => Network::Host(*address),
            Behind::Reflection => Network::Reflection,
        };
        Ok(Self { options, network })
    }

    fn pairs(&self) -> u16 {
        self.options.pairs.clamp(1, PAIRS_MAX)
    }
}

impl Device for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn features(&self) -> u64 {
        let of_pairs = if self.pairs() > 1 { feature::net::MQ } else { 0 };
        feature::net::MAC | feature::net::STATUS | feature::net::MTU | feature::net::MRG_RXBUF | of_pairs
    }

    fn protocol_features(&self) -> ProtocolFeatures {
        ProtocolFeatures::NET_MTU | ProtocolFeatures::RARP
    }

    fn queues(&self) -> u16 {
        2 * self.pairs()
    }

    fn worker_of(&self, queue: u16) -> u16 {
        queue / 2
    }

    fn config(&self) -> Vec<u8> {
        let mut config = self.options.mac.to_vec();
        for number in [LINK_UP, self.pairs(), MTU] {
            config.extend_from_slice(&number.to_le_bytes());
        }
        config
    }

    fn set_mtu(&self, mtu: u64) -> Result<(), DeviceError> {
        // The smallest that IPv4 can do with (RFC 791), and the largest that a frame has room for.
        if (68..=65_535).contains(&mtu) { Ok(()) } else { Err(DeviceError::Mtu { mtu }) }
    }

    fn announce(&self, mac: [u8; 6]) -> Result<(), DeviceError> {
        if let Network::Tap(tap) = &self.network {
            // A frame that a full TAP drops is what happens on a network.
            let _ = tap.write(&answer::reverse_arp(mac));
        }
        Ok(())
    }

    fn start(&self, worker: u16, features: u64) -> io::Result<Box<dyn QueueHandler>> {
        let wire = match &self.network {
            Network::Tap(tap) => Wire::Tap(tap.try_clone()?),
            Network::Host(address) => Wire::Host(Host::new(*address)),
            Network::Reflection => Wire::Reflection,
        };
        Ok(Box::new(handler::Handler::new(wire, &self.options, worker, features)))
    }
}
