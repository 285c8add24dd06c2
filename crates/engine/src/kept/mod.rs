//! A VM that is kept for longer than it is used: hot while it is needed, warm and then cold while it is not.
//!
//! ```text
//!            ┌───────── idle_to_warm ────────▶ warm: paused, commands frozen ──┐
//!   hot: runs│                                                            idle_to_cold
//!            ├───────────────── idle_to_cold ──────────▶ cold: a snapshot, no process
//!            └◀─────────────────── ensure_hot ──────────────────────────────────┘
//!   any ── crash, exit, destroy ──▶ ended, with the reason
//! ```
//! One task owns the VM. So a thousand requests at once wake it once, and it can't be cooled while one of them uses it.
//! The task does one thing after the other. Its state is in a channel of its own, so reading the state never waits for
//! a save.
//!
//! The guest's events, console and findings continue across wakes, see [`Watch`](crate::guest::Watch): it is one
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
