//! How a card is made.

use std::net::Ipv4Addr;

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
