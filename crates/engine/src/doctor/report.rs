//! A report about a host: its facts, and findings with a status, a detail and a hint.

use serde::Serialize;

use super::facts::HostFacts;
use crate::confine::Confinement;
use crate::host::KvmState;

/// Whether a finding is a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingStatus {
    /// Not a problem.
    Ok,
    /// Kiln works without it, but slower or with fewer features.
    Warn,
    /// Kiln can't work without it.
    Missing,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostFinding {
    /// What was checked, such as `qemu`.
    pub name: String,
    /// Whether it is a problem.
    pub status: FindingStatus,
    /// What was found.
    pub detail: String,
    /// The command that helps, if any.
    pub hint: Option<String>,
}

/// Everything that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostReport {
    /// Facts of the machine.
    pub facts: HostFacts,
    /// What is known about KVM.
    pub kvm: KvmState,
    /// The measures that confine a VMM on this host. `None` if QEMU was not found or did not start.
    pub confinement: Option<Confinement>,
    /// In the order in which they are printed.
    pub findings: Vec<HostFinding>,
}

impl HostReport {
    /// Whether Kiln can run VMs on this host.
    pub fn is_ready(&self) -> bool {
        self.findings.iter().all(|finding| finding.status != FindingStatus::Missing)
    }
}

impl HostFinding {
    pub(super) fn new(name: &str, status: FindingStatus, detail: impl Into<String>) -> Self {
        Self { name: name.into(), status, detail: detail.into(), hint: None }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        Self { hint: (!hint.is_empty()).then_some(hint), ..self }
    }
}

#[cfg(test)]
impl HostFinding {
    /// The finding as a line for snapshots of tests, and its hint as a second one.
    pub(super) fn line(&self) -> String {
        let Self { name, status, detail, hint } = self;
        let hint = hint.as_ref().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
        format!("{status:?} {name}: {detail}{hint}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_leaves_a_host_ready_and_a_missing_thing_does_not() {
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
