//! Why a VM does not do what it is told.

use std::io;
use std::time::Duration;

use crate::error::ErrorKind;
use crate::failpoint::FailPoint;
use crate::link::StreamError;
use crate::snapshot::{MemoryError, SnapshotError};
use crate::vm_dir::JournalError;

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

/// Why a VM did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no such VM any more.
    #[error("the VM has ended")]
    Ended,
    /// Guests of this driver can't do that.
    #[error("guests of this engine can't be saved")]
    Unsupported,
    /// The VMM did not do it.
    #[error("the VMM did not do it")]
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

/// Why there is no connection to a guest's port.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The spec did not ask for such a port.
    #[error("the VM has no port `{name}`")]
    Unknown {
        /// The name.
        name: String,
    },
    /// The VMM does not take the connection.
    #[error("failed to connect to the port `{name}`")]
    Connect {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
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
