//! Files between host and guest as a tar archive: one reader and one writer, and both ends use both.
//!
//! ```text
//!   a file ──▶ Writer ──▶ bytes ──▶ Members ──▶ Member, then Data { offset, bytes } …, then its length
//! ```
//!
//! What is written is GNU tar: names of any bytes and any length, and holes stay holes (the old sparse format, which
//! every tar reads). What is read is ustar, GNU and pax with all of their sparse formats. Three things are special:
//!
//! - **Holes.** The writer asks the file system where a file has data. A hole costs neither time nor memory on the way,
//!   and none on the other end, which only makes the file longer.
//! - **Sizes that lie.** A header comes before its data, but files of `/proc` have no size and those of `/sys` the wrong
//!   one. So the start of a file is read before its header is written; what ends there has the size that was read. A
//!   file with more than its size says is read to its end into memory, up to [`SPOOL_BYTES_MAX`].
//! - **Files that become shorter** while they are packed. Their data is filled up with zeros, as every tar does it, and a
//!   global pax record behind it, `KILN.size`, has the length that was read. Other programs ignore it; [`Members`] gives
//!   it as the file's length.
//!
//! Nothing that is read is believed before it is checked. Memory is bounded by constants.

#![forbid(unsafe_code)]

mod error;
mod extents;
mod members;
mod pax;
mod writer;

pub use error::{ArchiveError, WriteError};
pub use extents::{EXTENTS_MAX, data_parts};
pub use members::{Data, Member, Members};
pub use pax::EXTENSION_BYTES_MAX;
pub use tar::EntryType;
pub use writer::{Attributes, END_BYTES, SPOOL_BYTES_MAX, Writer};

/// Types of file systems that are views of the kernel: reading them may wait or change things, and there is no end to
/// some. Where one is mounted below what is packed, its directory is packed and nothing in it.
pub const KERNEL_FILE_SYSTEMS: [i64; 6] = [0x9fa0, 0x6265_6572, 0x6367_7270, 0x0027_e0eb, 0x6462_6720, 0x7472_6163];

/// A tar archive is made of these.
const BLOCK_BYTES: usize = 512;

/// What fills a member's data up to a whole block.
fn padding(size: u64) -> u64 {
    let block = BLOCK_BYTES as u64;
    (block - size % block) % block
}
