//! A network card (VIRTIO 1.2, section 5.1) with pairs of queues, and the network behind it.
//!
//! ```text
//!   guest ── transmit ring ──▶ frame ──▶ Wire ──▶ TAP │ a host that answers │ its own reflection
//!         ◀── receive ring ◀── frame ◀──
//! ```
//! A frame holds at most an IP packet of 65,535 bytes; there are no offloads, so each is what is on the wire. What comes
//! while the guest has no room waits in the TAP, or is dropped like on any network.

mod answer;
mod card;
mod handler;
mod options;
mod tap;
mod wire;

pub use card::Net;
pub use options::{Behind, NetOptions};
