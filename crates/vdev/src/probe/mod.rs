//! What is behind a socket: what it offers, how many queues it has, its configuration, how it behaves at the edges.
//!
//! ```text
//!   probe(path) ─▶ ask      one connection, requests only:  features, queues, slots, configuration
//!               ─▶ quirks   connections of their own, each with one thing that peers treat differently
//!               ─▶ ProbeReport
//! ```
//! Requests are harmless: no memory is shared and no ring is started. What may end a backend is done only on request.

mod ask;
mod quirks;
mod report;

pub use ask::{ProbeError, ProbeOptions, probe};
pub use quirks::{Quirk, QuirkId};
pub use report::{ConfigReport, DeviceReport, NamedBits, ProbeReport};
