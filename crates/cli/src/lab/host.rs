//! What a plan names, found on this host: images, kernels, disks and files.

use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use kiln_engine::home::Home;
use kiln_engine::link::GuestLink;
use kiln_engine::volume::VolumeStore;
use kiln_engine::{AccelerationRequest, BoxFuture};
use kiln_lab::plan::VmPlan;
use kiln_lab::run::{CellVm, Host, HostError};

use crate::args::image::Pull;
use crate::args::kernel::KernelChoice;
use crate::failure::Failure;
use crate::image::{self, Runnable, Wants};
use crate::output::Progress;
use crate::run::{Copy, copy_in};
use crate::volume::{device, volume_failure};

/// The host of a run.
#[derive(Debug)]
pub(super) struct LabHost {
    home: Home,
    /// Paths in the plan are relative to it.
    directory: Utf8PathBuf,
    acceleration: AccelerationRequest,
}

impl LabHost {
    /// For a plan in that directory.
    pub(super) fn new(home: &Home, directory: &Utf8Path, acceleration: AccelerationRequest) -> Arc<Self> {
        Arc::new(Self { home: home.clone(), directory: directory.to_owned(), acceleration })
    }
}

impl Host for LabHost {
    fn vm<'a>(&'a self, vm: &'a VmPlan) -> BoxFuture<'a, Result<CellVm, HostError>> {
        let (home, vm, acceleration) = (self.home.clone(), vm.clone(), self.acceleration);
        Box::pin(async move {
            // It may pull an image, build `mini`, or boot a VM to measure it.
            let found = tokio::task::spawn_blocking(move || cell_vm(&home, &vm, acceleration)).await?;
            found.map_err(|failure| of_failure(&failure))
        })
    }

    fn copy<'a>(&'a self, link: &'a GuestLink, from: &'a str, to: &'a str) -> BoxFuture<'a, Result<(), HostError>> {
        let copy = Copy { host: self.directory.join(from).into(), guest: to.into() };
        Box::pin(async move { Ok(copy_in(link, &copy).await?) })
    }
}

/// The VM of a cell.
fn cell_vm(home: &Home, vm: &VmPlan, acceleration: AccelerationRequest) -> Result<CellVm, Failure> {
    let progress = Progress::silent();
    let kernel = KernelChoice { kernel: vm.kernel.clone(), all_modules: false };
    let mut image = Runnable::find(home, &vm.image, Pull::Missing, (&kernel, Wants::default()), &progress)?;
    image.check_modules(&vm.modules)?;
    image.boot = image::with_memory(home, image.boot, vm.memory_mib, vm.cpus, &progress)?;
    let config = image.root.as_ref().map(|root| &root.config);
    let env = config.map(image::image_env).unwrap_or_default();
    let mut env: Vec<_> = env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let mut spec = image.vm_spec();
    (spec.memory_mib, spec.cpus, spec.acceleration) = (vm.memory_mib, vm.cpus, acceleration);
    spec.modules.clone_from(&vm.modules);
    spec.forkable = true;
    let volumes = VolumeStore::new(home);
    for disk in &vm.disks {
        env.push((format!("KILN_DISK_{}", disk.name), device(spec.disks.len())));
        spec.disks.push(volumes.blank_disk(disk.size_bytes).map_err(volume_failure)?);
    }
    Ok(CellVm { spec, env })
}

/// A failure with its hint, as a cell's error.
fn of_failure(failure: &Failure) -> HostError {
    match failure.hint_text() {
        Some(hint) => format!("{} (hint: {hint})", failure.message()).into(),
        None => failure.message().into(),
    }
}
