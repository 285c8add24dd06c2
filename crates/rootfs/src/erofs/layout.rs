//! Where everything of an image will be. It is decided before the first byte is written, so that the image can be
//! written front to back.
//!
//! ```text
//!   block 0      superblock
//!   block 1 …    inodes; behind each its attributes and its tail, or the addresses of its chunks
//!            …   shared attributes
//!            …   directories, as far as they are not a tail
//!            …   contents of files, as far as they are not a tail
//! ```
//! All are in the canonical order of the tree. What a guest reads to list the tree is in one piece at the start.
//!
//! # Tails
//! The last part of a file is behind its inode if both fit into one block: the kernel requires that a tail does not
//! cross the end of a block, and for a symlink that its inode is in the same one. Inodes with tails do not fill blocks
//! exactly, so a few blocks stay open, and each inode goes to the fullest one that has room. Inodes of one directory so
//! stay within a few blocks of each other.

use std::collections::HashMap;
use std::ops::Range;

use super::dirents::Dirents;
use super::format::{BLOCK_BYTES, CHUNK_BITS_MAX, INODE_BYTES, SLOT_BYTES, Storage};
use super::xattrs::Shared;
use crate::order::Order;
use crate::tree::{Body, Kind, Tree};

/// Blocks of inodes that are not full and still get more. With 16, 11 % of the blocks of a Debian with Python are
/// unused, with 64 8 %, with 256 4 %; but inodes of one directory are then up to 1 MiB apart.
const OPEN_BLOCKS: usize = 64;
/// A file is a list of chunks if that saves one in so many of its blocks.
const HOLES_SHARE_MIN: u64 = 8;
/// Or if it saves so many blocks: 1 MiB.
const HOLES_BLOCKS_MIN: u64 = 256;
/// Size of the address of a chunk.
const CHUNK_ADDRESS_BYTES: u64 = 4;

/// Where an inode and its data are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Offset of the inode in the image.
    pub(super) inode: u64,
    /// Bytes of attributes behind it.
    pub(super) xattr_bytes: u64,
    /// Size of the file, the directory or the target of the symlink.
    pub(super) size: u64,
    pub(super) storage: Storage,
    /// Blocks of its data, which may be shared with a file that has the same.
    pub(super) blocks: u64,
    /// The first of them; 0 if there are none.
    pub(super) first_block: u64,
}

impl Place {
    /// The number of the inode.
    pub(super) fn inode_number(&self) -> u64 {
        self.inode / SLOT_BYTES
    }

    /// Bytes of data that are not in blocks but behind the inode.
    pub(super) fn tail_bytes(&self) -> u64 {
        if self.storage == Storage::Tail { self.size - self.blocks * BLOCK_BYTES } else { 0 }
    }

    /// Size of what is at [`Place::inode`].
    fn bytes(&self) -> u64 {
        let addresses = match self.storage {
            Storage::Chunks { bits, .. } => chunk_count(self.size, bits) * CHUNK_ADDRESS_BYTES,
            Storage::Blocks | Storage::Tail => 0,
        };
        INODE_BYTES + self.xattr_bytes + self.tail_bytes() + addresses
    }
}

/// Where everything is.
#[derive(Debug)]
pub(super) struct Layout<'a> {
    /// For each rank its place.
    pub(super) places: Vec<Place>,
    /// All ranks, in the order of their inodes in the image.
    pub(super) by_inode: Vec<u32>,
    pub(super) shared: Shared<'a>,
    /// First block of the shared attributes.
    pub(super) shared_block: u64,
    /// The ranks whose data is in blocks, in the order of those blocks. Of files with the same contents, only one.
    pub(super) by_block: Vec<u32>,
    /// Blocks of the image. They may be more than the format can have.
    pub(super) blocks: u64,
}

