//! Reads an image as a tree. The bodies are extents in the image itself; no contents are read.
//!
//! It reads what [`write`](super::write) writes, and what mkfs.erofs writes without compression.
//!
//! # What an image can cost
//! Everything in an image is a claim. Two things together bound the work and the memory:
//! - Bytes of metadata belong to one owner: in an image that a program made, no two inodes, lists of attributes or
//!   directories overlap. So all that is read together has at most as many bytes as the image. An image that needs more
//!   is refused. Without this, a million inodes could each claim the same large directory.
//! - Shared attributes have many owners on purpose, and a chunk of 4 bytes becomes an [`Extent`] of 24. These, and
//!   names, are counted against [`ReadLimits`].

use std::collections::HashMap;

use super::dirents::{self, Dirent};
use super::error::ReadError;
use super::format::{
    BLOCK_BYTES, BLOCK_LEN, HOLE, Inode, MODE_BLOCK, MODE_CHARACTER, MODE_DIRECTORY, MODE_FIFO, MODE_FILE, MODE_SOCKET,
    MODE_SYMLINK, Problem, SLOT_BYTES, SYMLINK_BYTES_MAX, Storage, Superblock, device_of, u16_at, u32_at,
};
use super::layout::chunk_count;
use super::xattrs;
use crate::body;
use crate::source::Source;
use crate::tree::{Attributes, Body, Children, Extent, Kind, Node, Tree};

/// Bytes of addresses of chunks that are read at once. A multiple of the size of an address.
const ADDRESSES_LEN: u64 = BLOCK_BYTES;
/// What an extended attribute counts in addition to its name and value, for the memory that it takes.
const XATTR_COST: u64 = 64;
/// Size of the first part of an inode, which holds its format.
const INODE_START_LEN: usize = 32;

/// What an image may cost its reader.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimits {
    /// Names in all directories.
    pub names_max: u64,
    /// Parts of all files: an image without holes has one or two for each file.
    pub extents_max: u64,
    /// Bytes of all extended attributes, shared ones counted for each owner, with 64 for each in addition.
    pub xattr_bytes_max: u64,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self { names_max: 4 << 20, extents_max: 16 << 20, xattr_bytes_max: 512 << 20 }
    }
}

/// Reads an image of this many bytes as a tree.
///
/// The extents of its files are offsets in the image. The digests of its files are those of places: files with the same
/// one have the same contents, but not the other way round. [`hash_bodies`](crate::hash_bodies) replaces them by
/// digests of contents.
///
/// # Errors
/// If it is not an image, not a whole one, uses compression or another feature that [`write`](super::write) does not,
/// needs more than the limits, or can't be read.
pub fn read(image: &(impl Source + ?Sized), bytes: u64, limits: &ReadLimits) -> Result<Tree, ReadError> {
    let mut reader = Reader::open(image, bytes, *limits)?;
    let root = u64::from(reader.superblock.root);
    let node = reader.node(root)?;
    if !matches!(node.kind, Kind::Directory(_)) {
        return Err(malformed(root, "the root is not a directory"));
    }
    let mut tree = Tree::new(node.attributes);
    let mut known = HashMap::from([(root, Tree::ROOT)]);
    // Directories that are not read yet, each with the one that has it.
    let mut waiting = vec![(root, root)];
    while let Some((directory, parent)) = waiting.pop() {
        let id = known[&directory];
        let mut children = Children::new();
        for Entry { name, inode: number, file_type } in reader.directory(directory, parent)? {
            let child = match known.get(&number) {
                Some(child) if tree.children(*child).is_some() => {
                    return Err(malformed(number, "a directory has two names"));
                }
                Some(child) => *child,
                None => {
                    let node = reader.node(number)?;
                    if matches!(node.kind, Kind::Directory(_)) {
                        waiting.push((number, directory));
                    }
                    let child = tree.add(node);
                    known.insert(number, child);
                    child
                }
            };
            if super::write::file_type_of(&tree.node(child).kind) != file_type {
                return Err(malformed(number, "a directory names another type than the inode has"));
            }
            children.insert(name, child);
        }
        tree.node_mut(id).kind = Kind::Directory(children);
    }
    Ok(tree)
}

fn malformed(inode: u64, problem: Problem) -> ReadError {
    ReadError::Malformed { inode, problem }
}

struct Reader<'a, S: ?Sized> {
    image: &'a S,
    superblock: Superblock,
    /// Bytes of the image, as its superblock has them.
    bytes: u64,
    limits: ReadLimits,
    /// Bytes of metadata that may still be read.
    metadata_left: u64,
    /// The block that was read last, and its number.
    block: Box<[u8; BLOCK_LEN]>,
    block_number: u64,
}

