//! Reads one layer: contents to the spool, nodes to the tree, names and marks to the journal.

use std::io::{self, BufReader, Read};

use kiln_archive::{ArchiveError, EntryType, Member, Members};

use super::error::Refusal;
use super::journal::{Content, Entry, Journal, Mark};
use super::limits::{Budget, FILE_BYTES_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, XATTR_BYTES_MAX};
use super::names::{Meaning, make_plain, meaning};
use super::notes::Notes;
use crate::spool::Spool;
use crate::tree::{Attributes, Children, Kind, Node, Time, Tree};

/// Bytes that are read at once for headers.
const INPUT_BUFFER_BYTES: usize = 64 * 1024;
/// Bytes of a file that are read at once.
const DATA_BUFFER_BYTES: usize = 256 * 1024;
/// The highest numbers of a device: 12 and 20 bits.
const MAJOR_MAX: u32 = (1 << 12) - 1;
const MINOR_MAX: u32 = (1 << 20) - 1;
/// Kinds of extended attributes that Linux stores.
const XATTR_KINDS: [&[u8]; 3] = [b"security.", b"user.", b"trusted."];
const XATTRS_OF_ACCESS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
/// Kinds that are orders to an overlay filesystem.
const XATTR_KINDS_OF_OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Why a layer can't be read: the number of the entry, its path if it is known, and the reason.
pub(super) type Fault = (u32, Option<Vec<u8>>, Refusal);

/// What the layers go into.
pub(super) struct Sinks<'a> {
    pub(super) tree: &'a mut Tree,
    pub(super) spool: &'a mut Spool,
    pub(super) budget: &'a mut Budget,
    pub(super) notes: &'a mut Notes,
}

/// A layer that was read to its end.
pub(super) struct Layer {
    pub(super) journal: Journal,
    pub(super) entries: u32,
    pub(super) bytes: u64,
    /// Whether it has character devices 0:0, which are removed at the end.
    pub(super) has_whiteout_devices: bool,
}

/// Reads a whole layer.
pub(super) fn read(layer: impl Read, sinks: &mut Sinks<'_>) -> Result<Layer, Fault> {
    let metered = Metered { input: layer, left: sinks.budget.bytes_left, is_over: false };
    let members = Members::of_layer(BufReader::with_capacity(INPUT_BUFFER_BYTES, metered));
    let mut reading = Reading {
        members,
        sinks,
        journal: Journal::default(),
        has_whiteout_devices: false,
        buffer: vec![0; DATA_BUFFER_BYTES],
        plain: Vec::new(),
    };
    let mut number = 0;
    loop {
        number += 1;
        let member = reading.members.next();
        let Some(member) = member.map_err(|error| (number, None, reading.reason(error)))? else { break };
        reading.member(number, member)?;
    }
    let bytes = reading.members.bytes();
    let Reading { journal, has_whiteout_devices, .. } = reading;
    sinks.budget.bytes_left -= bytes;
    Ok(Layer { journal, entries: number - 1, bytes, has_whiteout_devices })
}

struct Reading<'a, 'b, R: Read> {
    members: Members<BufReader<Metered<R>>>,
    sinks: &'a mut Sinks<'b>,
    journal: Journal,
    has_whiteout_devices: bool,
    buffer: Vec<u8>,
    plain: Vec<u8>,
}

impl<R: Read> Reading<'_, '_, R> {
    /// Takes one member with its data.
    fn member(&mut self, number: u32, mut member: Member) -> Result<(), Fault> {
        let path = std::mem::take(&mut member.path);
        let mut plain = std::mem::take(&mut self.plain);
        let outcome = self.at(number, &path, &mut plain, member);
        self.plain = plain;
        outcome.map_err(|reason| (number, Some(path), reason))
    }

    fn at(&mut self, number: u32, path: &[u8], plain: &mut Vec<u8>, member: Member) -> Result<(), Refusal> {
        self.sinks.budget.take_entry()?;
        make_plain(path, plain).map_err(Refusal::Path)?;
        let (parent, name, is_whiteout) = match meaning(plain)? {
            Meaning::Root if member.kind != EntryType::Directory => return Err(Refusal::Root),
            Meaning::Root => (&b""[..], Some(&b""[..]), false),
            Meaning::Entry { parent, name } => (parent, Some(name), false),
            Meaning::Whiteout { parent, name } => (parent, Some(name), true),
            Meaning::Opaque { parent } => (parent, None, true),
            Meaning::Ignored => {
                self.sinks.notes.union_files.add(plain);
                return Ok(());
            }
        };
        self.sinks.budget.take_text(self.journal.cost(parent, name.unwrap_or_default()))?;
        let parent = self.journal.parent(parent);
        let name = name.map(|name| self.journal.add(name));
        match name {
            Some(name) if !is_whiteout => {
                let content = self.content(plain, member)?;
                self.journal.entries.push(Entry { number, parent, name, content });
            }
            name => self.journal.marks.push(Mark { number, parent, name }),
        }
        Ok(())
    }

