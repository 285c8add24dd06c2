//! What this host can do, what is missing, and the command that gets it: `kiln doctor`.

mod confinement;
mod facts;
mod tools;

use camino::Utf8Path;
use serde::Serialize;

use crate::blocking::operation;
use crate::confine::Confinement;
use crate::drivers::qemu::{QEMU_PROGRAM, QEMU_VARIABLE, QemuEngine, kvm_works};
use crate::home::{Home, HomeError};
use crate::host::{self, KvmState};
use crate::spec::{AccelerationRequest, VmSpec};

pub use self::facts::HostFacts;

/// An image of kernel and initramfs needs about this much room while it is built.
const FREE_MIB_WANTED: u64 = 512;
/// Below this a guest of ordinary size does not fit beside its host.
const MEMORY_MIB_WANTED: u64 = 1024;

/// How good a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingStatus {
    /// As it should be.
    Ok,
    /// Kiln works without it, though slower or with less.
    Warn,
    /// Kiln can't work without it.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostFinding {
    /// What was looked at, such as `qemu`.
    pub name: String,
    /// How good it is.
    pub status: FindingStatus,
    /// What was found.
    pub detail: String,
    /// The command that helps, if any.
    pub hint: Option<String>,
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostReport {
    /// The machine.
    pub facts: HostFacts,
    /// What is known about KVM.
    pub kvm: KvmState,
    /// What confines a VMM on this host; `None` if none starts.
    pub confinement: Option<Confinement>,
    /// In the order to read them.
    pub findings: Vec<HostFinding>,
}

impl HostReport {
    /// Whether Kiln can run VMs here.
    pub fn is_ready(&self) -> bool {
        self.findings.iter().all(|finding| finding.status != FindingStatus::Missing)
    }
}

/// Looks at this host. With a `guest` to boot, KVM is tried with it unless the answer is remembered; that may take
/// [`PROBE_DEADLINE`](crate::PROBE_DEADLINE). A home that others can change is left alone.
pub async fn inspect(home: &Utf8Path, guest: Option<&VmSpec>) -> HostReport {
    let (home, guest) = (home.to_owned(), guest.cloned());
    operation(async move { look(&home, guest.as_ref()).await }).await
}

async fn look(home: &Utf8Path, guest: Option<&VmSpec>) -> HostReport {
    let trusted = Home::at(home).check();
    let guest = guest.filter(|_| trusted.is_ok());
    let engine = QemuEngine::find_unchecked(home);
    let (qemu, version) = match &engine {
        Ok(engine) => (Some(engine.binary().to_owned()), engine.ask_version().await),
        Err(_) => (None, None),
    };
    let facts = HostFacts::collect(qemu, version);
    let kvm = match (host::open_kvm(), &engine, guest) {
        (Err(state), _, _) => state,
        (Ok(()), Ok(engine), Some(guest)) => {
            let guest = VmSpec { acceleration: AccelerationRequest::Auto, ..guest.clone() };
            kvm_works(engine, &guest).await
        }
        (Ok(()), _, _) => KvmState::Opens,
    };
    let mut findings = vec![
        qemu_finding(&facts),
        kvm_finding(&kvm),
        cpu_finding(&facts),
        memory_finding(&facts),
        kernel_finding(&facts),
        tsc_finding(&facts),
        home_finding(home, trusted),
    ];
    findings.extend(tools::findings());
    let confinement = match &engine {
        Ok(engine) => {
            let tried = confinement::inspect(engine.policy(), engine.binary(), kvm.works()).await;
            findings.extend(confinement::findings(&tried));
            tried.ok()
        }
        Err(_) => None,
    };
    HostReport { facts, kvm, confinement, findings }
}

impl HostFinding {
    fn new(name: &str, status: FindingStatus, detail: impl Into<String>) -> Self {
        Self { name: name.into(), status, detail: detail.into(), hint: None }
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        Self { hint: (!hint.is_empty()).then_some(hint), ..self }
    }
}

