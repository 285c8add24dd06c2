//! `kiln doctor`: reports what this host can do, what is missing and how to get it.

use kiln_engine::doctor::{FindingStatus, HostFinding, HostReport, inspect};
use kiln_engine::home::Home;
use kiln_engine::image::{Image, KernelNews, MINI};
use kiln_engine::snapshot::SnapshotStore;
use owo_colors::OwoColorize as _;

use crate::args::DoctorArgs;
use crate::failure::{Failure, HOST};
use crate::hints;
use crate::image;
use crate::output::{Progress, mebibytes, print, print_json};

/// Inspects the host and prints a report.
pub fn run(args: &DoctorArgs) -> Result<u8, Failure> {
    let home = image::unchecked_home()?;
    let trusted = home.check().is_ok();
    if args.probe && trusted {
        kiln_engine::forget_probe(home.path())?;
    }
    let progress = Progress::start("inspecting this host; testing KVM may take 10 s");
    // Without an image there is no guest to test KVM with. The report has a finding for that.
    let image = if trusted { image::find_boot(&home, MINI).ok() } else { None };
    let guest = image.as_ref().map(Image::vm_spec);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut report = runtime.block_on(inspect(home.path(), guest.as_ref()));
    if trusted {
        report.findings.push(snapshots(&home));
    }
    report.findings.extend(image.as_ref().map(guest_kernel));
    report.findings.extend(image.as_ref().map(guest_memory));
    drop(progress);
    if args.json {
        print_json(&report)?;
    } else {
        print(text(&report))?;
    }
    Ok(if report.is_ready() { 0 } else { HOST })
}

/// Whether apt has a newer kernel than the image.
fn guest_kernel(image: &Image) -> HostFinding {
    kernel_finding(&image.name, &image.kernel_version, image.kernel_news())
}

fn kernel_finding(name: &str, version: &str, news: KernelNews) -> HostFinding {
    let (status, detail, hint) = match news {
        KernelNews::Newest => (FindingStatus::Ok, format!("{version} in {name}; apt has no newer kernel"), None),
        KernelNews::Newer { package } => {
            let detail = format!("{version} in {name}; apt has a newer kernel: {package}");
            (FindingStatus::Warn, detail, Some(format!("kiln image build {name}")))
        }
        KernelNews::Unknown { reason } => {
            (FindingStatus::Ok, format!("{version} in {name}; not compared with apt: {reason}"), None)
        }
    };
    HostFinding { name: "guest kernel".into(), status, detail, hint }
}

/// The least memory that guests boot with, and whether it was measured.
fn guest_memory(image: &Image) -> HostFinding {
    memory_finding(&image.name, image.memory_mib_min, &image::least_memory(image))
}

fn memory_finding(name: &str, measured_mib: Option<u64>, least: &str) -> HostFinding {
    let detail = format!("{name} needs at least {least}");
    let (status, hint) = match measured_mib {
        Some(_) => (FindingStatus::Ok, None),
        None => (FindingStatus::Warn, Some(format!("measure it with kiln image build {name}"))),
    };
    HostFinding { name: "guest memory".into(), status, detail, hint }
}

/// The number and size of snapshots, and whether some are broken.
fn snapshots(home: &Home) -> HostFinding {
    let listed = match SnapshotStore::new(home).list() {
        Ok(listed) => listed,
        Err(error) => {
            let (detail, hint) = (error.to_string(), hints::snapshot(&error));
            return HostFinding { name: "snapshots".into(), status: FindingStatus::Warn, detail, hint };
        }
    };
    let bytes = listed.iter().map(|one| one.bytes_on_disk).sum();
    let ready = listed.iter().filter(|one| one.ready_for.is_some()).count();
    let broken = listed.iter().filter(|one| one.problem.is_some()).count();
    snapshots_finding(listed.len(), ready, broken, bytes)
}

fn snapshots_finding(count: usize, ready: usize, broken: usize, bytes: u64) -> HostFinding {
    let detail = format!("{count} ({ready} ready-made), {} on disk", mebibytes(bytes));
    let (status, detail, hint) = match broken {
        0 => (FindingStatus::Ok, detail, None),
        broken => {
            let hint = "kiln snapshot ls names the broken snapshots".into();
            (FindingStatus::Warn, format!("{detail}, {broken} broken"), Some(hint))
        }
    };
    HostFinding { name: "snapshots".into(), status, detail, hint }
}

/// The report as lines of text.
fn text(report: &HostReport) -> String {
    let mut lines = Vec::new();
    for HostFinding { name, status, detail, hint } in &report.findings {
        let status = match status {
            FindingStatus::Ok => "ok     ".green().to_string(),
            FindingStatus::Warn => "warn   ".yellow().to_string(),
            FindingStatus::Missing => "missing".red().to_string(),
        };
        lines.push(format!("{status}  {name:<14}  {detail}"));
        lines.extend(hint.as_ref().map(|hint| format!("{:25}{} {hint}", "", "→".cyan())));
    }
    lines.push(match (report.is_ready(), report.kvm.works()) {
        (true, true) => "VMs run on this host, with KVM".into(),
        (true, false) => "VMs run on this host, with TCG".into(),
        (false, _) => "VMs can't run on this host yet".into(),
    });
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use kiln_engine::doctor::HostFacts;
    use kiln_engine::host::KvmState;

    use super::*;

    fn report(kvm: KvmState, statuses: &[FindingStatus]) -> HostReport {
        let facts = HostFacts {
            architecture: "x86_64".into(),
            cpus: 2,
            cpu_model: "A CPU".into(),
            memory_mib: 8192,
            memory_available_mib: 4096,
            kernel: "6.1.0".into(),
            clocksource: "tsc".into(),
            stable_tsc: true,
            qemu: None,
            qemu_version: None,
        };
        let finding = |status: &FindingStatus| HostFinding {
            name: "qemu".into(),
            status: *status,
            detail: "what was found".into(),
            hint: (*status != FindingStatus::Ok).then(|| "what to do".into()),
        };
        HostReport { facts, kvm, confinement: None, findings: statuses.iter().map(finding).collect() }
    }

    #[test]
    fn a_report_has_a_line_for_each_finding_and_one_for_its_result() {
        use FindingStatus::{Missing, Ok, Warn};
        let mut reports = vec![
            text(&report(KvmState::Works, &[Ok, Ok])),
            text(&report(KvmState::Missing, &[Ok, Warn])),
            text(&report(KvmState::Missing, &[Missing, Warn])),
        ];
        for kernel in [
            KernelNews::Newest,
            KernelNews::Newer { package: "linux-image-6.99.0-1-cloud-amd64_6.99.1-1_amd64.deb".into() },
            KernelNews::Unknown { reason: "apt-cache was not found".into() },
        ] {
            let findings = vec![kernel_finding("mini", "6.1.0-1-cloud-amd64", kernel)];
            reports.push(text(&HostReport { findings, ..report(KvmState::Works, &[]) }));
        }
        for memory_mib in [Some(96), None] {
            let findings = vec![memory_finding("mini", memory_mib, "96 MiB")];
            reports.push(text(&HostReport { findings, ..report(KvmState::Works, &[]) }));
        }
        for broken in [0, 1] {
            let findings = vec![snapshots_finding(3, 2, broken, 300 << 20)];
            reports.push(text(&HostReport { findings, ..report(KvmState::Works, &[]) }));
        }
        let json = serde_json::to_string_pretty(&report(KvmState::Missing, &[Warn])).expect("plain data");
        reports.push(json);
        insta::assert_snapshot!(anstream::adapter::strip_str(&reports.join("\n\n")));
    }
}
