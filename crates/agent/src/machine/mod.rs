//! The identity of a guest: its names, its addresses and its boot id. PID 1 sets them at boot and again in each fork.

pub mod boot_id;
pub mod hosts;
pub mod network;

/// The directory for leases of programs in the guest, see [`services::activity`](crate::services::activity).
pub const LEASES: &str = "/run/kiln/leases";
