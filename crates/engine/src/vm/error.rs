//! Errors of requests to a running VM.

use std::io;
use std::time::Duration;

use crate::error::ErrorKind;
use crate::failpoint::FailPoint;
use crate::link::StreamError;
use crate::snapshot::{MemoryError, SnapshotError};
use crate::vm_dir::JournalError;

/// Why a VMM did not carry out a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VmmError {
    /// It refused the command.
    #[error("`{command}` was refused: {description}")]
    Refused {
        /// The command.
        command: String,
        /// The text of the VMM's error.
        description: String,
    },
    /// No answer in time.
    #[error("`{command}` got no answer within {waited:?}")]
    Deadline {
        /// The command, or `greeting`.
        command: String,
        /// How long Kiln waited.
        waited: Duration,
    },
    /// The connection to its monitor ended.
    #[error("the monitor connection ended: {reason}")]
    Closed {
        /// Why it ended.
        reason: String,
    },
    /// More commands wait than are allowed.
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

/// Why a VM did not carry out a request.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The VM has ended.
    #[error("the VM has ended")]
    Ended,
    /// The driver of this VM can't do that.
    #[error("guests of this engine can't be saved")]
    Unsupported,
    /// The VMM refused or did not answer.
    #[error("the VMM failed to carry out a command")]
    Monitor(#[from] VmmError),
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

/// Why a port of a guest can't be reached.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The spec has no such port.
    #[error("the VM has no port `{name}`")]
    Unknown {
        /// The name.
        name: String,
    },
    /// The VMM does not accept the connection.
    #[error("failed to connect to the port `{name}`")]
    Connect {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why a VM was not saved. It continues as before, unless it has ended.
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
    /// Another snapshot of the same VM is being taken, or the VM is in use.
    #[error("another snapshot of this VM is being taken")]
    Busy,
    /// The guest's commands were not frozen or not thawed.
    #[error("the guest's agent failed to freeze or thaw its commands")]
    Freeze(#[source] StreamError),
    /// The VMM failed, or the VM has ended.
    #[error("the VMM failed to save the guest's state")]
    Vmm(#[from] ControlError),
    /// The guest's memory can't be read.
    #[error("the guest's memory can't be saved")]
    Memory(#[from] MemoryError),
    /// The snapshot can't be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The journal can't be written.
    #[error("failed to write the VM's journal")]
    Journal(#[from] JournalError),
    /// A fail point stopped it. Only tests have fail points.
    #[error(transparent)]
    FailPoint(#[from] FailPoint),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::every_variant::{chains, every_variant};
    use crate::process::VmmStatus;
    use crate::snapshot::SnapshotId;
    use crate::vm::{ExitReason, VmExit};

    fn refused() -> VmmError {
        VmmError::Refused { command: "stop".into(), description: "not now".into() }
    }

    #[test]
    fn each_error_of_a_request_has_its_text() {
        let vmm = every_variant!(VmmError {
            Refused: [refused()],
            Deadline: [VmmError::Deadline { command: "greeting".into(), waited: Duration::from_secs(30) }],
            Closed: [VmmError::Closed { reason: "end of file".into() }],
            TooMany: [VmmError::TooMany { max: 64 }],
        });
        let control = every_variant!(ControlError {
            Ended: [ControlError::Ended],
            Unsupported: [ControlError::Unsupported],
            Monitor: [ControlError::Monitor(refused())],
        });
        let port = every_variant!(PortError {
            Unknown: [PortError::Unknown { name: "a".into() }],
            Connect: [PortError::Connect { name: "a".into(), source: io::ErrorKind::ConnectionRefused.into() }],
        });
        let texts = [
            chains(&vmm, |error| vec![error.kind().to_string()]),
            chains(&control, |error| vec![error.kind().to_string()]),
            chains(&port, |_| Vec::new()),
        ];
        insta::assert_snapshot!(texts.join("\n"));
    }

    #[test]
    fn each_error_of_a_save_has_its_text() {
        let id: SnapshotId = "0123456789abcdef".parse().expect("an id");
        let process =
            MemoryError::Process { what: "read the memory of", pid: 12, source: io::ErrorKind::NotFound.into() };
        let errors = every_variant!(SaveError {
            Unmigratable: [SaveError::Unmigratable { device: "the vhost-user-fs device `/s`".into() }],
            NotForkable: [SaveError::NotForkable],
            Busy: [SaveError::Busy],
            Freeze: [SaveError::Freeze(StreamError::Ended)],
            Vmm: [SaveError::Vmm(ControlError::Monitor(refused())), SaveError::Vmm(ControlError::Ended)],
            Memory: [SaveError::Memory(process)],
            Snapshot: [SaveError::Snapshot(SnapshotError::ChainTooLong { id, max: 32 })],
            Journal: [SaveError::Journal(JournalError::Illegal { from: "lost", to: "saving" })],
            FailPoint: [SaveError::FailPoint(FailPoint("save.device"))],
        });
        insta::assert_snapshot!(chains(&errors, |error| vec![error.kind().to_string()]));
    }

    #[test]
    fn each_end_of_a_vm_has_its_text() {
        let failed = |stderr: &str| ExitReason::VmmFailed { stderr: stderr.into() };
        let reasons = every_variant!(ExitReason {
            GuestPoweredOff: [ExitReason::GuestPoweredOff],
            GuestReset: [ExitReason::GuestReset],
            GuestPanicked: [ExitReason::GuestPanicked],
            Killed: [ExitReason::Killed],
            VmmFailed: [failed(""), failed("out of memory")],
        });
        let statuses = every_variant!(VmmStatus {
            Code: [VmmStatus::Code(1)],
            Signal: [VmmStatus::Signal(9)],
            Unknown: [VmmStatus::Unknown],
        });
        let ends = reasons.into_iter().map(|(_, reason)| VmExit { status: VmmStatus::Code(0), reason });
        let others = statuses.into_iter().map(|(_, status)| VmExit { status, reason: failed("") });
        let texts: Vec<_> = ends.chain(others).map(|end| end.to_string()).collect();
        insta::assert_snapshot!(texts.join("\n"));
    }
}
