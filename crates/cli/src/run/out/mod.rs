//! The host's side of `--out`: unpacks an archive from a guest. Its paths, sizes, counts and modes are not trusted.
//!
//! ```text
//!   pieces ──▶ Arriving (Budget) ──▶ Members ─┬▶ .kiln-out-…/whole ── complete, and the agent confirmed it ──▶ place
//!                                             └▶ a device, a FIFO, stdout: written as it arrives
//! ```
//!
//! An existing target keeps its type: a file stays a file with its mode, a folder is merged into, a device or FIFO is
//! written to. Nothing is moved to its place before all of it has arrived and no file conflicts with the target.

mod arriving;
mod budget;
mod merge;
mod place;
mod staging;
mod stream;
mod take;
mod target;
mod unpack;

#[cfg(test)]
mod tests;

pub use arriving::Piece;
pub use budget::Budget;
pub use take::{LeftOut, take};
pub use target::Target;
