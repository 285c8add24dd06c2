//! Kinds of errors, for callers that act on an error: with an exit code, an HTTP status, a retry. Each module decides
//! the kinds of its own errors.

use std::fmt;
use std::io;

use serde::Serialize;

/// The kind of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request is wrong on every host.
    Invalid,
    /// The named thing does not exist.
    NotFound,
    /// Another process or VM uses it now. A retry may succeed.
    Busy,
    /// The disk is full.
    NoSpace,
    /// The host has too little memory left.
    NoMemory,
    /// This user has no access to a file or device.
    Denied,
    /// The host lacks a VMM or KVM.
    HostLacks,
    /// A snapshot needs another VMM, CPU, kernel, disk or version than this host has.
    Incompatible,
    /// Saved data has changed since it was written.
    Corrupt,
    /// This driver, or a VM with such a device, can't do that.
    Unsupported,
    /// The VM has ended.
    Ended,
    /// The VMM failed or did not answer.
    Vmm,
    /// The guest or its agent failed or did not answer.
    Guest,
    /// A file or a socket of the host failed in another way.
    Io,
}

impl ErrorKind {
    /// The kind of an error with one of Kiln's own files or sockets. A missing file is not `NotFound`, because the
    /// caller did not name it.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::every_variant::every_variant;

    #[test]
    fn each_kind_has_its_name() {
        let kinds = every_variant!(ErrorKind {
            Invalid: [ErrorKind::Invalid],
            NotFound: [ErrorKind::NotFound],
            Busy: [ErrorKind::Busy],
            NoSpace: [ErrorKind::NoSpace],
            NoMemory: [ErrorKind::NoMemory],
            Denied: [ErrorKind::Denied],
            HostLacks: [ErrorKind::HostLacks],
            Incompatible: [ErrorKind::Incompatible],
            Corrupt: [ErrorKind::Corrupt],
            Unsupported: [ErrorKind::Unsupported],
            Ended: [ErrorKind::Ended],
            Vmm: [ErrorKind::Vmm],
            Guest: [ErrorKind::Guest],
            Io: [ErrorKind::Io],
        });
        let names: Vec<_> = kinds.iter().map(|(name, kind)| format!("{name}: {kind}")).collect();
        insta::assert_snapshot!(names.join("\n"));
    }
}
