//! What a driver implements: all that the rest of the engine asks of a VMM. Nothing else knows which VMM runs.
//!
//! ```text
//!   Engine ──▶ Driver:    validate, decide, boot, restorer, reattach   one for each engine
//!   restore ─▶ Restorer:  a VMM with a snapshot's memory, waiting      one for each snapshot that is forked
//!   owner ───▶ Monitor:   pause, resume, power down, does it run?      one for each VM
//!         ◀─── MonitorEvents
//!   save ────▶ Saver:     memory, devices and disks into a draft       one for each VM that can be saved
//!   vm ──────▶ Transport: a byte stream to the agent                   one for each VM
//! ```
//! How a driver of another VMM fits in here: `docs/design/0006-drivers.md`.

mod capabilities;
mod error;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use camino::Utf8Path;
use tokio::net::UnixStream;
use tokio::sync::OnceCell;

pub use self::capabilities::{Capabilities, Isolation};
pub use self::error::{AdoptError, FORKS_MAX, LaunchError, RestoreError};

use crate::engine::BoxFuture;
use crate::error::ErrorKind;
use crate::link::LinkOptions;
use crate::orphan::Orphan;
use crate::owner::Ends;
use crate::save::SaveError;
use crate::snapshot::{DiskLayer, Draft, MachineIdentity, MemoryKind, Snapshot};
use crate::spec::{Acceleration, VmSpec};
use crate::vm::{ExitReason, Vm};
use crate::vm_dir::{SocketDir, VmDir};

/// One kind of VMM. [`Engine`](crate::Engine) is made of it, alike for all.
pub(crate) trait Driver: fmt::Debug + Send + Sync {
    /// `$KILN_HOME`.
    fn home(&self) -> &Utf8Path;

    /// What its guests have.
    fn capabilities(&self) -> Capabilities;

    /// Set once VMs without an owner were looked after.
    fn recovered(&self) -> &OnceCell<()>;

    /// Refuses a spec that this driver could not start. Looks at files and the host's size, no more.
    fn validate(&self, spec: &VmSpec) -> Result<(), LaunchError>;

    /// Decides what runs the instructions of a spec that is valid.
    fn decide<'a>(&'a self, spec: &'a VmSpec) -> BoxFuture<'a, Result<Acceleration, LaunchError>>;

    /// What a VM of this spec, whose acceleration is decided, runs on.
    fn machine<'a>(&'a self, spec: &'a VmSpec) -> BoxFuture<'a, Result<MachineIdentity, LaunchError>>;

    /// Boots a VM of a spec that was checked.
    fn boot<'a>(&'a self, spec: &'a VmSpec, on: Acceleration) -> BoxFuture<'a, Result<Vm, LaunchError>>;

    /// What restores this snapshot, whose spec was checked. The caller compares the machine with the one that was saved.
    fn restorer<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        spec: &'a VmSpec,
    ) -> BoxFuture<'a, Result<Arc<dyn Restorer>, RestoreError>>;

    /// Connects to a VMM that outlived its owner. On failure the VMM goes on as it did.
    fn reattach<'a>(
        &'a self,
        dir: &'a VmDir,
        spec: &'a VmSpec,
        vmm: &'a Orphan,
    ) -> BoxFuture<'a, Result<Ends, AdoptError>>;
}

/// Restores one snapshot, any number of times.
pub(crate) trait Restorer: fmt::Debug + Send + Sync {
    /// What its VMs run on.
    fn machine(&self) -> &MachineIdentity;

    /// Starts a VMM for the VM of `dir`, which is told of everything but not to load the state of the devices: what it
    /// takes so far is time that a pool spends ahead. The spec is that fork's own: the snapshot's with its volumes and
    /// attachments.
    fn start(&self, dir: VmDir, spec: VmSpec) -> BoxFuture<'_, Result<Box<dyn Waiting>, RestoreError>>;
}

/// A VMM that waits to load its state.
pub(crate) trait Waiting: fmt::Debug + Send + Sync {
    /// Its process.
    fn pid(&self) -> u32;

    /// Loads the state, and hands the VM over to the task that owns it. The guest is paused.
    fn load(self: Box<Self>) -> BoxFuture<'static, Result<Vm, RestoreError>>;
}

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

    /// Whether the guest's CPUs are all halted with interrupts off, which only a reset ends. False if the VMM can't tell.
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
    /// Its CPUs stand still.
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
    /// They are copied: the VM goes on writing to them.
    Copy,
    /// They are linked if they can be: the VM ends.
    Link,
}

/// What a [`Saver`] wrote.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) draft: Draft,
    /// What a diff's pages and disk layers lie on.
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

impl VmmError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TooMany { .. } => ErrorKind::Busy,
            Self::Refused { .. } | Self::Deadline { .. } | Self::Closed { .. } => ErrorKind::Vmm,
        }
    }
}
