//! Snapshots, forks and pauses, compared with QEMU alone and with gVisor's `runsc` in the same run.
//!
//! ```text
//!   ready-made snapshot ──▶ Lab ──▶ single: fork | QEMU alone | pool | kiln run | runsc, in turn
//!                            ├────▶ border: with the VMM confined and not, in turn
//!                            ├────▶ crowd: 1, 8, 20 at once, and the memory of each
//!                            ├────▶ pauses, chains of diffs
//!                            └────▶ saves: whole at five sizes of memory, diffs at three amounts
//! ```
//! The snapshot is the one that `kiln run` forks. All other snapshots of the bench are removed at the end.

mod border;
mod chains;
mod crowd;
mod pauses;
mod saves;
mod single;

mod arrivals;
mod footprint;
mod lab;
mod peer;
mod raw;
mod raw_agent;
mod raw_monitor;
mod scratch;

pub(super) use crowd::{OWN_MIB_MAX, together};
pub(super) use footprint::Footprint;
pub use lab::measure;
