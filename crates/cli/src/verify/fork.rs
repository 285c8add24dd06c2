//! `kiln verify fork`: checks that each fork of a VM is complete and independent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_engine::{Engine as _, MacAddress, Nic, VmSpec};

use super::checks::judge;
use super::kept::Kept;
use super::proof::{Proof, Stop, Times};
use super::report::Report;
use crate::args::VerifyForkArgs;
use crate::engine_failure::launch_failure;
use crate::failure::Failure;
use crate::image;
use crate::interrupt::Interrupts;
use crate::output::Progress;

/// Exit code: a check failed.
const FAILED: u8 = 100;
/// For removing the VMs of an interrupted proof.
const THREADS_DEADLINE: Duration = Duration::from_secs(5);

/// Runs the checks and prints a report.
pub fn run(args: &VerifyForkArgs) -> Result<u8, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(prove(args));
    runtime.shutdown_timeout(THREADS_DEADLINE);
    let report = match outcome {
        Ok(report) => report,
        Err(Stop::Failed(failure)) => return Err(failure),
        Err(Stop::Interrupted(code)) => return Ok(code),
    };
    if args.json {
        report.print_json()?;
    } else {
        report.print()?;
    }
    Ok(if report.ok { 0 } else { FAILED })
}

async fn prove(args: &VerifyForkArgs) -> Result<Report, Stop> {
    let from = Instant::now();
    let home = image::home()?;
    let progress = Progress::start("finding the image");
    let image = image::find_or_build(&home, &args.image, &progress)?;
    let engine = Arc::new(image::engine(&home)?);
    let mut interrupts = Interrupts::new().map_err(Failure::from)?;
    let mut spec = VmSpec { acceleration: args.accel.into(), forkable: true, ..image.vm_spec() };
    spec.nics.push(Nic::unplugged(MacAddress::random()));
    progress.say("testing KVM");
    let decided = engine.decide(&spec);
    let acceleration = tokio::select! {
        decided = decided => decided.map_err(launch_failure)?,
        code = interrupts.any() => return Err(Stop::Interrupted(code)),
    };
    spec.acceleration = acceleration.into();
    let mut kept = Kept::new(&home);
    let (seen, times) = {
        let times = Times::default();
        let (interrupts, kept) = (&mut interrupts, &mut kept);
        let mut proof = Proof { engine, spec, forks: args.forks, progress: &progress, interrupts, kept, times };
        (proof.run().await, proof.times)
    };
    progress.say("cleaning up");
    kept.remove().await;
    drop(progress);
    let checks = judge(&seen?);
    Ok(Report::new(checks, args, image::accel_name(acceleration), &times, from.elapsed()))
}
