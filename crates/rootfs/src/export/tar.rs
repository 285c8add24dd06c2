//! A tree as one tar archive, in the pax format of POSIX.
//!
//! ```text
//!   Tree, Source ──▶ Entry { header, pax records } ──▶ contents ──▶ … ──▶ two blocks of zeros
//! ```
//! The archive is a function of the tree: names are in the order of their bytes, a directory before what is in it, and
//! nothing comes from the clock or the host. What a plain header can't hold is in pax records: long names, large
//! numbers, times with a fraction or before 1970, extended attributes, holes. A file with several names is stored under
//! the first of them, the others are hard links to it. A tar archive has no sockets, so they are left out and counted.

use std::io::{self, Write};
use std::ops::Range;

use super::entry::{BLOCK_LEN, Entry, TypeFlag};
use crate::order::{LinkedDirectory, Order, printable};
use crate::source::Source;
use crate::tree::{Body, Extent, Kind, Node, NodeId, Tree};

/// Bytes of contents that are copied at once.
const BUFFER_LEN: usize = 1 << 20;

/// What an archive has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exported {
    /// Entries, hard links included.
    pub entries: u64,
    /// Bytes of the archive.
    pub bytes: u64,
    /// Sockets that are not in it.
    pub sockets: u64,
}

/// Why an archive was not written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The contents of a file can't be read.
    #[error("failed to read the contents of `{path}`")]
    Source {
        /// The file in the tree.
        path: String,
        /// What the source returned.
        #[source]
        source: io::Error,
    },
    /// The output returned an error.
    #[error("failed to write the archive")]
    Output(#[source] io::Error),
    /// The number of a device has no place in an archive.
    #[error("`{path}` is device {major}:{minor}, and an archive holds numbers below 2097152")]
    Device {
        /// The device.
        path: String,
        /// Number of the driver.
        major: u32,
        /// Number of the device.
        minor: u32,
    },
    /// A directory has two names, or is in itself.
    #[error("the tree is not valid: a directory has two names")]
    LinkedDirectory,
}

/// Writes a tree as a tar archive.
///
/// # Errors
/// If the tree has a device or a directory that an archive can't hold, or the source or the output returns an error.
pub fn tar(tree: &Tree, source: &(impl Source + ?Sized), output: impl Write) -> Result<Exported, ExportError> {
    let order = Order::of(tree).map_err(|LinkedDirectory(_)| ExportError::LinkedDirectory)?;
    let mut writer = Writer { output, source, buffer: vec![0; BUFFER_LEN], exported: Exported::default() };
    // For each node with several names the first one in this archive.
    let mut stored: Vec<Option<Box<[u8]>>> = vec![None; order.nodes().len()];
    let mut waiting: Vec<(Box<[u8]>, NodeId)> = vec![(Box::from(&b"./"[..]), Tree::ROOT)];
    while let Some((path, id)) = waiting.pop() {
        let (node, rank) = (tree.node(id), order.rank(id));
        if let Kind::Directory(children) = &node.kind {
            writer.node(&path, node)?;
            let below = if id == Tree::ROOT { &[][..] } else { &path[..] };
            let path_of = |name: &[u8], child: NodeId| {
                let slash: &[u8] = if tree.children(child).is_some() { b"/" } else { b"" };
                [below, name, slash].concat().into()
            };
            // The first of them is the next.
            waiting.extend(children.iter().rev().map(|(name, child)| (path_of(name, *child), *child)));
        } else if let Some(first) = &stored[rank as usize] {
            writer.link(&path, first, node)?;
        } else {
            writer.node(&path, node)?;
            if order.links(rank) > 1 {
                stored[rank as usize] = Some(path);
            }
        }
    }
    writer.bytes(&[0; 2 * BLOCK_LEN]).map_err(ExportError::Output)?;
    writer.output.flush().map_err(ExportError::Output)?;
    Ok(writer.exported)
}

struct Writer<'a, S: ?Sized, W> {
    output: W,
    source: &'a S,
    buffer: Vec<u8>,
    exported: Exported,
}

