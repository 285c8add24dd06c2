//! Files of the guest: everything that `kiln_wire::FilesRequest` can ask for, and watching.
//!
//! ```text
//!   FilesRequest ─▶ start ─▶ Job ─┬▶ Answered                       done already
//!                                 ├▶ Read, Pack       pull bytes    fill(&mut buffer), write_to(&mut stream)
//!                                 └▶ Write, Append, Unpack          write(&bytes) + commit(), read_from(&mut stream)
//! ```
//!
//! It blocks and knows no protocol: its caller gives it a thread. Paths are resolved once, to an open directory and a
//! last name, and the work is done on those, so nothing can be swapped between the check and the use. A jail is held by
//! the kernel (`RESOLVE_BENEATH`), not by looking at strings. Memory is bounded by constants, not by what files hold.
//! `/proc` must be mounted.

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
mod left_out;
mod unpack;

mod watch;

#[cfg(test)]
mod tests;

pub use archive::{Packed, Packer};
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
