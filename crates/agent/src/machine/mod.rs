//! The identity of a guest and what it is connected to: its names, its addresses, its boot id, its networks and its
//! disks. PID 1 sets them at boot and again in each fork.

pub mod boot_id;
pub mod disks;
pub mod hosts;
pub mod network;
pub mod resolver;

/// The directory for leases of programs in the guest, see [`services::activity`](crate::services::activity).
pub const LEASES: &str = "/run/kiln/leases";
