//! Packing what a guest has changed in its root, as a layer of an image.
//!
//! ```text
//!   upper layer of the root's overlay ─▶ entry ─┬▶ file, directory, symlink, device, FIFO   the same in the archive
//!                                               ├▶ device 0:0            the mark `.wh.NAME`: a name that was removed
//!                                               ├▶ opaque directory      the mark `.wh..wh..opq` in it
//!                                               └▶ moved directory       that mark, and all of it as the guest sees it
//! ```
//! The kernel keeps changes of an overlay in its upper layer, in a form of its own. Layers of images have other marks
//! for the same. A directory of the image that was moved is only a reference in the upper layer, so its content is
//! packed from the root itself.
//!
//! What is not part of a root is left out: the directories on which every guest has mounts, and the files with the
//! names and addresses of this machine, which each fork writes for itself.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use kiln_archive::{END_BYTES, Special, WriteError, Writer};
use kiln_wire::{ErrorCode, Fault, FileKind, Text};
use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;

use super::archive::{Packed, attributes, broken, join, special};
use super::fault::fault_from_errno;
use super::left_out::LeftOut;
use super::list::link_target;
use super::place::reopen;
use super::stat::kind_of;
use super::walk::{Purpose, Walk};

const OPERATION: &str = "pack";
/// The start of the name of a mark for a removed name.
const REMOVED: &[u8] = b".wh.";
/// The mark of a directory that has nothing of the layers below.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Attributes in which an overlay keeps its marks. They mean nothing outside of it.
const MARKS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// Its mark of a directory that hides the lower one.
const OPAQUE_ATTRIBUTE: &CStr = c"trusted.overlay.opaque";
/// Its mark of a directory whose content is elsewhere in the lower layer.
const MOVED_ATTRIBUTE: &CStr = c"trusted.overlay.redirect";
/// Paths of the root that are not part of an image.
const MACHINE: [&[u8]; 9] =
    [b"proc", b"sys", b"dev", b"run", b"tmp", b"etc/hostname", b"etc/hosts", b"etc/resolv.conf", b"etc/machine-id"];
/// Files with several names that are known by their first one. More are packed as separate files.
const LINKED_MAX: usize = 65_536;
/// The longest list of attributes and the longest attribute that the kernel has.
const ATTRIBUTE_BYTES_MAX: usize = 64 << 10;

/// The name of an extended attribute, and its value.
type Xattr = (Vec<u8>, Vec<u8>);

/// The upper layer of this guest's root.
static UPPER: OnceLock<OwnedFd> = OnceLock::new();

/// Sets the upper layer of the root, for all later requests.
pub fn set_upper(directory: OwnedFd) {
    // A guest switches its root once.
    let _ = UPPER.set(directory);
}

/// The upper layer of the root.
///
/// # Errors
/// If the root is not an overlay.
pub fn upper() -> io::Result<OwnedFd> {
    let upper = UPPER.get().ok_or_else(|| io::Error::other("the root has no upper layer"))?;
    Ok(rustix::io::fcntl_dupfd_cloexec(upper, 0)?)
}

/// Whether this guest's root is an overlay on an image.
pub fn is_overlay() -> bool {
    UPPER.get().is_some()
}

/// The changes of a root, ready to be packed.
#[derive(Debug)]
pub struct ChangesPacker {
    upper: OwnedFd,
    /// The root as programs see it.
    merged: OwnedFd,
}

impl ChangesPacker {
    /// The changes of this guest's root.
    ///
    /// # Errors
    /// `unsupported` if the root is not an overlay.
    pub fn open() -> Result<Self, Fault> {
        let Some(upper) = UPPER.get() else {
            let message = "this guest's root is not that of an image, so its changes can't be told apart";
            return Err(Fault::new(ErrorCode::Unsupported, message));
        };
        let fail = |errno: Errno| fault_from_errno("/", "open", errno);
        let upper = rustix::io::fcntl_dupfd_cloexec(upper, 0).map_err(fail)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { upper, merged: rustix::fs::open(c"/", flags, Mode::empty()).map_err(fail)? })
    }

    /// The changes in `upper` of a root that programs see as `merged`.
    #[cfg(test)]
    pub(super) fn of(upper: OwnedFd, merged: OwnedFd) -> Self {
        Self { upper, merged }
    }

    /// Writes the layer. A file that can't be packed is left out and named in the result.
    ///
    /// # Errors
    /// If the changes can't be read, or writing to `output` fails.
    pub fn write_to(self, output: impl Write) -> Result<Packed, Fault> {
        let mut layer = Layer { writer: Writer::new(output), left_out: LeftOut::default(), linked: HashMap::new() };
        let shown = Text::from("/");
        let start = |directory: &OwnedFd| {
            let started = Walk::start(directory.as_fd(), c".", &shown, Purpose::Reading);
            started.map_err(|errno| fault_from_errno(&shown, OPERATION, errno))
        };
        let mut walk = start(&self.upper)?;
        while let Some(name) = layer.next(&mut walk)? {
            let member = join(&[walk.path(), name.to_bytes()]);
            if MACHINE.contains(&member.as_slice()) {
                continue;
            }
            match layer.put(&walk, &name, &member, View::Upper)? {
                Found::Packed => {}
                Found::Directory(How::Own) => layer.enter(&mut walk, &name)?,
                Found::Directory(How::Moved) => {
                    let mut moved = start(&self.merged)?;
                    layer.put_all(&mut moved, &member)?;
                }
            }
        }
        let Layer { writer, left_out, .. } = layer;
        let (entries, bytes) = (writer.entries(), writer.bytes() + END_BYTES);
        writer.finish().map_err(broken)?;
        Ok(Packed { entries, bytes, left_out })
    }
}

