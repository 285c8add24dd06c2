//! Facts of this machine. Reports of `kiln doctor` and of benchmarks include them.

use camino::Utf8PathBuf;
use fs_err as fs;
use serde::Serialize;

use crate::drivers::qemu::QemuVersion;
use crate::host::{cpuinfo_field, limits, memory_available_mib};

/// Facts of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// Such as `x86_64`.
    pub architecture: String,
    /// CPUs that this process may use.
    pub cpus: u32,
    /// `model name` of `/proc/cpuinfo`.
    pub cpu_model: String,
    /// All of its memory.
    pub memory_mib: u64,
    /// `MemAvailable` of `/proc/meminfo`: memory that is free or can be freed.
    pub memory_available_mib: u64,
    /// Release and version of the running kernel.
    pub kernel: String,
    /// The kernel's clock source, such as `tsc`.
    pub clocksource: String,
    /// Whether the time stamp counter has a constant rate, also while the CPU sleeps.
    pub stable_tsc: bool,
    /// The QEMU that the engine starts.
    pub qemu: Option<Utf8PathBuf>,
    /// The version of that QEMU.
    pub qemu_version: Option<QemuVersion>,
}

impl HostFacts {
    /// Reads the facts now. A fact that can't be read is `unknown` or 0.
    pub fn collect(qemu: Option<Utf8PathBuf>, qemu_version: Option<QemuVersion>) -> Self {
        let limits = limits();
        let system = rustix::system::uname();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = cpuinfo_field(&cpuinfo, "flags").unwrap_or_default();
        let flag = |name| flags.split_ascii_whitespace().any(|flag| flag == name);
        let clocksource = fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource");
        Self {
            architecture: system.machine().to_string_lossy().into_owned(),
            cpus: limits.cpus,
            cpu_model: cpuinfo_field(&cpuinfo, "model name").unwrap_or("unknown").to_owned(),
            memory_mib: limits.memory_mib,
            memory_available_mib: memory_available_mib().unwrap_or(0),
            kernel: format!("{} {}", system.release().to_string_lossy(), system.version().to_string_lossy()),
            clocksource: clocksource.map_or_else(|_| "unknown".into(), |name| name.trim().to_owned()),
            stable_tsc: flag("constant_tsc") && flag("nonstop_tsc"),
            qemu,
            qemu_version,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_name_cpus_and_memory() {
        let facts = HostFacts::collect(None, None);
        assert!(facts.cpus > 0 && facts.memory_mib > 0 && facts.memory_available_mib <= facts.memory_mib);
        assert!(!facts.architecture.is_empty() && facts.kernel.contains('.'));
    }
}