impl<'a, S: Source + ?Sized> Reader<'a, S> {
    fn open(image: &'a S, bytes: u64, limits: ReadLimits) -> Result<Self, ReadError> {
        let mut block = Box::new([0; BLOCK_LEN]);
        if bytes < BLOCK_BYTES {
            return Err(ReadError::NotAnImage("it is shorter than a block"));
        }
        image.read_exact_at(&mut block[..], 0).map_err(ReadError::Input)?;
        let superblock = Superblock::decode(&block).map_err(ReadError::NotAnImage)?;
        let claimed = u64::from(superblock.blocks) * BLOCK_BYTES;
        if claimed > bytes {
            return Err(ReadError::Truncated { bytes, claimed });
        }
        if superblock.built.nanoseconds > 999_999_999 {
            return Err(ReadError::NotAnImage("its time has more nanoseconds than a second has"));
        }
        Ok(Self { image, superblock, bytes: claimed, limits, metadata_left: claimed, block, block_number: 0 })
    }

    /// The inode of this number as a node. A directory is still empty.
    fn node(&mut self, number: u64) -> Result<Node, ReadError> {
        let placed = self.inode(number)?;
        let attributes = self.attributes(number, &placed)?;
        let inode = &placed.inode;
        let (major, minor) = device_of(inode.address);
        let kind = match inode.kind() {
            MODE_DIRECTORY => Kind::Directory(Children::new()),
            MODE_FILE => Kind::File(self.body(number, &placed)?),
            MODE_SYMLINK => Kind::Symlink(self.symlink(number, &placed)?),
            MODE_CHARACTER => Kind::CharacterDevice { major, minor },
            MODE_BLOCK => Kind::BlockDevice { major, minor },
            MODE_FIFO => Kind::Fifo,
            MODE_SOCKET => Kind::Socket,
            _ => return Err(malformed(number, "an inode has an unknown kind")),
        };
        Ok(Node { attributes, kind })
    }

    fn inode(&mut self, number: u64) -> Result<Placed, ReadError> {
        let start = number
            .checked_mul(SLOT_BYTES)
            .and_then(|offset| offset.checked_add(u64::from(self.superblock.metadata_block) * BLOCK_BYTES));
        let start = start.ok_or_else(|| malformed(number, "an inode is behind the end of the image"))?;
        let mut bytes = self.metadata(number, start, INODE_START_LEN as u64)?;
        let size = Inode::size_of(bytes.first_chunk().expect("so many were read"));
        bytes.extend(self.metadata(number, start + INODE_START_LEN as u64, size - INODE_START_LEN as u64)?);
        let inode = Inode::decode(&bytes, self.superblock.built).map_err(|problem| malformed(number, problem))?;
        let xattr_bytes = match inode.xattr_count {
            0 => 0,
            count => xattrs::HEADER_LEN as u64 + (u64::from(count) - 1) * 4,
        };
        Ok(Placed { inode, xattrs: start + size, data: start + size + xattr_bytes })
    }

    fn attributes(&mut self, number: u64, placed: &Placed) -> Result<Attributes, ReadError> {
        let inode = &placed.inode;
        let mut attributes = Attributes {
            permissions: inode.mode & 0o7777,
            uid: inode.uid,
            gid: inode.gid,
            modified: inode.modified,
            ..Attributes::default()
        };
        if placed.data == placed.xattrs {
            return Ok(attributes);
        }
        let bytes = self.metadata(number, placed.xattrs, placed.data - placed.xattrs)?;
        let (ids, mut rest) = xattrs::decode_behind(&bytes).map_err(|problem| malformed(number, problem))?;
        for id in ids {
            let entry = self.shared(number, id)?;
            self.add_xattr(number, &entry, &mut attributes)?;
        }
        while !rest.is_empty() {
            let used = self.add_xattr(number, rest, &mut attributes)?;
            rest = &rest[used..];
        }
        Ok(attributes)
    }

    /// Adds the first attribute of some bytes, and returns how many bytes it has there.
    fn add_xattr(&mut self, number: u64, bytes: &[u8], attributes: &mut Attributes) -> Result<usize, ReadError> {
        let (name, value, used) = xattrs::decode(bytes).map_err(|problem| malformed(number, problem))?;
        spend(&mut self.limits.xattr_bytes_max, (name.len() + value.len()) as u64 + XATTR_COST, "extended attributes")?;
        if attributes.xattrs.insert(name.into(), value.into()).is_some() {
            return Err(malformed(number, "an inode has an extended attribute twice"));
        }
        Ok(used)
    }

    /// The entry of a shared attribute.
    fn shared(&mut self, number: u64, id: u32) -> Result<Vec<u8>, ReadError> {
        let start = u64::from(self.superblock.xattr_block) * BLOCK_BYTES + u64::from(id) * 4;
        let head = self.bytes_at(number, start, 4)?;
        let len = xattrs::len_of(head.first_chunk().expect("so many were read"));
        // Spent before it is read, since many inodes may have the same one.
        if len as u64 > self.limits.xattr_bytes_max {
            return Err(ReadError::TooMany { what: "extended attributes" });
        }
        self.bytes_at(number, start, len as u64)
    }

