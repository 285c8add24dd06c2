//! Errors of a spec.

use camino::Utf8PathBuf;

use super::bounds::{MEMORY_MIB_MIN, NAME_BYTES_MAX};
use crate::error::ErrorKind;

/// The noun of [`SpecError::Name`] for the device of a root filesystem, whose name is a path.
pub(super) const ROOT_DEVICE: &str = "root device";

/// Why a [`VmSpec`](super::VmSpec) can't be started on this host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No CPUs, or too many.
    #[error("`cpus` must be 1 to {max}, not {cpus} (this host has {host})")]
    Cpus {
        /// The requested number.
        cpus: u32,
        /// The bound.
        max: u32,
        /// CPUs of the host.
        host: u32,
    },
    /// Too little or too much memory.
    #[error("`memory` must be {MEMORY_MIB_MIN} MiB to this host's {host_mib} MiB, not {memory_mib} MiB")]
    Memory {
        /// The requested size.
        memory_mib: u64,
        /// Memory of the host.
        host_mib: u64,
    },
    /// A file of the VM does not exist or can't be read.
    #[error("the {what} `{path}` is not a readable file")]
    NoFile {
        /// `kernel`, `initramfs` or `disk`.
        what: &'static str,
        /// The path.
        path: Utf8PathBuf,
    },
    /// A disk can't be used.
    #[error("the disk `{path}` can't be used: {problem}")]
    Disk {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A network card can't be attached.
    #[error("network card {index} can't be attached as requested: {problem}")]
    Nic {
        /// Its index in the spec.
        index: usize,
        /// What is wrong.
        problem: String,
    },
    /// The backend of a device can't be used.
    #[error("{device} {problem}")]
    Backend {
        /// The device and the path of its socket, as text for users.
        device: String,
        /// What is wrong with it.
        problem: String,
    },
    /// More parts of one kind than a VM can have.
    #[error("at most {max} {what}, not {count}")]
    TooMany {
        /// The kind.
        what: &'static str,
        /// The requested number.
        count: usize,
        /// The bound.
        max: usize,
    },
    /// A name that can't be part of a command line.
    #[error(
        "`{name}` is not a valid name for a {what}: it must be 1 to {NAME_BYTES_MAX} letters, digits, `.`, `_` or `-`{}",
        also_words(what)
    )]
    Name {
        /// `module`, `port`, `root device` or `root filesystem`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Two ports have the same name.
    #[error("the port `{name}` is listed twice")]
    SamePort {
        /// The name.
        name: String,
    },
    /// A command line that the kernel would cut or misread.
    #[error("the kernel command line {problem}")]
    Cmdline {
        /// What is wrong with it.
        problem: String,
    },
}

fn also_words(what: &str) -> &'static str {
    if what == ROOT_DEVICE { ", and may have `/`" } else { "" }
}

impl SpecError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoFile { .. } => ErrorKind::NotFound,
            Self::Backend { .. } => ErrorKind::Busy,
            _ => ErrorKind::Invalid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::every_variant::{chains, every_variant};

    #[test]
    fn each_error_has_its_text() {
        let problem = || "is the problem".to_owned();
        let errors = every_variant!(SpecError {
            Cpus: [SpecError::Cpus { cpus: 65, max: 64, host: 2 }],
            Memory: [SpecError::Memory { memory_mib: 1, host_mib: 4096 }],
            NoFile: [SpecError::NoFile { what: "kernel", path: "/k".into() }],
            Disk: [SpecError::Disk { path: "/d".into(), problem: "it is the problem".into() }],
            Nic: [SpecError::Nic { index: 1, problem: "it is the problem".into() }],
            Backend: [SpecError::Backend { device: "the vhost-user-blk device `/s`".into(), problem: problem() }],
            TooMany: [SpecError::TooMany { what: "disks", count: 17, max: 16 }],
            Name: [SpecError::Name { what: "module", name: "a b".into() }],
            SamePort: [SpecError::SamePort { name: "a".into() }],
            Cmdline: [SpecError::Cmdline { problem: problem() }],
        });
        insta::assert_snapshot!(chains(&errors, |error| vec![error.kind().to_string()]));
    }
}
