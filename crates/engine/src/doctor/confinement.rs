//! Whether this host confines a VMM as Kiln asks for: tried, not guessed, with QEMU itself.

use std::fs::File;
use std::io;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use super::{FindingStatus, HostFinding};
use crate::confine::{Border, Confinement, MeasureState, Needs, POLICY_VARIABLE, Policy};
use crate::process::{self, Program, Sink, VmmStatus, own_environment};
use crate::spec::OwnerLoss;

/// QEMU reports its version in some 30 ms.
const DEADLINE: Duration = Duration::from_secs(20);

/// Starts QEMU as a fork's VMM is started, to say its version.
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
        other => Err(io::Error::other(format!("it ended with {other:?}"))),
    }
}

/// One finding for each measure. A measure that this user could have and does not is a warning, for root every missing one.
pub(super) fn findings(confinement: &io::Result<Confinement>) -> Vec<HostFinding> {
    let confinement = match confinement {
        Ok(confinement) => confinement,
        Err(error) => {
            let detail = format!("QEMU does not start when it is confined: {error}");
            let finding = HostFinding::new("confinement", FindingStatus::Warn, detail);
            return vec![
                finding.hint(format!("{POLICY_VARIABLE}=landlock kiln doctor, or another measure, says which")),
            ];
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
    async fn this_hosts_qemu_starts_confined_and_each_measure_is_named() {
        let qemu = crate::host::find_program(crate::drivers::qemu::QEMU_PROGRAM.into()).expect("tests need QEMU");
        let confinement = inspect(&Policy::without([Measure::Limits]), &qemu, false).await;
        let findings = findings(&confinement);
        assert_eq!(findings.len(), Measure::ALL.len(), "{findings:?}");
        let limits = findings.iter().find(|finding| finding.name == "limits").expect("is named");
        assert_eq!((limits.status, limits.detail.as_str()), (FindingStatus::Warn, "off by `KILN_CONFINE_OFF`"));
    }

    #[tokio::test]
    async fn a_vmm_that_does_not_start_confined_is_a_warning_with_what_to_do() {
        let findings = findings(&inspect(&Policy::default(), "/bin/false".into(), false).await);
        assert!(
            matches!(&findings[..], [one] if one.status == FindingStatus::Warn && one.hint.is_some()),
            "{findings:?}"
        );
    }
}
