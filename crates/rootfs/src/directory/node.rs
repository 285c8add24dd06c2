//! One file, directory or other node of the host, behind a descriptor that stays the same whatever its name does.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;

use kiln_archive::{KERNEL_FILE_SYSTEMS, data_parts};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::spool::{Spool, SpoolError};
use crate::tree::{Attributes, Body, Time};

/// How often a file is read that changes meanwhile.
pub(super) const ATTEMPTS_MAX: u32 = 3;
/// The longest list of names of attributes, and the longest value: what Linux allows.
const XATTR_BUFFER_LEN: usize = 64 << 10;
/// Bytes of contents that are read at once.
const BUFFER_LEN: usize = 1 << 20;
/// Kinds of attributes that a guest can use. Those of network file systems and others have no place in an image.
const XATTR_KINDS: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
const XATTRS_OF_ACCESS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
/// Attributes that are orders to an overlay filesystem.
const XATTR_KINDS_OF_OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// A node that is open, so that it stays the same, but neither for reading nor for writing: opening a device or a FIFO
/// for reading may block or change something.
#[derive(Debug)]
pub(super) struct Found {
    descriptor: OwnedFd,
    pub(super) stat: Stat,
}

/// Why contents were not stored.
#[derive(Debug)]
pub(super) enum ContentsError {
    Read(io::Error),
    Spool(SpoolError),
    Changing,
}

/// Memory that is used again for each node.
#[derive(Debug)]
pub(super) struct Buffers {
    names: Vec<u8>,
    value: Vec<u8>,
    contents: Vec<u8>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { names: vec![0; XATTR_BUFFER_LEN], value: vec![0; XATTR_BUFFER_LEN], contents: vec![0; BUFFER_LEN] }
    }
}

impl Found {
    /// The node of a name in a directory. `None` if the name is gone.
    pub(super) fn at(directory: &OwnedFd, name: &std::ffi::CStr) -> io::Result<Option<Self>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(directory, name, flags, Mode::empty()) {
            Ok(descriptor) => Self::new(descriptor).map(Some),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&descriptor)?;
        Ok(Self { descriptor, stat })
    }

    pub(super) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// What identifies the node on this host.
    pub(super) fn identity(&self) -> (u64, u64) {
        (self.stat.st_dev, self.stat.st_ino)
    }

    /// Whether the node is in a file system that is a view of the kernel, such as `/proc`.
    pub(super) fn is_of_the_kernel(&self) -> io::Result<bool> {
        let kind = rustix::fs::fstatfs(&self.descriptor)?.f_type;
        Ok(KERNEL_FILE_SYSTEMS.contains(&kind))
    }

    /// The node open for reading. It is the same one: the name that it had plays no part.
    pub(super) fn open(&self, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(self.name(), flags, Mode::empty())?)
    }

    pub(super) fn symlink(&self) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.descriptor, c"", Vec::new())?.into_bytes())
    }

    /// Its attributes, and how many extended attributes were left out.
    pub(super) fn attributes(&self, buffers: &mut Buffers) -> io::Result<(Attributes, u64)> {
        let mut attributes = Attributes {
            permissions: (self.stat.st_mode & 0o7777) as u16,
            uid: self.stat.st_uid,
            gid: self.stat.st_gid,
            modified: modified(&self.stat),
            ..Attributes::default()
        };
        let mut left_out = 0;
        let len = match rustix::fs::listxattr(self.name(), &mut buffers.names[..]) {
            Ok(len) => len,
            Err(Errno::OPNOTSUPP) => 0,
            Err(error) => return Err(error.into()),
        };
        for name in buffers.names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            if !is_kept(name) {
                left_out += 1;
                continue;
            }
            match rustix::fs::getxattr(self.name(), name, &mut buffers.value[..]) {
                Ok(len) => drop(attributes.xattrs.insert(name.into(), buffers.value[..len].into())),
                // It was removed since the names were listed.
                Err(Errno::NODATA) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok((attributes, left_out))
    }

    /// Stores the contents of a file.
    pub(super) fn contents(&mut self, spool: &mut Spool, buffers: &mut Buffers) -> Result<Body, ContentsError> {
        let file = File::from(self.open(OFlags::empty()).map_err(ContentsError::Read)?);
        let (body, stat) = settled(&file, |size| copy(&file, size, spool, buffers))?;
        self.stat = stat;
        Ok(body)
    }

    /// A name of this very node, for calls that have no form with a descriptor. The kernel resolves it to what is open
    /// here, also if that is a symlink.
    fn name(&self) -> String {
        format!("/proc/self/fd/{}", self.descriptor.as_fd().as_raw_fd())
    }
}

