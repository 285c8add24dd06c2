//! Virtqueues (VIRTIO 1.2, sections 2.7 and 2.8), from both sides, in memory that the other side may change at any time.
//!
//! ```text
//!   DriverRing                            shared memory                          DeviceRing
//!   add() add() publish() ──▶ descriptors, available ─────────────────▶ pop() ──▶ Chain of Spans
//!   take_used() ◀──────────── used ◀──────────────────────────── push() push() publish()
//!     its own list of tokens               areas                         its own indices
//! ```
//! Neither side believes what the other can have written: each keeps its own indices, and the driver its own list of what
//! is outstanding. What can't be true is a [`QueueError`] that names the ring; a ring that gave one is to be stopped. Nothing
//! here allocates for a request, once the first few have passed.

mod arena;
mod chain;
mod crash;
mod descriptor;
mod device;
mod driver;
mod error;
mod inflight;
mod layout;
mod packed;
mod split;

pub use arena::Arena;
pub use chain::{Chain, ChainId};
pub use device::DeviceRing;
pub use driver::{Buffer, DriverRing, Used};
pub use error::QueueError;
pub use inflight::{InflightQueue, InflightRegion};
pub use layout::{AddressSpace, RingAreas, RingKind, RingLayout};
