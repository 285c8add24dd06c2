//! Images with a root filesystem, on one of Debian's smallest set of packages and Python.
//!
//! ```text
//!   mmdebstrap ──▶ tar ──┬─▶ conversion: kiln | mkfs.erofs on the same tree, in turn
//!   (once, cached)       └─▶ image ──┬─▶ second use: fork of it | fork of mini, in turn
//!                                    ├─▶ 20 forks at once, and the memory of each
//!                                    └─▶ warmed: kiln run | a fork, and the same command in a hot VM, in turn
//! ```
//! The image and its snapshots are removed at the end. The archive stays in the cache.

mod conversion;
mod crowd;
mod debian;
mod interpreter;
mod second_use;

pub(super) use debian::Debian;
pub use debian::measure;
