//! Conformance: one rule for each case, with its level, its verdict and its messages.
//!
//! ```text
//!   Options ──▶ run ──▶ lanes ──▶ for each case: a fresh backend, or the next connection ──▶ CaseReport ──▶ Report
//!                                                                                          text, JSON, JUnit XML
//! ```
//! A report also serves the other direction, in which a frontend is checked: the types are the same.

mod beside;
mod case;
mod cases;
mod context;
mod disk;
mod expected;
mod facts;
mod guest;
mod junit;
mod lane;
mod link;
mod outcome;
mod packed_ring;
mod process;
mod report;
mod request;
mod ring;
mod run;
mod target;
mod trace;
mod verdict;
mod works;

pub use cases::all as cases;
pub use expected::ExpectedFailures;
pub use process::SpawnCommand;
pub use report::Report;
pub use run::{CheckError, JOBS_MAX, Options, run, selected};
pub use verdict::{CaseReport, Level, Verdict};

pub(crate) use trace::{Side, Trace, frontend_message};
pub(crate) use verdict::Expectation;