    /// The node of an entry, in the tree and without a name.
    fn content(&mut self, path: &[u8], mut member: Member) -> Result<Content, Refusal> {
        let device = |(major, minor)| match (major, minor) {
            (0..=MAJOR_MAX, 0..=MINOR_MAX) => Ok((major, minor)),
            _ => Err(Refusal::Device { major, minor }),
        };
        let kind = match member.kind {
            EntryType::Directory => Kind::Directory(Children::new()),
            EntryType::Regular => self.file(&member)?,
            EntryType::Symlink => Kind::Symlink(self.symlink(&member.link)?),
            EntryType::Link => return self.hard_link(&member.link),
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char => {
                let (major, minor) = device(member.device)?;
                self.has_whiteout_devices |= (major, minor) == (0, 0);
                Kind::CharacterDevice { major, minor }
            }
            EntryType::Block => {
                let (major, minor) = device(member.device)?;
                Kind::BlockDevice { major, minor }
            }
            kind => unreachable!("a reader of layers does not return {kind:?}"),
        };
        let attributes = self.attributes(path, &mut member)?;
        Ok(Content::Node(self.sinks.tree.add(Node { attributes, kind })))
    }

    fn file(&mut self, member: &Member) -> Result<Kind, Refusal> {
        if member.size > FILE_BYTES_MAX {
            return Err(Refusal::FileTooLarge { size: member.size });
        }
        let mut body = self.sinks.spool.body();
        loop {
            match self.members.read(&mut self.buffer) {
                Ok(Some(data)) => body.data(data.offset, &self.buffer[..data.bytes])?,
                Ok(None) => return Ok(Kind::File(body.finish(member.size)?)),
                Err(error) => return Err(self.reason(error)),
            }
        }
    }

    fn symlink(&mut self, target: &[u8]) -> Result<Box<[u8]>, Refusal> {
        let bytes = target.len();
        if !(1..=PATH_BYTES_MAX).contains(&bytes) {
            return Err(Refusal::SymlinkTarget { bytes });
        }
        if target.contains(&0) {
            return Err(Refusal::SymlinkNul);
        }
        self.sinks.budget.take_text(bytes)?;
        Ok(target.into())
    }

    fn hard_link(&mut self, target: &[u8]) -> Result<Content, Refusal> {
        let mut plain = Vec::new();
        make_plain(target, &mut plain).map_err(Refusal::LinkPath)?;
        self.sinks.budget.take_text(plain.len())?;
        Ok(Content::Link(self.journal.add(&plain)))
    }

    fn attributes(&mut self, path: &[u8], member: &mut Member) -> Result<Attributes, Refusal> {
        let Member { uid, gid, modified: (seconds, nanoseconds), .. } = *member;
        // The kernel takes the highest id as "no id".
        let id = |id: i64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
        let (Some(user), Some(group)) = (id(uid), id(gid)) else { return Err(Refusal::Owner { uid, gid }) };
        let nanoseconds = u32::try_from(nanoseconds).ok().filter(|nanoseconds| *nanoseconds < 1_000_000_000);
        let nanoseconds = nanoseconds.ok_or(Refusal::Time { nanoseconds: member.modified.1 })?;
        let permissions = u16::try_from(member.permissions & 0o7777).expect("12 bits");
        let mut attributes = Attributes {
            permissions,
            uid: user,
            gid: group,
            modified: Time { seconds, nanoseconds },
            ..Attributes::default()
        };
        self.xattrs(path, member, &mut attributes)?;
        Ok(attributes)
    }

    fn xattrs(&mut self, path: &[u8], member: &mut Member, attributes: &mut Attributes) -> Result<(), Refusal> {
        let starts = |name: &[u8], kinds: &[&[u8]]| {
            kinds.iter().any(|kind| name.strip_prefix(*kind).is_some_and(|rest| !rest.is_empty()))
        };
        for (name, value) in member.xattrs.drain(..) {
            if starts(&name, &XATTR_KINDS_OF_OVERLAY) {
                self.sinks.notes.overlay_xattrs.add(path);
            } else if starts(&name, &XATTR_KINDS) || XATTRS_OF_ACCESS.contains(&name.as_slice()) {
                if name.len() > NAME_BYTES_MAX {
                    return Err(Refusal::XattrName { bytes: name.len() });
                }
                attributes.xattrs.insert(name.into(), value.into());
            } else {
                self.sinks.notes.unknown_xattrs.add(path);
            }
        }
        let bytes = attributes.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        if bytes > XATTR_BYTES_MAX {
            return Err(Refusal::XattrsTooLarge);
        }
        match attributes.xattrs.len() {
            0 => Ok(()),
            count => self.sinks.budget.take_xattrs(bytes, count),
        }
    }

    /// An error of the archive, or the limit that caused it.
    fn reason(&mut self, error: ArchiveError) -> Refusal {
        if self.members.input().get_ref().is_over {
            return self.sinks.budget.too_many_bytes();
        }
        error.into()
    }
}

/// A layer's bytes, up to the limit.
#[derive(Debug)]
struct Metered<R> {
    input: R,
    left: u64,
    is_over: bool,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // At the limit, one more byte shows whether the layer ends here.
        let most = if self.left == 0 { 1 } else { usize::try_from(self.left).unwrap_or(usize::MAX) };
        let most = most.min(buffer.len());
        let count = self.input.read(&mut buffer[..most])?;
        self.is_over = count as u64 > self.left;
        if self.is_over {
            return Err(io::Error::other("the layers are over their limit"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}
