//! What can go wrong with snapshots, in words that name what was wrong with what.

use std::io;
use std::time::Duration;

use camino::Utf8PathBuf;

use super::id::SnapshotId;
use crate::engine::LaunchError;
use crate::link::{LinkError, StreamError};
use crate::vm::ControlError;
use crate::vm_dir::{ReopenError, VmId};

/// Why a snapshot was not taken, restored, checked or removed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No snapshot of that id.
    #[error("there is no snapshot `{0}`")]
    Unknown(SnapshotId),
    /// A link of the chain is not there.
    #[error("snapshot `{of}` needs `{missing}`, which is not there")]
    MissingLink {
        /// The snapshot that was asked for.
        of: SnapshotId,
        /// Its ancestor.
        missing: SnapshotId,
    },
    /// A file of it is not what was saved.
    #[error("snapshot `{id}` is broken: `{file}` {problem}")]
    Broken {
        /// The snapshot, perhaps an ancestor of the one asked for.
        id: SnapshotId,
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Its machine is not the one here.
    #[error("snapshot `{id}` was taken with {what} {saved}, here it is {here}")]
    OtherMachine {
        /// The snapshot.
        id: SnapshotId,
        /// Which part.
        what: &'static str,
        /// In the snapshot.
        saved: String,
        /// On this host.
        here: String,
    },
    /// It can't go away.
    #[error("snapshot `{id}` is in use {by}")]
    InUse {
        /// The snapshot.
        id: SnapshotId,
        /// `by a running VM`, `as the parent of …`.
        by: String,
    },
    /// Nothing more can lie on it.
    #[error("snapshot `{id}` is the last link of a chain of {max}, which gets no longer")]
    ChainTooLong {
        /// The snapshot that would be a parent.
        id: SnapshotId,
        /// The bound.
        max: usize,
    },
    /// Somebody else is at work there.
    #[error("`{path}` was still locked after {waited:?}")]
    Locked {
        /// Where.
        path: Utf8PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A device that no VMM can save.
    #[error("a VM with {device} can't be saved")]
    Unmigratable {
        /// The device.
        device: String,
    },
    /// The VM's memory is not a file.
    #[error("the VM can't be saved: it was launched without `forkable`")]
    NotForkable,
    /// This engine has no snapshots.
    #[error("the {driver} engine has no snapshots")]
    Unsupported {
        /// Name of the driver.
        driver: &'static str,
    },
    /// Another snapshot of the same VM is being taken.
    #[error("a snapshot of this VM is being taken already")]
    Busy,
    /// More than this host can hold, or none.
    #[error("{count} forks can't be started: {why}")]
    Budget {
        /// How many were asked for.
        count: usize,
        /// The bound.
        why: String,
    },
    /// There is not enough room on the disk.
    #[error("no space for the snapshot below `{path}`")]
    NoSpace {
        /// Where.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file can't be read or written.
    #[error("failed to {what} `{path}`")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The guest's commands did not stand still, or did not go on.
    #[error("the guest's agent did not freeze its commands, or did not let them go on")]
    Freeze(#[source] StreamError),
    /// The VMM's memory is not what it should be.
    #[error("the guest's memory can't be saved or restored: {0}")]
    Memory(String),
    /// A disk that was not saved with it has changed since.
    #[error("snapshot `{id}` needs the disk `{path}` as it was, and it has changed")]
    DiskMoved {
        /// The snapshot.
        id: SnapshotId,
        /// The disk.
        path: Utf8PathBuf,
    },
    /// There is no such VM, or it has an owner.
    #[error("failed to take over the stopped VM")]
    Directory(#[from] ReopenError),
    /// The VM runs, or was lost.
    #[error("the VM `{0}` is not stopped")]
    NotStopped(VmId),
    /// The VMM did not do it.
    #[error("the VMM did not save or load its state")]
    Vmm(#[from] ControlError),
    /// The fork's VMM did not start.
    #[error("failed to start a fork")]
    Launch(#[from] LaunchError),
    /// The fork's agent could not be reached, or not be made its own machine.
    #[error("the fork's agent did not answer")]
    Link(#[from] LinkError),
    /// A fail point stopped it; tests alone have them.
    #[error("stopped at the fail point `{0}`")]
    FailPoint(&'static str),
}

impl SnapshotError {
    /// An I/O error, as [`NoSpace`](Self::NoSpace) where it is one.
    pub(crate) fn io(what: &'static str, path: impl Into<Utf8PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path, source },
            _ => Self::Io { what, path, source },
        }
    }

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown(_) => Some("kiln snapshot ls".into()),
            Self::Broken { id, .. } | Self::MissingLink { of: id, .. } => {
                Some(format!("kiln snapshot rm {id}; the ready-made ones of images are made again when needed"))
            }
            Self::ChainTooLong { id, .. } => Some(format!("kiln snapshot compact {id}")),
            Self::OtherMachine { .. } => Some("boot a VM with --cold, or take the snapshot anew".into()),
            Self::NoSpace { .. } => Some("kiln snapshot ls shows what takes space, kiln snapshot rm frees it".into()),
            Self::Launch(error) => error.hint(),
            _ => None,
        }
    }
}
