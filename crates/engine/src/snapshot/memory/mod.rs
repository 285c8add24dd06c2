//! Guest memory in snapshots. All of it blocks: callers run it where blocking is allowed.
//!
//! ```text
//!   VMM's private mapping ──pagemap──▶ own pages ──compare with the parent──▶ save ──▶ `pages` file
//!        ▲                                              ▲                                │
//!        └───────────── apply ◀───── ChainMemory: root `memory` and the diffs on it ◀────┘
//!                                         └──▶ flatten: one `memory` file of its own
//! ```
//! A VM that was restored maps its root's memory file privately, so the pages that it wrote are anonymous memory of the
//! VMM's process. They are what a diff holds, less those whose content is the parent's after all.

mod apply;
mod chain;
mod copy;
mod error;
mod flatten;
mod mapping;
#[cfg(test)]
mod model;
mod page_file;
mod page_runs;
mod pagemap;
mod process_memory;
mod save;
#[cfg(test)]
mod testing;

pub(crate) use apply::apply;
pub(crate) use chain::ChainMemory;
pub(crate) use copy::{copy_sparse, data_extents, punch_zeros};
pub use error::MemoryError;
pub(crate) use flatten::flatten;
pub(crate) use mapping::{Mapping, Sharing};
#[cfg(test)]
pub(crate) use page_file::PAGE_BYTES;
pub use page_file::read_page_file;
pub(crate) use pagemap::own_pages;
pub(crate) use save::save;
