//! Reports how much room a file needs: before it is written, and if the disk was full after all.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};

const MIB: u64 = 1 << 20;

/// A filesystem has not enough room.
#[derive(Debug, thiserror::Error)]
#[error("no space left for `{path}`: {needed_mib} MiB are needed, {}", self.found())]
pub struct NoSpace {
    /// The file or directory to write.
    pub path: Utf8PathBuf,
    /// The room that it needs.
    pub needed_mib: u64,
    /// The room that this user has.
    pub available_mib: u64,
}

impl NoSpace {
    fn found(&self) -> String {
        match self.available_mib {
            enough if enough >= self.needed_mib => "more than a quota or a limit on file sizes allows".into(),
            available_mib => format!("{available_mib} MiB are free"),
        }
    }

    fn new(path: &Utf8Path, needed_bytes: u64, available_bytes: u64) -> Self {
        let (needed_mib, available_mib) = (needed_bytes.div_ceil(MIB), available_bytes / MIB);
        Self { path: path.into(), needed_mib, available_mib }
    }
}

/// Checks that a directory has room for `bytes`.
pub(crate) fn check(directory: &Utf8Path, bytes: u64) -> Result<(), NoSpace> {
    let available = available(directory).unwrap_or(u64::MAX);
    if available < bytes { Err(NoSpace::new(directory, bytes, available)) } else { Ok(()) }
}

/// Turns an error about space into [`NoSpace`], and returns others unchanged. Another program may have filled the disk
/// since [`check`], and quotas and limits show only here.
pub(crate) fn explain(path: &Utf8Path, bytes: u64, error: io::Error) -> Result<NoSpace, io::Error> {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match error.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => Ok(NoSpace::new(path, bytes, available(path).unwrap_or(0))),
        _ => Err(error),
    }
}

fn available(path: &Utf8Path) -> Option<u64> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let found = rustix::fs::statvfs(existing.as_std_path()).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_does_not_fit_is_refused_with_both_sizes() {
        let words = check("/tmp".into(), u64::MAX).expect_err("no disk is that large").to_string();
        assert!(words.contains("`/tmp`") && words.contains("17592186044416 MiB are needed"), "{words}");
        check("/tmp".into(), 1).expect("fits");
    }

    #[test]
    fn a_limit_and_a_full_disk_have_different_texts() {
        let full = NoSpace { path: "/x".into(), needed_mib: 57, available_mib: 40 };
        assert_eq!(full.to_string(), "no space left for `/x`: 57 MiB are needed, 40 MiB are free");
        let limit = NoSpace { available_mib: 9000, ..full };
        assert!(limit.to_string().ends_with("57 MiB are needed, more than a quota or a limit on file sizes allows"));
    }

    #[test]
    fn only_errors_about_space_are_explained() {
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge] {
            let found = explain("/tmp/x/y".into(), 3 * MIB, kind.into()).expect("is about space");
            assert_eq!(found.needed_mib, 3);
        }
        let other = explain("/tmp".into(), 1, io::ErrorKind::PermissionDenied.into()).expect_err("is about rights");
        assert_eq!(other.kind(), io::ErrorKind::PermissionDenied);
    }
}
