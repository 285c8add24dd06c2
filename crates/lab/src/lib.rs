//! The test lab: a plan has cases, each case is attempted in its own VM, and the attempts give a verdict.
//!
//! ```text
//!   TOML ── plan ──▶ Plan ── run ──▶ events (events.jsonl) ──▶ RunRecord ── report ──▶ text, Markdown, JUnit, JSON, CSV
//!                             │ results: what suites print
//! ```
//! [`Verdict`] is the end of a case, [`exit_code`] that of a run.

pub mod events;
pub mod plan;
pub mod report;
pub mod results;
pub mod run;

mod cells;
mod verdict;

pub use cells::Cell;
pub use verdict::{Verdict, exit_code};
