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
//! ever done in part. An inconsistent ring is not served any more, and its error is signalled. [`fault`] makes a mock
//! wrong on purpose. An observer gets a [`SessionEvent`] for each event.

mod device;
pub mod fault;
mod interrupt;
mod notify;
mod observe;
mod polling;
mod queues;
mod refusal;
mod server;
mod session;
mod signal;
mod worker;

pub use device::{ConfigWrite, Device, DeviceError, QueueHandler, STATE_BYTES_MAX, Work};
pub use observe::{NoObserver, Observer, SessionEvent};
pub use queues::{Queue, Queues, StoppedQueue};
pub use refusal::{Refusal, SessionError};
pub use rustix::event::epoll::EventFlags;
pub use server::{Options, Server};
pub use signal::stop_on_signals;
pub use worker::WorkerError;
