//! The device's side of vhost-user: serves a [`Device`] to one frontend after the other.
//!
//! ```text
//!   Server ── accepts one frontend at a time ──▶ Session: a state machine over messages
//!                                                  │ start, stop, enable, memory … (Command, acknowledged)
//!                                                  ▼
//!                     kick ──▶ Worker: a thread that owns its rings ──▶ QueueHandler::process ──▶ call
//! ```
//! It follows QEMU's `docs/interop/vhost-user.rst` at its strictest. What was not offered or not negotiated is
//! refused: the frontend gets an error if the message has `need_reply`, otherwise the connection is closed. Nothing is
//! ever done in part. An inconsistent ring is not served any more, and its error is signalled. `fault.rs` makes a mock
//! wrong on purpose. An observer gets a [`SessionEvent`] for each event.

mod device;
#[cfg(not(feature = "testing"))]
pub(crate) mod fault;
#[cfg(feature = "testing")]
pub mod fault;
mod interrupt;
mod notify;
mod observe;
mod polling;
mod queues;
mod refusal;
mod server;
mod session;
mod worker;

pub use device::Device;
#[cfg(feature = "testing")]
pub use observe::NoObserver;
pub use observe::{Observer, SessionEvent};
#[cfg(feature = "testing")]
pub use worker::WorkerError;

pub(crate) use device::{ConfigWrite, DeviceError};
pub(crate) use queues::{Queue, StoppedQueue};
pub(crate) use rustix::event::epoll::EventFlags;

for_tests! {
    pub use device::{QueueHandler, Work};
    pub use queues::Queues;
    pub use refusal::{Refusal, SessionError};
    pub use server::{Options, Server};
}
