//! What a host asks to learn whether anybody needs the guest now.

use serde::{Deserialize, Serialize};

/// The most leases that one answer lists.
pub const LEASES_MAX: usize = 64;
/// The longest that a lease lasts: a day. A longer one is ignored.
pub const LEASE_SECONDS_MAX: u64 = 86_400;

/// Reply to `Activity`. A guest is idle where all counts are zero, all lists are empty, and the CPU time between two
/// answers is small.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Activity {
    /// Time since boot, in milliseconds.
    pub uptime_ms: u64,
    /// CPU time not idle, all CPUs together, in milliseconds since boot.
    pub cpu_busy_ms: u64,
    /// Commands that run and are no session.
    pub execs: u32,
    /// Names of the sessions that run anything but a shell which waits for input and has no child.
    #[serde(default)]
    pub sessions: Vec<String>,
    /// Watches that are open.
    pub watches: u32,
    /// Connections that are forwarded.
    pub forwards: u32,
    /// What programs of the guest declared, at most [`LEASES_MAX`].
    #[serde(default)]
    pub leases: Vec<Lease>,
}

/// A program's wish that the guest be kept running: a file in `/run/kiln/leases` that holds a number of seconds, counted
/// from the time when the file was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Name of the file: 1 to 64 of `[A-Za-z0-9._-]`, with `_` for anything else.
    pub name: String,
    /// Time until it ends by itself, at most [`LEASE_SECONDS_MAX`].
    pub expires_in_ms: u64,
}
