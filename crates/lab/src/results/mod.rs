//! What suites print, read into results of cases.
//!
//! ```text
//!   bytes of stdout or a file ── Reader::push ──▶ lines ── by kind ──▶ CaseResult …
//!                                Reader::finish ─────────────────────▶ problem of the whole, if there is one
//! ```
//! The bytes come from a guest that may be hostile or broken: lines, cases and messages are bounded, and text that is
//! not a result is not an error. Whether all cases came is decided at the end: from the plan that the suite printed,
//! and from the exit code of its command.

mod case_result;
mod junit;
mod libtest;
mod reader;
mod tap;

#[cfg(test)]
mod tests;

pub use case_result::{CASES_MAX, CaseResult, MESSAGE_BYTES_MAX, NAME_BYTES_MAX, Outcome, TEXT_BYTES_MAX};
pub use reader::Reader;
