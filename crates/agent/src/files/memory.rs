//! Files in memory: reading and writing them is short and never waits for a device.

use std::fs::File;

use rustix::fs::{FsWord, fstatfs};

// From linux/magic.h.
const TMPFS_MAGIC: FsWord = 0x0102_1994;
const RAMFS_MAGIC: FsWord = 0x8584_58f6;

/// Whether a file is on a tmpfs or ramfs.
pub(super) fn in_memory(file: &File) -> bool {
    fstatfs(file).is_ok_and(|stat| [TMPFS_MAGIC, RAMFS_MAGIC].contains(&stat.f_type))
}
