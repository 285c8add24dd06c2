//! The contents of a directory: blocks that each begin with entries of a fixed size and end with their names.
//!
//! ```text
//!   │ entry │ entry │ entry │ name name name │ zeros │    entry: inode (8), offset of its name (2), type (1), 0
//! ```
//! Names are in the order of their bytes in each block and over all blocks, `.` and `..` among them: Linux searches
//! first the block and then the entry by halving. A name has no length: it ends at the next one, the last one at a NUL
//! or at the end of the block.

use std::ops::Range;

use super::format::{BLOCK_BYTES, BLOCK_LEN, Problem, u16_at, u64_at};
use crate::tree::{Children, NodeId};

/// Size of an entry without its name.
const ENTRY_LEN: usize = 12;
/// The longest name.
const NAME_LEN_MAX: usize = 255;

/// The names of a directory in their order.
#[derive(Debug)]
pub(super) struct Dirents<'a> {
    entries: Vec<(&'a [u8], NodeId)>,
}

impl<'a> Dirents<'a> {
    /// The names in a directory, and those of itself and of the one that has it.
    pub(super) fn new(children: &'a Children, this: NodeId, parent: NodeId) -> Self {
        let mut entries: Vec<(&[u8], NodeId)> = children.iter().map(|(name, node)| (&**name, *node)).collect();
        // A name such as `!` is before them, so they are not always the first two.
        for (dots, node) in [(&b"."[..], this), (b"..", parent)] {
            let at = entries.partition_point(|(name, _)| *name < dots);
            entries.insert(at, (dots, node));
        }
        Self { entries }
    }

    /// The entries of each block.
    pub(super) fn blocks(&self) -> Vec<Range<usize>> {
        let (mut blocks, mut first, mut used) = (Vec::new(), 0, 0);
        for (index, (name, _)) in self.entries.iter().enumerate() {
            let bytes = ENTRY_LEN + name.len();
            if used + bytes > BLOCK_LEN {
                blocks.push(first..index);
                (first, used) = (index, 0);
            }
            used += bytes;
        }
        blocks.push(first..self.entries.len());
        blocks
    }

    /// Size of a directory with these blocks: the last one counts as far as it is used.
    pub(super) fn size(&self, blocks: &[Range<usize>]) -> u64 {
        let last = blocks.last().map_or(0, |last| self.used(last));
        (blocks.len() as u64 - 1) * BLOCK_BYTES + last as u64
    }

    fn used(&self, block: &Range<usize>) -> usize {
        self.entries[block.clone()].iter().map(|(name, _)| ENTRY_LEN + name.len()).sum()
    }

    /// Appends one block as far as it is used. `inode` returns the number of a node's inode and its type.
    pub(super) fn encode(&self, block: &Range<usize>, inode: impl Fn(NodeId) -> (u64, u8), output: &mut Vec<u8>) {
        let entries = &self.entries[block.clone()];
        let mut name_offset = entries.len() * ENTRY_LEN;
        for (name, node) in entries {
            let (number, file_type) = inode(*node);
            output.extend_from_slice(&number.to_le_bytes());
            // No overflow: it is inside a block.
            output.extend_from_slice(&(name_offset as u16).to_le_bytes());
            output.extend_from_slice(&[file_type, 0]);
            name_offset += name.len();
        }
        for (name, _) in entries {
            output.extend_from_slice(name);
        }
    }
}

/// Whether a name can be in a directory. `.` and `..` can't, since each directory has them.
pub(super) fn is_name(name: &[u8]) -> bool {
    (1..=NAME_LEN_MAX).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

/// An entry as it is in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    /// Number of the inode.
    pub(super) inode: u64,
    pub(super) file_type: u8,
}

