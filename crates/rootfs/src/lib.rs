//! Root filesystems of guests: layers of an image in, one read-only EROFS file out.
//!
//! ```text
//!   layer (tar) ──▶ Members ──▶ Layers ──▶ Tree ──▶ erofs::write ──▶ root.erofs
//!                                 │ bodies of files                    ▲
//!                                 └──▶ Spool ──────────────────────────┘
//! ```
//! No path of a layer is ever opened on the host. Names and attributes are in memory, in the [`Tree`]; the contents of
//! files are spans of one spool file.

mod body;
mod canonical;
pub mod directory;
pub mod erofs;
pub mod export;
mod layers;
mod order;
mod source;
mod spool;
mod tree;

pub use body::{BodyHasher, HashError, hash_bodies};
pub use layers::{
    DEPTH_MAX, FILE_BYTES_MAX, LINKS_MAX, LayerError, LayerReport, Layers, Limits, NAME_BYTES_MAX, NOTED_MAX, Noted,
    Notes, PATH_BYTES_MAX, PathFault, Refusal, XATTR_BYTES_MAX,
};
pub use source::Source;
pub use spool::{BodyWriter, SPOOL_BLOCK_BYTES, Spool, SpoolError, SpoolLimits};
pub use tree::{Attributes, Body, Children, Extent, Kind, Node, NodeId, Time, Tree};
