//! `kiln image warm`: makes the ready-made snapshot of an image in advance.

use std::time::Instant;

use kiln_engine::image::ImageStore;
use kiln_engine::{Engine as _, Renew, VmSpec};
use serde::Serialize;

use super::boot::{THREADS_DEADLINE, accel_name, with_memory};
use super::find::{Runnable, Wants, engine, home, image_failure};
use crate::args::image::{ImageWarmArgs, Pull};
use crate::engine_failure::{launch_failure, ready_failure, snapshot_failure};
use crate::failure::Failure;
use crate::interrupt::Interrupts;
use crate::output::{Progress, mebibytes, print, print_json, say};
use crate::ready::{self, NotMade, Wanted};

/// A ready-made snapshot as `--json` prints it.
#[derive(Debug, Serialize)]
struct Warmed {
    id: String,
    image: String,
    accel: &'static str,
    /// The lines that it ran before it was saved.
    run: Vec<String>,
    bytes_on_disk: u64,
    took_ms: f64,
}

/// Runs `kiln image warm`.
pub(super) fn warm(args: &ImageWarmArgs) -> Result<u8, Failure> {
    let start = Instant::now();
    let home = home()?;
    let progress = Progress::start("finding the image");
    let mut image = Runnable::find(&home, &args.name, Pull::Missing, (&args.kernel, Wants::default()), &progress)?;
    image.check_modules(&args.modules)?;
    image.boot = with_memory(&home, image.boot, args.memory, args.cpus, &progress)?;
    let lines = if args.lines.is_empty() && !args.no_run { image.warm().to_vec() } else { args.lines.clone() };
    let mut rehearse = image.rehearse(&lines);
    let (memory_mib, cpus, modules) = (args.memory, args.cpus, args.modules.clone());
    let mut spec = VmSpec { memory_mib, cpus, modules, ..image.vm_spec() };
    spec.acceleration = args.accel.into();
    if args.init_system {
        rehearse.insert(0, image.use_init(&mut spec)?);
    }
    let engine = engine(&home)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let made = runtime.block_on(async {
        let mut interrupts = Interrupts::new()?;
        progress.say("testing KVM");
        let accel = tokio::select! {
            decided = engine.decide(&spec) => decided.map_err(launch_failure)?,
            code = interrupts.any() => return Ok(Err(code)),
        };
        spec.acceleration = accel.into();
        let wanted = Wanted {
            spec: &spec,
            label: image.name(),
            renew: Renew::Always,
            boot_timeout: args.boot_timeout,
            network: None,
            rehearse,
        };
        match ready::get(&engine, wanted, &mut interrupts, &progress).await {
            Ok(made) => Ok(Ok((made.snapshot, accel))),
            Err(NotMade::Interrupted(code)) => Ok(Err(code)),
            Err(NotMade::Failed(error)) => Err(ready_failure(error, args.boot_timeout, &args.name)),
        }
    });
    runtime.shutdown_timeout(THREADS_DEADLINE);
    let (snapshot, accel) = match made? {
        Ok(made) => made,
        Err(code) => return Ok(code),
    };
    drop(progress);
    // Only now: lines that fail are not kept.
    if lines != image.warm() {
        let digest = image.root.as_ref().map_or(&image.boot.digest, |root| &root.digest);
        ImageStore::new(&home).set_warm(digest, &lines).map_err(image_failure)?;
    }
    let bytes_on_disk = snapshot.bytes_on_disk().map_err(snapshot_failure)?;
    if args.json {
        let (id, image) = (snapshot.id().to_string(), image.name().to_owned());
        let took_ms = start.elapsed().as_secs_f64() * 1000.0;
        print_json(&Warmed { id, image, accel: accel_name(accel), run: lines, bytes_on_disk, took_ms })?;
    } else {
        let size = mebibytes(bytes_on_disk);
        say(format_args!(
            "saved {} with {} MiB of memory: {size} on disk, {:.1?}",
            image.name(),
            args.memory,
            start.elapsed()
        ));
        print(snapshot.id())?;
    }
    Ok(0)
}
