//! The CPUs, memory and free disk space of this host.

use camino::Utf8Path;
use fs_err as fs;

use crate::spec::HostLimits;

/// Digits of the digest of a CPU's features.
const FEATURES_DIGITS: usize = 8;
/// The part of /proc/cpuinfo that is read. The text about one CPU is shorter.
const CPUINFO_BYTES: u64 = 8 << 10;

/// CPUs and memory of this host.
pub(crate) fn limits() -> HostLimits {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX));
    // Without /proc the bound is unknown. If there is too little memory, the VMM reports it.
    HostLimits { cpus, memory_mib: memory_mib("MemTotal:").unwrap_or(u64::MAX) }
}

/// Memory that is free or can be freed. `None` if the host does not report it.
pub(crate) fn memory_available_mib() -> Option<u64> {
    memory_mib("MemAvailable:")
}

/// The proportional set size of a process in bytes: a page that n processes share counts as 1/n (proc(5),
/// `smaps_rollup`).
pub(crate) fn proportional_set_bytes(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The CPU that a guest with `-cpu host` requires after a restore: the model, and a digest of the features. These
/// depend on microcode, kernel and hypervisor too.
pub(crate) fn cpu_identity() -> String {
    use std::io::Read as _;
    // The text about the first CPU is enough. The file is long on a host with many CPUs.
    let mut head = Vec::new();
    let read = fs::File::open("/proc/cpuinfo").and_then(|file| file.take(CPUINFO_BYTES).read_to_end(&mut head));
    read.map_or_else(|_| "unknown".into(), |_| identity_in(&String::from_utf8_lossy(&head)))
}

fn identity_in(cpuinfo: &str) -> String {
    let model = cpuinfo_field(cpuinfo, "model name").unwrap_or("unknown");
    let mut features: Vec<&str> = cpuinfo_field(cpuinfo, "flags").unwrap_or_default().split_whitespace().collect();
    features.sort_unstable();
    let digest = blake3::hash(features.join(" ").as_bytes()).to_hex();
    format!("{model}, features {}", &digest[..FEATURES_DIGITS])
}

fn memory_mib(field: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

pub(crate) fn cpuinfo_field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    let of_name = |line: &'a str| line.split_once(':').filter(|(key, _)| key.trim() == name);
    cpuinfo.lines().find_map(of_name).map(|(_, value)| value.trim())
}

/// Free disk space for files of this user.
pub(crate) fn free_mib(directory: &Utf8Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(directory.as_std_path()).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_free_space_of_this_host_is_known() {
        assert!(free_mib(Utf8Path::new("/")).is_some());
    }

    #[test]
    fn a_field_is_found_only_by_its_whole_name() {
        let cpuinfo = "model\t\t: 85\nmodel name\t: A CPU: fast\nflags\t\t: fpu tsc\n";
        assert_eq!(cpuinfo_field(cpuinfo, "model name"), Some("A CPU: fast"));
        assert_eq!(cpuinfo_field(cpuinfo, "flag"), None);
    }

    #[test]
    fn a_cpu_with_other_features_has_another_identity() {
        let identity = |flags: &str| identity_in(&format!("model name\t: A CPU\nflags\t\t: {flags}\n"));
        assert!(identity("fpu tsc").starts_with("A CPU, features "), "{}", identity("fpu tsc"));
        assert_eq!(identity("fpu tsc"), identity("tsc fpu"));
        assert_ne!(identity("fpu tsc"), identity("fpu"));
        assert!(identity_in("").starts_with("unknown"));
    }
}
