//! What this host can do, what is missing, and the command that gets it.

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use crate::vm_spec::HostLimits;

/// CPUs and memory of this host.
pub fn limits() -> HostLimits {
    let cpus = std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX));
    HostLimits { cpus, memory_mib: memory_mib().unwrap_or(u64::MAX) }
}

fn memory_mib() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

/// Where a program is: itself if it names a file, else the first of that name on `PATH`.
pub fn find_program(name: &Utf8Path) -> Option<Utf8PathBuf> {
    let executable =
        |path: &Utf8Path| path.is_file() && rustix::fs::access(path.as_std_path(), rustix::fs::Access::EXEC_OK).is_ok();
    if name.as_str().contains('/') {
        return executable(name).then(|| name.to_owned());
    }
    // Tools of the administrator are not on every user's PATH.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    path.split(':')
        .filter(|directory| !directory.is_empty())
        .map(|directory| Utf8Path::new(directory).join(name))
        .find(|path| executable(path))
}
