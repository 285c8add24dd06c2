//! Errors of a snapshot's memory.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};

use crate::error::ErrorKind;

/// Why memory was not found, saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A file is not what was saved. The problem continues the sentence after the file's name.
    #[error("`{path}` {problem}")]
    Broken {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file can't be read or written.
    #[error("failed to {what} `{path}`")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The VMM's memory can't be read or written.
    #[error("failed to {what} process {pid}")]
    Process {
        /// What was tried.
        what: &'static str,
        /// The process.
        pid: u32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The VMM does not have such a mapping.
    #[error("process {pid} does not map `{path}` as its memory: {problem}")]
    NotMapped {
        /// The VMM.
        pid: u32,
        /// The file that should be its memory.
        path: Utf8PathBuf,
        /// What was found.
        problem: String,
    },
    /// The mapping has another size than that snapshot's memory.
    #[error("process {pid} maps {mapped} bytes of memory, the snapshot has {saved}")]
    OtherSize {
        /// The VMM.
        pid: u32,
        /// Bytes that it maps.
        mapped: u64,
        /// Bytes of the snapshot's memory.
        saved: u64,
    },
}

impl MemoryError {
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Broken { .. } => ErrorKind::Corrupt,
            Self::File { source, .. } => ErrorKind::of_io(source),
            Self::Process { .. } | Self::NotMapped { .. } | Self::OtherSize { .. } => ErrorKind::Vmm,
        }
    }
}

impl MemoryError {
    /// Makes a function for `map_err` that adds the file to an I/O error.
    pub(super) fn file(what: &'static str, path: &Utf8Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { what, path: path.to_owned(), source }
    }

    /// Makes a function for `map_err` that adds the process to an I/O error.
    pub(super) fn process(what: &'static str, pid: u32) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Process { what, pid, source }
    }
}

#[cfg(test)]
mod tests {
    use super::super::page_file::PageFileError;
    use super::*;
    use crate::every_variant::{chains, every_variant};

    #[test]
    fn each_error_has_its_text() {
        let source = || io::Error::from(io::ErrorKind::PermissionDenied);
        let errors = every_variant!(MemoryError {
            Broken: [MemoryError::Broken { path: "/s/pages".into(), problem: "is not a page file".into() }],
            File: [MemoryError::File { what: "read", path: "/s/pages".into(), source: source() }],
            Process: [MemoryError::Process { what: "read the memory of", pid: 12, source: source() }],
            NotMapped: [MemoryError::NotMapped { pid: 12, path: "/s/memory".into(), problem: "no mapping".into() }],
            OtherSize: [MemoryError::OtherSize { pid: 12, mapped: 1 << 28, saved: 1 << 29 }],
        });
        let index = every_variant!(PageFileError {
            Broken: [PageFileError::Broken("is not a page file".into())],
            Io: [PageFileError::Io(source())],
        });
        let texts = [chains(&errors, |error| vec![error.kind().to_string()]), chains(&index, |_| Vec::new())];
        insta::assert_snapshot!(texts.join("\n"));
    }
}
