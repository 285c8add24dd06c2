//! Packing a file or a tree into an archive.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use kiln_archive::{Attributes, END_BYTES, KERNEL_FILE_SYSTEMS, WriteError, Writer};
use kiln_wire::{ErrorCode, Fault, FileKind, Text};
use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;

use super::fault::{fault_from_errno, fault_from_stream};
use super::left_out::LeftOut;
use super::list::link_target;
use super::place::{Place, Root, reopen};
use super::stat::{PERMISSIONS_MAX, kind_of, noun};
use super::walk::{Purpose, Walk};

const OPERATION: &str = "pack";

/// A path that is ready to be packed.
#[derive(Debug)]
pub struct Packer {
    path: Text,
    place: Place,
    /// The first part of all names in the archive.
    base: Vec<u8>,
}

/// The content of an archive that was packed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Packed {
    /// Files, directories and symlinks.
    pub entries: u64,
    /// Bytes of the archive.
    pub bytes: u64,
    /// Devices, FIFOs, sockets, mounts of the kernel's own file systems, and files that could not be read.
    pub left_out: LeftOut,
}

impl Packer {
    /// Checks the path, which may be a file, a directory or a symlink. A symlink is packed as a symlink.
    ///
    /// # Errors
    /// `not_found`, or `not_a_file` if the path is a device, FIFO or socket.
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
            kind => return Err(special(path, kind)),
        }
        Ok(Self { path: path.clone(), place, base })
    }

    /// Writes the archive. Hard links become separate files. Other file systems below the path are packed too. A file
    /// that can't be packed is left out and named in the result.
    ///
    /// # Errors
    /// If the path itself can't be read, or writing to `output` fails. If the error of `output` contains a [`Fault`],
    /// that is returned.
    pub fn write_to(self, output: impl Write) -> Result<Packed, Fault> {
        let mut archive = Archive { writer: Writer::new(output), left_out: LeftOut::default() };
        let Self { path, place, base } = self;
        match archive.put(place.parent.as_fd(), &place.name, &base, || path.clone())? {
            Found::Directory => archive.put_tree(place.parent.as_fd(), &place.name, &base, &path)?,
            Found::Gone => return Err(fault_from_errno(&path, OPERATION, Errno::NOENT)),
            Found::Packed => {}
            Found::LeftOut(fault) => return Err(fault),
        }
        let (entries, bytes) = (archive.writer.entries(), archive.writer.bytes() + END_BYTES);
        archive.writer.finish().map_err(broken)?;
        Ok(Packed { entries, bytes, left_out: archive.left_out })
    }
}

enum Found {
    Packed,
    Directory,
    /// With the reason.
    LeftOut(Fault),
    Gone,
}

struct Archive<W> {
    writer: Writer<W>,
    left_out: LeftOut,
}

impl<W: Write> Archive<W> {
    /// Packs the entries below a directory that is already packed.
    fn put_tree(&mut self, parent: BorrowedFd<'_>, name: &CStr, base: &[u8], path: &Text) -> Result<(), Fault> {
        let mut walk = Walk::start(parent, name, path, Purpose::Reading)
            .map_err(|errno| fault_from_errno(path, OPERATION, errno))?;
        loop {
            let name = match walk.next() {
                Ok(Some((name, _))) => name,
                end => {
                    // If reading a directory fails in the middle, the entries that were read are packed.
                    end.map_or_else(|fault| self.left_out.add(fault), |_| ());
                    match walk.leave()? {
                        Some(_) => continue,
                        None => return Ok(()),
                    }
                }
            };
            let member = join(&[base, walk.path(), name.to_bytes()]);
            match self.put(walk.directory(), &name, &member, || walk.shown(Some(&name)))? {
                Found::Directory => self.enter(&mut walk, &name)?,
                Found::LeftOut(fault) => self.left_out.add(fault),
                Found::Packed | Found::Gone => {}
            }
        }
    }

    fn enter(&mut self, walk: &mut Walk, name: &CStr) -> Result<(), Fault> {
        match walk.enter(name) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => {
                self.left_out.add(walk.fault(Some(name), OPERATION, errno));
                return Ok(());
            }
        }
        if walk.is_mount() {
            let system = rustix::fs::fstatfs(walk.directory()).map_err(|errno| walk.fault(None, OPERATION, errno))?;
            if KERNEL_FILE_SYSTEMS.contains(&system.f_type) {
                let shown = walk.shown(None);
                let message = format!("`{shown}` is a file system of the kernel: only its directory is packed");
                self.left_out.add(Fault::new(ErrorCode::NotAFile, message));
                walk.leave()?;
            }
        }
        Ok(())
    }

    /// Packs one entry of a directory under a name.
    fn put(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        member: &[u8],
        shown: impl Fn() -> Text,
    ) -> Result<Found, Fault> {
        let unreadable = |error: io::Error| Ok(Found::LeftOut(fault_from_errno(shown(), OPERATION, error)));
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(directory, name, flags, Mode::empty())
            .and_then(|handle| rustix::fs::fstat(&handle).map(|stat| (handle, stat)));
        let (handle, stat) = match opened {
            Ok(opened) => opened,
            Err(Errno::NOENT) => return Ok(Found::Gone),
            Err(errno) => return unreadable(errno.into()),
        };
        let attributes = attributes(&stat);
        match kind_of(&stat) {
            FileKind::Directory => {
                self.writer.directory(member, &attributes).map_err(broken)?;
                Ok(Found::Directory)
            }
            FileKind::Symlink => match link_target(&handle) {
                Ok(target) => {
                    self.writer.symlink(member, target.as_bytes(), &attributes).map_err(broken)?;
                    Ok(Found::Packed)
                }
                Err(errno) => unreadable(errno.into()),
            },
            FileKind::File => {
                let mut file = match reopen(&handle, OFlags::RDONLY) {
                    Ok(file) => File::from(file),
                    Err(errno) => return unreadable(errno.into()),
                };
                match self.writer.file(member, &attributes, &mut file) {
                    Ok(()) => Ok(Found::Packed),
                    Err(WriteError::File(error)) => unreadable(error),
                    Err(WriteError::Output(error)) => Err(broken(error)),
                }
            }
            kind => Ok(Found::LeftOut(special(&shown(), kind))),
        }
    }
}

pub(super) fn special(path: &Text, kind: FileKind) -> Fault {
    Fault::new(ErrorCode::NotAFile, format!("`{path}` is {}, which is not copied", noun(kind)))
}

pub(super) fn broken(error: io::Error) -> Fault {
    fault_from_stream("archive", error)
}

pub(super) fn attributes(stat: &Stat) -> Attributes {
    Attributes {
        permissions: stat.st_mode & PERMISSIONS_MAX,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: stat.st_mtime,
    }
}

pub(super) fn join(parts: &[&[u8]]) -> Vec<u8> {
    let parts: Vec<&[u8]> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    parts.join(&b'/')
}
