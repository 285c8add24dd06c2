//! Placeholders for volumes, with which the guest of a ready-made snapshot boots. Each fork gets its own files instead.
//!
//! ```text
//!   spec: /volumes/data/data, 64 MiB ──▶ boot with cache/blank-<random>.partial/0, a hole of 64 MiB ──▶ save
//!                                                                     ForkPart::volumes ──▶ fork ──▶ /volumes/data/data
//! ```
//! # Why a guest does not notice that its disk is another one
//! The device state has the disk's size and whether it is read-only, so both are part of the snapshot's key. The rest
//! is what the guest remembers of the contents of a disk that it has never mounted:
//!
//! - The kernel reads the first sectors for a partition table when the driver finds the disk. These pages belong to the
//!   block device. The kernel drops them when the device's last user closes it (`blkdev_flush_mapping`), which the scan
//!   does before the driver continues. The guest keeps what it found: no table. So the partitions of a raw volume
//!   that has some are found only after `blockdev --rereadpt`.
//! - A program such as udev may have read the disk and recorded that it has no filesystem. Its pages are dropped in the
//!   same way, and its record is a hint for names below `/dev/disk`. Mounts do not use it.
//! - A mount reads the superblock through the same pages, after they were dropped. So it sees the fork's file.
//! - A request that is in flight during the save would return the placeholder's bytes. The VMM completes all requests
//!   before it saves, and a snapshot is saved only after the guest has run a command, long after the scan.
//!
//! The guest must not write to a placeholder, and nothing in it does: it is not mounted before the save. If it did, the
//! bytes would be lost with the placeholder, which is removed after the save.
//!
//! A placeholder belongs to one boot, because two VMMs can't write to one file. It is in a partial directory, so a crash
//! leaves nothing that the next sweep does not remove.

use std::io;

use camino::Utf8Path;

use crate::driver::LaunchError;
use crate::files::{Partial, private_file};
use crate::snapshot::overlay;
use crate::spec::{Disk, DiskFormat, VmSpec};

/// The placeholders of one boot. Dropping it removes them.
#[derive(Debug)]
pub(super) struct Blanks(
    // Held, never read.
    #[expect(dead_code, reason = "dropping it removes the directory")] Option<Partial>,
);

impl Blanks {
    /// Replaces the volumes of a spec with placeholders of the same size.
    ///
    /// # Errors
    /// A volume can't be read, or its placeholder can't be written.
    pub(super) fn make(cache: &Utf8Path, mut spec: VmSpec) -> Result<(Self, VmSpec), LaunchError> {
        let mut directory = None;
        for (index, disk) in spec.disks.iter_mut().enumerate().filter(|(_, disk)| disk.role.is_volume()) {
            let bytes = disk_bytes(disk).map_err(|source| LaunchError::Image { path: disk.path.clone(), source })?;
            let failed = |source| LaunchError::Directory { path: cache.into(), source };
            let directory = match &directory {
                Some(directory) => directory,
                None => directory.insert(Partial::create(cache, "blank").map_err(failed)?),
            };
            disk.path = directory.path().join(index.to_string());
            make(disk, bytes).map_err(failed)?;
        }
        Ok((Self(directory), spec))
    }
}

/// The size of a volume, as its guest sees it.
///
/// # Errors
/// It can't be read, or does not have its format.
pub(super) fn disk_bytes(volume: &Disk) -> io::Result<u64> {
    overlay::virtual_size(&volume.path, volume.format)
}

fn make(disk: &Disk, bytes: u64) -> io::Result<()> {
    match disk.format {
        DiskFormat::Raw => private_file::create_new(&disk.path)?.set_len(bytes),
        DiskFormat::Qcow2 => overlay::create(&disk.path, bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::spec::DiskRole;

    #[test]
    fn only_volumes_are_replaced_by_holes_of_their_size_which_are_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Utf8Path::from_path(directory.path()).expect("UTF-8");
        let (raw, qcow2, cache) = (home.join("raw"), home.join("qcow2"), home.join("cache"));
        fs_err::write(&raw, vec![7; 1 << 20]).expect("written");
        overlay::create(&qcow2, 2 << 20).expect("made");
        let disk = |path: &Utf8Path, format, role| Disk { path: path.into(), format, role };
        let disks = vec![
            disk(&raw, DiskFormat::Raw, DiskRole::Shared),
            disk(&raw, DiskFormat::Raw, DiskRole::Volume),
            disk(&qcow2, DiskFormat::Qcow2, DiskRole::Volume),
            disk(&raw, DiskFormat::Raw, DiskRole::VolumeReadOnly),
        ];
        let given = VmSpec { disks, ..VmSpec::new("/k", "/i") };
        let (blanks, spec) = Blanks::make(&cache, given.clone()).expect("made");
        assert_eq!(spec.disks[0], given.disks[0]);
        for (blank, disk) in spec.disks.iter().zip(&given.disks).skip(1) {
            assert_eq!(disk_bytes(blank).expect("reads"), disk_bytes(disk).expect("reads"));
            assert!(blank.path.starts_with(&cache) && (blank.format, blank.role) == (disk.format, disk.role));
            assert!(fs_err::metadata(&blank.path).expect("is there").blocks() < 100);
        }
        drop(blanks);
        assert_eq!(fs_err::read_dir(&cache).expect("is there").count(), 0);

        let (_, unchanged) = Blanks::make(&home.join("none"), VmSpec::new("/k", "/i")).expect("nothing to do");
        assert!(unchanged.disks.is_empty() && !home.join("none").exists());
    }
}