/// What a copy of a file returns if the file did not change meanwhile, and the file's state then. `copy` gets the size; it
/// returns nothing if the file was shorter.
///
/// The kernel notes the time of a change in steps of some milliseconds. A change within the step in which the file was
/// last changed before may stay unnoticed if it keeps the size. The tree then has bytes of both states, with their right
/// digest.
fn settled<T>(
    file: &File,
    mut copy: impl FnMut(u64) -> Result<Option<T>, ContentsError>,
) -> Result<(T, Stat), ContentsError> {
    let stat = || rustix::fs::fstat(file).map_err(|error| ContentsError::Read(error.into()));
    for _ in 0..ATTEMPTS_MAX {
        let before = stat()?;
        let copied = copy(before.st_size.cast_unsigned())?;
        let after = stat()?;
        if let Some(copied) = copied.filter(|_| version(&before) == version(&after)) {
            return Ok((copied, after));
        }
    }
    Err(ContentsError::Changing)
}

/// Reads a file of this size into the spool. `None` if it ends before.
fn copy(file: &File, size: u64, spool: &mut Spool, buffers: &mut Buffers) -> Result<Option<Body>, ContentsError> {
    let mut body = spool.body();
    for part in data_parts(file, size) {
        let mut offset = part.start;
        while offset < part.end {
            let count = buffers.contents.len().min(usize::try_from(part.end - offset).unwrap_or(usize::MAX));
            match file.read_at(&mut buffers.contents[..count], offset) {
                Ok(0) => return Ok(None),
                Ok(count) => {
                    body.data(offset, &buffers.contents[..count]).map_err(ContentsError::Spool)?;
                    offset += count as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(ContentsError::Read(error)),
            }
        }
    }
    body.finish(size).map(Some).map_err(ContentsError::Spool)
}

/// What changes when a file does.
fn version(stat: &Stat) -> (i64, Time, i64, u64) {
    (stat.st_size, modified(stat), stat.st_ctime, stat.st_ctime_nsec)
}

fn modified(stat: &Stat) -> Time {
    // The kernel keeps nanoseconds below a second.
    Time { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 }
}

fn is_kept(name: &[u8]) -> bool {
    let starts =
        |kinds: &[&[u8]]| kinds.iter().any(|kind| name.strip_prefix(*kind).is_some_and(|rest| !rest.is_empty()));
    XATTRS_OF_ACCESS.contains(&name) || starts(&XATTR_KINDS) && !starts(&XATTR_KINDS_OF_OVERLAY)
}

/// The names in a directory, in the order of their bytes.
pub(super) fn names(directory: &OwnedFd) -> io::Result<Vec<std::ffi::CString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The node at a path of the user, which may lead over symlinks.
pub(super) fn start(path: &std::path::Path) -> io::Result<Found> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Found::new(rustix::fs::openat(rustix::fs::CWD, path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_once_is_read_again_and_one_that_always_changes_is_refused() {
        let file = tempfile::tempfile().expect("a file");
        let grow = || file.set_len(file.metadata().expect("metadata").len() + 1).expect("a longer file");
        let mut reads = 0;
        let once = settled(&file, |size| {
            reads += 1;
            if reads == 1 {
                grow();
            }
            Ok(Some(size))
        });
        let (size, stat) = once.expect("it changes only once");
        assert_eq!((reads, size, stat.st_size), (2, 1, 1));
        let always = settled(&file, |size| {
            grow();
            Ok(Some(size))
        });
        assert!(matches!(always, Err(ContentsError::Changing)), "{always:?}");
        let shorter = settled(&file, |_| Ok(None::<()>));
        assert!(matches!(shorter, Err(ContentsError::Changing)), "{shorter:?}");
    }

    #[test]
    fn attributes_for_an_overlay_or_of_unknown_kinds_are_not_kept() {
        for name in ["user.a", "trusted.a", "security.capability", "system.posix_acl_access"] {
            assert!(is_kept(name.as_bytes()), "{name}");
        }
        for name in ["trusted.overlay.opaque", "user.overlay.redirect", "btrfs.compression", "system.nfs4_acl", "user."]
        {
            assert!(!is_kept(name.as_bytes()), "{name}");
        }
    }
}
