//! What goes wrong with saves and restores, and of which kind every error of the engine is.

use std::fmt;
use std::io;

use camino::Utf8PathBuf;
use serde::Serialize;

use crate::adopt::AdoptError;
use crate::driver::VmmError;
use crate::engine::LaunchError;
use crate::failpoint::FailPoint;
use crate::fork::FORKS_MAX;
use crate::journal::JournalError;
use crate::kept::{KeptError, WakeError, WarmError};
use crate::link::{LinkError, StreamError};
use crate::ready::ReadyError;
use crate::snapshot::{MemoryError, SnapshotError, SnapshotId};
use crate::tap::TapError;
use crate::vm::ControlError;
use crate::vm_dir::{ReopenError, VmId};

/// What kind of failure an error is, for those who answer to it with an exit code, a status, another try or a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// No host could do what was asked for.
    Invalid,
    /// What was named is not there.
    NotFound,
    /// Something else has it now; another try may succeed.
    Busy,
    /// The disk is full.
    NoSpace,
    /// The host has too little memory left.
    NoMemory,
    /// This host may not do that: a file or device is another user's.
    Denied,
    /// The host lacks something: a VMM, or KVM.
    HostLacks,
    /// What was saved needs another VMM, CPU, kernel, disk or version than there is here.
    Incompatible,
    /// What was saved is no longer what it was.
    Corrupt,
    /// This driver, or a VM with such a device, can't.
    Unsupported,
    /// The VM has ended.
    Ended,
    /// The VMM failed, or did not answer.
    Vmm,
    /// The guest or its agent failed, or did not answer.
    Guest,
    /// A file or a socket of the host failed in another way.
    Io,
}

