//! Unpacking a tar archive into a directory. No entry can be written outside of it.
//!
//! # How an entry stays inside
//! The archive is hostile, and so are other processes in the directory: an archive may contain a symlink and then a
//! file below that symlink, and a process may replace a directory while an entry is unpacked. Three rules together keep
//! each entry inside:
//!
//! - A name that is absolute or contains `..` is refused as text, for entries and for targets of hard links. The kernel
//!   would allow `a/../b`, which stays inside, but what `a/..` means depends on whether `a` is a symlink at that
//!   moment.
//! - The directory above an entry is resolved by the kernel, from the open target directory and with `RESOLVE_BENEATH`
//!   (see [`place`](super::place)). So a symlink that leads outside is refused at whatever depth it is, even if an
//!   earlier entry of the same archive has made it. Symlinks that stay inside are followed, as users expect.
//! - The last name is never followed. A file is created with `O_EXCL` and `O_NOFOLLOW`; if the name is taken, the old
//!   entry is removed and the creation tried again. So a file never writes through a symlink, and never into a file
//!   that has another hard link elsewhere. `linkat` without `AT_SYMLINK_FOLLOW` links a symlink itself and not its
//!   target. Owner and times are set on the open file, or with `AT_SYMLINK_NOFOLLOW`.
//!
//! Permissions of directories are set last, when the archive has ended. By then another process may have replaced a
//! directory by a symlink, so each is opened again under the same rules, and the change is made on the descriptor.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt as _;

use kiln_archive::{ArchiveError, EntryType, Member, Members};
use kiln_wire::{ErrorCode, Fault, FileKind, Text};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;

use super::fault::{fault_from_errno, fault_from_stream, invalid};
use super::place::{Place, Root, stat_at};
use super::remove::unlink;
use super::stat::{identity, kind_of};
use super::tree::{make, open_or_make};

const OPERATION: &str = "unpack";
/// Bytes of a file in memory.
const UNPACK_BUFFER_BYTES: usize = 64 * 1024;
/// Bytes of directories whose permissions and times are set at the archive's end. If there are more, they are set
/// earlier.
const PENDING_BYTES_MAX: usize = 4 << 20;
/// Tries to create an entry whose name another process takes again and again.
const PLACE_TRIES: usize = 16;

/// The owners of unpacked files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// The archive's numeric owners if this process is root, or else its own user.
    Archive,
    /// The user of this process.
    Process,
}

/// A member of the archive, with names in the protocol's type.
#[derive(Debug, Clone)]
struct Entry {
    path: Text,
    link: Text,
    kind: EntryType,
    permissions: u32,
    uid: i64,
    gid: i64,
    modified: (i64, i64),
}

impl Entry {
    fn new(member: Member) -> Self {
        let Member { path, link, kind, permissions, uid, gid, modified, .. } = member;
        Self { path: path.into(), link: link.into(), kind, permissions, uid, gid, modified }
    }
}

/// The content of an archive that was unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unpacked {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of the archive.
    pub bytes: u64,
}

/// A directory for the content of an archive.
#[derive(Debug)]
pub struct Unpacker {
    inside: Root,
    made: bool,
    owners: Owners,
    pending: Vec<Entry>,
    pending_bytes: usize,
}

impl Unpacker {
    /// Opens the directory, or creates it with the directories above it.
    ///
    /// # Errors
    /// `not_a_directory`, or the error of creating directories.
    pub fn open(root: &Root, path: &Text, owners: Owners) -> Result<Self, Fault> {
        let (directory, made) = open_or_make(root, path)?;
        let owners = if rustix::process::geteuid().is_root() { owners } else { Owners::Process };
        let inside = Root::beneath(directory);
        Ok(Self { inside, made, owners, pending: Vec::new(), pending_bytes: 0 })
    }

    /// Unpacks the whole stream. Permissions, times and symlinks are kept. Files, symlinks and hard links replace
    /// existing ones. The entries of a directory are added to an existing one.
    ///
    /// # Errors
    /// `outside_jail` if an entry leaves the directory by `..`, an absolute name, a symlink or a hard link;
    /// `not_a_file` if it is a device or FIFO; `invalid_request` if the stream is not a complete archive. Entries that
    /// were unpacked before the error stay.
    pub fn read_from(mut self, input: impl Read) -> Result<Unpacked, Fault> {
        let mut members = Members::new(input);
        let mut entries = 0;
        let mut buffer = vec![0; UNPACK_BUFFER_BYTES];
        while let Some(member) = members.next().map_err(fault_from_archive)? {
            self.put(&Entry::new(member), &mut members, &mut buffer)
                .map_err(|fault| Fault::new(fault.code, format!("archive entry: {}", fault.message)))?;
            entries += 1;
        }
        self.settle()?;
        Ok(Unpacked { entries, bytes: members.bytes() })
    }

