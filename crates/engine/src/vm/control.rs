//! The way from all who hold a VM to the task that owns it: commands, and what both sides see.

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
/// A VMM pauses and resumes in milliseconds.
pub(super) const MONITOR_DEADLINE: Duration = Duration::from_secs(10);

pub(crate) enum Command {
    Pause(oneshot::Sender<Result<(), ControlError>>),
    /// By then the VMM has done it, or it has failed.
    Resume(Duration, oneshot::Sender<Result<(), ControlError>>),
    Save(SaveOrder, oneshot::Sender<Result<Snapshot, SaveError>>),
    PowerDown,
    Cpus(oneshot::Sender<Cpus>),
}

/// What a guest's CPUs do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cpus {
    /// They were stopped: the VM is paused, or is being saved.
    Paused,
    /// They run, or wait for something.
    Running,
    /// They are halted for good.
    Halted,
}

/// What the handle and the owner both see.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) killer: Killer,
    /// Set before Kiln itself sends a signal, so that the end is not taken for a failure.
    pub(crate) killed: AtomicBool,
    /// A snapshot is being taken.
    pub(crate) saving: AtomicBool,
    /// What it goes on from when it has ended; without that, nothing of it is kept.
    pub(crate) stopped: Mutex<Option<SnapshotId>>,
    /// What becomes of its directory.
    pub(crate) fate: Fate,
    pub(crate) ring: ConsoleRing,
    pub(crate) dropped_console_bytes: Arc<AtomicU64>,
}

impl Shared {
    /// Sets [`Self::stopped`]. If the owner can't record that, recovery finds it in the journal.
    pub(crate) fn keep_as(&self, stopped: SnapshotId) {
        self.fate.leave_on_drop();
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = Some(stopped);
    }

    /// Whether [`Self::stopped`] is set; after the VM's end, that this was not written down.
    pub(super) fn is_kept(&self) -> bool {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    pub(crate) fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.killer.kill();
    }
}
