//! EROFS images, uncompressed, with blocks of 4 KiB: written from a [`Tree`](crate::Tree) in one pass, and read back.
//!
//! ```text
//!   Tree ──▶ Order ──▶ Layout ──▶ write ──▶ blocks, their blake3 on the way
//!            │         where each inode and block will be
//!            └ inodes in the order of their names
//!
//!   image ──▶ read ──▶ Tree, whose bodies are extents in the image
//! ```
//! The image is a function of the tree alone. It uses nothing that Linux 5.15 does not know. See
//! `docs/design/0007-images.md` for the layout and the reasons.

mod dirents;
mod error;
mod format;
mod layout;
mod output;
mod read;
mod write;
mod xattrs;

pub use error::{ReadError, WriteError};
pub use read::{ReadLimits, read};
pub use write::{Options, Written, write};
