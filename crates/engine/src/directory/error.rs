//! Errors of directories that are to become disks.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use kiln_rootfs::SpoolError;
use kiln_rootfs::directory::DirectoryError;
use kiln_rootfs::erofs::WriteError;

use crate::error::ErrorKind;

/// Why a directory can't become a disk. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryDiskError {
    /// Something in it can't be read, or it is over a limit.
    #[error(transparent)]
    Read(#[from] DirectoryError),
    /// The contents of its files can't be stored.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// It has something that no image can hold, or too much.
    #[error("failed to make a read-only disk of `{path}`")]
    Image {
        /// The directory, as text for users.
        path: String,
        /// Why.
        #[source]
        source: WriteError,
    },
    /// The disk of the host is full.
    #[error("no space left to {doing} `{path}`")]
    NoSpace {
        /// The step.
        doing: &'static str,
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the cache can't be read or written.
    #[error("failed to {doing} `{path}`")]
    Io {
        /// The step.
        doing: &'static str,
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DirectoryDiskError {
    pub(super) fn io(doing: &'static str, path: impl AsRef<Utf8Path>, source: io::Error) -> Self {
        let path = path.as_ref().to_owned();
        match ErrorKind::of_io(&source) {
            ErrorKind::NoSpace => Self::NoSpace { doing, path, source },
            _ => Self::Io { doing, path, source },
        }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read(DirectoryError::Unreadable { source, .. }) => match source.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::of_io(source),
            },
            Self::Read(DirectoryError::Spool { source, .. }) | Self::Spool(source) => of_spool(source),
            Self::Read(DirectoryError::Changing { .. }) => ErrorKind::Busy,
            Self::Read(_) | Self::Image { .. } => ErrorKind::Invalid,
            Self::NoSpace { .. } => ErrorKind::NoSpace,
            Self::Io { source, .. } => ErrorKind::of_io(source),
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read(DirectoryError::NotADirectory { path }) => {
                Some(format!("a single file is copied: --in {}:/PATH", path.display()))
            }
            Self::Read(DirectoryError::TooMuch { .. } | DirectoryError::TooDeep { .. }) => {
                Some("choose a smaller directory, or put the files on a volume: kiln volume create".into())
            }
            Self::Read(error) => error.hint(),
            Self::Spool(error) => error.hint(),
            Self::NoSpace { .. } => Some("free some space, or point `KILN_HOME` to another filesystem".into()),
            Self::Image { .. } | Self::Io { .. } => None,
        }
    }
}

fn of_spool(error: &SpoolError) -> ErrorKind {
    match error {
        SpoolError::NoSpace { .. } => ErrorKind::NoSpace,
        SpoolError::TooLarge { .. } => ErrorKind::Invalid,
        SpoolError::Create { source, .. } | SpoolError::Write { source, .. } => ErrorKind::of_io(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::every_variant::{chains, every_variant};

    #[test]
    fn each_error_has_its_text_and_a_hint() {
        let path = || std::path::PathBuf::from("/home/user/dir");
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let errors = every_variant!(DirectoryDiskError {
            Read: [
                DirectoryDiskError::Read(DirectoryError::NotADirectory { path: path() }),
                DirectoryDiskError::Read(DirectoryError::Changing { path: path(), attempts: 3 }),
                DirectoryDiskError::Read(DirectoryError::TooMuch { path: path(), what: "more than 5 entries".into() }),
                DirectoryDiskError::Read(DirectoryError::Unreadable {
                    path: path(),
                    source: io::ErrorKind::PermissionDenied.into()
                }),
            ],
            Spool: [DirectoryDiskError::Spool(SpoolError::TooLarge { bytes_max: 16 })],
            Image: [DirectoryDiskError::Image {
                path: "./dir".into(),
                source: WriteError::TooLarge { bytes: 9, bytes_max: 5 }
            }],
            NoSpace: [DirectoryDiskError::io("write", "/k/cache/directories/x", full())],
            Io: [DirectoryDiskError::io("lock", "/k/cache/directories/x", io::ErrorKind::Interrupted.into())],
        });
        let about = |error: &DirectoryDiskError| {
            let kind = error.kind().to_string();
            [Some(kind), error.hint().map(|hint| format!("hint: {hint}"))].into_iter().flatten().collect()
        };
        insta::assert_snapshot!(chains(&errors, about));
    }
}
