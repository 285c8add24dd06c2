//! What makes a guest one machine among others: its names, its addresses, the id of its boot. PID 1 sets them once, and
//! each fork again.

pub mod boot_id;
pub mod hosts;
pub mod network;

/// Where programs of a guest leave their leases; see [`services::activity`](crate::services::activity).
pub const LEASES: &str = "/run/kiln/leases";
