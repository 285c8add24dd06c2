//! The events of a run: an append-only file of JSON lines, of which everything else is a fold.
//!
//! ```text
//!   dispatcher ── Event ──▶ Journal (events.jsonl, synced at each verdict)
//!                             │ read: lines that are broken are named, the rest counts
//!                             ▼
//!                           RunRecord ──▶ reports · resume · history · terminal
//! ```

mod event;
mod journal;
mod record;

#[cfg(test)]
pub(crate) mod tests;

pub use event::{Attempt, CaseKey, CaseVerdict, Event, RunHead, RunId};
pub use journal::{BadLine, EVENTS_FILE, Journal, JournalError, read_events};
pub use record::{CaseRecord, CellRecord, CellState, FindingRecord, RunRecord};
