//! The kinds of errors. Each module decides the kind of its own errors.

use std::fmt;
use std::io;

use serde::Serialize;

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
