//! Runs a plan: prepares each cell once, saves it, and forks it for each case.
//!
//! ```text
//!   Plan ─ cells ─▶ prepare: boot, copy, scripts ─▶ snapshot ─▶ pool of forks
//!                                                                  │ one per attempt
//!          jobs ─▶ workers (-j) ── attempt: fork, command, findings ┘─▶ decide ─▶ verdicts
//!                                   └────────────────── Event ──▶ Journal, Observer
//! ```
//! One dispatcher owns the jobs and the journal. A worker owns one VM at a time, and drops it before the next. So a
//! crash costs one fork, and whatever stops the run, no VM is left.

mod attempt;
mod cell;
mod decide;
mod dispatch;
mod pattern;
mod taint;

pub use attempt::ARTIFACT_BYTES_MAX;
pub use cell::{CellVm, Host, HostError, PrepareError};
pub use dispatch::{Observer, Options, RunError, Stop, due, run};
pub use pattern::matches;
