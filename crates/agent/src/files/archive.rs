//! Packing a file or a tree into a tar archive (GNU format: names of any bytes and any length).

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kiln_wire::{ErrorCode, Fault, FileKind, Text};
use rustix::fs::{Mode, OFlags, PROC_SUPER_MAGIC, Stat};
use rustix::io::Errno;
use tar::{EntryType, Header};

use super::fault::{fault_from_errno, fault_from_stream};
use super::list::link_target;
use super::place::{Place, Root, reopen};
use super::stat::{PERMISSIONS_MAX, kind_of, noun, size_of};
use super::walk::{Purpose, Walk};

const OPERATION: &str = "pack";
/// Names of what was left out that a result carries; the count goes on.
pub const SKIPPED_NAMES_MAX: usize = 16;
/// Bytes of a file in memory.
const PACK_BUFFER_BYTES: usize = 64 * 1024;
/// A tar archive is made of these.
pub(super) const BLOCK_BYTES: usize = 512;
/// Name of the entries that carry a name too long for a header.
const LONG_NAME: &[u8] = b"././@LongLink";
/// File systems that are views of the kernel: sizes lie and reading may wait or change things.
const KERNEL_FILE_SYSTEMS: [i64; 6] =
    [PROC_SUPER_MAGIC, 0x6265_6572, 0x6367_7270, 0x0027_e0eb, 0x6462_6720, 0x7472_6163];

/// A path that is about to be packed.
#[derive(Debug)]
pub struct Packer {
    path: Text,
    place: Place,
    /// What names in the archive start with.
    base: Vec<u8>,
}

/// What an archive got.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Packed {
    /// Files, directories and symlinks.
    pub entries: u64,
    /// Bytes of the archive.
    pub bytes: u64,
    /// Files that changed their size meanwhile: cut, or filled with zeros, to the size they had first.
    pub resized: u64,
    /// Devices, FIFOs, sockets and mounts of the kernel's own file systems, which are left out.
    pub skipped: u64,
    /// The first [`SKIPPED_NAMES_MAX`] of them.
    pub skipped_names: Vec<Text>,
}

impl Packer {
    /// Looks at the path, which may be a file, a directory or a symlink that is packed as such.
    ///
    /// # Errors
    /// `not_found`; `not_a_file` for a device, FIFO or socket.
    pub fn open(root: &Root, path: &Text) -> Result<Self, Fault> {
        let fail = |errno: Errno| fault_from_errno(path, OPERATION, errno);
        let mut place = root.place(path, OPERATION)?;
        let base = place.name.as_bytes().to_vec();
        if place.directory_only {
            place = root.final_place(path, OPERATION)?;
        }
        let stat = place.stat().and_then(|stat| stat.ok_or(Errno::NOENT)).map_err(fail)?;
        match kind_of(&stat) {
            FileKind::Directory => {}
            _ if place.directory_only => return Err(fail(Errno::NOTDIR)),
            FileKind::File | FileKind::Symlink => {}
            kind => return Err(Fault::new(ErrorCode::NotAFile, format!("`{path}` is {}", noun(kind)))),
        }
        Ok(Self { path: path.clone(), place, base })
    }

    /// Writes the archive. Hard links become files of their own; other file systems below are packed, too.
    ///
    /// # Errors
    /// What reading says, naming the entry; a [`Fault`] in the stream's error as it is.
    pub fn write_to(self, output: impl Write) -> Result<Packed, Fault> {
        let mut archive = Archive { output, packed: Packed::default(), buffer: vec![0; PACK_BUFFER_BYTES] };
        let Self { path, place, base } = self;
        let found = archive
            .put(place.parent.as_fd(), &place.name, &base)
            .map_err(|refused| refused.into_fault(|errno| fault_from_errno(&path, OPERATION, errno)))?;
        match found {
            Found::Directory => archive.put_tree(place.parent.as_fd(), &place.name, &base, &path)?,
            Found::Gone => return Err(fault_from_errno(&path, OPERATION, Errno::NOENT)),
            Found::Packed => {}
            Found::Skipped => return Err(Fault::new(ErrorCode::NotAFile, format!("`{path}` is no plain file"))),
        }
        archive.write(&[0; 2 * BLOCK_BYTES])?;
        archive.output.flush().map_err(|error| fault_from_stream("archive", error))?;
        Ok(archive.packed)
    }
}

enum Found {
    Packed,
    Directory,
    Skipped,
    Gone,
}

/// Why an entry was not packed.
enum Refused {
    Errno(Errno),
    Fault(Fault),
}

impl Refused {
    fn into_fault(self, name: impl FnOnce(Errno) -> Fault) -> Fault {
        match self {
            Self::Errno(errno) => name(errno),
            Self::Fault(fault) => fault,
        }
    }
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}
impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

struct Archive<W> {
    output: W,
    packed: Packed,
    buffer: Vec<u8>,
}

