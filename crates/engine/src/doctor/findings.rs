//! Findings about QEMU, KVM, the machine and the home. Most of them are made of facts, without I/O.

use camino::Utf8Path;

use super::facts::HostFacts;
use super::report::{FindingStatus, HostFinding};
use crate::drivers::qemu::{QEMU_PROGRAM, QEMU_VARIABLE};
use crate::home::HomeError;
use crate::host::{self, KvmState};

/// An image of kernel and initramfs needs about this much room while it is built.
const FREE_MIB_WANTED: u64 = 512;
/// With less free memory, a guest with the default memory leaves the host too little.
const MEMORY_MIB_WANTED: u64 = 1024;
const HOME_HINT: &str = "export KILN_HOME=/a/directory/of/yours";

/// `named` is the value of [`QEMU_VARIABLE`], if it is set.
pub(super) fn qemu_finding(facts: &HostFacts, named: Option<&str>) -> HostFinding {
    let finding = |status, detail: String| HostFinding::new("qemu", status, detail);
    match (&facts.qemu, facts.qemu_version) {
        (Some(path), Some(version)) => finding(FindingStatus::Ok, format!("{version} at {path}")),
        (Some(path), None) => finding(FindingStatus::Warn, format!("{path} does not report its version")),
        (None, _) => {
            let what = match named {
                Some(path) => format!("`{path}` (from {QEMU_VARIABLE})"),
                None => format!("`{QEMU_PROGRAM}`"),
            };
            finding(FindingStatus::Missing, format!("{what} was not found"))
                .hint("apt-get install --no-install-recommends qemu-system-x86")
        }
    }
}

pub(super) fn kvm_finding(kvm: &KvmState) -> HostFinding {
    let status = match kvm {
        KvmState::Works | KvmState::Opens => FindingStatus::Ok,
        KvmState::Missing | KvmState::Denied | KvmState::Unusable { .. } | KvmState::Lies { .. } => FindingStatus::Warn,
    };
    let detail = match status {
        FindingStatus::Ok => kvm.reason(),
        FindingStatus::Warn | FindingStatus::Missing => format!("{}; VMs run under TCG, slower", kvm.reason()),
    };
    HostFinding::new("kvm", status, detail).hint(kvm.hint())
}

pub(super) fn cpu_finding(facts: &HostFacts) -> HostFinding {
    let detail = format!("{} × {}", facts.cpus, facts.cpu_model);
    if facts.architecture == "x86_64" {
        HostFinding::new("cpu", FindingStatus::Ok, detail)
    } else {
        HostFinding::new("cpu", FindingStatus::Missing, format!("{detail}; Kiln's guests need x86_64"))
    }
}

pub(super) fn memory_finding(facts: &HostFacts) -> HostFinding {
    let detail = format!("{} MiB, {} MiB of it free", facts.memory_mib, facts.memory_available_mib);
    let status = if facts.memory_available_mib < MEMORY_MIB_WANTED { FindingStatus::Warn } else { FindingStatus::Ok };
    HostFinding::new("memory", status, detail)
}

pub(super) fn kernel_finding(facts: &HostFacts) -> HostFinding {
    HostFinding::new("kernel", FindingStatus::Ok, facts.kernel.clone())
}

pub(super) fn tsc_finding(facts: &HostFacts) -> HostFinding {
    let source = &facts.clocksource;
    let stable = if facts.stable_tsc { "stable" } else { "not stable" };
    HostFinding::new("tsc", FindingStatus::Ok, format!("{stable}, the host's clock is `{source}`"))
}

pub(super) fn home_finding(home: &Utf8Path, trusted: Result<(), HomeError>) -> HostFinding {
    let finding = |status, detail: String| HostFinding::new("home", status, detail);
    if let Err(error) = trusted {
        return finding(FindingStatus::Missing, error.to_string()).hint(error.hint());
    }
    // A home is created when it is first used. Until then, the closest directory above it counts.
    let Some(existing) = home.ancestors().find(|path| path.is_dir()) else {
        return finding(FindingStatus::Missing, format!("no directory above `{home}` exists")).hint(HOME_HINT);
    };
    let is_writable = rustix::fs::access(existing.as_std_path(), rustix::fs::Access::WRITE_OK).is_ok();
    if !is_writable {
        return finding(FindingStatus::Missing, format!("this user can't write to `{existing}`")).hint(HOME_HINT);
    }
    room_finding(home, host::free_mib(existing))
}

