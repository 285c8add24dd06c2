//! The host's end of the guest protocol: many streams over one byte stream to the agent.
//!
//! ```text
//!   Stream ─▶ control queue ─┐                      ┌─▶ inbox of stream 1 ─▶ StreamReceiver::next
//!   Stream ─▶ data queue ────┴▶ writer ▶ agent ▶ reader ─▶ inbox of stream 3 ─▶ …
//! ```
//!
//! No module above this one knows the transport. Control frames overtake data. Credit paces the data of each stream,
//! and a window bounds what a stream has not consumed, so a stuck stream does not block the others.
//!
//! A guest is hostile. Each queue that it can fill has a bound in entries and in bytes. Each end of a stream or of the
//! link wakes all tasks that wait for it.

mod command;
mod connect;
mod exec;
mod files;
mod forward;
mod freeze;
mod inbox;
mod outbox;
mod stream;
mod transport;

pub use command::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Input, OUTPUT_BYTES_DEFAULT};
pub use connect::{LinkError, LinkOptions, Renewal};
pub use exec::{Exec, ExecOutput};
pub use forward::{Forward, ForwardError};
pub use stream::{Event, REPLIES_MAX, StreamError, StreamReceiver, StreamSender};
pub use transport::GuestLink;
