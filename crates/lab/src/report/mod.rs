//! Reports of a run: each is a fold over its record, without I/O.
//!
//! ```text
//!   RunRecord ──▶ text       for a terminal, findings first
//!             ──▶ markdown   for comments, bounded
//!             ──▶ junit      for CI systems
//!             ──▶ json       for programs
//!             ──▶ csv        for spreadsheets
//! ```
//! Names, messages and titles come from guests. Each report escapes what would have a meaning in its format, and shows
//! characters that hide or steer as escapes.

mod csv;
mod json;
mod junit;
mod markdown;
mod text;

pub use csv::csv;
pub use json::json;
pub use junit::junit;
pub use markdown::{MARKDOWN_BYTES_MAX, markdown};
pub use text::{counts, text};

#[cfg(test)]
mod tests;
