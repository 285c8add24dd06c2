//! Changes to the tree: directories, names, copies, symlinks, permissions, owners.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_wire::{ErrorCode, Fault, FileKind, Owner, Text, WriteMode};
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::fault::{fault_from_errno, invalid};
use super::place::{Place, Root, descriptor_path};
use super::read::open_plain;
use super::stat::{PERMISSIONS_MAX, expect_owner, expect_permissions, kind_of};
use super::write::{AtomicWrite, expect_name};

/// Permission bits of a new directory by default.
const DIRECTORY_PERMISSIONS_DEFAULT: u32 = 0o755;
/// Bytes of a copy in memory.
const COPY_BUFFER_BYTES: usize = 128 * 1024;

/// Creates a directory. With `parents`, missing directories above it are created too, and it may already exist.
///
/// # Errors
/// `already_exists`, `not_found`, `not_a_directory`.
pub fn mkdir(root: &Root, path: &Text, parents: bool, permissions: Option<u32>) -> Result<(), Fault> {
    let permissions = permissions.unwrap_or(DIRECTORY_PERMISSIONS_DEFAULT);
    expect_permissions(permissions)?;
    if parents {
        return mkdir_parents(root, path, permissions);
    }
    let place = root.place(path, "make directory")?;
    make(&place, permissions).map_err(|errno| fault_from_errno(path, "make directory", errno))
}

/// Renames like rename(2), which replaces an existing target. Symlinks are not followed.
///
/// # Errors
/// `not_found`, `cross_device`, `not_empty`, `is_a_directory`, `not_a_directory`; `invalid_request` if a directory
/// would be moved into itself.
pub fn rename(root: &Root, from: &Text, to: &Text) -> Result<(), Fault> {
    let source = root.place(from, "rename")?;
    let target = root.place(to, "rename to")?;
    expect_name(&source, from, "rename")?;
    expect_name(&target, to, "rename to")?;
    let operation = format!("rename to `{to}` from");
    match rustix::fs::renameat(&source.parent, &source.name, &target.parent, &target.name) {
        Err(Errno::INVAL) => Err(invalid(format!("`{from}` can't be renamed to `{to}`, which is inside it"))),
        result => result.map_err(|errno| fault_from_errno(from, &operation, errno)),
    }
}

/// Copies a plain file with its permission bits. The copy appears as a whole. Returns its length in bytes.
///
/// # Errors
/// The errors of reading `from` and of writing `to`; `cancelled` after `stop` was set.
pub fn copy(root: &Root, from: &Text, to: &Text, stop: &AtomicBool) -> Result<u64, Fault> {
    let (mut source, stat) = open_plain(root, from)?;
    let mut target = AtomicWrite::begin(root, to, WriteMode::Replace, Some(stat.permissions), None)?;
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Fault::new(ErrorCode::Cancelled, format!("copying `{from}` was cancelled")));
        }
        match source.read(&mut buffer) {
            Ok(0) => return target.commit(),
            Ok(count) => target.write(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(fault_from_errno(from, "read", error)),
        }
    }
}

/// Creates a symlink. Its target may be outside of the jail: the jail is enforced when a symlink is followed.
///
/// # Errors
/// `already_exists`, `not_found`; `invalid_request` if the target is empty or has a zero byte.
pub fn symlink(root: &Root, target: &Text, path: &Text) -> Result<(), Fault> {
    if target.is_empty() || target.as_bytes().contains(&0) {
        return Err(invalid(format!("a symlink can't have the target `{target}`: it is empty or has a zero byte")));
    }
    let place = root.place(path, "make symlink")?;
    rustix::fs::symlinkat(target.as_bytes(), &place.parent, &place.name)
        .map_err(|errno| fault_from_errno(path, "make symlink", errno))
}

/// Sets permission bits. A symlink is followed.
///
/// # Errors
/// `invalid_request` if there are bits over 0o7777; `not_found`, `permission_denied`.
pub fn chmod(root: &Root, path: &Text, permissions: u32) -> Result<(), Fault> {
    expect_permissions(permissions)?;
    let handle = root.open(path, OFlags::PATH, "set the permissions of")?;
    rustix::fs::chmodat(CWD, descriptor_path(&handle), Mode::from_raw_mode(permissions), AtFlags::empty())
        .map_err(|errno| fault_from_errno(path, "set the permissions of", errno))
}

/// Sets the owner. A symlink is not followed.
///
/// # Errors
/// `invalid_request` if an id is 2³² − 1; `not_found`, `permission_denied`.
pub fn chown(root: &Root, path: &Text, owner: Owner) -> Result<(), Fault> {
    expect_owner(owner)?;
    let operation = "set the owner of";
    let place = root.place(path, operation)?;
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    rustix::fs::chownat(&place.parent, &place.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| fault_from_errno(path, operation, errno))
}

/// Opens a directory. If it is missing, it is created with the directories above it. Returns whether it was created.
pub(super) fn open_or_make(root: &Root, path: &Text) -> Result<(OwnedFd, bool), Fault> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match root.open(path, flags, "open directory") {
        Err(fault) if fault.code == ErrorCode::NotFound => {}
        result => return result.map(|directory| (directory, false)),
    }
    mkdir_parents(root, path, DIRECTORY_PERMISSIONS_DEFAULT)?;
    Ok((root.open(path, flags, "open directory")?, true))
}

fn mkdir_parents(root: &Root, path: &Text, permissions: u32) -> Result<(), Fault> {
    let operation = "make directory";
    let bytes = path.as_bytes();
    let handle = |prefix: &Text| root.open(prefix, OFlags::PATH, operation);
    match handle(path) {
        Ok(handle) => {
            let stat = rustix::fs::fstat(&handle).map_err(|errno| fault_from_errno(path, operation, errno))?;
            let is_directory = kind_of(&stat) == FileKind::Directory;
            return if is_directory { Ok(()) } else { Err(fault_from_errno(path, operation, Errno::EXIST)) };
        }
        Err(fault) if fault.code == ErrorCode::NotFound && !bytes.is_empty() => {}
        Err(fault) => return Err(fault),
    }
    // All prefixes that end with a whole name. The last is the whole path.
    let ends =
        (0..bytes.len()).filter(|end| bytes[*end] != b'/' && bytes.get(end + 1).is_none_or(|next| *next == b'/'));
    let last = ends.clone().next_back().unwrap_or(0);
    for end in ends {
        let prefix = Text::from(&bytes[..=end]);
        let wanted = if end == last { permissions } else { DIRECTORY_PERMISSIONS_DEFAULT };
        let place = root.place(&prefix, operation)?;
        match make(&place, wanted) {
            Ok(()) => {}
            // If it isn't a directory, the next name fails.
            Err(Errno::EXIST) if end != last => {}
            Err(Errno::EXIST) => {
                root.open(path, OFlags::PATH | OFlags::DIRECTORY, operation)?;
            }
            Err(errno) => return Err(fault_from_errno(&prefix, operation, errno)),
        }
    }
    Ok(())
}

/// Creates a directory with exactly these permissions, independent of the umask.
pub(super) fn make(place: &Place, permissions: u32) -> Result<(), Errno> {
    rustix::fs::mkdirat(&place.parent, &place.name, Mode::from_raw_mode(permissions))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(&place.parent, &place.name, flags, Mode::empty())?;
    if rustix::fs::fstat(&directory)?.st_mode & PERMISSIONS_MAX == permissions {
        return Ok(());
    }
    rustix::fs::chmodat(CWD, descriptor_path(&directory), Mode::from_raw_mode(permissions), AtFlags::empty())
}
