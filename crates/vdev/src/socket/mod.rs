//! Messages on a Unix socket, descriptors included, with a deadline on every wait.
//!
//! ```text
//!    Channel::send(&GetFeatures, fds) ──▶ bytes + SCM_RIGHTS ──▶ peer
//!    Channel::receive(deadline)       ◀── one RawMessage, exactly its bytes, with its descriptors
//! ```
//! A `Channel` sends correct messages; `Channel::send_raw` and `Channel::send_bytes` send anything, which a
//! conformance suite needs.

mod channel;
mod error;
mod event;
mod flow;
mod listener;
mod reach;

pub use error::SocketError;
pub use event::Event;
pub use reach::unreachable;

pub(crate) use flow::Flow;

for_tests! {
    pub use channel::{Channel, RawMessage};
    pub use event::wait_readable;
    pub use listener::Listener;
}
