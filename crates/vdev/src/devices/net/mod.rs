//! A network card (VIRTIO 1.2, section 5.1) with pairs of queues, and the network behind it.
//!
//! ```text
//!   guest ── transmit ring ──▶ frame ──▶ Wire ──▶ TAP │ a host that answers │ its own reflection
//!         ◀── receive ring ◀── frame ◀──
//! ```
//! A frame holds at most an IP packet of 65,535 bytes; there are no offloads, so each is what is on the wire. What comes
//! while the guest has no room waits in the TAP, or is dropped like on any network.

mod answer;
mod handler;
mod tap;
mod wire;

use std::io;
use std::net::Ipv4Addr;

use answer::Host;
use tap::Tap;
use wire::Wire;

use crate::backend::{Device, DeviceError, QueueHandler};
use crate::protocol::ProtocolFeatures;
use crate::virtio::{DeviceKind, feature};

/// The longest frame that is taken, either way: the largest IP packet with its Ethernet header.
const FRAME_BYTES_MAX: usize = 65_535 + 14;
/// The most pairs of queues: the number of a queue has 8 bits in `SET_VRING_KICK` and its like.
const PAIRS_MAX: u16 = 128;

/// The network behind a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behind {
    /// A TAP device of the host, by name. It is made if it is not there.
    Tap(String),
    /// One host that answers ARP and pings at this address.
    Host(Ipv4Addr),
    /// The card's own frames come back, from and to in the Ethernet header exchanged.
    Reflection,
}

/// How a card is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetOptions {
    /// Its address.
    pub mac: [u8; 6],
    /// How many pairs of queues it has, 1 to 128. Each has a thread and receives the answers to what it sent; a TAP is read
    /// by the first alone. Which of them a guest uses is agreed between it and the VMM, over a control queue that a backend
    /// does not see.
    pub pairs: u16,
    /// The network behind it.
    pub behind: Behind,
    /// Of 1,000 frames, either way, how many are lost. Which ones depends on `seed` alone.
    pub loss_permille: u16,
    /// The seed of that.
    pub seed: u64,
}

impl Default for NetOptions {
    fn default() -> Self {
        let mac = [0x02, 0x6b, 0x69, 0x6c, 0x6e, 1];
        Self { mac, pairs: 1, behind: Behind::Reflection, loss_permille: 0, seed: 1 }
    }
}

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