impl<'a> Layout<'a> {
    /// The layout of a tree that was checked.
    pub(super) fn of(tree: &'a Tree, order: &Order) -> Self {
        let shared = Shared::of(order.nodes().iter().map(|node| &tree.node(*node).attributes));
        let mut packer = Packer::default();
        let mut places: Vec<Place> =
            (0..).zip(order.nodes()).map(|(rank, _)| place_of(tree, order, rank, &shared)).collect();
        for place in &mut places {
            place.inode = packer.add(place.bytes());
        }
        let mut by_inode: Vec<u32> = (0..).take(places.len()).collect();
        by_inode.sort_unstable_by_key(|rank| places[*rank as usize].inode);

        let shared_block = packer.next_block;
        let mut layout = Self { places, by_inode, shared, shared_block, by_block: Vec::new(), blocks: shared_block };
        layout.blocks += layout.shared.bytes().div_ceil(BLOCK_BYTES);
        layout.place_directories(tree, order);
        layout.place_contents(tree, order);
        layout
    }

    fn place_directories(&mut self, tree: &Tree, order: &Order) {
        for (rank, node) in (0..).zip(order.nodes()) {
            if matches!(tree.node(*node).kind, Kind::Directory(_)) {
                self.place_blocks(rank);
            }
        }
    }

    fn place_contents(&mut self, tree: &Tree, order: &Order) {
        // Files with the same contents have the same blocks, except that the last one may be a tail in one of them and
        // a block in another, because of their attributes. Whole blocks serve both.
        let mut known: HashMap<&[u8; 32], (u64, u64)> = HashMap::new();
        for (rank, node) in (0..).zip(order.nodes()) {
            // A symlink with many attributes has a block, too.
            let node = tree.node(*node);
            if matches!(node.kind, Kind::Symlink(_)) {
                self.place_blocks(rank);
            }
            let Kind::File(body) = &node.kind else { continue };
            let place = &mut self.places[rank as usize];
            match known.get(&body.digest) {
                Some((first, blocks)) if *blocks >= place.blocks && place.blocks > 0 => place.first_block = *first,
                _ => {
                    self.place_blocks(rank);
                    let place = &self.places[rank as usize];
                    known.insert(&body.digest, (place.first_block, place.blocks));
                }
            }
        }
    }

    /// The next free blocks.
    fn place_blocks(&mut self, rank: u32) {
        let place = &mut self.places[rank as usize];
        if place.blocks > 0 {
            place.first_block = self.blocks;
            // A file has at most 2^51 blocks, and a tree at most 2^32 files. If that is over 2^64, the sum stays at a
            // value that is refused.
            self.blocks = self.blocks.saturating_add(place.blocks);
            self.by_block.push(rank);
        }
    }
}

/// All of a place but its addresses.
fn place_of<'a>(tree: &'a Tree, order: &Order, rank: u32, shared: &Shared<'a>) -> Place {
    let node = order.nodes()[rank as usize];
    let xattr_bytes = shared.bytes_behind(&tree.node(node).attributes);
    let (size, storage, blocks) = match &tree.node(node).kind {
        Kind::Directory(children) => {
            let dirents = Dirents::new(children, node, order.nodes()[order.parent(rank) as usize]);
            plain(dirents.size(&dirents.blocks()), xattr_bytes)
        }
        Kind::File(body) => contents(body, xattr_bytes),
        Kind::Symlink(target) => plain(target.len() as u64, xattr_bytes),
        Kind::CharacterDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo | Kind::Socket => (0, Storage::Blocks, 0),
    };
    Place { inode: 0, xattr_bytes, size, storage, blocks, first_block: 0 }
}

/// Size, storage and blocks of data without holes.
fn plain(size: u64, xattr_bytes: u64) -> (u64, Storage, u64) {
    let tail = size % BLOCK_BYTES;
    if tail > 0 && INODE_BYTES + xattr_bytes + tail <= BLOCK_BYTES {
        (size, Storage::Tail, size / BLOCK_BYTES)
    } else {
        (size, Storage::Blocks, size.div_ceil(BLOCK_BYTES))
    }
}

