//! How fast a backend is: how long a handshake and a message take, and what a block device does under load.
//!
//! ```text
//!   handshakes ─▶ round trips ─▶ load at each depth, a thread for each queue ─▶ Report (serde)
//! ```
//! The disk is only read unless writes are requested. Offsets come from a seed that is in the report; latencies go
//! into histograms of bounded size.

mod handshake;
mod histogram;
mod load;
mod options;
mod report;
mod run;

pub use options::{BenchError, BenchOptions, Pattern};
pub use report::{DiskReport, HandshakeReport, Latency, LoadReport, Report};
pub use run::run;

#[cfg(feature = "testing")]
pub use load::{Load, run_load};

for_tests! {
    pub use histogram::Histogram;
}
