//! Writes an image: checks the tree, decides on a layout, and writes it front to back.

use std::io::{self, Write};
use std::ops::Range;

use super::dirents::{self, Dirents};
use super::error::WriteError;
use super::format::{
    BLOCK_BYTES, BLOCKS_MAX, DEVICE_MAJOR_MAX, DEVICE_MINOR_MAX, HOLE, Inode, MODE_BLOCK, MODE_CHARACTER,
    MODE_DIRECTORY, MODE_FIFO, MODE_FILE, MODE_SOCKET, MODE_SYMLINK, SYMLINK_BYTES_MAX, Storage, Superblock,
    device_number, file_type,
};
use super::layout::{Layout, Place, blocks_of, chunk_count, chunk_runs};
use super::output::{CopyError, Output};
use super::xattrs;
use crate::canonical;
use crate::order::{LinkedDirectory, Order, printable};
use crate::source::Source;
use crate::tree::{Body, Kind, Node, NodeId, Time, Tree};

/// The version and variant bits of a UUID that holds a digest: version 8 of RFC 9562.
const UUID_VERSION: u8 = 0x80;
const UUID_VARIANT: u8 = 0x80;

/// What an image may be.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The largest image. The default is what the format can have: 16 TiB.
    pub bytes_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { bytes_max: BLOCKS_MAX * BLOCK_BYTES }
    }
}

/// An image that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Its size, a multiple of 4096.
    pub bytes: u64,
    /// The blake3 digest of its bytes.
    pub digest: [u8; 32],
    /// Its identifier: the start of a digest of the tree.
    pub uuid: [u8; 16],
    /// Number of inodes: files, directories and others, each counted once.
    pub inodes: u64,
}

/// Writes a tree as an image. Nodes without a name are left out.
///
/// The image is written front to back. Its bytes are a function of the tree: of names, attributes and contents, but
/// neither of the numbers of nodes nor of where the contents are in the source.
///
/// # Errors
/// If the tree has something that EROFS or Linux can't represent, the image would be too large, or the source or the
/// output returns an error.
pub fn write(
    tree: &Tree,
    source: &(impl Source + ?Sized),
    output: impl Write,
    options: &Options,
) -> Result<Written, WriteError> {
    let order = Order::of(tree).map_err(|LinkedDirectory(_)| WriteError::Invalid {
        path: "/".to_owned(),
        problem: "a directory has two names",
    })?;
    check(tree, &order)?;
    let layout = Layout::of(tree, &order);
    check_attributes(tree, &order, &layout)?;
    let bytes_max = options.bytes_max.min(Options::default().bytes_max);
    let bytes = layout.blocks.saturating_mul(BLOCK_BYTES);
    if bytes > bytes_max {
        return Err(WriteError::TooLarge { bytes, bytes_max });
    }
    let mut uuid: [u8; 16] = *canonical::digest(tree, &order).first_chunk().expect("it has 32 bytes");
    uuid[6] = uuid[6] & 0x0f | UUID_VERSION;
    uuid[8] = uuid[8] & 0x3f | UUID_VARIANT;

    let mut writer = Writer { tree, order: &order, layout: &layout, source, output: Output::new(output) };
    writer.superblock(uuid).map_err(WriteError::Output)?;
    writer.inodes()?;
    writer.shared_attributes().map_err(WriteError::Output)?;
    writer.blocks()?;
    let digest = writer.output.finish()?;
    Ok(Written { bytes, digest, uuid, inodes: order.nodes().len() as u64 })
}

