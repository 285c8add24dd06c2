//! Errors of reading and writing an archive.

use std::io;

/// Why an archive can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The input returned an error.
    #[error("failed to read the archive")]
    Input(#[source] io::Error),
    /// It is not an archive, or not a whole one.
    #[error("{0}")]
    Malformed(String),
    /// A name, a set of attributes or a map of holes is over its bound.
    #[error("{0}")]
    TooLarge(String),
}

/// Why a file was not written to an archive.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file can't be read, at all or to its end. The archive can continue: it has nothing of the file, or its
    /// start.
    #[error(transparent)]
    File(io::Error),
    /// The output returned an error. The archive can't continue.
    #[error("failed to write the archive")]
    Output(#[source] io::Error),
}

pub(crate) fn malformed(problem: impl Into<String>) -> ArchiveError {
    ArchiveError::Malformed(problem.into())
}