/// Where an entry is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    /// The upper layer, with the marks of the kernel.
    Upper,
    /// The root, in which the kernel has applied them.
    Merged,
}

/// What an entry was.
enum Found {
    /// Nothing is below it, or it is gone or left out.
    Packed,
    Directory(How),
}

/// Where the content of a directory is.
enum How {
    /// Its changes are in the upper layer.
    Own,
    /// It is a directory of the image that was moved.
    Moved,
}

struct Layer<W> {
    writer: Writer<W>,
    left_out: LeftOut,
    /// The first name of each file with several names, by device and inode.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Layer<W> {
    /// The next name of a walk. Leaves directories at their ends. `None` at the end of the walk.
    fn next(&mut self, walk: &mut Walk) -> Result<Option<std::ffi::CString>, Fault> {
        loop {
            match walk.next() {
                Ok(Some((name, _))) => return Ok(Some(name)),
                Ok(None) => {}
                Err(fault) => self.left_out.add(fault),
            }
            if walk.leave()?.is_none() {
                return Ok(None);
            }
        }
    }

    fn enter(&mut self, walk: &mut Walk, name: &CStr) -> Result<(), Fault> {
        match walk.enter(name) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => self.left_out.add(walk.fault(Some(name), OPERATION, errno)),
        }
        Ok(())
    }

    /// Packs all that is below a directory of the root.
    fn put_all(&mut self, walk: &mut Walk, directory: &[u8]) -> Result<(), Fault> {
        // The names of the path are taken one by one, so that no symlink is followed.
        for name in directory.split(|byte| *byte == b'/') {
            let name = std::ffi::CString::new(name).map_err(|error| broken(error.into()))?;
            walk.enter(&name).map_err(|errno| walk.fault(Some(&name), OPERATION, errno))?;
        }
        while let Some(name) = self.next_below(walk, directory)? {
            let member = join(&[walk.path(), name.to_bytes()]);
            if let Found::Directory(_) = self.put(walk, &name, &member, View::Merged)? {
                self.enter(walk, &name)?;
                // What is mounted there is not part of the root.
                if walk.is_mount() {
                    walk.leave()?;
                }
            }
        }
        Ok(())
    }

    /// The next name of a walk below a directory. `None` when it leaves that.
    fn next_below(&mut self, walk: &mut Walk, top: &[u8]) -> Result<Option<std::ffi::CString>, Fault> {
        loop {
            match walk.next() {
                Ok(Some((name, _))) => return Ok(Some(name)),
                Ok(None) => {}
                Err(fault) => self.left_out.add(fault),
            }
            if walk.path() == top || walk.leave()?.is_none() {
                return Ok(None);
            }
        }
    }

    /// Adds the exact time and the extended attributes of the next entry.
    fn details(&mut self, stat: &Stat, open: BorrowedFd<'_>) -> Result<(), Fault> {
        // A file system without attributes has none.
        let xattrs = xattrs(open).unwrap_or_default();
        self.writer.details(time(stat), &xattrs).map_err(broken)
    }

    /// Adds the exact time of the next entry.
    fn time(&mut self, stat: &Stat) -> Result<(), Fault> {
        self.writer.details(time(stat), &[]).map_err(broken)
    }

    /// Packs one entry.
    fn put(&mut self, walk: &Walk, name: &CStr, member: &[u8], view: View) -> Result<Found, Fault> {
        let directory = walk.directory();
        let unreadable = |left_out: &mut LeftOut, error: io::Error| {
            left_out.add(fault_from_errno(walk.shown(Some(name)), OPERATION, error));
            Ok(Found::Packed)
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(directory, name, flags, Mode::empty())
            .and_then(|handle| rustix::fs::fstat(&handle).map(|stat| (handle, stat)));
        let (handle, stat) = match opened {
            Ok(opened) => opened,
            Err(Errno::NOENT) => return Ok(Found::Packed),
            Err(errno) => return unreadable(&mut self.left_out, errno.into()),
        };
        let (kind, plain) = (kind_of(&stat), attributes(&stat));
        if view == View::Upper && kind == FileKind::CharDevice && stat.st_rdev == 0 {
            let mark = join(&[walk.path(), &[REMOVED, name.to_bytes()].concat()]);
            self.writer.empty_file(&mark).map_err(broken)?;
            return Ok(Found::Packed);
        }
        if kind != FileKind::Directory && stat.st_nlink > 1 {
            let file = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.linked.get(&file) {
                self.writer.hard_link(member, first, &plain).map_err(broken)?;
                return Ok(Found::Packed);
            }
            if self.linked.len() < LINKED_MAX {
                self.linked.insert(file, member.to_vec());
            }
        }
        match kind {
            FileKind::Directory => {
                let open = match reopen(&handle, OFlags::RDONLY | OFlags::DIRECTORY) {
                    Ok(open) => open,
                    Err(errno) => return unreadable(&mut self.left_out, errno.into()),
                };
                self.details(&stat, open.as_fd())?;
                self.writer.directory(member, &plain).map_err(broken)?;
                if view == View::Merged {
                    return Ok(Found::Directory(How::Own));
                }
                let has = |attribute: &CStr| rustix::fs::fgetxattr_query(&open, attribute).is_ok();
                let moved = has(MOVED_ATTRIBUTE);
                if moved || has(OPAQUE_ATTRIBUTE) {
                    self.writer.empty_file(&join(&[member, OPAQUE])).map_err(broken)?;
                }
                Ok(Found::Directory(if moved { How::Moved } else { How::Own }))
            }
            FileKind::Symlink => match link_target(&handle) {
                Ok(target) => {
                    self.time(&stat)?;
                    self.writer.symlink(member, target.as_bytes(), &plain).map_err(broken)?;
                    Ok(Found::Packed)
                }
                Err(errno) => unreadable(&mut self.left_out, errno.into()),
            },
            FileKind::File => {
                let mut file = match reopen(&handle, OFlags::RDONLY) {
                    Ok(file) => File::from(file),
                    Err(errno) => return unreadable(&mut self.left_out, errno.into()),
                };
                self.details(&stat, file.as_fd())?;
                match self.writer.file(member, &plain, &mut file) {
                    Ok(()) => Ok(Found::Packed),
                    Err(WriteError::File(error)) => unreadable(&mut self.left_out, error),
                    Err(WriteError::Output(error)) => Err(broken(error)),
                }
            }
            FileKind::CharDevice | FileKind::BlockDevice | FileKind::Fifo => {
                let numbers = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
                let special = match kind {
                    FileKind::CharDevice => Special::CharacterDevice(numbers.0, numbers.1),
                    FileKind::BlockDevice => Special::BlockDevice(numbers.0, numbers.1),
                    _ => Special::Fifo,
                };
                self.time(&stat)?;
                self.writer.special(member, special, &plain).map_err(broken)?;
                Ok(Found::Packed)
            }
            FileKind::Socket => {
                self.left_out.add(special(&walk.shown(Some(name)), kind));
                Ok(Found::Packed)
            }
        }
    }
}

fn time(stat: &Stat) -> (i64, i64) {
    (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

/// The extended attributes of an open file, less the marks of the overlay.
fn xattrs(open: BorrowedFd<'_>) -> Result<Vec<Xattr>, Errno> {
    let mut names = vec![0; ATTRIBUTE_BYTES_MAX];
    let count = rustix::fs::flistxattr(open, &mut names[..])?;
    let mut found = Vec::new();
    for name in names[..count].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if MARKS.iter().any(|mark| name.starts_with(mark)) {
            continue;
        }
        let Ok(name_text) = std::ffi::CString::new(name) else { continue };
        // Only as long as the attribute: most have a few bytes.
        let size = rustix::fs::fgetxattr_query(open, name_text.as_c_str())?;
        let mut value = vec![0; size.min(ATTRIBUTE_BYTES_MAX)];
        let size = rustix::fs::fgetxattr(open, name_text.as_c_str(), &mut value[..])?;
        value.truncate(size);
        found.push((name.to_vec(), value));
    }
    Ok(found)
}
