//! Why a VM does not carry out a request.

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
        /// The VMM's own words.
        description: String,
    },
    /// No answer in time.
    #[error("`{command}` got no answer within {waited:?}")]
    Deadline {
        /// The command, or `greeting`.
        command: String,
        /// The time that it was waited for.
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
