//! A directory of the host as a tree, for a guest that gets a read-only copy of it.
//!
//! ```text
//!   path ──▶ Walk: one open directory for each level ──▶ Tree
//!              └ contents of files, read once ──▶ Spool
//! ```
//! The directory may change while it is read, and other users may be able to change it. So nothing is opened by a path:
//! each name is opened in its directory, without following symlinks, and all that is read of it is read from that one
//! descriptor. Contents are copied into the spool and hashed on the way, so that what the tree has is what was read.
//! A file that changes meanwhile is read again, and reported if it does not stop changing.
//!
//! [`facts`] tells two states of a directory apart without reading contents.

mod error;
mod facts;
mod node;
mod walk;

pub use error::DirectoryError;
pub use facts::{DirectoryFacts, facts};
pub use walk::{DEPTH_MAX, DirectoryReport, read};
