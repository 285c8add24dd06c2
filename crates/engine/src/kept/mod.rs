//! A VM that is kept for longer than it is used: hot while somebody needs it, warm and then cold while nobody does.
//!
//! ```text
//!            ┌───────── idle_to_warm ────────▶ warm: paused, commands frozen ──┐
//!   hot: runs│                                                            idle_to_cold
//!            ├───────────────── idle_to_cold ──────────▶ cold: a snapshot, no process
//!            └◀─────────────────── ensure_hot ──────────────────────────────────┘
//!   any ── crash, exit, destroy ──▶ ended, with the reason
//! ```
//! One task owns the VM, so that a thousand requests at once wake it once, and nothing cools it while one of them uses it.
//! It does one thing after the other; what it does, and why, is in a channel of its own, so that a question never waits
//! behind a save.
//!
//! The guest's events, console and findings go on across wakes, see [`Watch`](crate::guest::Watch): for them it is one
//! machine, however often it was saved.

mod activity;
mod handle;
mod keeper;
mod policy;
mod state;

pub use activity::Activity;
pub use handle::{HotVm, KeptVm};
pub use policy::{KeepPolicy, Temperature};
pub use state::{DestroyError, Ended, Inspection, KeptError, KeptState, WakeError, WarmError};
