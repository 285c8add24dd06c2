//! Why an archive can't be read or written.

use std::io;

/// Why an archive can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream that it comes from gave an error.
    #[error("failed to read the archive")]
    Input(#[source] io::Error),
    /// It is not an archive, or not a whole one.
    #[error("{0}")]
    Malformed(String),
    /// Something in it is larger than this end takes.
    #[error("{0}")]
    TooLarge(String),
}

/// Why a file was not written to an archive.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file can't be read, at all or to its end. The archive can go on: it has nothing of the file, or its start.
    #[error(transparent)]
    File(io::Error),
    /// The stream that the archive goes to gave an error: it ends here.
    #[error("failed to write the archive")]
    Output(#[source] io::Error),
}

pub(crate) fn malformed(words: impl Into<String>) -> ArchiveError {
    ArchiveError::Malformed(words.into())
}
