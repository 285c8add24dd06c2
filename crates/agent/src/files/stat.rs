//! Turns the kernel's `stat` into the protocol's.

use kiln_wire::{ErrorCode, Fault, FileKind, FileStat, Owner, Text};
use rustix::fs::{FileType, Stat};

use super::fault::invalid;

/// All permission bits: set-uid, set-gid, sticky, and three times read, write, execute.
pub(super) const PERMISSIONS_MAX: u32 = 0o7777;

pub(super) fn file_stat(stat: &Stat, target: Option<Text>) -> FileStat {
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    FileStat {
        kind: kind_of(stat),
        size: size_of(stat),
        permissions: stat.st_mode & PERMISSIONS_MAX,
        owner: owner_of(stat),
        modified_ns: stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(nanoseconds),
        links: stat.st_nlink,
        inode: stat.st_ino,
        target,
    }
}

pub(super) fn kind_of(stat: &Stat) -> FileKind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::CharacterDevice => FileKind::CharDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::RegularFile | FileType::Unknown => FileKind::File,
    }
}

pub(super) fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

pub(super) fn owner_of(stat: &Stat) -> Owner {
    Owner { uid: stat.st_uid, gid: stat.st_gid }
}

/// Identifies a file: device and inode.
pub(super) fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

/// Refuses a file that is not a plain one, by its kind.
pub(super) fn expect_plain(stat: &Stat, path: &Text) -> Result<(), Fault> {
    let code = match kind_of(stat) {
        FileKind::File => return Ok(()),
        FileKind::Directory => ErrorCode::IsADirectory,
        _ => ErrorCode::NotAFile,
    };
    Err(Fault::new(code, format!("`{path}` is {}, not a plain file", noun(kind_of(stat)))))
}

pub(super) fn noun(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "a plain file",
        FileKind::Directory => "a directory",
        FileKind::Symlink => "a symlink",
        FileKind::CharDevice => "a character device",
        FileKind::BlockDevice => "a block device",
        FileKind::Fifo => "a FIFO",
        FileKind::Socket => "a socket",
    }
}

pub(super) fn expect_permissions(permissions: u32) -> Result<(), Fault> {
    if permissions > PERMISSIONS_MAX {
        return Err(invalid(format!("permissions {permissions:#o} are over {PERMISSIONS_MAX:#o}")));
    }
    Ok(())
}

/// Refuses the highest id, which the kernel takes as "unchanged".
pub(super) fn expect_owner(owner: Owner) -> Result<(), Fault> {
    if owner.uid == u32::MAX || owner.gid == u32::MAX {
        return Err(invalid(format!("owner {}:{} is not an owner", owner.uid, owner.gid)));
    }
    Ok(())
}
