//! What the generic part of the engine asks of a VMM. A driver gives one answer to each of these; nothing else knows which
//! VMM runs.
//!
//! ```text
//!   Owner ──▶ Monitor: pause, resume, power down, does it run?     Owner ◀── MonitorEvents
//!   Vm    ──▶ Transport: a byte stream to the agent, and how a link starts on it
//! ```

use std::fmt;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::UnixStream;

use crate::engine::BoxFuture;
use crate::link::LinkOptions;
use crate::vm::ExitReason;
use crate::vm_dir::SocketDir;

/// Controls one VMM. Every call ends at its deadline.
pub(crate) trait Monitor: fmt::Debug + Send + Sync {
    /// Stops the guest's CPUs; nothing happens to a guest that is paused.
    fn pause(&self, deadline: Duration) -> BoxFuture<'_, Result<(), VmmError>>;

    /// Lets the guest's CPUs run; nothing happens to a guest that runs.
    fn resume(&self, deadline: Duration) -> BoxFuture<'_, Result<(), VmmError>>;

    /// Asks the guest to shut down, as a power button does. Returns before it has.
    fn power_down(&self, deadline: Duration) -> BoxFuture<'_, Result<(), VmmError>>;

    /// Whether the guest's CPUs run.
    fn is_running(&self, deadline: Duration) -> BoxFuture<'_, Result<bool, VmmError>>;
}

/// What a VMM reports on its own, in order.
pub(crate) trait MonitorEvents: fmt::Debug + Send {
    /// The next event; `None` once there will be no more. Keeps to the contract of `Future::poll`, so that a caller may
    /// stop to wait at any time and loses nothing.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<MonitorEvent>>;
}

/// Something that happened to a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MonitorEvent {
    /// Its CPUs stand still.
    Paused,
    /// They run again.
    Resumed,
    /// It ended; the VMM follows.
    Ended(ExitReason),
}

/// How a guest's agent is reached.
pub(crate) trait Transport: fmt::Debug + Send + Sync {
    /// A new stream to the agent. It may wait for the end of an older one.
    fn dial<'a>(&'a self, sockets: &'a SocketDir) -> BoxFuture<'a, io::Result<UnixStream>>;

    /// How a link starts on such a stream: with a reset marker if the transport has no connections of its own.
    fn link_options(&self, deadline: Duration) -> LinkOptions;
}

/// Why a VMM did not do what it was told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VmmError {
    /// It understood and refused.
    #[error("`{command}` was refused: {description}")]
    Refused {
        /// The command.
        command: String,
        /// The VMM's words.
        description: String,
    },
    /// No answer in time.
    #[error("`{command}` got no answer within {waited:?}")]
    Deadline {
        /// The command, or `greeting`.
        command: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The connection to its monitor ended.
    #[error("the monitor connection ended: {reason}")]
    Closed {
        /// Why it ended.
        reason: String,
    },
    /// More commands than are kept at once.
    #[error("more than {max} commands wait for an answer")]
    TooMany {
        /// The bound.
        max: usize,
    },
}
