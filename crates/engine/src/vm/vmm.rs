//! The interface of a VM to its VMM.
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
    /// Pauses the guest's CPUs. Does nothing if they are paused.
    fn pause(&self, deadline: Duration) -> BoxFuture<'_, Result<(), VmmError>>;

    /// Resumes the guest's CPUs. Does nothing if they run.
    fn resume(&self, deadline: Duration) -> BoxFuture<'_, Result<(), VmmError>>;

    /// Presses the guest's power button. Returns before the guest has shut down.
    fn power_down(&self, deadline: Duration) -> BoxFuture<'_, Result<(), VmmError>>;

    /// Makes a disk of the guest as large as its file, which has that size already. The guest is told.
    fn grow_disk(&self, disk: usize, bytes: u64, deadline: Duration) -> BoxFuture<'_, Result<(), VmmError>> {
        let _ = (disk, bytes, deadline);
        let refused = VmmError::Refused { command: "grow_disk".into(), description: "this driver has no disks".into() };
        Box::pin(async { Err(refused) })
    }

    /// Whether the guest's CPUs run.
    fn is_running(&self, deadline: Duration) -> BoxFuture<'_, Result<bool, VmmError>>;

    /// Whether all CPUs of the guest are halted with interrupts off. Only a reset ends that. `false` if the VMM can't
    /// find out.
    fn is_halted(&self, deadline: Duration) -> BoxFuture<'_, Result<bool, VmmError>>;
}

/// The events of a VMM, in order.
pub(crate) trait MonitorEvents: fmt::Debug + Send {
    /// The next event. `None` after the last one. Follows the contract of `Future::poll`, so a caller may stop waiting
    /// at any time and loses no event.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<MonitorEvent>>;
}

/// Something that happened to a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MonitorEvent {
    /// Its CPUs are paused.
    Paused,
    /// Its CPUs run again.
    Resumed,
    /// This host had no space for what the guest wrote to a disk. The guest got an I/O error.
    NoSpace,
    /// The guest ended. The VMM exits soon after.
    Ended(ExitReason),
}

/// Saves one VM.
pub(crate) trait Saver: fmt::Debug + Send + Sync {
    /// Checks that the VMM can save the guest. Changes nothing. The guest may run.
    fn check(&self) -> BoxFuture<'_, Result<(), SaveError>>;

    /// Writes memory, devices and writable disks of a paused guest into the draft. The caller publishes it.
    fn write(self: Arc<Self>, draft: Draft, files: Files) -> BoxFuture<'static, Result<Written, SaveError>>;
}

/// How a VM's files get into a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Files {
    /// As copies, because the VM continues and writes to its files.
    Copy,
    /// As hard links if the file system allows it, because the VM ends.
    Link,
}

/// The result of a [`Saver`].
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) draft: Draft,
    /// The parent of a diff: the diff's pages and disk layers apply to it.
    pub(crate) parent: Option<Snapshot>,
    pub(crate) memory: MemoryKind,
    pub(crate) disks: Vec<DiskLayer>,
    pub(crate) machine: MachineIdentity,
}

/// The transport to a guest's agent.
pub(crate) trait Transport: fmt::Debug + Send + Sync {
    /// Opens a new stream to the agent. The stream may carry no bytes until an older one has closed.
    fn dial<'a>(&'a self, sockets: &'a SocketDir) -> BoxFuture<'a, io::Result<UnixStream>>;

    /// The options of a link on such a stream. It starts with a reset marker if the transport has no connections.
    fn link_options(&self, deadline: Duration) -> LinkOptions;
}