    fn symlink(&mut self, number: u64, placed: &Placed) -> Result<Box<[u8]>, ReadError> {
        let size = placed.inode.size;
        if !(1..=SYMLINK_BYTES_MAX as u64).contains(&size) {
            return Err(malformed(number, "a symlink is empty or longer than a path"));
        }
        let start = self.plain_block(number, placed, 0)?;
        let target = self.metadata(number, start, size)?;
        if target.contains(&0) {
            return Err(malformed(number, "a symlink has a NUL"));
        }
        Ok(target.into())
    }

    fn body(&mut self, number: u64, placed: &Placed) -> Result<Body, ReadError> {
        let inode = &placed.inode;
        let size = inode.size;
        if size > i64::MAX as u64 {
            return Err(malformed(number, "a file is larger than Linux supports"));
        }
        let mut extents = Extents { list: Vec::new(), left: &mut self.limits.extents_max, end: self.bytes };
        match inode.storage {
            _ if size == 0 => {}
            Storage::Blocks => extents.add(number, 0, size, u64::from(inode.address) * BLOCK_BYTES)?,
            Storage::Tail => {
                let tail = tail_of(number, placed)?;
                let offset = size - tail;
                extents.add(number, 0, offset, u64::from(inode.address) * BLOCK_BYTES)?;
                extents.add(number, offset, tail, placed.data)?;
            }
            Storage::Chunks { bits, long } => {
                let list = self.chunks(number, placed, bits, long)?;
                return Ok(Body { size, digest: body::place_digest(size, &list), extents: list });
            }
        }
        let list = extents.list;
        Ok(Body { size, digest: body::place_digest(size, &list), extents: list })
    }

    /// The parts of a file that is a list of chunks.
    fn chunks(&mut self, number: u64, placed: &Placed, bits: u8, long: bool) -> Result<Vec<Extent>, ReadError> {
        let size = placed.inode.size;
        let unit: u64 = if long { 8 } else { 4 };
        let chunk_bytes = BLOCK_BYTES << bits;
        let table_bytes = chunk_count(size, bits) * unit;
        let mut extents = Vec::new();
        let (mut offset, mut position) = (0, placed.data.next_multiple_of(unit));
        // Checked before the loop, so that a long list behind the end of the image costs nothing.
        if position.checked_add(table_bytes).is_none_or(|end| end > self.bytes) {
            return Err(malformed(number, "the chunks of a file are behind the end of the image"));
        }
        let end = position + table_bytes;
        while position < end {
            let addresses = self.metadata(number, position, ADDRESSES_LEN.min(end - position))?;
            position += addresses.len() as u64;
            for entry in addresses.chunks_exact(unit as usize) {
                if long && u16_at(entry, 2) != 0 {
                    return Err(malformed(number, "a file is on another device"));
                }
                let address = u32_at(entry, unit as usize - 4);
                if address != HOLE {
                    let bytes = chunk_bytes.min(size - offset);
                    let mut list = Extents { list: extents, left: &mut self.limits.extents_max, end: self.bytes };
                    list.add(number, offset, bytes, u64::from(address) * BLOCK_BYTES)?;
                    extents = list.list;
                }
                // The last chunk may be longer than the file; then the offset is not used again.
                offset = offset.saturating_add(chunk_bytes);
            }
        }
        Ok(extents)
    }

    /// What is in a directory, without `.` and `..`, which are checked.
    fn directory(&mut self, number: u64, parent: u64) -> Result<Vec<Entry>, ReadError> {
        let placed = self.inode_again(number)?;
        let size = placed.inode.size;
        let mut entries = Vec::new();
        let (mut last, mut dots) = (Vec::new(), [None, None]);
        let mut start = 0;
        while start < size {
            let place = self.plain_block(number, &placed, start)?;
            let block = self.metadata(number, place, BLOCK_BYTES.min(size - start))?;
            start += BLOCK_BYTES;
            for entry in dirents::decode(&block).map_err(|problem| malformed(number, problem))? {
                let Dirent { name, inode, file_type } = entry;
                if name <= &last[..] {
                    return Err(malformed(number, "the names of a directory are not in order"));
                }
                last.clear();
                last.extend_from_slice(name);
                match name {
                    b"." => dots[0] = Some(inode),
                    b".." => dots[1] = Some(inode),
                    _ if !dirents::is_name(name) => return Err(malformed(number, "a directory has an invalid name")),
                    _ => {
                        spend(&mut self.limits.names_max, 1, "names")?;
                        entries.push(Entry { name: name.into(), inode, file_type });
                    }
                }
            }
        }
        if dots != [Some(number), Some(parent)] {
            return Err(malformed(number, "a directory lacks `.` or `..`, or they are other directories"));
        }
        Ok(entries)
    }

