//! `kiln doctor`: what this host can do, what is missing, how to get it.

use kiln_engine::acceleration;
use kiln_engine::host::{FindingStatus, HostFinding, HostReport, inspect};
use kiln_engine::image::MINI;
use owo_colors::OwoColorize as _;

use crate::args::DoctorArgs;
use crate::failure::{Failure, HOST};
use crate::image;
use crate::output::{Progress, print, print_json};

/// Looks at the host and says what it found.
pub fn run(args: &DoctorArgs) -> Result<u8, Failure> {
    let home = image::home()?;
    if args.probe {
        acceleration::forget(home.path())?;
    }
    let progress = Progress::start("looking at this host; trying KVM may take 10 s");
    // Without an image there is no guest to try KVM with; the report says so.
    let guest = image::find(&home, MINI).ok().map(|image| image::spec(&image));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(inspect(home.path(), guest.as_ref()));
    drop(progress);
    if args.json {
        print_json(&report)?;
    } else {
        show(&report)?;
    }
    Ok(if report.is_ready() { 0 } else { HOST })
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
