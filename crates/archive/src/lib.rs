//! Files between host and guest as a tar archive: one reader and one writer, used on both sides.
//!
//! ```text
//!   a file ──▶ Writer ──▶ bytes ──▶ Members ──▶ Member, then Data { offset, bytes } …, then its length
//! ```
//!
//! The writer writes GNU tar: names of any bytes and any length, and holes stay holes (the old sparse format, which
//! every tar reads). The reader reads ustar, GNU and pax with all of their sparse formats. Three cases are special:
//!
//! - **Holes.** The file system reports where a file has data (`SEEK_DATA`, `SEEK_HOLE`). A hole costs neither time nor
//!   memory in the archive, and none at the reader, which only makes the file longer.
//! - **Wrong sizes.** A header comes before its data, but files of `/proc` have no size and those of `/sys` a wrong
//!   one. So the start of a file is read before its header is written; if the file ends there, its size is what was
//!   read. A file that is longer than its size is read to its end into memory, up to [`SPOOL_BYTES_MAX`].
//! - **Files that become shorter** while they are packed. Their data is filled up with zeros, like in every tar, and a
//!   global pax record after it, `KILN.size`, has the length that was read. Other programs ignore the record;
//!   [`Members`] returns it as the file's length.
//!
//! Layers of images are tar archives too. They come from anywhere, so [`Members::of_layer`] reads them by stricter rules.
//!
//! All that is read is checked before it is used. Memory is bounded by constants.

#![forbid(unsafe_code)]

mod error;
mod extents;
mod input;
mod maps;
mod members;
mod numbers;
mod pax;
mod writer;
mod xattrs;

pub use error::{ArchiveError, WriteError};
pub use extents::{EXTENTS_MAX, data_parts};
pub use members::{Data, Member, Members};
pub use pax::EXTENSION_BYTES_MAX;
pub use tar::EntryType;
pub use writer::{Attributes, END_BYTES, SPOOL_BYTES_MAX, Special, Writer};
pub use xattrs::Xattr;

/// Types of file systems that are views of the kernel. Reading them may block or change things, and some files in them
/// have no end. If one is mounted below what is packed, its directory is packed without its content.
pub const KERNEL_FILE_SYSTEMS: [i64; 6] = [0x9fa0, 0x6265_6572, 0x6367_7270, 0x0027_e0eb, 0x6462_6720, 0x7472_6163];

/// Size of a tar block.
const BLOCK_BYTES: usize = 512;

/// Bytes that fill a member's data up to a whole block.
fn padding(size: u64) -> u64 {
    let block = BLOCK_BYTES as u64;
    (block - size % block) % block
}
