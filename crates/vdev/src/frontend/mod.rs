//! The driver's side of a vhost-user session.
//!
//! ```text
//!    Frontend::connect ──▶ handshake ──▶ share_memory ──▶ set_up_ring … ──▶ requests in rings
//!        │ owner, features, protocol features,   │ SET_MEM_TABLE, or
//!        │ queues, slots, channel, config        │ ADD_MEM_REG by piece
//!        └──────────◀── reconnect (same memory, inflight and rings on a new connection) ──◀─┘
//! ```
//! Each request that our tools send is a method of `Frontend`. A method refuses what was not negotiated or what comes out
//! of order; to send exactly that, use a `Channel`, which checks nothing. With `REPLY_ACK` every message has a reply;
//! inside `Frontend::batched` the replies are awaited together. While a reply is awaited, the backend's own channel is
//! served, so that neither side waits for the other.

mod backend_channel;
pub mod blk;
#[cfg(feature = "testing")]
mod device_state;
mod error;
mod handshake;
mod inflight;
#[cfg(feature = "testing")]
mod log;
mod memory_table;
mod options;
#[cfg(feature = "testing")]
mod other_requests;
mod reconnect;
mod requests;
mod ring;
mod session;
mod vring;

#[cfg(test)]
mod tests;

pub use error::FrontendError;
pub use options::Options;

pub(crate) use options::Negotiated;
pub(crate) use ring::Ring;

for_tests! {
    pub use memory_table::SharedRegion;
    pub use options::Wish;
    pub use session::Frontend;
}
