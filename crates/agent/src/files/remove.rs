//! Removing files and trees. Symlinks are removed and never followed. Mounts are not removed.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_wire::{ErrorCode, Fault, Text};
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::fault::fault_from_errno;
use super::place::Root;
use super::walk::{Purpose, Walk};
use super::write::expect_name;

/// How often a directory of one tree may have new entries after it was emptied, because another process adds them.
const REFILLED_MAX: usize = 64;

/// Removes a file, a symlink or an empty directory. With `recursive`, a directory's entries are removed first.
///
/// # Errors
/// `not_found`, `not_empty`, `permission_denied`; `busy` at a mount; `cancelled` after `stop` was set. If a tree can't
/// be removed completely, it is removed up to the entry that the fault names.
pub fn remove(root: &Root, path: &Text, recursive: bool, stop: &AtomicBool) -> Result<(), Fault> {
    let fail = |errno: Errno| fault_from_errno(path, "remove", errno);
    let place = root.place(path, "remove")?;
    expect_name(&place, path, "remove")?;
    if place.directory_only {
        let flags = AtFlags::REMOVEDIR;
        match rustix::fs::unlinkat(&place.parent, &place.name, flags) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if recursive => {}
            result => return result.map_err(fail),
        }
    } else {
        match unlink(place.parent.as_fd(), &place.name) {
            Err(Errno::NOTEMPTY) if recursive => {}
            result => return result.map_err(fail),
        }
    }
    remove_full(place.parent.as_fd(), &place.name, path, stop)
}

/// Removes a directory that is not empty.
fn remove_full(parent: BorrowedFd<'_>, name: &CStr, path: &Text, stop: &AtomicBool) -> Result<(), Fault> {
    let mut refilled = 0;
    loop {
        let mut walk = match Walk::start(parent, name, path, Purpose::Removing) {
            Ok(walk) => walk,
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::XDEV) => {
                return Err(Fault::new(ErrorCode::Busy, format!("failed to remove `{path}`: it is a mount")));
            }
            Err(errno) => return Err(fault_from_errno(path, "remove", errno)),
        };
        empty(&mut walk, &mut refilled, stop)?;
        drop(walk);
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) if refilled < REFILLED_MAX => refilled += 1,
            Err(errno) => return Err(fault_from_errno(path, "remove", errno)),
        }
    }
}

/// Removes all entries below the walk's top.
fn empty(walk: &mut Walk, refilled: &mut usize, stop: &AtomicBool) -> Result<(), Fault> {
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Fault::new(ErrorCode::Cancelled, "removing was cancelled"));
        }
        if let Some((name, _)) = walk.next()? {
            match unlink(walk.directory(), &name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NOTEMPTY) => enter(walk, &name)?,
                Err(errno) => return Err(walk.fault(Some(&name), "remove", errno)),
            }
            continue;
        }
        let Some(name) = walk.leave()? else { return Ok(()) };
        match rustix::fs::unlinkat(walk.directory(), &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) if *refilled < REFILLED_MAX => {
                *refilled += 1;
                enter(walk, &name)?;
            }
            Err(errno) => return Err(walk.fault(Some(&name), "remove", errno)),
        }
    }
}

fn enter(walk: &mut Walk, name: &CStr) -> Result<(), Fault> {
    match walk.enter(name) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(walk.fault(Some(name), "remove", errno)),
    }
}

/// Removes a file, a symlink or an empty directory. For other directories it returns `ENOTEMPTY`.
pub(super) fn unlink(directory: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Err(Errno::EXIST) => Err(Errno::NOTEMPTY),
            result => result,
        },
        result => result,
    }
}
