//! A tree as an archive for other programs.

mod entry;
mod tar;

pub use tar::{ExportError, Exported, tar};