    fn put<R: Read>(&mut self, member: &Entry, members: &mut Members<R>, buffer: &mut [u8]) -> Result<(), Fault> {
        let path = &member.path;
        expect_inside(path, path)?;
        match member.kind {
            EntryType::Directory => return self.directory(member),
            EntryType::Regular | EntryType::Symlink | EntryType::Link => {}
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let message = format!("`{path}` is a device or FIFO, which are not unpacked");
                return Err(Fault::new(ErrorCode::NotAFile, message));
            }
            kind => {
                let message = format!("`{path}` is of tar type {:?}, which is unknown", char::from(kind.as_byte()));
                return Err(Fault::new(ErrorCode::Unsupported, message));
            }
        }
        let place = self.place(path)?;
        if place.is_nameless() || place.directory_only {
            return Err(invalid(format!("`{path}` is not a name of a file")));
        }
        match member.kind {
            EntryType::Symlink => self.symlink(member, &place),
            EntryType::Link => self.hard_link(member, &place),
            _ => self.file(member, &place, members, buffer),
        }
    }

    /// The place of an entry. Missing directories above it are created.
    fn place(&self, path: &Text) -> Result<Place, Fault> {
        match self.inside.place(path, OPERATION) {
            Err(fault) if fault.code == ErrorCode::NotFound => {}
            result => return result,
        }
        let bytes = path.as_bytes();
        let name_end = bytes.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        if let Some(slash) = bytes[..name_end].iter().rposition(|byte| *byte == b'/') {
            open_or_make(&self.inside, &Text::from(&bytes[..slash]))?;
        }
        self.inside.place(path, OPERATION)
    }

    fn directory(&mut self, member: &Entry) -> Result<(), Fault> {
        let path = &member.path;
        let place = self.place(path)?;
        if place.is_nameless() {
            // This is the target directory. It keeps its permissions unless it was created for this archive.
            if self.made {
                self.defer(member)?;
            }
            return Ok(());
        }
        match make(&place, 0o700) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                // It must be a directory, or a symlink to a directory inside.
                self.inside.open(path, OFlags::PATH | OFlags::DIRECTORY, OPERATION)?;
            }
            Err(errno) => return Err(fault_from_errno(path, OPERATION, errno)),
        }
        self.defer(member)
    }

    fn file<R: Read>(
        &self,
        member: &Entry,
        place: &Place,
        members: &mut Members<R>,
        buffer: &mut [u8],
    ) -> Result<(), Fault> {
        let fail = |errno: Errno| fault_from_errno(&member.path, OPERATION, errno);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = take_name(place, || rustix::fs::openat(&place.parent, &place.name, flags, Mode::RUSR | Mode::WUSR))
            .map_err(fail)?;
        let file = File::from(file);
        let filled = fill(&file, member, members, buffer);
        if let Err(fault) = filled {
            // Removes the incomplete file. If this fails too, the first fault is reported.
            let _ = rustix::fs::unlinkat(&place.parent, &place.name, AtFlags::empty());
            return Err(fault);
        }
        if let Some((uid, gid)) = self.owner(member)? {
            rustix::fs::fchown(&file, Some(uid), Some(gid)).map_err(fail)?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(member.permissions)).map_err(fail)?;
        rustix::fs::futimens(&file, &times(member)).map_err(fail)
    }

    fn symlink(&self, member: &Entry, place: &Place) -> Result<(), Fault> {
        if member.link.is_empty() || member.link.as_bytes().contains(&0) {
            return Err(invalid(format!("`{}` is a symlink to nothing", member.path)));
        }
        let Place { parent, name, .. } = place;
        let fail = |errno: Errno| fault_from_errno(&member.path, OPERATION, errno);
        take_name(place, || rustix::fs::symlinkat(member.link.as_bytes(), parent, name)).map_err(fail)?;
        self.own(member, place)?;
        rustix::fs::utimensat(parent, name, &times(member), AtFlags::SYMLINK_NOFOLLOW).map_err(fail)
    }

    fn hard_link(&self, member: &Entry, place: &Place) -> Result<(), Fault> {
        let Entry { path, link, .. } = member;
        expect_inside(link, path)?;
        let operation = format!("link `{path}` to");
        let fail = |errno: Errno| fault_from_errno(link, &operation, errno);
        let source = self.inside.place(link, &operation)?;
        let is_same = || -> Result<bool, Errno> {
            let (from, to) = (source.stat()?, place.stat()?);
            Ok(from.zip(to).is_some_and(|(from, to)| identity(&from) == identity(&to)))
        };
        if is_same().map_err(fail)? {
            return Ok(());
        }
        take_name(place, || {
            rustix::fs::linkat(&source.parent, &source.name, &place.parent, &place.name, AtFlags::empty())
        })
        .map_err(fail)
    }

    /// Sets a directory's permissions and time later: its permissions may forbid to create its entries, and each new
    /// entry changes its time.
    fn defer(&mut self, member: &Entry) -> Result<(), Fault> {
        self.pending_bytes += member.path.as_bytes().len() + size_of::<Entry>();
        self.pending.push(member.clone());
        if self.pending_bytes > PENDING_BYTES_MAX {
            self.settle()?;
        }
        Ok(())
    }

    /// Sets the permissions and times that were deferred, the deepest directory first.
    fn settle(&mut self) -> Result<(), Fault> {
        self.pending_bytes = 0;
        let pending = std::mem::take(&mut self.pending);
        let mut seen = HashSet::new();
        for member in pending.iter().rev() {
            let path = &member.path;
            // If a directory is several times in the archive, the last one counts.
            if !seen.insert(path) {
                continue;
            }
            let fail = |errno: Errno| fault_from_errno(path, OPERATION, errno);
            // The directory may have been replaced by a later entry, which has its own permissions.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let directory = match self.inside.open(path, flags, OPERATION) {
                Err(fault) if matches!(fault.code, ErrorCode::NotFound | ErrorCode::NotADirectory) => continue,
                result => result?,
            };
            if let Some((uid, gid)) = self.owner(member)? {
                rustix::fs::fchown(&directory, Some(uid), Some(gid)).map_err(fail)?;
            }
            rustix::fs::futimens(&directory, &times(member)).map_err(fail)?;
            rustix::fs::fchmod(&directory, Mode::from_raw_mode(member.permissions)).map_err(fail)?;
        }
        Ok(())
    }

    fn own(&self, member: &Entry, place: &Place) -> Result<(), Fault> {
        let Some((uid, gid)) = self.owner(member)? else { return Ok(()) };
        rustix::fs::chownat(&place.parent, &place.name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| fault_from_errno(&member.path, OPERATION, errno))
    }

    fn owner(&self, member: &Entry) -> Result<Option<(Uid, Gid)>, Fault> {
        if self.owners == Owners::Process {
            return Ok(None);
        }
        // The kernel takes the highest id as "unchanged".
        let id = |value: i64| u32::try_from(value).ok().filter(|id| *id != u32::MAX);
        let (Some(uid), Some(gid)) = (id(member.uid), id(member.gid)) else {
            return Err(invalid(format!("`{}` has the owner {}:{}", member.path, member.uid, member.gid)));
        };
        Ok(Some((Uid::from_raw(uid), Gid::from_raw(gid))))
    }
}

