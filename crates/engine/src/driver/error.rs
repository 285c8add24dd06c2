//! Why a driver's guest did not start: at a launch, a restore or an adoption.

use std::io;

use camino::Utf8PathBuf;

use crate::confine::PolicyError;
use crate::error::ErrorKind;
use crate::failpoint::FailPoint;
use crate::home::HomeError;
use crate::host::{KvmState, TapError};
use crate::link::{LinkError, StreamError};
use crate::process::VmmStatus;
use crate::snapshot::{MemoryError, SnapshotError, SnapshotId};
use crate::spec::{SpecError, Tap};
use crate::vm::{ControlError, VmmError};
use crate::vm_dir::{JournalError, ReopenError, VmId};

/// Most forks of one request. More is a mistake, however large the host is.
pub const FORKS_MAX: usize = 1000;

/// Why a VM did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// This host can't run the spec.
    #[error("the VM can't be started as requested")]
    Spec(#[from] SpecError),
    /// Other users could have changed the home.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// This engine's guests do not support a part of the spec.
    #[error("the {driver} engine does not support {what}")]
    Unsupported {
        /// Name of the driver.
        driver: &'static str,
        /// The part of the spec.
        what: &'static str,
    },
    /// `$KILN_CONFINE_OFF` names something that is not a measure.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The VMM is not installed, or not at the given path.
    #[error("`{program}` was not found")]
    VmmMissing {
        /// What was looked for.
        program: Utf8PathBuf,
    },
    /// KVM was requested, but can't run guests here.
    #[error("KVM can't be used: {}", .0.reason())]
    NoKvm(KvmState),
    /// The kernel, the initramfs or a disk can't be read.
    #[error("failed to read `{path}`")]
    Image {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The VM's directory could not be made.
    #[error("failed to make the VM's directory below `{path}`")]
    Directory {
        /// The directory.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The VMM could not be started.
    #[error("failed to start `{program}`")]
    Spawn {
        /// The VMM.
        program: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The VMM exited before the guest ran.
    #[error("`{program}` exited at once with {status}: {stderr}")]
    VmmFailed {
        /// The VMM.
        program: Utf8PathBuf,
        /// How it ended.
        status: VmmStatus,
        /// The end of its error output.
        stderr: String,
    },
    /// A network card can't be attached.
    #[error("failed to attach network card {index} to {tap}")]
    Attachment {
        /// Its index in the spec.
        index: usize,
        /// The TAP device.
        tap: Tap,
        /// Why not.
        #[source]
        source: TapError,
    },
    /// The backend of a device keeps the VM from starting.
    #[error("{device} {problem}")]
    Backend {
        /// The device and the path of its socket, as text for users.
        device: String,
        /// What went wrong.
        problem: String,
    },
    /// The VMM runs, but does not answer.
    #[error("`{program}` does not answer")]
    Monitor {
        /// The VMM.
        program: Utf8PathBuf,
        /// Why.
        #[source]
        source: VmmError,
    },
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

/// Why a snapshot was not restored, or a stopped VM not resumed. The attempt leaves nothing.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The snapshot's machine is not this host's.
    #[error("snapshot `{id}` was taken with {what} {saved}, but this host has {here}")]
    OtherMachine {
        /// The snapshot.
        id: SnapshotId,
        /// The part that differs.
        what: &'static str,
        /// Its value in the snapshot.
        saved: String,
        /// Its value on this host.
        here: String,
    },
    /// A disk outside the snapshot has changed since.
    #[error("snapshot `{id}` needs the disk `{path}`, which has changed since")]
    DiskMoved {
        /// The snapshot.
        id: SnapshotId,
        /// The disk.
        path: Utf8PathBuf,
    },
    /// A device of the VM can't be saved by any VMM.
    #[error("a VM with {device} can't be saved")]
    Unmigratable {
        /// The device.
        device: String,
    },
    /// The snapshot does not hold a volume, and the fork was given none.
    #[error("snapshot `{id}` needs a volume for disk {index} in place of `{path}`")]
    NoVolume {
        /// The snapshot.
        id: SnapshotId,
        /// The index of the disk in the spec.
        index: usize,
        /// The volume of the saved VM.
        path: Utf8PathBuf,
    },
    /// A network card was on a TAP device when the VM was saved, and the fork was given none for it.
    #[error("snapshot `{id}` needs a TAP device for network card {index}, because it was on one when it was saved")]
    NoTap {
        /// The snapshot.
        id: SnapshotId,
        /// The index of the card in the spec.
        index: usize,
    },
    /// A part of one fork does not fit the snapshot.
    #[error("a fork can't be made as requested: {problem}")]
    Part {
        /// Why not.
        problem: String,
    },
    /// More forks than this host can hold, or none.
    #[error("{count} forks can't be started: {why}")]
    Budget {
        /// The requested number.
        count: usize,
        /// The bound.
        why: String,
    },
    /// The VM does not exist, or has an owner.
    #[error("failed to take over the stopped VM")]
    Directory(#[from] ReopenError),
    /// The VM runs, or was lost.
    #[error("the VM `{0}` is not stopped")]
    NotStopped(VmId),
    /// The fork's VMM did not start.
    #[error("failed to start a fork")]
    Launch(#[from] LaunchError),
    /// The VMM did not load its state, or the VM has ended.
    #[error("the VMM failed to load the guest's state")]
    Vmm(#[from] ControlError),
    /// The guest's memory can't be restored.
    #[error("the guest's memory can't be restored")]
    Memory(#[from] MemoryError),
    /// The fork's agent did not answer, or could not give it its own identity.
    #[error("the fork's agent did not answer")]
    Link(#[from] LinkError),
    /// The fork's commands were not frozen, so it can't be held.
    #[error("the fork's agent failed to freeze its commands")]
    Freeze(#[source] StreamError),
    /// The snapshot can't be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The journal can't be written.
    #[error("failed to write the VM's journal")]
    Journal(#[from] JournalError),
    /// A fail point stopped it. Only tests have fail points.
    #[error(transparent)]
    FailPoint(#[from] FailPoint),
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

/// Why a VM was not adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It does not exist, or belongs to another process.
    #[error("failed to take over the VM's directory")]
    Directory(#[from] ReopenError),
    /// It does not run, or its spec does not let it outlive its owner.
    #[error("the VM `{0}` can't be adopted: it does not run, or ends with its owner")]
    NotAdoptable(VmId),
    /// Its monitor does not answer.
    #[error("the VM's monitor does not answer")]
    Monitor(#[from] VmmError),
    /// The journal can't be written.
    #[error("failed to write the VM's journal")]
    Journal(#[from] JournalError),
    /// VMs of this engine end with their owner.
    #[error("guests of the {driver} engine can't be adopted")]
    Unsupported {
        /// Name of the driver.
        driver: &'static str,
    },
    /// Its sockets or files can't be opened.
    #[error("failed to open the files in `{path}`")]
    Io {
        /// The VM's directory.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ReadyError;
    use crate::vm::SaveError;

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
        assert_eq!(
            error,
            [
                "the VMM failed to save the guest's state",
                "the VMM failed to carry out a command",
                "`stop` was refused: not now"
            ]
        );
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