    /// An inode that was read before. It costs nothing from the budget, since each directory is read once.
    fn inode_again(&mut self, number: u64) -> Result<Placed, ReadError> {
        let left = self.metadata_left;
        self.metadata_left = u64::MAX;
        let placed = self.inode(number);
        self.metadata_left = left;
        placed
    }

    /// Where the block at an offset of a directory or symlink is. The offset is inside its size.
    fn plain_block(&self, number: u64, placed: &Placed, offset: u64) -> Result<u64, ReadError> {
        let inode = &placed.inode;
        match inode.storage {
            Storage::Tail if offset >= inode.size - tail_of(number, placed)? => Ok(placed.data),
            Storage::Tail | Storage::Blocks => {
                let start = u64::from(inode.address) * BLOCK_BYTES;
                start.checked_add(offset).ok_or_else(|| malformed(number, "a directory is behind the end of the image"))
            }
            Storage::Chunks { .. } => Err(malformed(number, "a directory or symlink is a list of chunks")),
        }
    }

    /// Bytes that belong to one inode alone.
    fn metadata(&mut self, number: u64, offset: u64, bytes: u64) -> Result<Vec<u8>, ReadError> {
        self.metadata_left =
            self.metadata_left.checked_sub(bytes).ok_or_else(|| malformed(number, "inodes or directories overlap"))?;
        self.bytes_at(number, offset, bytes)
    }

    fn bytes_at(&mut self, number: u64, offset: u64, bytes: u64) -> Result<Vec<u8>, ReadError> {
        let end = offset.checked_add(bytes).filter(|end| *end <= self.bytes);
        let end = end.ok_or_else(|| malformed(number, "a part of it is behind the end of the image"))?;
        // No overflow: what one call reads is a block or the attributes of an inode.
        let mut list = Vec::with_capacity(bytes as usize);
        let mut position = offset;
        while position < end {
            let block = position / BLOCK_BYTES;
            if block != self.block_number {
                // Another number meanwhile, so that an error does not leave half of a block behind.
                self.block_number = u64::MAX;
                self.image.read_exact_at(&mut self.block[..], block * BLOCK_BYTES).map_err(ReadError::Input)?;
                self.block_number = block;
            }
            let block_start = block * BLOCK_BYTES;
            let until = end.min(block_start + BLOCK_BYTES);
            list.extend_from_slice(&self.block[(position - block_start) as usize..(until - block_start) as usize]);
            position = until;
        }
        Ok(list)
    }
}

/// A name in a directory.
struct Entry {
    name: Box<[u8]>,
    inode: u64,
    file_type: u8,
}

/// An inode, and where the image continues behind it.
struct Placed {
    inode: Inode,
    /// Where its attributes begin.
    xattrs: u64,
    /// Where its tail or its addresses begin.
    data: u64,
}

/// Length of the tail of an inode with a tail: of the last block, which is never empty.
fn tail_of(number: u64, placed: &Placed) -> Result<u64, ReadError> {
    let size = placed.inode.size;
    let tail = size - size.saturating_sub(1) / BLOCK_BYTES * BLOCK_BYTES;
    if placed.data % BLOCK_BYTES + tail > BLOCK_BYTES {
        return Err(malformed(number, "a tail crosses the end of a block"));
    }
    Ok(tail)
}

/// The parts of a file, as they are found.
struct Extents<'a> {
    list: Vec<Extent>,
    left: &'a mut u64,
    /// End of the image.
    end: u64,
}

impl Extents<'_> {
    /// Adds a part, or makes the last one longer if this one continues it in the file and in the image.
    fn add(&mut self, number: u64, offset: u64, bytes: u64, spool_offset: u64) -> Result<(), ReadError> {
        if bytes == 0 {
            return Ok(());
        }
        if spool_offset.checked_add(bytes).is_none_or(|end| end > self.end) {
            return Err(malformed(number, "the contents of a file are behind the end of the image"));
        }
        if let Some(last) = self.list.last_mut()
            && last.offset + last.bytes == offset
            && last.spool_offset + last.bytes == spool_offset
        {
            last.bytes += bytes;
            return Ok(());
        }
        spend(self.left, 1, "parts of files")?;
        self.list.push(Extent { offset, bytes, spool_offset });
        Ok(())
    }
}

/// Takes some of what is left of a limit.
fn spend(left: &mut u64, cost: u64, what: &'static str) -> Result<(), ReadError> {
    *left = left.checked_sub(cost).ok_or(ReadError::TooMany { what })?;
    Ok(())
}
