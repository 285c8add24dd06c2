//! The host's end of the guest protocol: many streams over one byte stream to the agent.
//!
//! ```text
//!   Stream ─▶ control queue ─┐                      ┌─▶ inbox of stream 1 ─▶ StreamReceiver::next
//!   Stream ─▶ data queue ────┴▶ writer ▶ agent ▶ reader ─▶ inbox of stream 3 ─▶ …
//! ```
//!
//! Nothing above this module knows what carries the bytes. Control frames overtake data, data is paced by credit per
//! stream, and what a stream has not consumed is bounded by its window: one stuck stream stops nobody else.
//!
//! A guest is hostile. Each queue that it can fill has a bound in entries and in bytes, and each end of a stream or of
//! the link wakes all who wait for it.

mod command;
mod connect;
mod exec;
mod files;
mod freeze;
mod inbox;
mod outbox;
mod stream;
mod transport;

pub use command::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Input, OUTPUT_BYTES_DEFAULT};
pub use connect::{LinkError, LinkOptions, Renewal};
pub use exec::{Exec, ExecOutput};
pub use stream::{Event, REPLIES_MAX, StreamError, StreamReceiver, StreamSender};
pub use transport::GuestLink;