/// Why a VM was not saved. It goes on as before, unless it has ended.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// A device that no VMM can save.
    #[error("a VM with {device} can't be saved")]
    Unmigratable {
        /// The device.
        device: String,
    },
    /// The VM's memory is not a file.
    #[error("the VM can't be saved: it was launched without `forkable`")]
    NotForkable,
    /// Another snapshot of the same VM is being taken, or somebody uses it.
    #[error("a snapshot of this VM is being taken already")]
    Busy,
    /// The guest's commands did not stand still, or did not go on.
    #[error("the guest's agent did not freeze its commands, or did not let them go on")]
    Freeze(#[source] StreamError),
    /// The VMM did not do it, or the VM has ended.
    #[error("the VMM did not save its state")]
    Vmm(#[from] ControlError),
    /// The guest's memory can't be read.
    #[error("the guest's memory can't be saved")]
    Memory(#[from] MemoryError),
    /// The snapshot can't be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// What the VM does can't be written down.
    #[error("failed to write down what becomes of the VM")]
    Journal(#[from] JournalError),
    /// A fail point stopped it; tests alone have them.
    #[error(transparent)]
    FailPoint(#[from] FailPoint),
}

/// Why a snapshot was not restored, or a stopped VM not resumed. Nothing is left of the attempt.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
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
    /// A disk that was not saved with it has changed since.
    #[error("snapshot `{id}` needs the disk `{path}` as it was, and it has changed")]
    DiskMoved {
        /// The snapshot.
        id: SnapshotId,
        /// The disk.
        path: Utf8PathBuf,
    },
    /// It names a device that no VMM can save.
    #[error("a VM with {device} can't be saved")]
    Unmigratable {
        /// The device.
        device: String,
    },
    /// A volume is named by the snapshot and not held, and the fork was given none.
    #[error("snapshot `{id}` needs a volume for disk {index}, as `{path}` was")]
    NoVolume {
        /// The snapshot.
        id: SnapshotId,
        /// Place of the disk in the spec.
        index: usize,
        /// The volume that the VM had.
        path: Utf8PathBuf,
    },
    /// A network card was on a TAP device when the VM was saved, and the fork was given none for it.
    #[error("snapshot `{id}` needs a TAP device for network card {index}, because it was on one when it was saved")]
    NoTap {
        /// The snapshot.
        id: SnapshotId,
        /// Place of the card in the spec.
        index: usize,
    },
    /// What one fork should have of its own does not fit the snapshot.
    #[error("a fork can't be made as asked for: {problem}")]
    Part {
        /// Why not.
        problem: String,
    },
    /// More than this host can hold, or none.
    #[error("{count} forks can't be started: {why}")]
    Budget {
        /// How many were asked for.
        count: usize,
        /// The bound.
        why: String,
    },
    /// There is no such VM, or it has an owner.
    #[error("failed to take over the stopped VM")]
    Directory(#[from] ReopenError),
    /// The VM runs, or was lost.
    #[error("the VM `{0}` is not stopped")]
    NotStopped(VmId),
    /// The fork's VMM did not start.
    #[error("failed to start a fork")]
    Launch(#[from] LaunchError),
    /// The VMM did not load its state, or the VM has ended.
    #[error("the VMM did not load its state")]
    Vmm(#[from] ControlError),
    /// The guest's memory can't be put in place.
    #[error("the guest's memory can't be restored")]
    Memory(#[from] MemoryError),
    /// The fork's agent could not be reached, or not be made its own machine.
    #[error("the fork's agent did not answer")]
    Link(#[from] LinkError),
    /// The fork's commands did not stand still for it to be held.
    #[error("the fork's agent did not freeze its commands")]
    Freeze(#[source] StreamError),
    /// The snapshot can't be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// What the VM does can't be written down.
    #[error("failed to write down what becomes of the VM")]
    Journal(#[from] JournalError),
    /// A fail point stopped it; tests alone have them.
    #[error(transparent)]
    FailPoint(#[from] FailPoint),
}

impl ErrorKind {
    /// Of a failure with a file or a socket of Kiln's own. That one is missing is not what a caller named.
    pub(crate) fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Self::Denied,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Self::NoSpace,
            io::ErrorKind::OutOfMemory => Self::NoMemory,
            io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy => Self::Busy,
            _ => Self::Io,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid",
            Self::NotFound => "not found",
            Self::Busy => "busy",
            Self::NoSpace => "no space",
            Self::NoMemory => "no memory",
            Self::Denied => "denied",
            Self::HostLacks => "missing on this host",
            Self::Incompatible => "incompatible",
            Self::Corrupt => "corrupt",
            Self::Unsupported => "unsupported",
            Self::Ended => "ended",
            Self::Vmm => "VMM failed",
            Self::Guest => "guest failed",
            Self::Io => "I/O failed",
        })
    }
}

impl SaveError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unmigratable { .. } => ErrorKind::Unsupported,
            Self::NotForkable => ErrorKind::Invalid,
            Self::Busy => ErrorKind::Busy,
            Self::Freeze(_) => ErrorKind::Guest,
            Self::Vmm(error) => error.kind(),
            Self::Memory(error) => error.kind(),
            Self::Snapshot(error) => error.kind(),
            Self::Journal(error) => error.kind(),
            Self::FailPoint(_) => ErrorKind::Io,
        }
    }
}

impl RestoreError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::OtherMachine { .. } | Self::DiskMoved { .. } => ErrorKind::Incompatible,
            Self::Unmigratable { .. } => ErrorKind::Unsupported,
            Self::NoVolume { .. }
            | Self::NoTap { .. }
            | Self::Part { .. }
            | Self::Budget { count: 0, .. }
            | Self::NotStopped(_) => ErrorKind::Invalid,
            Self::Budget { count, .. } if *count > FORKS_MAX => ErrorKind::Invalid,
            Self::Budget { .. } => ErrorKind::NoMemory,
            Self::Directory(error) => error.kind(),
            Self::Launch(error) => error.kind(),
            Self::Vmm(error) => error.kind(),
            Self::Memory(error) => error.kind(),
            Self::Link(error) => error.kind(),
            Self::Freeze(_) => ErrorKind::Guest,
            Self::Snapshot(error) => error.kind(),
            Self::Journal(error) => error.kind(),
            Self::FailPoint(_) => ErrorKind::Io,
        }
    }
}

impl SnapshotError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown(_) => ErrorKind::NotFound,
            Self::MissingLink { .. } | Self::Broken { .. } => ErrorKind::Corrupt,
            Self::InUse { .. } | Self::Locked { .. } => ErrorKind::Busy,
            Self::ChainTooLong { .. } => ErrorKind::Invalid,
            Self::NoSpace { .. } => ErrorKind::NoSpace,
            Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::FailPoint(_) => ErrorKind::Io,
        }
    }
}

impl LaunchError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Spec(error) => error.kind(),
            Self::Home(_) => ErrorKind::Denied,
            Self::Policy(_) => ErrorKind::Invalid,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::VmmMissing { .. } | Self::NoKvm(_) => ErrorKind::HostLacks,
            Self::Image { source, .. } | Self::Directory { source, .. } | Self::Spawn { source, .. } => {
                ErrorKind::of_io(source)
            }
            Self::Attachment { source, .. } => source.kind(),
            Self::VmmFailed { .. } | Self::Backend { .. } | Self::Monitor { .. } => ErrorKind::Vmm,
        }
    }
}

