//! Files of the guest: all requests of `kiln_wire::FilesRequest`, and watching.
//!
//! ```text
//!   FilesRequest ─▶ start ─▶ Job ─┬▶ Answered                       done already
//!                                 ├▶ Read, Pack       pull bytes    fill(&mut buffer), write_to(&mut stream)
//!                                 └▶ Write, Append, Unpack          write(&bytes) + commit(), read_from(&mut stream)
//! ```
//!
//! The functions block, so the caller must call them on a thread that may. They don't depend on streams. Paths are
//! resolved once, to an open directory and a last name, and the work is done on those, so nothing can be replaced
//! between check and use. The kernel enforces a jail (`RESOLVE_BENEATH`); path strings are not inspected for it. Memory
//! is bounded by constants and doesn't depend on the content of files. `/proc` must be mounted.

mod fault;
mod memory;
mod request;

mod place;
mod stat;

mod list;
mod read;
mod write;

mod remove;
mod tree;
mod walk;

mod archive;
mod changes;
mod left_out;
mod unpack;

mod watch;

#[cfg(test)]
mod tests;

pub use archive::{Packed, Packer};
pub use changes::{ChangesPacker, is_overlay, set_upper, upper};
pub use fault::fault_from_errno;
pub use left_out::LeftOut;
pub use list::{LIST_LIMIT_MAX, list, stat};
pub use place::Root;
pub use read::Reader;
pub use remove::remove;
pub use request::{Answer, Job, start};
pub use tree::{chmod, chown, copy, mkdir, rename, symlink};
pub use unpack::{Owners, Unpacked, Unpacker};
pub use watch::{WATCHED_DIRECTORIES_MAX, Watcher};
pub use write::{Append, AtomicWrite};
