//! The test lab: a plan becomes cases, cases become attempts in VMs of their own, and these a verdict each.
//!
//! So far it holds the words that the rest will speak: [`Verdict`], and the exit code that a run's verdicts add up to.

mod verdict;

pub use verdict::{Verdict, exit_code};
