//! Facts about the machine on which numbers were measured.

use serde::Serialize;

/// The machine and the time of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub kiln: &'static str,
    /// Seconds since 1970.
    pub unix_time_s: u64,
    pub cpu: String,
    pub cpus: u32,
    pub memory_mib: u64,
    pub kernel: String,
    /// Load averages when the run began.
    pub load: String,
    pub vmm: String,
    pub accel: String,
    pub guest_kernel: String,
    pub guest_cpus: u32,
    pub guest_memory_mib: u64,
}

/// Load averages of 1, 5 and 15 minutes.
pub fn load() -> String {
    let load = fs_err::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').take(3).collect::<Vec<_>>().join(" ")
}
