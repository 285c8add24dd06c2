//! What can go wrong with snapshots, in words that name what was wrong with what.

use std::io;
use std::time::Duration;

use camino::Utf8PathBuf;

use super::id::SnapshotId;
use crate::error::ErrorKind;
use crate::failpoint::FailPoint;

/// Why a snapshot was not written, opened, checked, listed or removed. What keeps one from being restored says
/// [`RestoreError`](crate::RestoreError), what keeps a VM from being saved [`SaveError`](crate::SaveError).
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No snapshot of that id.
    #[error("there is no snapshot `{0}`")]
    Unknown(SnapshotId),
    /// A link of the chain is not there.
    #[error("snapshot `{of}` needs `{missing}`, which is not there")]
    MissingLink {
        /// The snapshot that was asked for.
        of: SnapshotId,
        /// Its ancestor.
        missing: SnapshotId,
    },
    /// A file of it is not what was saved.
    #[error("snapshot `{id}` is broken: `{file}` {problem}")]
    Broken {
        /// The snapshot, perhaps an ancestor of the one asked for.
        id: SnapshotId,
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// It can't go away.
    #[error("snapshot `{id}` is in use {by}")]
    InUse {
        /// The snapshot.
        id: SnapshotId,
        /// `by a running VM`, `as the parent of …`.
        by: String,
    },
    /// Nothing more can lie on it.
    #[error("snapshot `{id}` is the last link of a chain of {max}, which gets no longer")]
    ChainTooLong {
        /// The snapshot that would be a parent.
        id: SnapshotId,
        /// The bound.
        max: usize,
    },
    /// Somebody else is at work there.
    #[error("`{path}` was still locked after {waited:?}")]
    Locked {
        /// Where.
        path: Utf8PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// There is not enough room on the disk.
    #[error("no space for the snapshot below `{path}`")]
    NoSpace {
        /// Where.
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
        /// With which file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A fail point stopped it; tests alone have them.
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
    /// An I/O error, as [`NoSpace`](Self::NoSpace) where it is one.
    pub(crate) fn io(what: &'static str, path: impl Into<Utf8PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path, source },
            _ => Self::Io { what, path, source },
        }
    }
}