fn room_finding(home: &Utf8Path, free_mib: Option<u64>) -> HostFinding {
    let finding = |status, detail: String| HostFinding::new("home", status, detail);
    match free_mib {
        Some(free_mib) if free_mib < FREE_MIB_WANTED => {
            let detail = format!("`{home}` has {free_mib} MiB free, an image needs {FREE_MIB_WANTED} MiB");
            finding(FindingStatus::Warn, detail)
        }
        Some(free_mib) => finding(FindingStatus::Ok, format!("`{home}`, {free_mib} MiB free")),
        None => finding(FindingStatus::Ok, format!("`{home}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::qemu::QemuVersion;
    use crate::every_variant::every_variant;
    use crate::home::Home;

    fn facts() -> HostFacts {
        HostFacts {
            architecture: "x86_64".into(),
            cpus: 2,
            cpu_model: "A CPU".into(),
            memory_mib: 8192,
            memory_available_mib: 4096,
            kernel: "6.1.0 #1 SMP".into(),
            clocksource: "tsc".into(),
            stable_tsc: true,
            qemu: Some("/usr/bin/qemu-system-x86_64".into()),
            qemu_version: Some(QemuVersion { major: 7, minor: 2 }),
        }
    }

    #[test]
    fn each_fact_has_a_finding() {
        let facts = facts();
        let unversioned = HostFacts { qemu_version: None, ..facts.clone() };
        let no_qemu = HostFacts { qemu: None, ..unversioned.clone() };
        let arm = HostFacts { architecture: "aarch64".into(), ..facts.clone() };
        let full = HostFacts { memory_available_mib: MEMORY_MIB_WANTED - 1, ..facts.clone() };
        let unstable = HostFacts { stable_tsc: false, clocksource: "hpet".into(), ..facts.clone() };
        let findings = [
            qemu_finding(&facts, None),
            qemu_finding(&unversioned, None),
            qemu_finding(&no_qemu, None),
            qemu_finding(&no_qemu, Some("/opt/qemu")),
            cpu_finding(&facts),
            cpu_finding(&arm),
            memory_finding(&facts),
            memory_finding(&full),
            kernel_finding(&facts),
            tsc_finding(&facts),
            tsc_finding(&unstable),
        ];
        insta::assert_snapshot!(findings.map(|finding| finding.line()).join("\n"));
    }

    #[test]
    fn each_state_of_kvm_has_a_finding() {
        let reason = || "the reason".to_owned();
        let states = every_variant!(KvmState {
            Missing: [KvmState::Missing],
            Denied: [KvmState::Denied],
            Unusable: [KvmState::Unusable { reason: reason() }],
            Opens: [KvmState::Opens],
            Lies: [KvmState::Lies { reason: reason() }],
            Works: [KvmState::Works],
        });
        let lines: Vec<_> = states.iter().map(|(_, state)| kvm_finding(state).line()).collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn each_state_of_a_home_has_a_finding() {
        let home = Utf8Path::new("/home/me/.local/share/kiln");
        let findings = [
            room_finding(home, Some(FREE_MIB_WANTED)),
            room_finding(home, Some(FREE_MIB_WANTED - 1)),
            room_finding(home, None),
            home_finding(home, Err(HomeError::NotADirectory { path: home.into() })),
            home_finding(Utf8Path::new("relative"), Ok(())),
        ];
        insta::assert_snapshot!(findings.map(|finding| finding.line()).join("\n"));
    }

    #[test]
    fn a_home_that_does_not_exist_yet_is_judged_by_the_directory_above_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Utf8Path::from_path(directory.path()).expect("UTF-8").join("a/b/c");
        let finding = home_finding(&home, Home::at(&home).check());
        assert_ne!(finding.status, FindingStatus::Missing, "{finding:?}");
        assert!(finding.detail.contains(home.as_str()), "{finding:?}");
    }
}
