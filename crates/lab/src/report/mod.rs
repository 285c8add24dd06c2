//! Reports of a run: each is a fold over its record, without I/O.
//!
//! ```text
//!   RunRecord ──▶ text   for a terminal, findings first
//!             ──▶ json   for programs
//! ```
//! Names, messages and titles come from guests. Each report escapes what would have a meaning in its format, and shows
//! characters that hide or steer as escapes.

mod json;
mod text;

pub use json::json;
pub use text::{counts, text};

#[cfg(test)]
mod tests;
