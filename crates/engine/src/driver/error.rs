//! Errors of a launch, a restore and an adoption.

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

/// Most forks of one request. A larger number is a mistake of the caller on every host.
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
    /// The network of a card can't be reached.
    #[error("failed to connect network card {index} to the socket `{socket}`")]
    Stream {
        /// Its index in the spec.
        index: usize,
        /// The socket.
        socket: Utf8PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The backend of a device keeps the VM from starting.
    #[error("{device} {problem}")]
    Backend {
        /// The device and the path of its socket, as text for users.
        device: String,
        /// What went wrong.
        problem: String,
    },
    /// The VMM runs, but its monitor failed, did not answer or refused a command.
    #[error("failed to control `{program}`")]
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
            Self::Stream { source, .. } => ErrorKind::of_io(source),
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
    use crate::every_variant::{chains, every_variant};
    use crate::vm::SaveError;

    #[test]
    fn a_wrapped_error_keeps_its_kind() {
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
    fn too_many_forks_are_invalid_and_too_little_memory_is_not() {
        let kind = |count| RestoreError::Budget { count, why: String::new() }.kind();
        assert_eq!(
            [0, FORKS_MAX + 1, FORKS_MAX].map(kind),
            [ErrorKind::Invalid, ErrorKind::Invalid, ErrorKind::NoMemory]
        );
    }

    fn no_access() -> io::Error {
        io::ErrorKind::PermissionDenied.into()
    }

    fn vm() -> VmId {
        "0123456789ab".parse().expect("an id")
    }

    #[test]
    fn each_error_of_a_launch_has_its_text() {
        let tap = || Tap { device: "tap0".into(), namespace: Some("/run/netns/one".into()) };
        let program = || Utf8PathBuf::from("/usr/bin/qemu-system-x86_64");
        let closed = VmmError::Closed { reason: "end of file".into() };
        let failed = VmmError::Refused { command: "cont".into(), description: "not now".into() };
        let policy = crate::confine::Policy::parse("landlok").expect_err("is not a measure");
        let errors = every_variant!(LaunchError {
            Spec: [LaunchError::Spec(SpecError::Cpus { cpus: 0, max: 64, host: 2 })],
            Home: [LaunchError::Home(HomeError::NotADirectory { path: "/home/me/kiln".into() })],
            Unsupported: [LaunchError::Unsupported { driver: "fake", what: "disks" }],
            Policy: [LaunchError::Policy(policy)],
            VmmMissing: [LaunchError::VmmMissing { program: "qemu-system-x86_64".into() }],
            NoKvm: [LaunchError::NoKvm(KvmState::Missing)],
            Image: [LaunchError::Image { path: "/k".into(), source: no_access() }],
            Directory: [LaunchError::Directory { path: "/home/me/kiln/vms".into(), source: no_access() }],
            Spawn: [LaunchError::Spawn { program: program(), source: no_access() }],
            VmmFailed: [LaunchError::VmmFailed {
                program: program(),
                status: VmmStatus::Code(1),
                stderr: "no such option".into(),
            }],
            Attachment: [LaunchError::Attachment { index: 1, tap: tap(), source: TapError::Busy }],
            Stream: [LaunchError::Stream {
                index: 0,
                socket: "/run/net.sock".into(),
                source: io::ErrorKind::ConnectionRefused.into(),
            }],
            Backend: [LaunchError::Backend {
                device: "the vhost-user-blk device `/s`".into(),
                problem: "closed the connection".into(),
            }],
            Monitor: [
                LaunchError::Monitor { program: program(), source: closed },
                LaunchError::Monitor { program: program(), source: failed },
            ],
        });
        insta::assert_snapshot!(chains(&errors, |error| vec![error.kind().to_string()]));
    }

    #[test]
    fn each_error_of_a_restore_has_its_text() {
        let id: SnapshotId = "0123456789abcdef".parse().expect("an id");
        let missing = LaunchError::VmmMissing { program: "qemu-system-x86_64".into() };
        let closed = VmmError::Closed { reason: "end of file".into() };
        let process = MemoryError::Process { what: "read the memory of", pid: 12, source: no_access() };
        let errors = every_variant!(RestoreError {
            OtherMachine: [RestoreError::OtherMachine {
                id: id.clone(),
                what: "QEMU",
                saved: "7.2".into(),
                here: "10.0".into(),
            }],
            DiskMoved: [RestoreError::DiskMoved { id: id.clone(), path: "/d".into() }],
            Unmigratable: [RestoreError::Unmigratable { device: "the vhost-user-fs device `/s`".into() }],
            NoVolume: [RestoreError::NoVolume { id: id.clone(), index: 1, path: "/d".into() }],
            NoTap: [RestoreError::NoTap { id: id.clone(), index: 1 }],
            Part: [RestoreError::Part { problem: "the problem".into() }],
            Budget: [RestoreError::Budget { count: 9, why: "the reason".into() }],
            Directory: [RestoreError::Directory(ReopenError::Owned(vm()))],
            NotStopped: [RestoreError::NotStopped(vm())],
            Launch: [RestoreError::Launch(missing)],
            Vmm: [RestoreError::Vmm(ControlError::Monitor(closed))],
            Memory: [RestoreError::Memory(process)],
            Link: [RestoreError::Link(LinkError::Closed { waiting_for: "hello" })],
            Freeze: [RestoreError::Freeze(StreamError::Ended)],
            Snapshot: [RestoreError::Snapshot(SnapshotError::Unknown(id))],
            Journal: [RestoreError::Journal(JournalError::Illegal { from: "lost", to: "running" })],
            FailPoint: [RestoreError::FailPoint(FailPoint("restore.loaded"))],
        });
        insta::assert_snapshot!(chains(&errors, |error| vec![error.kind().to_string()]));
    }

    #[test]
    fn each_error_of_an_adoption_has_its_text() {
        let errors = every_variant!(AdoptError {
            Directory: [AdoptError::Directory(ReopenError::Unknown(vm()))],
            NotAdoptable: [AdoptError::NotAdoptable(vm())],
            Monitor: [AdoptError::Monitor(VmmError::Closed { reason: "end of file".into() })],
            Journal: [AdoptError::Journal(JournalError::Illegal { from: "lost", to: "running" })],
            Unsupported: [AdoptError::Unsupported { driver: "fake" }],
            Io: [AdoptError::Io { path: "/vms/0123456789ab".into(), source: no_access() }],
        });
        insta::assert_snapshot!(chains(&errors, |error| vec![error.kind().to_string()]));
    }
}
