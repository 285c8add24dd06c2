//! The test lab: a plan has cases, each case is attempted in its own VM, and the attempts give a verdict.
//!
//! So far it has [`Verdict`], and the exit code of a run from its verdicts.

pub mod events;
pub mod plan;
pub mod results;
pub mod run;

mod cells;
mod verdict;

pub use cells::Cell;
pub use verdict::{Verdict, exit_code};
