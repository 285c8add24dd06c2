//! Whether the guest is in use: what a host reads before it cools a VM.

use serde::{Deserialize, Serialize};

/// The most leases that one reply lists.
pub const LEASES_MAX: usize = 64;
/// The longest lease: a day. A longer one is ignored.
pub const LEASE_SECONDS_MAX: u64 = 86_400;

/// Reply to `Activity`. A guest is idle if all counts are zero, all lists are empty, and the CPU time between two
/// replies is small.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Activity {
    /// Time since boot, in milliseconds.
    pub uptime_ms: u64,
    /// CPU time not idle, all CPUs together, in milliseconds since boot.
    pub cpu_busy_ms: u64,
    /// Commands that run and are not a session.
    pub execs: u32,
    /// Names of the sessions that are in use. A shell that waits for input and has no child is not.
    #[serde(default)]
    pub sessions: Vec<String>,
    /// Watches that are open.
    pub watches: u32,
    /// Forwarded connections.
    pub forwards: u32,
    /// Leases of programs in the guest, at most [`LEASES_MAX`].
    #[serde(default)]
    pub leases: Vec<Lease>,
}

/// A program's request to keep the guest running: a file in `/run/kiln/leases` with a number of seconds, counted
/// from the time when the file was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Name of the file: 1 to 64 of `[A-Za-z0-9._-]`, with `_` for anything else.
    pub name: String,
    /// Time until it expires, in milliseconds; at most [`LEASE_SECONDS_MAX`] seconds.
    pub expires_in_ms: u64,
}
