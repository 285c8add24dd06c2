//! Resolves paths in a root (all of the guest or a jail) to places that other processes can't replace.
//!
//! # How a jail holds
//! A jail must hold against processes in the guest that rename directories and replace symlinks while a path is
//! resolved. So no check of path strings decides: the kernel resolves each path from the jail's open directory with
//! `RESOLVE_BENEATH`, which refuses `..`, absolute paths and symlinks that leave the directory, at each step and
//! atomically. The result is an open directory and a last name, and the later system calls use those. If the directory
//! is renamed in between, they still work on the same directory. The last name can be replaced by a symlink at any
//! time, so these calls don't follow one (`O_NOFOLLOW`, `AT_SYMLINK_NOFOLLOW`); if a symlink at the end is to be
//! followed, [`Root::final_place`] resolves its target like a new path, under the same rules.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use kiln_wire::{ErrorCode, Fault, Text};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::fault::{fault_from_errno, invalid};

/// Longest path that the kernel accepts, without its final zero.
const PATH_BYTES_MAX: usize = 4095;
/// Longest name in a directory.
const NAME_BYTES_MAX: usize = 255;
/// Symlinks that are followed at the end of one path; the kernel's limit.
const SYMLINKS_MAX: usize = 40;
/// Tries of a resolution that concurrent renames disturb.
const RESOLVE_TRIES: usize = 128;

/// The directory that paths start at: all of the guest, or a jail.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
    scope: Scope,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Whole,
    Jail,
}

/// An open directory and a name in it. The name is `.` if the path has no last name, see [`Place::is_nameless`].
#[derive(Debug)]
pub(super) struct Place {
    pub(super) parent: OwnedFd,
    pub(super) name: CString,
    /// The path ended in `/`.
    pub(super) directory_only: bool,
}

