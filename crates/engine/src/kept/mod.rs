//! A VM that is kept for longer than it is used: hot while somebody needs it, warm and then cold while nobody does.
//!
//! ```text
//!            ┌───────── idle_to_warm ────────▶ warm: CPUs stand still ──┐
//!   hot: runs│                                                       idle_to_cold
//!            ├───────────────── idle_to_cold ──────────▶ cold: a snapshot, no process
//!            └◀─────────────────── ensure_hot ──────────────────────────┘
//! ```
//! One task owns the VM, so that a thousand requests at once wake it once, and nothing cools it while one of them uses it.

mod activity;
mod keeper;
mod policy;

pub use activity::Activity;
pub use keeper::{HotVm, Inspection, KeptVm, WakeError, WarmError};
pub use policy::{KeepPolicy, Temperature};