impl<S: Source + ?Sized, W: Write> Writer<'_, S, W> {
    fn node(&mut self, path: &[u8], node: &Node) -> Result<(), ExportError> {
        let entry = |flag| Entry::new(path, &node.attributes, flag);
        match &node.kind {
            Kind::Directory(_) => self.entry(entry(TypeFlag::Directory)),
            Kind::File(body) => return self.file(path, entry(TypeFlag::File), body),
            Kind::Symlink(target) => self.entry(entry(TypeFlag::Symlink).with_link(target)),
            &Kind::CharacterDevice { major, minor } => {
                let entry = entry(TypeFlag::CharacterDevice).with_device(major, minor);
                self.entry(entry.ok_or_else(|| device(path, major, minor))?)
            }
            &Kind::BlockDevice { major, minor } => {
                let entry = entry(TypeFlag::BlockDevice).with_device(major, minor);
                self.entry(entry.ok_or_else(|| device(path, major, minor))?)
            }
            Kind::Fifo => self.entry(entry(TypeFlag::Fifo)),
            Kind::Socket => {
                self.exported.sockets += 1;
                Ok(())
            }
        }
        .map_err(ExportError::Output)
    }

    /// Another name of a file. The attributes of the first one count.
    fn link(&mut self, path: &[u8], first: &[u8], node: &Node) -> Result<(), ExportError> {
        if matches!(node.kind, Kind::Socket) {
            self.exported.sockets += 1;
            return Ok(());
        }
        let entry = Entry::new(path, &node.attributes, TypeFlag::Link).without_xattrs().with_link(first);
        self.entry(entry).map_err(ExportError::Output)
    }

    fn file(&mut self, path: &[u8], entry: Entry<'_>, body: &Body) -> Result<(), ExportError> {
        let parts = parts(body);
        let data: u64 = parts.iter().map(|part| part.end - part.start).sum();
        let entry = if data == body.size {
            entry.with_size(data)
        } else {
            let map = sparse_map(&parts, body.size);
            entry.with_holes(body.size, data + map.len() as u64, map)
        };
        self.entry(entry).map_err(ExportError::Output)?;
        let mut extents = body.extents.iter().peekable();
        for part in parts {
            let mut position = part.start;
            while let Some(extent) = extents.next_if(|extent| extent.offset < part.end) {
                self.zeros(extent.offset - position)?;
                self.copy(path, extent)?;
                position = extent.offset + extent.bytes;
            }
            self.zeros(part.end - position)?;
        }
        self.align()
    }

    fn entry(&mut self, entry: Entry<'_>) -> io::Result<()> {
        self.exported.entries += 1;
        self.bytes(&entry.encode())
    }

    fn copy(&mut self, path: &[u8], extent: &Extent) -> Result<(), ExportError> {
        let mut done = 0;
        while done < extent.bytes {
            let count = self.buffer.len().min(usize::try_from(extent.bytes - done).unwrap_or(usize::MAX));
            let buffer = &mut self.buffer[..count];
            self.source.read_exact_at(buffer, extent.spool_offset + done).map_err(|source| {
                let path = printable(path);
                ExportError::Source { path, source }
            })?;
            self.output.write_all(buffer).map_err(ExportError::Output)?;
            self.exported.bytes += count as u64;
            done += count as u64;
        }
        Ok(())
    }

    /// Adds zeros: at most those that round a part to whole blocks, so there are few.
    fn zeros(&mut self, count: u64) -> Result<(), ExportError> {
        let mut left = count;
        while left > 0 {
            let some = left.min(BLOCK_LEN as u64);
            self.bytes(&[0; BLOCK_LEN][..some as usize]).map_err(ExportError::Output)?;
            left -= some;
        }
        Ok(())
    }

    fn align(&mut self) -> Result<(), ExportError> {
        self.zeros(self.exported.bytes.next_multiple_of(BLOCK_LEN as u64) - self.exported.bytes)
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)?;
        self.exported.bytes += bytes.len() as u64;
        Ok(())
    }
}

fn device(path: &[u8], major: u32, minor: u32) -> ExportError {
    ExportError::Device { path: printable(path), major, minor }
}

/// The parts of a file that are stored: those with data, from the start of a block to the end of one. GNU tar stores no
/// others, and when it unpacks, it looks for each part at the start of a block.
fn parts(body: &Body) -> Vec<Range<u64>> {
    let block = BLOCK_LEN as u64;
    let mut parts: Vec<Range<u64>> = Vec::new();
    for extent in &body.extents {
        let start = extent.offset / block * block;
        let end =
            (extent.offset + extent.bytes).checked_next_multiple_of(block).map_or(body.size, |end| end.min(body.size));
        match parts.last_mut() {
            Some(last) if start <= last.end => last.end = end,
            _ => parts.push(start..end),
        }
    }
    parts
}

/// The parts of a file as GNU tar's format 1.0 has them before the data: a number in each line, the number of parts
/// first, filled up to a whole block.
fn sparse_map(parts: &[Range<u64>], size: u64) -> Vec<u8> {
    // Programs take the length of the file from the last part, so there is an empty one if it ends with a hole.
    let end = parts.last().is_none_or(|last| last.end < size).then_some(size..size);
    let mut map = format!("{}\n", parts.len() + usize::from(end.is_some()));
    for part in parts.iter().chain(&end) {
        map.push_str(&format!("{}\n{}\n", part.start, part.end - part.start));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK_LEN), 0);
    map
}
