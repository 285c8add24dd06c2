//! `kiln doctor`: what this host can do, what is missing, how to get it.

use kiln_engine::acceleration;
use kiln_engine::home::Home;
use kiln_engine::host::{FindingStatus, HostFinding, HostReport, inspect};
use kiln_engine::image::{Image, KernelNews, MINI};
use kiln_engine::snapshot::SnapshotStore;
use owo_colors::OwoColorize as _;

use crate::args::DoctorArgs;
use crate::failure::{Failure, HOST};
use crate::hints;
use crate::image;
use crate::output::{Progress, mebibytes, print, print_json};

/// Looks at the host and says what it found.
pub fn run(args: &DoctorArgs) -> Result<u8, Failure> {
    let home = image::home_of_anybody()?;
    let trusted = home.check().is_ok();
    if args.probe && trusted {
        acceleration::forget(home.path())?;
    }
    let progress = Progress::start("looking at this host; trying KVM may take 10 s");
    // Without an image there is no guest to try KVM with; the report says so.
    let image = if trusted { image::find(&home, MINI).ok() } else { None };
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
        show(&report)?;
    }
    Ok(if report.is_ready() { 0 } else { HOST })
}

/// Whether apt knows a newer kernel than the one that guests have.
fn guest_kernel(image: &Image) -> HostFinding {
    let version = &image.kernel_version;
    let (status, detail, hint) = match image.kernel_news() {
        KernelNews::Newest => (FindingStatus::Ok, format!("{version} in {}, apt knows no newer one", image.name), None),
        KernelNews::Newer { package } => {
            let detail = format!("{version} in {}, apt knows a newer one: {package}", image.name);
            (FindingStatus::Warn, detail, Some(format!("kiln image build {}", image.name)))
        }
        KernelNews::Unknown { reason } => {
            (FindingStatus::Ok, format!("{version} in {}, whether there is a newer one: {reason}", image.name), None)
        }
    };
    HostFinding { name: "guest kernel".into(), status, detail, hint }
}

/// How little memory guests boot with, and whether that is known.
fn guest_memory(image: &Image) -> HostFinding {
    let detail = format!("{} boots with {}", image.name, image::least_memory(image));
    let (status, hint) = match image.memory_mib_min {
        Some(_) => (FindingStatus::Ok, None),
        None => (FindingStatus::Warn, Some(format!("kiln image build {} measures it", image.name))),
    };
    HostFinding { name: "guest memory".into(), status, detail, hint }
}

/// What snapshots take, and whether some are broken.
fn snapshots(home: &Home) -> HostFinding {
    let finding = |status, detail, hint| HostFinding { name: "snapshots".into(), status, detail, hint };
    let listed = match SnapshotStore::new(home).list() {
        Ok(listed) => listed,
        Err(error) => return finding(FindingStatus::Warn, error.to_string(), hints::snapshot(&error)),
    };
    let space = mebibytes(listed.iter().map(|one| one.bytes_on_disk).sum());
    let ready = listed.iter().filter(|one| one.ready_for.is_some()).count();
    let detail = format!("{} in {space}, {ready} of them ready-made", listed.len());
    match listed.iter().filter(|one| one.problem.is_some()).count() {
        0 => finding(FindingStatus::Ok, detail, None),
        broken => finding(FindingStatus::Warn, format!("{detail}, {broken} broken"), Some("kiln snapshot ls".into())),
    }
}

fn show(report: &HostReport) -> anyhow::Result<()> {
    for HostFinding { name, status, detail, hint } in &report.findings {
        let status = match status {
            FindingStatus::Ok => "ok     ".green().to_string(),
            FindingStatus::Warn => "warn   ".yellow().to_string(),
            FindingStatus::Missing => "missing".red().to_string(),
        };
        print(format_args!("{status}  {name:<14}  {detail}"))?;
        if let Some(hint) = hint {
            print(format_args!("{:25}{} {hint}", "", "→".cyan()))?;
        }
    }
    if report.is_ready() {
        print(format_args!("VMs run here{}", if report.kvm.works() { ", with KVM" } else { ", under TCG" }))
    } else {
        print("VMs can't run here yet")
    }
}