impl TapError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Namespace { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::NotFound,
            Self::NoDevice => ErrorKind::NotFound,
            Self::NotTap => ErrorKind::Invalid,
            Self::Busy => ErrorKind::Busy,
            Self::NoTun(source) if source.kind() != io::ErrorKind::PermissionDenied => ErrorKind::HostLacks,
            Self::Namespace { source, .. } | Self::NoTun(source) | Self::Io(source) => ErrorKind::of_io(source),
            Self::Late(_) => ErrorKind::Io,
        }
    }
}

impl AdoptError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Directory(error) => error.kind(),
            Self::NotAdoptable(_) => ErrorKind::Invalid,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Monitor(error) => error.kind(),
            Self::Journal(error) => error.kind(),
            Self::Io { source, .. } => ErrorKind::of_io(source),
        }
    }
}

impl ReadyError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Launch(error) => error.kind(),
            Self::Link(error) => error.kind(),
            Self::WarmUp(_) => ErrorKind::Guest,
            Self::Save(error) => error.kind(),
            Self::Snapshot(error) => error.kind(),
        }
    }
}

impl ControlError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Ended => ErrorKind::Ended,
            Self::Unsupported => ErrorKind::Unsupported,
            Self::Monitor(error) => error.kind(),
        }
    }
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

impl LinkError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Version { .. } => ErrorKind::Incompatible,
            Self::NoToken | Self::Unauthorized => ErrorKind::Denied,
            // Whatever else there is comes from the guest's end of the link.
            _ => ErrorKind::Guest,
        }
    }
}

impl WakeError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Ended(_) | Self::Dropped => ErrorKind::Ended,
            Self::Warm(error) => match &**error {
                WarmError::Control(error) => error.kind(),
                WarmError::Link(error) => error.kind(),
            },
            Self::Cold(error) => error.kind(),
        }
    }
}

impl KeptError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Wake(error) => error.kind(),
            Self::Save(error) => error.kind(),
            Self::Restore(error) => error.kind(),
        }
    }
}

impl ReopenError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown(_) => ErrorKind::NotFound,
            Self::Owned(_) => ErrorKind::Busy,
            Self::Journal(error) => error.kind(),
            Self::Io { source, .. } => ErrorKind::of_io(source),
        }
    }
}

impl JournalError {
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Illegal { .. } => ErrorKind::Io,
            Self::Broken { .. } => ErrorKind::Corrupt,
            Self::Io { source, .. } => ErrorKind::of_io(source),
        }
    }
}

impl MemoryError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Broken { .. } => ErrorKind::Corrupt,
            Self::File { source, .. } => ErrorKind::of_io(source),
            Self::Process { .. } | Self::NotMapped { .. } | Self::OtherSize { .. } => ErrorKind::Vmm,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_a_failure_comes_through_what_wraps_it() {
        let id = SnapshotId::random();
        let broken = || SnapshotError::Broken { id: id.clone(), file: "memory".into(), problem: "is torn".into() };
        assert_eq!(RestoreError::from(broken()).kind(), ErrorKind::Corrupt);
        assert_eq!(SaveError::from(ControlError::Ended).kind(), ErrorKind::Ended);
        assert_eq!(ReadyError::from(SaveError::Busy).kind(), ErrorKind::Busy);
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(SaveError::from(SnapshotError::io("write", "/s", full())).kind(), ErrorKind::NoSpace);
        let directory = LaunchError::Directory { path: "/v".into(), source: full() };
        assert_eq!(RestoreError::from(directory).kind(), ErrorKind::NoSpace);
        let stranger = ReopenError::Unknown("0123456789ab".parse().expect("an id"));
        assert_eq!(RestoreError::from(stranger).kind(), ErrorKind::NotFound);
    }

    #[test]
    fn too_many_forks_are_another_failure_than_too_little_memory() {
        let kind = |count| RestoreError::Budget { count, why: String::new() }.kind();
        assert_eq!(
            [0, FORKS_MAX + 1, FORKS_MAX].map(kind),
            [ErrorKind::Invalid, ErrorKind::Invalid, ErrorKind::NoMemory]
        );
    }

    #[test]
    fn sources_are_kept_and_said_once() {
        let refused = VmmError::Refused { command: "stop".into(), description: "not now".into() };
        let error = chain_of(&SaveError::from(ControlError::from(refused)));
        assert_eq!(error, ["the VMM did not save its state", "the VMM did not do it", "`stop` was refused: not now"]);
    }

    fn chain_of(error: &dyn std::error::Error) -> Vec<String> {
        let mut chain = vec![error.to_string()];
        let mut next = error.source();
        while let Some(source) = next {
            chain.push(source.to_string());
            next = source.source();
        }
        chain
    }
}