/// Size, storage and blocks of a file. If it has holes that are worth it, it is a list of chunks. Their size is the one
/// with which the image gets shortest: short ones leave more holes out, long ones need fewer addresses.
///
/// Many programs have a few blocks of zeros somewhere. Those stay in one piece, which the kernel maps at once.
fn contents(body: &Body, xattr_bytes: u64) -> (u64, Storage, u64) {
    let all = body.size.div_ceil(BLOCK_BYTES);
    if blocks_with_data(body, 0) == all {
        return plain(body.size, xattr_bytes);
    }
    let sizes = (0..=CHUNK_BITS_MAX).map(|bits| (bits, blocks_with_data(body, bits)));
    let bytes = |(bits, blocks): &(u8, u64)| blocks * BLOCK_BYTES + chunk_count(body.size, *bits) * CHUNK_ADDRESS_BYTES;
    let (bits, blocks) = sizes.min_by_key(bytes).expect("there are several sizes");
    let saved = all - blocks;
    if saved * HOLES_SHARE_MIN < all && saved < HOLES_BLOCKS_MIN {
        return plain(body.size, xattr_bytes);
    }
    (body.size, Storage::Chunks { bits, long: false }, blocks)
}

fn blocks_with_data(body: &Body, bits: u8) -> u64 {
    let blocks = chunk_runs(body, bits).map(|run| blocks_of(&run, body.size, bits));
    blocks.map(|blocks| blocks.end - blocks.start).sum()
}

/// The chunks of a file that have data, as runs that do not touch each other.
pub(super) fn chunk_runs(body: &Body, bits: u8) -> impl Iterator<Item = Range<u64>> {
    let shift = u32::from(bits) + BLOCK_BYTES.trailing_zeros();
    let mut extents =
        body.extents.iter().map(move |one| one.offset >> shift..((one.offset + one.bytes - 1) >> shift) + 1).peekable();
    std::iter::from_fn(move || {
        let mut run = extents.next()?;
        while let Some(next) = extents.next_if(|next| next.start <= run.end) {
            run.end = next.end;
        }
        Some(run)
    })
}

/// The blocks of a file that are in these chunks. The last chunk ends with the file.
pub(super) fn blocks_of(chunks: &Range<u64>, size: u64, bits: u8) -> Range<u64> {
    chunks.start << bits..(chunks.end << bits).min(size.div_ceil(BLOCK_BYTES))
}

/// The number of chunks of a file.
pub(super) fn chunk_count(size: u64, bits: u8) -> u64 {
    size.div_ceil(BLOCK_BYTES).div_ceil(1 << bits)
}

/// Gives inodes their place in blocks.
#[derive(Debug)]
struct Packer {
    next_block: u64,
    /// Blocks with room, and how much of each is used.
    open: Vec<(u64, u64)>,
}

impl Default for Packer {
    fn default() -> Self {
        Self { next_block: 1, open: Vec::new() }
    }
}

impl Packer {
    /// The place of an inode with what is behind it. If all that fits into one block, it will be in one.
    fn add(&mut self, bytes: u64) -> u64 {
        let bytes = bytes.next_multiple_of(SLOT_BYTES);
        let fitting = self.open.iter().enumerate().filter(|(_, (_, used))| used + bytes <= BLOCK_BYTES);
        // Of those that are equally full the first one.
        if let Some((index, _)) = fitting.rev().max_by_key(|(_, (_, used))| *used) {
            let (block, used) = self.open[index];
            self.keep_open(index, used + bytes);
            return block * BLOCK_BYTES + used;
        }
        let place = self.next_block * BLOCK_BYTES;
        self.next_block += bytes.div_ceil(BLOCK_BYTES);
        if !bytes.is_multiple_of(BLOCK_BYTES) {
            self.open.push((self.next_block - 1, 0));
            self.keep_open(self.open.len() - 1, bytes % BLOCK_BYTES);
        }
        place
    }