/// Checks all that the format can't hold, and that the tree is one.
fn check(tree: &Tree, order: &Order) -> Result<(), WriteError> {
    for (rank, id) in (0..).zip(order.nodes()) {
        let node = tree.node(*id);
        let path = || order.path(tree, rank);
        let invalid = |problem| Err(WriteError::Invalid { path: path(), problem });
        for (name, value) in &node.attributes.xattrs {
            if !xattrs::is_name(name) {
                return Err(WriteError::XattrName { path: path(), name: printable(name) });
            }
            if value.len() > xattrs::VALUE_LEN_MAX {
                let (name, bytes) = (printable(name), value.len());
                return Err(WriteError::XattrValue { path: path(), name, bytes });
            }
        }
        if node.attributes.permissions > 0o7777 || node.attributes.modified.nanoseconds > 999_999_999 {
            return invalid("its permissions or its time have too high a value");
        }
        match &node.kind {
            Kind::Directory(children) if !children.keys().all(|name| dirents::is_name(name)) => {
                return invalid("it has a name that is not one");
            }
            Kind::File(body) if body.size > i64::MAX as u64 => {
                return Err(WriteError::FileTooLarge { path: path(), bytes: body.size });
            }
            Kind::File(body) if !is_valid(body) => return invalid("its parts overlap or are behind its end"),
            Kind::Symlink(target) if !(1..=SYMLINK_BYTES_MAX).contains(&target.len()) || target.contains(&0) => {
                return Err(WriteError::Symlink { path: path(), bytes: target.len() });
            }
            &(Kind::CharacterDevice { major, minor } | Kind::BlockDevice { major, minor })
                if major > DEVICE_MAJOR_MAX || minor > DEVICE_MINOR_MAX =>
            {
                return Err(WriteError::Device { path: path(), major, minor });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Checks that the attributes of each node have room behind its inode.
fn check_attributes(tree: &Tree, order: &Order, layout: &Layout<'_>) -> Result<(), WriteError> {
    let too_many = |place: &Place| place.xattr_bytes > xattrs::BYTES_MAX;
    let Some((rank, place)) = (0..).zip(&layout.places).find(|(_, place)| too_many(place)) else { return Ok(()) };
    let path = order.path(tree, rank);
    Err(WriteError::Xattrs { path, bytes: place.xattr_bytes, bytes_max: xattrs::BYTES_MAX })
}

/// Whether the parts of a file are in order, without overlap, and inside it.
fn is_valid(body: &Body) -> bool {
    let mut end = 0;
    body.extents.iter().all(|extent| {
        let is_next = extent.offset >= end && extent.bytes > 0;
        end = extent.offset.saturating_add(extent.bytes);
        is_next && end <= body.size && extent.spool_offset.checked_add(extent.bytes).is_some()
    })
}

struct Writer<'a, S: ?Sized, W> {
    tree: &'a Tree,
    order: &'a Order,
    layout: &'a Layout<'a>,
    source: &'a S,
    output: Output<W>,
}

impl<'a, S: Source + ?Sized, W: Write> Writer<'a, S, W> {
    fn superblock(&mut self, uuid: [u8; 16]) -> io::Result<()> {
        let layout = self.layout;
        // No overflow: the number of blocks is checked, and the root is the first of all inodes.
        let superblock = Superblock {
            root: layout.places[0].inode_number() as u16,
            inodes: layout.places.len() as u64,
            blocks: layout.blocks as u32,
            metadata_block: 0,
            xattr_block: if layout.shared.bytes() > 0 { layout.shared_block as u32 } else { 0 },
            uuid,
            has_chunks: layout.places.iter().any(|place| matches!(place.storage, Storage::Chunks { .. })),
            built: Time::default(),
        };
        self.output.bytes(&superblock.encode())
    }

    fn inodes(&mut self) -> Result<(), WriteError> {
        let mut head = Vec::new();
        let layout = self.layout;
        for rank in &layout.by_inode {
            let place = layout.places[*rank as usize];
            let node = self.node(*rank);
            head.clear();
            head.extend_from_slice(&self.inode(*rank, node, &place).encode());
            layout.shared.append_behind(&node.attributes, &mut head);
            self.output.zeros_to(place.inode).and_then(|()| self.output.bytes(&head)).map_err(WriteError::Output)?;
            match place.storage {
                Storage::Blocks => {}
                Storage::Tail => self.data(*rank, node, place.size - place.tail_bytes()..place.size)?,
                Storage::Chunks { bits, .. } => self.addresses(node, &place, bits).map_err(WriteError::Output)?,
            }
        }
        self.output.zeros_to(layout.shared_block * BLOCK_BYTES).map_err(WriteError::Output)
    }

    fn inode(&self, rank: u32, node: &Node, place: &Place) -> Inode {
        let attributes = &node.attributes;
        let kind = mode_of(&node.kind);
        // No overflow: sizes of attributes and numbers of blocks are checked.
        let address = match node.kind {
            Kind::CharacterDevice { major, minor } | Kind::BlockDevice { major, minor } => device_number(major, minor),
            _ => place.first_block as u32,
        };
        let xattr_count = match place.xattr_bytes {
            0 => 0,
            bytes => ((bytes - xattrs::HEADER_LEN as u64) / 4 + 1) as u16,
        };
        Inode {
            storage: place.storage,
            xattr_count,
            mode: kind | attributes.permissions,
            size: place.size,
            address,
            number: rank + 1,
            uid: attributes.uid,
            gid: attributes.gid,
            modified: attributes.modified,
            links: self.order.links(rank),
        }
    }

    /// The addresses of a file's chunks.
    fn addresses(&mut self, node: &Node, place: &Place, bits: u8) -> io::Result<()> {
        let Kind::File(body) = &node.kind else { return Ok(()) };
        let hole = HOLE.to_le_bytes();
        let (mut chunk, mut block) = (0, place.first_block);
        for run in chunk_runs(body, bits) {
            for _ in chunk..run.start {
                self.output.bytes(&hole)?;
            }
            for _ in run.clone() {
                // No overflow: the number of blocks is checked. Only the last chunk may be shorter.
                self.output.bytes(&(block as u32).to_le_bytes())?;
                block += 1 << bits;
            }
            chunk = run.end;
        }
        for _ in chunk..chunk_count(body.size, bits) {
            self.output.bytes(&hole)?;
        }
        Ok(())
    }

    fn shared_attributes(&mut self) -> io::Result<()> {
        let layout = self.layout;
        layout.shared.encode(|entry| self.output.bytes(entry))?;
        self.align()
    }

    /// The blocks of directories and files.
    fn blocks(&mut self) -> Result<(), WriteError> {
        let layout = self.layout;
        for rank in &layout.by_block {
            let place = layout.places[*rank as usize];
            debug_assert_eq!(self.output.position(), place.first_block * BLOCK_BYTES);
            let node = self.node(*rank);
            match (&node.kind, place.storage) {
                (Kind::File(body), Storage::Chunks { bits, .. }) => {
                    for run in chunk_runs(body, bits) {
                        let blocks = blocks_of(&run, body.size, bits);
                        let range = blocks.start * BLOCK_BYTES..(blocks.end * BLOCK_BYTES).min(body.size);
                        self.contents(*rank, body, range)?;
                    }
                }
                _ => self.data(*rank, node, 0..place.size - place.tail_bytes())?,
            }
            self.align().map_err(WriteError::Output)?;
        }
        Ok(())
    }

    /// A range of a node's data that is in blocks one after the other or behind its inode.
    fn data(&mut self, rank: u32, node: &Node, range: Range<u64>) -> Result<(), WriteError> {
        match &node.kind {
            Kind::Directory(_) => self.directory(rank, &range).map_err(WriteError::Output),
            Kind::File(body) => self.contents(rank, body, range),
            // The whole target: it is shorter than a block.
            Kind::Symlink(target) => self.output.bytes(target).map_err(WriteError::Output),
            Kind::CharacterDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo | Kind::Socket => Ok(()),
        }
    }

    /// Whole blocks of a directory.
    fn directory(&mut self, rank: u32, range: &Range<u64>) -> io::Result<()> {
        let nodes = self.order.nodes();
        let (this, parent) = (nodes[rank as usize], nodes[self.order.parent(rank) as usize]);
        let Some(children) = self.tree.children(this) else { return Ok(()) };
        let dirents = Dirents::new(children, this, parent);
        let mut bytes = Vec::new();
        for (start, block) in (0..).step_by(BLOCK_BYTES as usize).zip(dirents.blocks()) {
            if range.contains(&start) {
                bytes.clear();
                dirents.encode(&block, |node| self.entry(node), &mut bytes);
                self.output.bytes(&bytes)?;
                // All but the last one are filled up.
                if start + BLOCK_BYTES <= range.end {
                    let missing = BLOCK_BYTES - bytes.len() as u64;
                    self.output.zeros_to(self.output.position() + missing)?;
                }
            }
        }
        Ok(())
    }

    /// The number of a node's inode and the type of the node, for a directory.
    fn entry(&self, node: NodeId) -> (u64, u8) {
        let place = &self.layout.places[self.order.rank(node) as usize];
        (place.inode_number(), file_type_of(&self.tree.node(node).kind))
    }

    /// A range of a file's contents, with zeros for holes.
    fn contents(&mut self, rank: u32, body: &Body, range: Range<u64>) -> Result<(), WriteError> {
        let base = self.output.position();
        let place_of = |offset: u64| base + (offset - range.start);
        let first = body.extents.partition_point(|extent| extent.offset + extent.bytes <= range.start);
        for extent in body.extents[first..].iter().take_while(|extent| extent.offset < range.end) {
            let start = extent.offset.max(range.start);
            let end = (extent.offset + extent.bytes).min(range.end);
            self.output.zeros_to(place_of(start)).map_err(WriteError::Output)?;
            let offset = extent.spool_offset + (start - extent.offset);
            self.output.copy(self.source, offset, end - start).map_err(|error| match error {
                CopyError::Output(error) => WriteError::Output(error),
                CopyError::Source(source) => WriteError::Source { path: self.order.path(self.tree, rank), source },
            })?;
        }
        self.output.zeros_to(place_of(range.end)).map_err(WriteError::Output)
    }

    fn node(&self, rank: u32) -> &'a Node {
        self.tree.node(self.order.nodes()[rank as usize])
    }

    /// Fills up the block.
    fn align(&mut self) -> io::Result<()> {
        self.output.zeros_to(self.output.position().next_multiple_of(BLOCK_BYTES))
    }
}

/// The type of a node in a directory.
pub(super) fn file_type_of(kind: &Kind) -> u8 {
    file_type(mode_of(kind))
}

/// The bits of a mode that give the kind.
fn mode_of(kind: &Kind) -> u16 {
    match kind {
        Kind::Directory(_) => MODE_DIRECTORY,
        Kind::File(_) => MODE_FILE,
        Kind::Symlink(_) => MODE_SYMLINK,
        Kind::CharacterDevice { .. } => MODE_CHARACTER,
        Kind::BlockDevice { .. } => MODE_BLOCK,
        Kind::Fifo => MODE_FIFO,
        Kind::Socket => MODE_SOCKET,
    }
}