impl Root {
    /// Opens the jail, or the guest's `/` if there is no jail.
    ///
    /// # Errors
    /// If the jail does not exist or is not a directory.
    pub fn new(jail: Option<&Text>) -> Result<Self, Fault> {
        let slash = rustix::fs::open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| fault_from_errno("/", "open", errno))?;
        let whole = Self { directory: slash, scope: Scope::Whole };
        let Some(jail) = jail else { return Ok(whole) };
        Ok(Self::beneath(whole.open(jail, OFlags::PATH | OFlags::DIRECTORY, "open the jail")?))
    }

    /// A jail in an open directory.
    pub(super) fn beneath(directory: OwnedFd) -> Self {
        Self { directory, scope: Scope::Jail }
    }

    /// Opens a path. Symlinks at its end are followed unless the flags forbid it.
    pub(super) fn open(&self, path: &Text, flags: OFlags, operation: &str) -> Result<OwnedFd, Fault> {
        let relative = relative(path.as_bytes(), path)?;
        self.open_relative(relative, flags).map_err(|errno| self.fault(path, operation, errno))
    }

    /// The place of a path. A symlink at its end is not followed.
    pub(super) fn place(&self, path: &Text, operation: &str) -> Result<Place, Fault> {
        self.place_of(path.as_bytes(), path, operation)
    }

    /// The place of a path after following symlinks at its end. The place may be empty.
    pub(super) fn final_place(&self, path: &Text, operation: &str) -> Result<Place, Fault> {
        let mut current = path.as_bytes().to_vec();
        for _ in 0..=SYMLINKS_MAX {
            let place = self.place_of(&current, path, operation)?;
            let target = match rustix::fs::readlinkat(&place.parent, &place.name, Vec::new()) {
                Ok(target) => target.into_bytes(),
                Err(Errno::INVAL | Errno::NOENT) => return Ok(place),
                Err(errno) => return Err(self.fault(path, operation, errno)),
            };
            if target.first() == Some(&b'/') {
                if self.scope == Scope::Jail {
                    return Err(self.fault(path, operation, Errno::XDEV));
                }
                current = target;
            } else {
                // A relative target is resolved from the link's directory, like in the kernel.
                let trimmed = trim_slashes(&current);
                let directory = trimmed.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
                current.truncate(directory);
                current.extend_from_slice(&target);
            }
            if place.directory_only {
                current.push(b'/');
            }
        }
        Err(self.fault(path, operation, Errno::LOOP))
    }

    /// The fault for an errno of resolving a path.
    pub(super) fn fault(&self, path: &Text, operation: &str, errno: Errno) -> Fault {
        if errno == Errno::XDEV && self.scope == Scope::Jail {
            return Fault::new(ErrorCode::OutsideJail, format!("failed to {operation} `{path}`: it leaves its jail"));
        }
        fault_from_errno(path, operation, errno)
    }

    fn place_of(&self, path: &[u8], shown: &Text, operation: &str) -> Result<Place, Fault> {
        let relative = relative(path, shown)?;
        let trimmed = trim_slashes(relative);
        let (directory, name) = match trimmed.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&trimmed[..slash], &trimmed[slash + 1..]),
            None => (&b"."[..], trimmed),
        };
        // `.` and `..` are not names of an entry, so the whole path is resolved as a directory.
        let (directory, name) = if matches!(name, b"." | b"..") { (trimmed, &b"."[..]) } else { (directory, name) };
        let parent = self
            .open_relative(directory, OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|errno| self.fault(shown, operation, errno))?;
        let name = CString::new(name).map_err(|_| invalid(format!("`{shown}` has a zero byte")))?;
        Ok(Place { parent, name, directory_only: trimmed.len() < relative.len() })
    }

    fn open_relative(&self, relative: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        if self.scope == Scope::Whole {
            return rustix::io::retry_on_intr(|| rustix::fs::openat(&self.directory, relative, flags, Mode::empty()));
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..RESOLVE_TRIES {
            match rustix::fs::openat2(&self.directory, relative, flags, Mode::empty(), resolve) {
                // EAGAIN: a rename happened meanwhile, and the kernel can't decide whether a `..` left the jail.
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
        Err(Errno::BUSY)
    }
}

impl Place {
    /// Whether the path has no last name, like `/`, `.` and `a/..`.
    pub(super) fn is_nameless(&self) -> bool {
        self.name.as_bytes() == b"."
    }

    /// The status of the place, without following a symlink. `None` if nothing is there.
    pub(super) fn stat(&self) -> Result<Option<Stat>, Errno> {
        stat_at(&self.parent, &self.name)
    }
}

/// The status of a name in a directory, without following a symlink. `None` if nothing is there.
pub(super) fn stat_at(directory: impl AsFd, name: &CStr) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Opens the file of an `O_PATH` descriptor for reading or writing. It is the same file even if its name was replaced.
pub(super) fn reopen(handle: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    rustix::io::retry_on_intr(|| rustix::fs::openat(CWD, descriptor_path(handle), flags, Mode::empty()))
}

/// The path of an open descriptor in `/proc`.
pub(super) fn descriptor_path(handle: &OwnedFd) -> CString {
    CString::new(format!("/proc/self/fd/{}", handle.as_raw_fd())).expect("a number has no zero byte")
}

/// A path relative to a root, without leading slashes.
fn relative<'a>(path: &'a [u8], shown: &Text) -> Result<&'a [u8], Fault> {
    if path.is_empty() {
        return Err(invalid("the path is empty"));
    }
    if path.contains(&0) {
        return Err(invalid(format!("`{shown}` has a zero byte")));
    }
    let too_long = |what: &str, bytes: usize, max: usize| {
        let start = String::from_utf8_lossy(&path[..path.len().min(64)]).into_owned();
        Fault::new(ErrorCode::NameTooLong, format!("`{start}…` has a {what} of {bytes} bytes, over {max}"))
    };
    if path.len() > PATH_BYTES_MAX {
        return Err(too_long("path", path.len(), PATH_BYTES_MAX));
    }
    if let Some(name) = path.split(|byte| *byte == b'/').find(|name| name.len() > NAME_BYTES_MAX) {
        return Err(too_long("name", name.len(), NAME_BYTES_MAX));
    }
    let start = path.iter().position(|byte| *byte != b'/').unwrap_or(path.len());
    Ok(if start == path.len() { b"." } else { &path[start..] })
}

fn trim_slashes(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    &path[..end]
}
