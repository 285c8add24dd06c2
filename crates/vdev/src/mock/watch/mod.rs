//! Watches what a frontend does, and judges it: a conformance report of the other direction.
//!
//! ```text
//!    Server ──SessionEvent──▶ Watch: the session so far ──▶ a rule holds, or is broken ──▶ check::Report
//! ```
//! A rule that never had an occasion is skipped; one that was broken once stays broken, with the messages before it.

mod observer;
mod outcomes;
mod refused;
mod rules;
mod session;

pub use observer::Watch;
