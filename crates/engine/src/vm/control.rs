//! Between the handles of a VM and the task that owns it: the commands, and the state that both sides share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::console::ConsoleRing;
use super::error::{ControlError, SaveError};
use crate::process::Killer;
use crate::snapshot::{SaveOrder, Snapshot, SnapshotId};
use crate::vm_dir::Fate;

/// Commands that may wait for the owner.
pub(crate) const COMMAND_QUEUE: usize = 16;
/// For a pause or a resume, which take a VMM milliseconds.
pub(super) const MONITOR_DEADLINE: Duration = Duration::from_secs(10);

pub(crate) enum Command {
    Pause(oneshot::Sender<Result<(), ControlError>>),
    /// With the deadline for the VMM.
    Resume(Duration, oneshot::Sender<Result<(), ControlError>>),
    Save(SaveOrder, oneshot::Sender<Result<Snapshot, SaveError>>),
    /// The disk of this index has this size now.
    GrowDisk(usize, u64, oneshot::Sender<Result<(), ControlError>>),
    PowerDown,
    Cpus(oneshot::Sender<Cpus>),
}

/// The state of a guest's CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cpus {
    /// The VM is paused or is being saved.
    Paused,
    /// They run, or wait for an interrupt.
    Running,
    /// All are halted with interrupts off, so they never run again.
    Halted,
}

/// The state that the handles and the owner share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) killer: Killer,
    /// Kiln itself has killed the VMM, so its end is not a failure. It is set before the signal is sent: the owner
    /// reads it after the process has ended, and would otherwise report a failure if the VMM ended before the flag was
    /// set.
    pub(crate) killed: AtomicBool,
    /// A snapshot is being taken.
    pub(crate) saving: AtomicBool,
    /// The snapshot at which the VM stops. `None` if nothing of the VM is kept.
    pub(crate) stopped: Mutex<Option<SnapshotId>>,
    /// What the end of the VM does with its directory.
    pub(crate) fate: Fate,
    pub(crate) ring: ConsoleRing,
    pub(crate) dropped_console_bytes: Arc<AtomicU64>,
}

impl Shared {
    /// Sets [`Self::stopped`]. The directory is left on drop from now on: if the owner can't write `Stopped` to the
    /// journal, recovery reads the `Saving` before it and finds the whole snapshot.
    pub(crate) fn keep_as(&self, stopped: SnapshotId) {
        self.fate.leave_on_drop();
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = Some(stopped);
    }

    /// Whether [`Self::stopped`] is set. If it still is after the VM's end, `Stopped` was not written to the journal.
    pub(super) fn is_kept(&self) -> bool {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(crate) fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.killer.kill();
    }
}