fn qemu_finding(facts: &HostFacts) -> HostFinding {
    let finding = |status, detail: String| HostFinding::new("qemu", status, detail);
    match (&facts.qemu, facts.qemu_version) {
        (Some(path), Some(version)) => finding(FindingStatus::Ok, format!("{version} at {path}")),
        (Some(path), None) => finding(FindingStatus::Warn, format!("{path} does not report its version")),
        (None, _) => {
            let named = std::env::var(QEMU_VARIABLE).map(|path| format!("`{path}` (from {QEMU_VARIABLE})"));
            let what = named.unwrap_or_else(|_| format!("`{QEMU_PROGRAM}`"));
            finding(FindingStatus::Missing, format!("{what} was not found"))
                .hint("apt-get install --no-install-recommends qemu-system-x86")
        }
    }
}

fn kvm_finding(kvm: &KvmState) -> HostFinding {
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

fn cpu_finding(facts: &HostFacts) -> HostFinding {
    let detail = format!("{} × {}", facts.cpus, facts.cpu_model);
    if facts.architecture == "x86_64" {
        HostFinding::new("cpu", FindingStatus::Ok, detail)
    } else {
        HostFinding::new("cpu", FindingStatus::Missing, format!("{detail}; Kiln's guests are x86_64 alone"))
    }
}

fn memory_finding(facts: &HostFacts) -> HostFinding {
    let detail = format!("{} MiB, {} MiB of it free", facts.memory_mib, facts.memory_available_mib);
    let status = if facts.memory_available_mib < MEMORY_MIB_WANTED { FindingStatus::Warn } else { FindingStatus::Ok };
    HostFinding::new("memory", status, detail)
}

fn kernel_finding(facts: &HostFacts) -> HostFinding {
    HostFinding::new("kernel", FindingStatus::Ok, facts.kernel.clone())
}

fn tsc_finding(facts: &HostFacts) -> HostFinding {
    let source = &facts.clocksource;
    let stable = if facts.stable_tsc { "stable" } else { "not stable" };
    HostFinding::new("tsc", FindingStatus::Ok, format!("{stable}, the host's clock is `{source}`"))
}

fn home_finding(home: &Utf8Path, trusted: Result<(), HomeError>) -> HostFinding {
    let finding = |status, detail: String| HostFinding::new("home", status, detail);
    if let Err(error) = trusted {
        return finding(FindingStatus::Missing, error.to_string()).hint(error.hint());
    }
    // The home is made when it is first used: until then, what counts is where it will be.
    let Some(existing) = home.ancestors().find(|path| path.is_dir()) else {
        return finding(FindingStatus::Missing, format!("`{home}` is on no directory"));
    };
    let writable = rustix::fs::access(existing.as_std_path(), rustix::fs::Access::WRITE_OK).is_ok();
    if !writable {
        let detail = format!("this user may not write to `{existing}`");
        return finding(FindingStatus::Missing, detail).hint("export KILN_HOME=/a/directory/of/yours");
    }
    match host::free_mib(existing) {
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

    #[tokio::test]
    async fn every_finding_that_is_missing_says_what_to_do() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Utf8Path::from_path(directory.path()).expect("UTF-8");
        let report = inspect(home, None).await;
        for finding in &report.findings {
            assert!(!finding.detail.is_empty(), "{finding:?}");
            assert!(finding.status != FindingStatus::Missing || finding.hint.is_some(), "{finding:?}");
        }
        let names: Vec<_> = report.findings.iter().map(|finding| finding.name.as_str()).collect();
        for name in ["qemu", "kvm", "cpu", "memory", "kernel", "home", "dpkg-deb", "busybox-static"] {
            assert!(names.contains(&name), "{names:?}");
        }
        assert!(fs_err::read_dir(home).expect("lists").next().is_none(), "looking changes nothing");
    }

    #[test]
    fn a_home_that_is_not_there_yet_is_judged_by_its_place() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Utf8Path::from_path(directory.path()).expect("UTF-8").join("a/b/c");
        let finding = home_finding(&home, Home::at(&home).check());
        assert_ne!(finding.status, FindingStatus::Missing, "{finding:?}");
        assert!(finding.detail.contains(home.as_str()), "{finding:?}");
    }

    #[test]
    fn only_what_is_missing_keeps_a_host_from_being_ready() {
        let facts = HostFacts::collect(None, None);
        let finding = |status| HostFinding::new("x", status, "y");
        let report = |status| HostReport {
            facts: facts.clone(),
            kvm: KvmState::Missing,
            confinement: None,
            findings: vec![finding(FindingStatus::Ok), finding(status)],
        };
        assert!(report(FindingStatus::Warn).is_ready());
        assert!(!report(FindingStatus::Missing).is_ready());
    }
}
