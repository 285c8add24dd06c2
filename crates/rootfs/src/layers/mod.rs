//! From the layers of an image to one tree.
//!
//! ```text
//!   layer ──▶ read ──▶ nodes without names, in the Tree        bodies ──▶ Spool
//!               └────▶ Journal: names and marks ──▶ merge ──▶ names in the Tree
//! ```
//!
//! # Why a layer is read to its end before it changes the tree
//! A mark of a layer (`.wh.NAME`, `.wh..wh..opq`) acts on the layers below it, and never on its own layer, wherever in the
//! archive it is. If marks were applied as they arrive, a mark at the end would also act on what its own layer has
//! already changed: on files that earlier entries have put below a symlink which the mark removes, for example. So the
//! names of a layer are collected in a [`journal`]; then all marks are applied to the tree of the layers below, and then
//! all entries in their order. Contents are not collected. They go to the spool while the layer is read.
//!
//! # What a layer can cost
//! Memory: every node, name, link target and extended attribute is counted before it is kept, and [`Limits`] bounds each
//! sum; the extents of files are bounded by the bytes in the spool, since each has a block of data. Time: each
//! entry costs its path, one look-up for each name in it. Symlinks in a path could multiply that, so the names in their
//! targets are counted for all layers together. Nothing is recursive.

mod error;
mod journal;
mod limits;
mod merge;
mod names;
mod notes;
mod read;
mod stack;
mod walk;

pub use error::{LayerError, Refusal};
pub use limits::{DEPTH_MAX, FILE_BYTES_MAX, LINKS_MAX, Limits, NAME_BYTES_MAX, PATH_BYTES_MAX, XATTR_BYTES_MAX};
pub use names::PathFault;
pub use notes::{NOTED_MAX, Noted, Notes};
pub use stack::{LayerReport, Layers};
