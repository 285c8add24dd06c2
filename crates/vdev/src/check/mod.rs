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

pub use case::{Case, Need};
pub use cases::all as cases;
pub use expected::{ExpectedError, ExpectedFailures};
pub use facts::{CheckedDevice, DeviceKnown, Facts};
pub use process::{CommandError, SpawnCommand};
pub use report::{Counts, Report};
pub use run::{CheckError, JOBS_MAX, Options, run, selected};
pub use trace::{Side, Trace, TraceLine, backend_message, backend_reply, frontend_message};
pub use verdict::{CaseReport, Expectation, Level, Resources, UnknownLevel, Verdict};
