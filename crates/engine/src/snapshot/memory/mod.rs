//! Guest memory in snapshots. All functions block, so callers run them on threads that may block.
//!
//! ```text
//!   VMM's private mapping ──pagemap──▶ own pages ──compare with the parent──▶ save ──▶ `pages` file
//!        ▲                                              ▲                                │
//!        └───────────── apply ◀───── ChainMemory: root `memory` and the diffs on it ◀────┘
//!                                         └──▶ flatten: one `memory` file of its own
//! ```
//! A restored VM maps its root's memory file privately, so the pages that it wrote are anonymous memory of the VMM's
//! process. A diff holds these pages, except those whose content is still the parent's.
//!
//! No tracking of writes is needed for this. The kernel copies a page of a private mapping at the first write, and from
//! then on the copy belongs to the process alone. So "anonymous" in pagemap means "may differ from the file", and a
//! page that is not anonymous is the file's. Pages of the parent's diffs were written by Kiln itself, so they are
//! anonymous too; comparing removes them.

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