/// The entries of one block, as long as it is used. Names may still be anything.
pub(super) fn decode(block: &[u8]) -> Result<Vec<Dirent<'_>>, Problem> {
    const BROKEN: Problem = "a directory has a broken block";
    if block.len() < ENTRY_LEN {
        return Err(BROKEN);
    }
    let names_start = usize::from(u16_at(block, 8));
    if names_start < ENTRY_LEN || names_start % ENTRY_LEN != 0 || names_start > block.len() {
        return Err(BROKEN);
    }
    let count = names_start / ENTRY_LEN;
    let name_offset = |index: usize| usize::from(u16_at(block, index * ENTRY_LEN + 8));
    let mut entries = Vec::with_capacity(count);
    let mut start = names_start;
    for index in 0..count {
        let end = if index + 1 < count { name_offset(index + 1) } else { block.len() };
        let name = block.get(start..end).ok_or(BROKEN)?;
        let name = if index + 1 < count { name } else { name.split(|byte| *byte == 0).next().unwrap_or(name) };
        let at = index * ENTRY_LEN;
        entries.push(Dirent { name, inode: u64_at(block, at), file_type: block[at + 10] });
        start = end;
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Attributes, Kind, Node, Tree};

    /// A directory with these names, as the blocks of an image.
    fn encoded(names: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
        let mut tree = Tree::new(Attributes::default());
        let child = tree.add(Node { attributes: Attributes::default(), kind: Kind::Fifo });
        let children: Children = names.into_iter().map(|name| (name.into(), child)).collect();
        let dirents = Dirents::new(&children, Tree::ROOT, Tree::ROOT);
        let blocks = dirents.blocks();
        let mut encoded = Vec::new();
        for block in &blocks {
            let mut bytes = Vec::new();
            dirents.encode(block, |node| (node.index() as u64 + 100, 5), &mut bytes);
            encoded.push(bytes);
        }
        let size = dirents.size(&blocks);
        assert_eq!(size, (blocks.len() as u64 - 1) * BLOCK_BYTES + encoded[blocks.len() - 1].len() as u64);
        encoded
    }

    #[test]
    fn dots_are_sorted_among_the_names() {
        let blocks = encoded([b"!".to_vec(), b".-".to_vec(), b"...".to_vec(), b"a".to_vec()]);
        let [block] = &blocks[..] else { panic!("one block") };
        let entries = decode(block).expect("a block");
        let names: Vec<&[u8]> = entries.iter().map(|entry| entry.name).collect();
        assert_eq!(names, [&b"!"[..], b".", b".-", b"..", b"...", b"a"]);
        assert_eq!((entries[0].inode, entries[1].inode, entries[0].file_type), (101, 100, 5));
    }

    #[test]
    fn many_names_are_in_order_over_all_blocks_and_no_block_is_too_long() {
        let names: Vec<Vec<u8>> =
            (0..2000_u32).map(|n| format!("{n:0width$}", width = 1 + n as usize % 255).into_bytes()).collect();
        let blocks = encoded(names.clone());
        assert!(blocks.len() > 50 && blocks.iter().all(|block| block.len() <= BLOCK_LEN));
        let mut found = Vec::new();
        for (index, block) in blocks.iter().enumerate() {
            let mut padded = block.clone();
            if index + 1 < blocks.len() {
                padded.resize(BLOCK_LEN, 0);
            }
            found.extend(decode(&padded).expect("a block").iter().map(|entry| entry.name.to_vec()));
        }
        assert!(found.is_sorted());
        let distinct: std::collections::BTreeSet<_> = names.into_iter().collect();
        assert_eq!(found.len(), distinct.len() + 2);
    }

    #[test]
    fn broken_blocks_are_refused() {
        let good = &encoded([b"a".to_vec(), b"b".to_vec()])[0];
        decode(good).expect("a good block");
        for (at, value) in [(8, 0), (8, 13), (8, 240), (9, 255), (20, 0), (21, 200)] {
            let mut broken = good.clone();
            broken[at] = value;
            decode(&broken).expect_err("a broken block");
        }
        decode(&good[..11]).expect_err("too short for an entry");
    }

    #[test]
    fn a_name_has_1_to_255_bytes_without_slash_and_nul() {
        assert!(is_name(b"a") && is_name(b"...") && is_name(b"\xff\n") && is_name(&[b'x'; 255]));
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}
