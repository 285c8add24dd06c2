//! `kiln kernel build`.

use std::thread;

use kiln_engine::kernels::{BuildError, BuildKernel, KernelStore, MakeStep};

use super::add::tell;
use super::cancel;
use crate::args::kernel::KernelBuildArgs;
use crate::failure::{Failure, HOST};
use crate::image::home;
use crate::output::Progress;

/// Runs `kiln kernel build`.
pub(super) fn build(args: &KernelBuildArgs) -> Result<u8, Failure> {
    cancel::on_interrupt();
    let store = KernelStore::new(&home()?);
    let progress = Progress::long(format!("building {}", args.config), args.json);
    let mut step = |step: MakeStep| progress.say(format!("building {}: {step}", args.config));
    let cpus = thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX));
    let built = store.build(BuildKernel {
        source: args.input(),
        config: args.config,
        jobs: args.jobs.unwrap_or(cpus),
        name: args.name.clone(),
        progress: &mut step,
    });
    let built = built.map_err(build_failure)?;
    drop(progress);
    tell(&store, &built.kernel, built.name.as_str(), args.json)
}

fn build_failure(error: BuildError) -> Failure {
    if error.is_interrupt() {
        return cancel::interrupted();
    }
    let hint = error.hint();
    Failure::new(HOST, error).hint_if_not_writable().maybe_hint(hint)
}
