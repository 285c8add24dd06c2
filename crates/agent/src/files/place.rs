//! Where paths lead: a root, whole or jailed, and places in it that can't move under their user.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use kiln_wire::{ErrorCode, Fault, Text};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::fault::{fault_from_errno, invalid};

/// Longest path that the kernel takes, without its final zero.
const PATH_BYTES_MAX: usize = 4095;
/// Longest name in a directory.
const NAME_BYTES_MAX: usize = 255;
/// Symlinks at the end of one path, as in the kernel.
const SYMLINKS_MAX: usize = 40;
/// Tries of a resolution that renames elsewhere keep disturbing.
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

/// An open directory and a name in it; the name is `.` where the path has none of its own.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) parent: OwnedFd,
    pub(super) name: CString,
    /// The path ended in `/`.
    pub(super) directory_only: bool,
}

impl Root {
    /// Opens the jail, or the guest's `/` where there is none.
    ///
    /// # Errors
    /// A jail that is missing or no directory.
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

    /// Opens what is at a path, following symlinks unless the flags say otherwise.
    pub(super) fn open(&self, path: &Text, flags: OFlags, operation: &str) -> Result<OwnedFd, Fault> {
        let relative = relative(path.as_bytes(), path)?;
        self.open_relative(relative, flags).map_err(|errno| self.fault(path, operation, errno))
    }

    /// The place of a path; a symlink at its end is the place itself.
    pub(super) fn place(&self, path: &Text, operation: &str) -> Result<Place, Fault> {
        self.place_of(path.as_bytes(), path, operation)
    }

    /// The place that is left when symlinks at the end are followed, whether something is there or not.
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
                // The kernel, too, reads a link's words from the directory that the link is in.
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

    /// Says what an errno of resolving a path means here.
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
        // These name no entry of a directory that is known before they are resolved.
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
                // The kernel can't tell whether `..` left the jail while something was renamed.
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
        Err(Errno::BUSY)
    }
}

impl Place {
    /// Whether the path has no name of its own, like `/`, `.` and `a/..`.
    pub(super) fn is_nameless(&self) -> bool {
        self.name.as_bytes() == b"."
    }

    /// What is there now, a symlink itself; `None` where nothing is.
    pub(super) fn stat(&self) -> Result<Option<Stat>, Errno> {
        stat_at(&self.parent, &self.name)
    }
}

/// What a name in a directory is, a symlink itself; `None` where nothing is.
pub(super) fn stat_at(directory: impl AsFd, name: &CStr) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Opens for reading or writing exactly what an `O_PATH` descriptor stands for.
pub(super) fn reopen(handle: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    rustix::io::retry_on_intr(|| rustix::fs::openat(CWD, descriptor_path(handle), flags, Mode::empty()))
}

/// The path under which the kernel knows an open descriptor.
pub(super) fn descriptor_path(handle: &OwnedFd) -> CString {
    CString::new(format!("/proc/self/fd/{}", handle.as_raw_fd())).expect("a number has no zero byte")
}

/// A path as words to resolve from a root.
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
