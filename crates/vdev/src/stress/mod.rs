//! Many clients that come, go, stop half-way, and send too much, from a seed that can be used again; and what is left
//! of the backend afterwards.
//!
//! ```text
//!   probe, its process ─▶ N clients × M cycles, each of a kind that the seed chooses ─▶ probe again, its process again
//! ```
//! What a backend does about a client that breaks the rules is its own affair; that it still serves the others, and is no
//! larger afterwards, is not. A backend that serves one client at a time is reported as such, and is no failure.

mod client;
mod cycle;
mod process;
mod report;
mod run;

pub use cycle::CycleKind;
pub use process::ProcessFacts;
pub use report::{Concurrency, Failure, KindReport, ProcessReport, StressReport};
pub use run::{StressOptions, run};