    /// Notes how much of an open block is used, and closes one if it is full or too many are open.
    fn keep_open(&mut self, index: usize, used: u64) {
        self.open[index].1 = used;
        if used + INODE_BYTES > BLOCK_BYTES {
            self.open.remove(index);
        } else if self.open.len() > OPEN_BLOCKS {
            let fullest = (0..self.open.len()).max_by_key(|index| self.open[*index].1);
            self.open.remove(fullest.expect("there are some"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Extent;

    fn body(size: u64, parts: &[(u64, u64)]) -> Body {
        let extents = parts.iter().map(|(offset, bytes)| Extent { offset: *offset, bytes: *bytes, spool_offset: 0 });
        Body { size, extents: extents.collect(), digest: [0; 32] }
    }

    #[test]
    fn a_file_without_a_whole_empty_block_is_no_list_of_chunks() {
        let cases = [
            (body(0, &[]), Storage::Blocks, 0),
            (body(1, &[(0, 1)]), Storage::Tail, 0),
            (body(4032, &[(0, 4032)]), Storage::Tail, 0),
            (body(4033, &[(0, 4033)]), Storage::Blocks, 1),
            (body(4096, &[(0, 4096)]), Storage::Blocks, 1),
            (body(4097, &[(0, 4097)]), Storage::Tail, 1),
            (body(12288, &[(100, 1), (5000, 1), (12287, 1)]), Storage::Blocks, 3),
        ];
        for (body, storage, blocks) in cases {
            assert_eq!(contents(&body, 0), (body.size, storage, blocks), "{body:?}");
        }
    }

    #[test]
    fn chunks_have_the_size_that_makes_the_image_shortest() {
        let chunks = |bits| Storage::Chunks { bits, long: false };
        assert_eq!(contents(&body(100, &[]), 0), (100, chunks(0), 0));
        assert_eq!(contents(&body(8192, &[(4096, 4096)]), 0), (8192, chunks(0), 1));
        // One block in nine is not worth it, a mebibyte in sixteen is.
        assert_eq!(contents(&body(36_864, &[(4096, 32_768)]), 0), (36_864, Storage::Blocks, 9));
        let mebibyte = 1 << 20;
        let nearly_all = body(16 * mebibyte, &[(mebibyte, 15 * mebibyte)]);
        assert_eq!(contents(&nearly_all, 0), (16 * mebibyte, chunks(8), 3840));
        // A hole of 1 GiB needs 2048 addresses of chunks of 512 KiB; with chunks of 1 MiB more data would be written.
        let gibibyte = 1 << 30;
        assert_eq!(contents(&body(gibibyte, &[]), 0), (gibibyte, chunks(18), 0));
        let half_mebibyte = body(gibibyte, &[(1 << 20, 1 << 19)]);
        assert_eq!(contents(&half_mebibyte, 0), (gibibyte, chunks(7), 128));
        // One block in a file of the largest size: 2^51 addresses are worse than a chunk of 2^31 blocks would be.
        let (_, storage, blocks) = contents(&body(i64::MAX as u64, &[(0, 1)]), 0);
        let Storage::Chunks { bits, .. } = storage else { panic!("it is sparse") };
        assert!(bits > 16 && blocks < 1 << 25, "{bits} {blocks}");
    }

    #[test]
    fn runs_of_chunks_are_joined_and_end_with_the_file() {
        let body = body(50_000, &[(0, 1), (4096, 1), (16384, 8192), (24576, 1), (49_999, 1)]);
        assert_eq!(chunk_runs(&body, 0).collect::<Vec<_>>(), [0..2, 4..7, 12..13]);
        assert_eq!(chunk_runs(&body, 2).collect::<Vec<_>>(), [0..2, 3..4]);
        assert_eq!(blocks_of(&(3..4), 50_000, 2), 12..13);
    }

    #[test]
    fn no_inode_that_fits_into_a_block_crosses_its_end() {
        let mut packer = Packer::default();
        let mut places: Vec<(u64, u64)> =
            (0..5000_u64).map(|n| 64 + n * 37 % 4033).map(|bytes| (packer.add(bytes), bytes)).collect();
        places.push((packer.add(10_000), 10_000));
        assert_eq!(places[0].0, BLOCK_BYTES);
        places.sort_unstable();
        assert!(places.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        let crosses = |(place, bytes): &(u64, u64)| place / BLOCK_BYTES != (place + bytes - 1) / BLOCK_BYTES;
        assert!(places.iter().all(|one| one.0 % SLOT_BYTES == 0 && (one.1 > BLOCK_BYTES || !crosses(one))));
        let bytes: u64 = places.iter().map(|(_, bytes)| bytes).sum();
        assert!((packer.next_block - 1) * BLOCK_BYTES < bytes * 11 / 10, "less than 10 % is unused");
    }
}