/// Writes a file's data to its offsets. Holes stay holes, and the file gets the length that it had when it was packed.
fn fill<R: Read>(file: &File, member: &Entry, members: &mut Members<R>, buffer: &mut [u8]) -> Result<(), Fault> {
    let failed = |error: ArchiveError| {
        let fault = fault_from_archive(error);
        Fault::new(fault.code, format!("`{}`: {}", member.path, fault.message))
    };
    let fail = |error| fault_from_errno(&member.path, OPERATION, error);
    let mut end = 0;
    while let Some(data) = members.read(buffer).map_err(failed)? {
        file.write_all_at(&buffer[..data.bytes], data.offset).map_err(fail)?;
        end = data.offset + data.bytes as u64;
    }
    let length = members.length().map_err(failed)?;
    if length == end { Ok(()) } else { file.set_len(length).map_err(fail) }
}

fn fault_from_archive(error: ArchiveError) -> Fault {
    match error {
        ArchiveError::Input(error) => fault_from_stream("archive", error),
        ArchiveError::Malformed(message) => invalid(message),
        ArchiveError::TooLarge(message) => Fault::new(ErrorCode::LimitExceeded, message),
    }
}

/// Refuses names that leave the directory by themselves. The kernel refuses symlinks that do.
fn expect_inside(name: &Text, entry: &Text) -> Result<(), Fault> {
    let bytes = name.as_bytes();
    if bytes.starts_with(b"/") || bytes.split(|byte| *byte == b'/').any(|part| part == b"..") {
        let message = if name == entry {
            format!("`{entry}` leaves the directory it is unpacked into")
        } else {
            format!("`{entry}` is a link to `{name}`, which leaves the directory it is unpacked into")
        };
        return Err(Fault::new(ErrorCode::OutsideJail, message));
    }
    Ok(())
}

/// Creates an entry under a name and replaces an existing file or link. An existing directory is not replaced.
fn take_name<T>(place: &Place, mut make: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..PLACE_TRIES {
        match make() {
            Err(Errno::EXIST) => {}
            result => return result,
        }
        match stat_at(&place.parent, &place.name)? {
            Some(stat) if kind_of(&stat) == FileKind::Directory => {
                return Err(Errno::ISDIR);
            }
            Some(_) => match unlink(place.parent.as_fd(), &place.name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            },
            None => {}
        }
    }
    Err(Errno::BUSY)
}

fn times(member: &Entry) -> Timestamps {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let (tv_sec, tv_nsec) = member.modified;
    Timestamps { last_access: omit, last_modification: Timespec { tv_sec, tv_nsec } }
}
