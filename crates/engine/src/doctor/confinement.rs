//! Findings about the border around VMMs. QEMU is started inside one, because a kernel can have a feature and still
//! refuse it to this user or inside this container. Only an attempt shows that.

use std::fs::File;
use std::io;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use super::report::{FindingStatus, HostFinding};
use crate::confine::{Border, Confinement, MeasureState, Needs, POLICY_VARIABLE, Policy};
use crate::process::{self, Program, Sink, VmmStatus, own_environment};
use crate::spec::OwnerLoss;

/// QEMU prints its version in some 30 ms. A busy host needs more.
const DEADLINE: Duration = Duration::from_secs(20);

/// Starts `qemu --version` inside the border that the VMM of a fork has.
pub(super) async fn inspect(policy: &Policy, qemu: &Utf8Path, kvm: bool) -> io::Result<Confinement> {
    let directory = tempfile::tempdir()?;
    let path = Utf8PathBuf::try_from(directory.path().to_owned()).map_err(io::Error::other)?;
    let needs = Needs {
        name: format!("doctor-{}", std::process::id()),
        directory: path.clone(),
        snapshot: Some(("/dev/null".into(), File::open("/dev/null")?)),
        file_bytes: 1 << 20,
        cpus: 1,
        kvm,
        ..Needs::default()
    };
    let program = Program {
        path: qemu.to_owned(),
        arguments: vec!["--version".into()],
        environment: own_environment(),
        directory: path,
        inherit: Vec::new(),
        stdout: Sink::Null,
        stderr: Sink::Null,
        pid_file: None,
        owner_loss: OwnerLoss::Kill,
        border: Border::new(policy, qemu, needs),
    };
    let mut child = process::spawn(program).await?;
    let watch = child.watch()?;
    drop(tokio::time::timeout(DEADLINE, watch.readable()).await??);
    match child.try_reap()? {
        Some(VmmStatus::Code(0)) => Ok(child.confinement().clone()),
        Some(status) => Err(io::Error::other(format!("it exited with {status}"))),
        None => Err(io::Error::other("it did not exit")),
    }
}

/// One finding for each measure. A measure that is off, or that this user could have and does not have, is a warning.
/// Root could have every measure.
pub(super) fn findings(confinement: &io::Result<Confinement>) -> Vec<HostFinding> {
    let confinement = match confinement {
        Ok(confinement) => confinement,
        Err(error) => {
            let detail = format!("QEMU does not start when it is confined: {error}");
            let finding = HostFinding::new("confinement", FindingStatus::Warn, detail);
            let hint =
                format!("turn off one measure after another to find the cause: {POLICY_VARIABLE}=landlock kiln doctor");
            return vec![finding.hint(hint)];
        }
    };
    let missing = confinement.missing().map(|(measure, _)| measure).collect::<Vec<_>>();
    let finding = |(measure, state): (_, &MeasureState)| {
        let warn = missing.contains(&measure) || *state == MeasureState::Off;
        let status = if warn { FindingStatus::Warn } else { FindingStatus::Ok };
        HostFinding::new(measure.name(), status, state.to_string())
    };
    confinement.iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confine::Measure;

    #[tokio::test]
    async fn each_measure_of_a_confined_qemu_has_a_finding() {
        let qemu = crate::host::find_program(crate::drivers::qemu::QEMU_PROGRAM.into()).expect("tests need QEMU");
        let confinement = inspect(&Policy::without([Measure::Limits]), &qemu, false).await;
        let findings = findings(&confinement);
        assert_eq!(findings.len(), Measure::ALL.len(), "{findings:?}");
        let limits = findings.iter().find(|finding| finding.name == "limits").expect("is named");
        assert_eq!((limits.status, limits.detail.as_str()), (FindingStatus::Warn, "off by `KILN_CONFINE_OFF`"));
    }

    #[tokio::test]
    async fn a_vmm_that_does_not_start_confined_is_a_warning_with_a_hint() {
        let findings = findings(&inspect(&Policy::default(), "/bin/false".into(), false).await);
        let lines: Vec<_> = findings.iter().map(HostFinding::line).collect();
        insta::assert_snapshot!(lines.join("\n"));
    }
}
