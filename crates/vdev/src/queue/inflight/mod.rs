//! The memory in which requests under way are recorded, so that they survive the backend ("Inflight I/O tracking" in the
//! specification).
//!
//! ```text
//!   backend: InflightRegion::create ──▶ GET_INFLIGHT_FD ──▶ frontend, which keeps it
//!   backend: InflightRegion::map ◀───── SET_INFLIGHT_FD ◀───── and brings it to each backend that comes
//!            queue(n) ──▶ DeviceRing::set_inflight ──▶ resubmit … resubmit ──▶ pop
//! ```
//! A backend may be killed between any two writes, and the next one recovers from what is in memory then. So the order of the
//! writes is the whole protocol; [`split`] and [`packed`] give it, and what each moment leaves behind.
//!
//! No barriers of the processor are needed. The reader is not another processor that runs at the same time, but a process that
//! starts after the writer has died. The kernel has then taken the writer off its processor, which makes all of its earlier
//! stores visible. Only the compiler must keep the order: the writes are volatile, which it does not exchange among each other,
//! and `compiler_fence` keeps them on their side of the atomic stores that publish. This holds for a killed process, not for
//! a host that loses power: the region is memory, and is gone then.

mod packed;
mod region;
mod split;
#[cfg(test)]
mod tests;

pub(super) use packed::PackedRecord;
pub(crate) use region::InflightQueue;
pub use region::InflightRegion;
pub(super) use split::SplitRecord;
