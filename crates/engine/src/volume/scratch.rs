//! Empty disks that VMs start with: one file for each size, made once and never written to again.
//!
//! ```text
//!   cache/scratch/ext4-<format>-<bytes> ──┬──▶ Disk with the role Fresh ──▶ each VM gets a copy, which is sparse
//!   cache/scratch/blank-<bytes> ──────────┘
//! ```
//! The filesystem has no journal. What is on the disk ends with its VM, and a snapshot holds disk and memory of one
//! moment, so there is never anything to replay. A blank disk has no filesystem: it is all zeros.

use camino::Utf8Path;
use fs_err as fs;

use super::error::VolumeError;
use super::store::{VolumeStore, rounded};
use super::tools::{self, Journal};
use super::transfer::Unfinished;
use crate::files::{create_partial_file, partials, sweep};
use crate::spec::{Disk, DiskFormat, DiskRole};

/// The version of how they are formatted.
const FORMAT: u32 = 1;

impl VolumeStore {
    /// A new disk of this size for a VM, with an empty ext4 filesystem.
    ///
    /// # Errors
    /// [`VolumeError::Size`], [`VolumeError::NoTools`]; or it can't be written.
    pub fn scratch_disk(&self, bytes: u64) -> Result<Disk, VolumeError> {
        self.fresh_disk(&format!("ext4-{FORMAT}"), bytes, |path| tools::make(path, Journal::None))
    }

    /// A new disk of this size for a VM, all zeros.
    ///
    /// # Errors
    /// [`VolumeError::Size`]; or it can't be written.
    pub fn blank_disk(&self, bytes: u64) -> Result<Disk, VolumeError> {
        self.fresh_disk("blank", bytes, |_| Ok(()))
    }

    fn fresh_disk(
        &self,
        kind: &str,
        bytes: u64,
        format: impl FnOnce(&Utf8Path) -> Result<(), VolumeError>,
    ) -> Result<Disk, VolumeError> {
        let bytes = rounded(bytes)?;
        let directory = self.scratch();
        let path = directory.join(format!("{kind}-{bytes}"));
        let disk = Disk { path, format: DiskFormat::Raw, role: DiskRole::Fresh };
        // It was synced before it got its name, so it is whole.
        match fs::symlink_metadata(&disk.path) {
            Ok(meta) if meta.is_file() && meta.len() == bytes => return Ok(disk),
            Ok(_) => fs::remove_file(&disk.path).map_err(|error| VolumeError::io("remove", &disk.path, error))?,
            Err(_) => {}
        }
        for path in partials(directory).unwrap_or_default() {
            if let Err(error) = sweep(&path) {
                tracing::debug!(%path, %error, "failed to remove an unfinished disk");
            }
        }
        let (unfinished, file) =
            create_partial_file(directory).map_err(|error| VolumeError::io("make a file in", directory, error))?;
        let unfinished = Unfinished(unfinished);
        let failed = |error| VolumeError::io("write", &unfinished.0, error);
        file.set_len(bytes).map_err(failed)?;
        format(&unfinished.0)?;
        file.sync_all().map_err(failed)?;
        // Another process may have made the same one meanwhile. VMs that copy that one have it open.
        fs::rename(&unfinished.0, &disk.path).map_err(failed)?;
        Ok(disk)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::home::Home;

    #[test]
    fn a_scratch_disk_is_made_once_for_each_size_and_takes_little() {
        let guard = tempfile::tempdir().expect("a directory");
        let home = Home::at(Utf8Path::from_path(guard.path()).expect("UTF-8"));
        let store = VolumeStore::new(&home);
        let disk = store.scratch_disk(2 << 30).expect("is made");
        let meta = fs::metadata(&disk.path).expect("is there");
        assert_eq!((meta.len(), disk.role), (2 << 30, DiskRole::Fresh));
        assert!(meta.blocks() * 512 < 8 << 20, "{} blocks", meta.blocks());
        let again = store.scratch_disk(2 << 30).expect("is there");
        assert_eq!(fs::metadata(&again.path).expect("is there").ino(), meta.ino());
        // One that was cut is made again.
        std::fs::File::options().write(true).open(&disk.path).and_then(|file| file.set_len(5)).expect("cut");
        assert_eq!(store.scratch_disk(2 << 30).expect("is made again"), disk);
        assert_eq!(fs::metadata(&disk.path).expect("is there").len(), 2 << 30);
        let other = store.scratch_disk((64 << 20) - 1).expect("is made");
        assert_eq!(fs::metadata(&other.path).expect("is there").len(), 64 << 20);
        assert_eq!(home.cache().join("scratch").read_dir_utf8().expect("is there").count(), 2);
        assert!(matches!(store.scratch_disk(1), Err(VolumeError::Size { .. })));
    }

    #[test]
    fn a_blank_disk_is_a_hole() {
        let guard = tempfile::tempdir().expect("a directory");
        let home = Home::at(Utf8Path::from_path(guard.path()).expect("UTF-8"));
        let store = VolumeStore::new(&home);
        let disk = store.blank_disk(64 << 20).expect("is made");
        let meta = fs::metadata(&disk.path).expect("is there");
        assert_eq!((meta.len(), meta.blocks(), disk.role), (64 << 20, 0, DiskRole::Fresh));
        assert_eq!(store.blank_disk(64 << 20).expect("is there"), disk);
        assert_ne!(store.scratch_disk(64 << 20).expect("is made").path, disk.path);
    }
}
