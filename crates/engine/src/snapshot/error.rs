//! Errors of the store. Each names the snapshot or file, and what is wrong with it.

use std::io;
use std::time::Duration;

use camino::Utf8PathBuf;

use super::id::SnapshotId;
use crate::error::ErrorKind;
use crate::failpoint::FailPoint;

/// Why a snapshot was not written, opened, checked, listed or removed. See [`RestoreError`](crate::RestoreError) for
/// why it was not restored, and [`SaveError`](crate::SaveError) for why a VM was not saved.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No snapshot has that id.
    #[error("there is no snapshot `{0}`")]
    Unknown(SnapshotId),
    /// A snapshot of the chain does not exist.
    #[error("snapshot `{of}` needs `{missing}`, which does not exist")]
    MissingLink {
        /// The requested snapshot.
        of: SnapshotId,
        /// Its ancestor.
        missing: SnapshotId,
    },
    /// A file of the snapshot is not what was saved.
    #[error("snapshot `{id}` is broken: `{file}` {problem}")]
    Broken {
        /// The snapshot: the requested one or an ancestor.
        id: SnapshotId,
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It can't be removed.
    #[error("snapshot `{id}` is in use {by}")]
    InUse {
        /// The snapshot.
        id: SnapshotId,
        /// `by a running VM`, `as the parent of …`.
        by: String,
    },
    /// Its chain has the most snapshots that are allowed.
    #[error("snapshot `{id}` can't have children: its chain already has {max} snapshots")]
    ChainTooLong {
        /// The snapshot that was to become a parent.
        id: SnapshotId,
        /// The most snapshots in a chain.
        max: usize,
    },
    /// Another process still holds the lock.
    #[error("`{path}` was still locked after {waited:?}")]
    Locked {
        /// What is locked.
        path: Utf8PathBuf,
        /// The time that this process waited.
        waited: Duration,
    },
    /// The disk has not enough room.
    #[error("no space for the snapshot below `{path}`")]
    NoSpace {
        /// The file or directory.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file can't be read or written.
    #[error("failed to {what} `{path}`")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A fail point stopped it. Only tests have fail points.
    #[error(transparent)]
    FailPoint(#[from] FailPoint),
}

impl SnapshotError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown(_) => ErrorKind::NotFound,
            Self::MissingLink { .. } | Self::Broken { .. } => ErrorKind::Corrupt,
            Self::InUse { .. } | Self::Locked { .. } => ErrorKind::Busy,
            Self::ChainTooLong { .. } => ErrorKind::Invalid,
            Self::NoSpace { .. } => ErrorKind::NoSpace,
            Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::FailPoint(_) => ErrorKind::Io,
        }
    }
}

impl SnapshotError {
    /// Makes an error of an I/O error: [`NoSpace`](Self::NoSpace) if the disk is full.
    pub(crate) fn io(what: &'static str, path: impl Into<Utf8PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path, source },
            _ => Self::Io { what, path, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::every_variant::{chains, every_variant};

    #[test]
    fn each_error_has_its_text() {
        let id: SnapshotId = "0123456789abcdef".parse().expect("an id");
        let missing: SnapshotId = "fedcba9876543210".parse().expect("an id");
        let errors = every_variant!(SnapshotError {
            Unknown: [SnapshotError::Unknown(id.clone())],
            MissingLink: [SnapshotError::MissingLink { of: id.clone(), missing }],
            Broken: [SnapshotError::Broken { id: id.clone(), file: "memory".into(), problem: "is missing".into() }],
            InUse: [SnapshotError::InUse { id: id.clone(), by: "by a running VM".into() }],
            ChainTooLong: [SnapshotError::ChainTooLong { id, max: 32 }],
            Locked: [SnapshotError::Locked { path: "/s".into(), waited: Duration::from_secs(180) }],
            NoSpace: [SnapshotError::io("write", "/s", io::ErrorKind::StorageFull.into())],
            Io: [
                SnapshotError::io("write", "/s", io::ErrorKind::PermissionDenied.into()),
                SnapshotError::io("read", "/s", io::ErrorKind::InvalidData.into()),
            ],
            FailPoint: [SnapshotError::FailPoint(FailPoint("seal.hashed"))],
        });
        insta::assert_snapshot!(chains(&errors, |error| vec![error.kind().to_string()]));
    }

    #[test]
    fn a_text_that_is_not_an_id_is_refused_with_the_form_of_an_id() {
        let error = "0123".parse::<SnapshotId>().expect_err("is not an id");
        insta::assert_snapshot!(error);
    }
}
