//! Virtqueues (VIRTIO 1.2, sections 2.7 and 2.8), from both sides, in memory that the other side may change at any time.
//!
//! ```text
//!   DriverRing                            shared memory                          DeviceRing
//!   add() add() publish() ──▶ descriptors, available ─────────────────▶ pop() ──▶ Chain of Spans
//!   take_used() ◀──────────── used ◀──────────────────────────── push() push() publish()
//!     its own list of tokens               areas                         its own indices
//! ```
//! Neither side trusts what the other can write: each keeps its own indices, and the driver keeps its own list of requests in
//! flight. An impossible value is a [`QueueError`] that names the ring; the caller then stops the ring. Nothing here allocates
//! for a request, once the first few have passed.
//!
//! # Sleeping and waking
//! A notification is a system call on one side and a wake-up on the other, so both sides suppress those that are not needed:
//! with `VIRTQ_USED_F_NO_NOTIFY` and `VIRTQ_AVAIL_F_NO_INTERRUPT`, with an event index, or with `RING_EVENT_FLAGS_*` in a packed
//! ring. A lost notification would be fatal: a request would wait in the ring while both sides sleep. This is how it is
//! excluded, for a kick; a call is the same with the sides exchanged.
//!
//! ```text
//!   driver, publish()                          device, enable_kicks()
//!     store  the available index      (A)        store  "kick me"               (C)
//!     fence  SeqCst                              fence  SeqCst
//!     load   whether a kick is needed (B)        load   the available index     (D)
//! ```
//! Each side stores one value and then loads the value that the other side stores. Release and Acquire order neither pair,
//! since they never order a store before a later load: every processor, also x86, may delay the store in its store buffer.
//! Without the fences, (B) could miss (C) and (D) could miss (A) in the same run. Then the driver does not kick and the
//! device goes to sleep. The fences exclude that. All SeqCst fences have one total order, and a load after the second of two
//! fences sees a store before the first. If the driver's fence is first, (D) sees the index, and `enable_kicks` returns
//! `true`: the device must look again before it sleeps. If the device's fence is first, (B) sees that a kick is needed.
//! Both can happen at once. Then a kick finds an empty ring, which is harmless.
//!
//! `disable_kicks` and `disable_calls` need no fence. If the other side misses them, it notifies once too often.

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
#[cfg(feature = "testing")]
pub use driver::Used;
pub use driver::{Buffer, DriverRing};
pub use error::QueueError;
pub use inflight::InflightRegion;
pub use layout::{AddressSpace, RingAreas, RingKind, RingLayout};
