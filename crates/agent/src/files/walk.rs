//! A walk through a directory tree of any depth, with a bounded number of open descriptors.
//!
//! The walk uses descriptors and single names only, never a path from the top, so it can't be led out of the tree by a
//! directory that is replaced by a symlink. To bound the number of descriptors, it closes directories far above and
//! opens them again by `..` on the way back. A directory that was moved meanwhile has another directory as its `..`, so
//! the walk compares device and inode with those that it saw before, and fails if they differ.

use std::ffi::{CStr, CString};
use std::os::fd::{BorrowedFd, OwnedFd};

use kiln_wire::{ErrorCode, Fault, Text};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::fault::fault_from_errno;
use super::stat::identity;

/// Directories of a walk that are open at once. The ones above are opened again on the way back.
const OPEN_MAX: usize = 32;

/// The purpose of a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Entries stay: a directory that is opened again continues at its last entry. Mounts are entered.
    Reading,
    /// Entries are removed: a directory that is opened again starts at its first entry. Mounts are refused with
    /// `EXDEV`.
    Removing,
}

/// The current directory of a walk and the way back from it.
#[derive(Debug)]
pub(super) struct Walk {
    purpose: Purpose,
    base: Text,
    /// From the top to the current directory.
    levels: Vec<Level>,
    /// Path of the current directory below the top.
    path: Vec<u8>,
}

#[derive(Debug)]
struct Level {
    identity: (u64, u64),
    device: u64,
    /// Length of the path of the directory above.
    parent_path_bytes: usize,
    name: CString,
    stream: Option<Dir>,
    offset: i64,
}

impl Walk {
    /// Starts in a directory, which is given as a name in an open directory. `base` is its path in messages.
    pub(super) fn start(parent: BorrowedFd<'_>, name: &CStr, base: &Text, purpose: Purpose) -> Result<Self, Errno> {
        let directory = open_directory(parent, name, purpose)?;
        let mut walk = Self { purpose, base: base.clone(), levels: Vec::new(), path: Vec::new() };
        walk.push(directory, name, 0)?;
        Ok(walk)
    }

    /// The next entry of the current directory, without `.` and `..`.
    pub(super) fn next(&mut self) -> Result<Option<(CString, FileType)>, Fault> {
        let level = self.levels.last_mut().expect("a walk has its top until it is left");
        let stream = level.stream.as_mut().expect("the current directory is open");
        while let Some(entry) = stream.read() {
            let entry = match entry {
                Ok(entry) => entry,
                // The directory was removed while it was read: it has no more entries.
                Err(Errno::NOENT) => return Ok(None),
                Err(errno) => return Err(self.fault(None, "list", errno)),
            };
            level.offset = entry.offset();
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                return Ok(Some((entry.file_name().to_owned(), entry.file_type())));
            }
        }
        Ok(None)
    }

    /// Enters a directory of the current one. Symlinks are not followed.
    pub(super) fn enter(&mut self, name: &CStr) -> Result<(), Errno> {
        let directory = open_directory(self.directory(), name, self.purpose)?;
        let parent_path_bytes = self.path.len();
        self.push(directory, name, parent_path_bytes)?;
        if self.levels.len() > OPEN_MAX {
            let above = self.levels.len() - 1 - OPEN_MAX;
            self.levels[above].stream = None;
        }
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name.to_bytes());
        Ok(())
    }

    /// Goes back to the directory above and returns the name of the directory that was left. `None` if that was the
    /// top.
    pub(super) fn leave(&mut self) -> Result<Option<CString>, Fault> {
        let left = self.levels.pop().expect("a walk has its top until it is left");
        let Some(above) = self.levels.last_mut() else { return Ok(None) };
        if above.stream.is_none() {
            let child = left.stream.as_ref().expect("the current directory is open");
            let offset = if self.purpose == Purpose::Reading { above.offset } else { 0 };
            match open_above(child, above.identity, offset) {
                Ok(stream) => above.stream = Some(stream),
                Err(Errno::STALE) => {
                    let message = format!("`{}` was moved while it was walked through", self.shown(None));
                    return Err(Fault::new(ErrorCode::Busy, message));
                }
                Err(errno) => return Err(self.fault(None, "go back from", errno)),
            }
        }
        self.path.truncate(left.parent_path_bytes);
        Ok(Some(left.name))
    }

    /// The current directory.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        let level = self.levels.last().expect("a walk has its top until it is left");
        let stream = level.stream.as_ref().expect("the current directory is open");
        stream.fd().expect("a directory stream has a descriptor on Linux")
    }

    /// Whether the current directory is on another file system than the one above.
    pub(super) fn is_mount(&self) -> bool {
        matches!(self.levels.as_slice(), [.., above, current] if above.device != current.device)
    }

    /// The current directory's path below the top. Empty at the top.
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// The path of an entry of the current directory, or of the directory, in messages for the caller.
    pub(super) fn shown(&self, name: Option<&CStr>) -> Text {
        let mut shown = self.base.as_bytes().to_vec();
        let parts = [Some(self.path.as_slice()), name.map(CStr::to_bytes)];
        for part in parts.into_iter().flatten().filter(|part| !part.is_empty()) {
            if !shown.ends_with(b"/") {
                shown.push(b'/');
            }
            shown.extend_from_slice(part);
        }
        shown.into()
    }

    /// A fault with the path of an entry of the current directory, or of the directory.
    pub(super) fn fault(&self, name: Option<&CStr>, operation: &str, errno: Errno) -> Fault {
        let shown = self.shown(name);
        if errno == Errno::XDEV && self.purpose == Purpose::Removing {
            return Fault::new(ErrorCode::Busy, format!("failed to {operation} `{shown}`: something is mounted there"));
        }
        fault_from_errno(shown, operation, errno)
    }

    fn push(&mut self, directory: OwnedFd, name: &CStr, parent_path_bytes: usize) -> Result<(), Errno> {
        let stat: Stat = rustix::fs::fstat(&directory)?;
        self.levels.push(Level {
            identity: identity(&stat),
            device: stat.st_dev,
            parent_path_bytes,
            name: name.to_owned(),
            stream: Some(Dir::new(directory)?),
            offset: 0,
        });
        Ok(())
    }
}

fn open_directory(parent: BorrowedFd<'_>, name: &CStr, purpose: Purpose) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if purpose == Purpose::Reading {
        return rustix::fs::openat(parent, name, flags, Mode::empty());
    }
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(parent, name, flags, Mode::empty(), resolve)
}

/// Opens the directory above. Returns `ESTALE` if it isn't the expected one, because the child was moved.
fn open_above(child: &Dir, expected: (u64, u64), offset: i64) -> Result<Dir, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let above = rustix::fs::openat(child.fd()?, c"..", flags, Mode::empty())?;
    if identity(&rustix::fs::fstat(&above)?) != expected {
        return Err(Errno::STALE);
    }
    let mut stream = Dir::new(above)?;
    if offset != 0 {
        stream.seek(offset)?;
    }
    Ok(stream)
}
