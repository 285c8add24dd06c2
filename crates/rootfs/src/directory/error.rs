//! Why a directory of the host can't be read as a tree.

use std::io;
use std::path::{Path, PathBuf};

use crate::spool::SpoolError;

/// Why a directory was not read.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// Something in it can't be opened or read.
    #[error("failed to read `{path}`")]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// What the system reports.
        #[source]
        source: io::Error,
    },
    /// The path does not lead to a directory.
    #[error("`{path}` is not a directory")]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// A file was written to each time it was read.
    #[error("`{path}` changed while it was read, {attempts} times")]
    Changing {
        /// The file.
        path: PathBuf,
        /// How often it was read.
        attempts: u32,
    },
    /// There are directories in directories, too many of them.
    #[error("`{path}` is more than {depth_max} directories deep")]
    TooDeep {
        /// The directory.
        path: PathBuf,
        /// How deep it may be.
        depth_max: usize,
    },
    /// It has more than the limits allow.
    #[error("`{path}` is over a limit: {what}")]
    TooMuch {
        /// The first file or directory that is too much.
        path: PathBuf,
        /// What there is too much of.
        what: String,
    },
    /// The contents can't be stored.
    #[error("failed to store the contents of `{path}`")]
    Spool {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: SpoolError,
    },
}

impl DirectoryError {
    /// Why the path of the user can't be opened as a directory.
    pub(super) fn of_start(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotADirectory => Self::NotADirectory { path },
            _ => Self::Unreadable { path, source },
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Changing { .. } => Some("stop the program that writes to it, or copy the directory first".to_owned()),
            Self::Spool { source, .. } => source.hint(),
            Self::Unreadable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run as a user that may read all of the directory, or leave the file out of it".to_owned())
            }
            Self::Unreadable { .. } | Self::NotADirectory { .. } | Self::TooDeep { .. } | Self::TooMuch { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_errors_and_hints_read_like_this() {
        let path = || PathBuf::from("/home/user/dir/file");
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let all = [
            DirectoryError::Unreadable { path: path(), source: denied() },
            DirectoryError::NotADirectory { path: path() },
            DirectoryError::Changing { path: path(), attempts: 3 },
            DirectoryError::TooDeep { path: path(), depth_max: 255 },
            DirectoryError::TooMuch { path: path(), what: "more than 5 entries".to_owned() },
            DirectoryError::Spool { path: path(), source: SpoolError::TooLarge { bytes_max: 5 } },
        ];
        let lines = all.iter().map(|error| match error.hint() {
            Some(hint) => format!("{error}\n  hint: {hint}"),
            None => error.to_string(),
        });
        insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"));
    }
}