impl<W: Write> Archive<W> {
    /// Packs what is below a directory that is packed already.
    fn put_tree(&mut self, parent: BorrowedFd<'_>, name: &CStr, base: &[u8], path: &Text) -> Result<(), Fault> {
        let mut walk = Walk::start(parent, name, path, Purpose::Reading)
            .map_err(|errno| fault_from_errno(path, OPERATION, errno))?;
        loop {
            let Some((name, _)) = walk.next()? else {
                match walk.leave()? {
                    Some(_) => continue,
                    None => return Ok(()),
                }
            };
            let member = join(&[base, walk.path(), name.to_bytes()]);
            let found = self
                .put(walk.directory(), &name, &member)
                .map_err(|refused| refused.into_fault(|errno| walk.fault(Some(&name), OPERATION, errno)))?;
            match found {
                Found::Directory => self.enter(&mut walk, &name)?,
                Found::Skipped => self.skip(&walk.shown(Some(&name))),
                Found::Packed | Found::Gone => {}
            }
        }
    }

    fn enter(&mut self, walk: &mut Walk, name: &CStr) -> Result<(), Fault> {
        match walk.enter(name) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(walk.fault(Some(name), OPERATION, errno)),
        }
        if walk.is_mount() {
            let system = rustix::fs::fstatfs(walk.directory()).map_err(|errno| walk.fault(None, OPERATION, errno))?;
            if KERNEL_FILE_SYSTEMS.contains(&system.f_type) {
                self.skip(&walk.shown(None));
                walk.leave()?;
            }
        }
        Ok(())
    }

    fn skip(&mut self, shown: &Text) {
        self.packed.skipped += 1;
        if self.packed.skipped_names.len() < SKIPPED_NAMES_MAX {
            self.packed.skipped_names.push(shown.clone());
        }
    }

    /// Packs one entry of a directory under a name.
    fn put(&mut self, directory: BorrowedFd<'_>, name: &CStr, member: &[u8]) -> Result<Found, Refused> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
            Ok(handle) => handle,
            Err(Errno::NOENT) => return Ok(Found::Gone),
            Err(errno) => return Err(errno.into()),
        };
        let stat = rustix::fs::fstat(&handle)?;
        match kind_of(&stat) {
            FileKind::Directory => {
                let member = [member, b"/"].concat();
                self.header(&stat, EntryType::Directory, &member, b"", 0)?;
                Ok(Found::Directory)
            }
            FileKind::Symlink => {
                let target = link_target(&handle)?;
                self.header(&stat, EntryType::Symlink, member, target.as_bytes(), 0)?;
                Ok(Found::Packed)
            }
            FileKind::File => {
                self.file(&handle, &stat, member)?;
                Ok(Found::Packed)
            }
            _ => Ok(Found::Skipped),
        }
    }

    /// Packs a plain file: exactly as many bytes as its header says, whatever happens to it meanwhile.
    fn file(&mut self, handle: &OwnedFd, stat: &Stat, member: &[u8]) -> Result<(), Refused> {
        let mut file = File::from(reopen(handle, OFlags::RDONLY)?);
        let size = size_of(stat);
        self.header(stat, EntryType::Regular, member, b"", size)?;
        let mut left = size;
        while left > 0 {
            let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = match file.read(&mut self.buffer[..want]) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO).into()),
            };
            if count == 0 {
                break;
            }
            self.write_buffer(count)?;
            left -= count as u64;
        }
        let grew = left == 0 && size_of(&rustix::fs::fstat(&file)?) > size;
        self.packed.resized += u64::from(left > 0 || grew);
        self.zeros(left.saturating_add(padding(size)))?;
        Ok(())
    }

    fn header(&mut self, stat: &Stat, kind: EntryType, member: &[u8], target: &[u8], size: u64) -> Result<(), Fault> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & PERMISSIONS_MAX);
        header.set_uid(u64::from(stat.st_uid));
        header.set_gid(u64::from(stat.st_gid));
        // Times before 1970 have no form that every program reads.
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(size);
        for (long, text) in [(EntryType::GNULongName, member), (EntryType::GNULongLink, target)] {
            let old = header.as_old_mut();
            let field = if long == EntryType::GNULongName { &mut old.name } else { &mut old.linkname };
            let short = &text[..text.len().min(field.len())];
            field[..short.len()].copy_from_slice(short);
            if text.len() > short.len() {
                self.long(long, text)?;
            }
        }
        header.set_cksum();
        self.write(header.as_bytes())?;
        self.packed.entries += 1;
        Ok(())
    }

    /// An entry before an entry, with a name that has no room in its header.
    fn long(&mut self, kind: EntryType, text: &[u8]) -> Result<(), Fault> {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..LONG_NAME.len()].copy_from_slice(LONG_NAME);
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let size = text.len() as u64 + 1;
        header.set_size(size);
        header.set_cksum();
        self.write(header.as_bytes())?;
        self.write(text)?;
        self.zeros(1 + padding(size))
    }

    fn zeros(&mut self, mut count: u64) -> Result<(), Fault> {
        self.buffer.fill(0);
        while count > 0 {
            let some = self.buffer.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            self.write_buffer(some)?;
            count -= some as u64;
        }
        Ok(())
    }

    fn write_buffer(&mut self, count: usize) -> Result<(), Fault> {
        self.output.write_all(&self.buffer[..count]).map_err(|error| fault_from_stream("archive", error))?;
        self.packed.bytes += count as u64;
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.output.write_all(bytes).map_err(|error| fault_from_stream("archive", error))?;
        self.packed.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// What fills a member's data up to a whole block.
pub(super) fn padding(size: u64) -> u64 {
    let block = BLOCK_BYTES as u64;
    (block - size % block) % block
}

fn join(parts: &[&[u8]]) -> Vec<u8> {
    let parts: Vec<&[u8]> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    parts.join(&b'/')
}
