//! Why a driver's guests do not start: at a launch, a restore or an adoption.

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

/// Forks of one request; more than this is a mistake, whatever the host can hold.
pub const FORKS_MAX: usize = 1000;

/// Why a VM did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The spec can't be started on this host.
    #[error("the VM can't be started as asked for")]
    Spec(#[from] SpecError),
    /// Other users could have put anything into the home.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// This engine's guests don't have what the spec asks for.
    #[error("the {driver} engine has no {what}")]
    Unsupported {
        /// Name of the driver.
        driver: &'static str,
        /// What the spec asks for.
        what: &'static str,
    },
    /// `$KILN_CONFINE_OFF` names what is no measure.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The VMM is not installed, or not where it was said to be.
    #[error("`{program}` was not found")]
    VmmMissing {
        /// What was looked for.
        program: Utf8PathBuf,
    },
    /// KVM was asked for and can't run guests here.
    #[error("KVM can't be used: {}", .0.reason())]
    NoKvm(KvmState),
    /// The kernel, the initramfs or a disk can't be read.
    #[error("failed to read `{path}`")]
    Image {
        /// Which.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The VM's directory could not be made.
    #[error("failed to make the VM's directory below `{path}`")]
    Directory {
        /// Where.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The VMM could not be started.
    #[error("failed to start `{program}`")]
    Spawn {
        /// What was to be started.
        program: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The VMM ended before the guest ran.
    #[error("`{program}` ended at once with {status}: {stderr}")]
    VmmFailed {
        /// The VMM.
        program: Utf8PathBuf,
        /// How it ended.
        status: VmmStatus,
        /// The end of what it said.
        stderr: String,
    },
    /// A network card can't be attached.
    #[error("failed to attach network card {index} to {tap}")]
    Attachment {
        /// Its place in the spec.
        index: usize,
        /// Where to.
        tap: Tap,
        /// Why not.
        #[source]
        source: TapError,
    },
    /// The backend of a device keeps the VM from starting.
    #[error("{device} {problem}")]
    Backend {
        /// What it is and where its socket is, for people.
        device: String,
        /// What went wrong.
        problem: String,
    },
    /// The VMM runs and can't be talked to.
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
    /// It is not there, or belongs to another process.
    #[error("failed to take over the VM's directory")]
    Directory(#[from] ReopenError),
    /// It does not run, or was not asked to outlive its owner.
    #[error("the VM `{0}` can't be adopted: it does not run, or ends with its owner")]
    NotAdoptable(VmId),
    /// Its monitor does not answer.
    #[error("the VM's monitor does not answer")]
    Monitor(#[from] VmmError),
    /// Its new state can't be written down.
    #[error("failed to write down that the VM runs")]
    Journal(#[from] JournalError),
    /// VMs of this engine end with their owner.
    #[error("guests of the {driver} engine can't be adopted")]
    Unsupported {
        /// Name of the driver.
        driver: &'static str,
    },
    /// Its sockets or files can't be opened.
    #[error("failed to open what is in `{path}`")]
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
