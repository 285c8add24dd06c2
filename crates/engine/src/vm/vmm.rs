//! What a VM needs of its VMM, whichever that is.
//!
//! ```text
//!   owner ───▶ Monitor:   pause, resume, power down, does it run?
//!         ◀─── MonitorEvents
//!   save ────▶ Saver:     memory, devices and disks into a draft
//!   handle ──▶ Transport: a byte stream to the agent
//! ```

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::UnixStream;

use super::error::{SaveError, VmmError};
use super::events::ExitReason;
use crate::link::LinkOptions;
use crate::snapshot::{DiskLayer, Draft, MachineIdentity, MemoryKind, Snapshot};
use crate::vm_dir::SocketDir;

/// A future behind a pointer, so that [`Engine`](crate::Engine) can be a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

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

    /// Whether the guest's CPUs are all halted with interrupts off, which only a reset ends. False if the VMM can't find out.
    fn is_halted(&self, deadline: Duration) -> BoxFuture<'_, Result<bool, VmmError>>;
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
    /// Its CPUs are paused.
    Paused,
    /// They run again.
    Resumed,
    /// It ended; the VMM follows.
    Ended(ExitReason),
}

/// Saves one VM.
pub(crate) trait Saver: fmt::Debug + Send + Sync {
    /// Whether the VMM can save the guest as it is. Nothing is changed, and the guest may run.
    fn check(&self) -> BoxFuture<'_, Result<(), SaveError>>;

    /// Writes memory, devices and writable disks of a paused guest into the draft. The caller publishes it.
    fn write(self: Arc<Self>, draft: Draft, files: Files) -> BoxFuture<'static, Result<Written, SaveError>>;
}

/// What becomes of a VM's own files when they are put into a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Files {
    /// They are copied, because the VM continues to write to them.
    Copy,
    /// They are linked if they can be: the VM ends.
    Link,
}

/// What a [`Saver`] wrote.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) draft: Draft,
    /// The parent that a diff's pages and disk layers apply to.
    pub(crate) parent: Option<Snapshot>,
    pub(crate) memory: MemoryKind,
    pub(crate) disks: Vec<DiskLayer>,
    pub(crate) machine: MachineIdentity,
}

/// How a guest's agent is reached.
pub(crate) trait Transport: fmt::Debug + Send + Sync {
    /// A new stream to the agent. It may wait for the end of an older one.
    fn dial<'a>(&'a self, sockets: &'a SocketDir) -> BoxFuture<'a, io::Result<UnixStream>>;

    /// How a link starts on such a stream: with a reset marker if the transport has no connections of its own.
    fn link_options(&self, deadline: Duration) -> LinkOptions;
}
