//! What can go wrong with the memory of a snapshot.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};

/// Why memory was not found, saved or restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    /// A file is not what was saved; the problem reads on after the file's name.
    #[error("`{path}` {problem}")]
    Broken { path: Utf8PathBuf, problem: String },
    /// A file can't be read or written.
    #[error("failed to {what} `{path}`")]
    File {
        what: &'static str,
        path: Utf8PathBuf,
        #[source]
        source: io::Error,
    },
    /// The VMM's memory can't be looked at or changed.
    #[error("failed to {what} process {pid}")]
    Process {
        what: &'static str,
        pid: u32,
        #[source]
        source: io::Error,
    },
    /// The VMM has no such mapping.
    #[error("process {pid} does not map `{path}` as its memory: {problem}")]
    NotMapped { pid: u32, path: Utf8PathBuf, problem: String },
    /// The mapping is not one of that snapshot's memory.
    #[error("process {pid} maps {mapped} bytes of memory, the snapshot has {saved}")]
    OtherSize { pid: u32, mapped: u64, saved: u64 },
}

impl MemoryError {
    /// Turns an I/O error into one that names the file; for `map_err`.
    pub(super) fn file(what: &'static str, path: &Utf8Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { what, path: path.to_owned(), source }
    }

    /// Turns an I/O error into one that names the process; for `map_err`.
    pub(super) fn process(what: &'static str, pid: u32) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Process { what, pid, source }
    }
}
