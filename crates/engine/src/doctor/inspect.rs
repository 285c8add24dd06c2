//! Inspects this host: reads its facts, starts QEMU for its version and confined, and tests KVM with a guest.

use camino::Utf8Path;

use super::facts::HostFacts;
use super::report::HostReport;
use super::{confinement, findings, networks, tools};
use crate::blocking::operation;
use crate::drivers::qemu::{QEMU_VARIABLE, QemuEngine, kvm_works};
use crate::home::Home;
use crate::host::{self, KvmState};
use crate::spec::{AccelerationRequest, VmSpec};

/// Inspects this host. With a `guest`, also tests whether KVM boots it, unless the result of an earlier test is
/// remembered. The test may take [`PROBE_DEADLINE`](crate::PROBE_DEADLINE). Does not use a home that other users can
/// change.
pub async fn inspect(home: &Utf8Path, guest: Option<&VmSpec>) -> HostReport {
    let (home, guest) = (home.to_owned(), guest.cloned());
    operation(async move { inspect_here(&home, guest.as_ref()).await }).await
}

async fn inspect_here(home: &Utf8Path, guest: Option<&VmSpec>) -> HostReport {
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
    let named = std::env::var(QEMU_VARIABLE).ok();
    let mut findings = vec![
        findings::qemu_finding(&facts, named.as_deref()),
        findings::kvm_finding(&kvm),
        findings::cpu_finding(&facts),
        findings::memory_finding(&facts),
        findings::kernel_finding(&facts),
        findings::tsc_finding(&facts),
        findings::home_finding(home, trusted),
    ];
    findings.extend(tools::findings());
    findings.extend(networks::findings());
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

#[cfg(test)]
mod tests {
    use super::super::report::FindingStatus;
    use super::*;

    #[tokio::test]
    async fn a_missing_thing_has_a_hint_and_an_inspection_writes_nothing() {
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
        assert!(fs_err::read_dir(home).expect("lists").next().is_none(), "an inspection writes nothing");
    }
}
