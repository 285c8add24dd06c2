//! The kernel that a run chooses, and the image `mini` with it.

use camino::Utf8PathBuf;
use kiln_engine::home::{Home, remembered_digest};
use kiln_engine::image::{BuildOptions, BuildStep, Image, ImageStore, KernelSource};
use kiln_engine::kernels::{Kernel, KernelError, KernelStore, Purpose};

use super::find::{Wants, image_failure};
use crate::agent_binary;
use crate::args::kernel::KernelChoice;
use crate::failure::{Failure, HOST, USAGE};
use crate::output::Progress;

/// A kernel that a run chooses.
#[derive(Debug, Clone)]
pub struct Chosen {
    kernel: Kernel,
    /// The disk with all its modules, if the run wants it.
    pub modules: Option<Utf8PathBuf>,
}

impl Chosen {
    /// The kernel of a run; `None` if it is that of `mini`. Refuses a kernel that lacks what the run needs.
    pub fn find(home: &Home, choice: &KernelChoice, wants: Wants) -> Result<Option<Self>, Failure> {
        let Some(asked) = &choice.kernel else {
            if choice.all_modules {
                let failure =
                    Failure::words(USAGE, "--all-modules needs --kernel: only kernels that were added have all");
                return Err(failure.hint("kiln kernel add debian:6.1, then --kernel 6.1 --all-modules"));
            }
            return Ok(None);
        };
        let kernel = KernelStore::new(home).find(asked).map_err(kernel_failure)?;
        let purposes = [
            (true, Purpose::Boot),
            (wants.root, Purpose::Root),
            (wants.volumes, Purpose::Volumes),
            (wants.network, Purpose::Networks),
            (choice.all_modules, Purpose::Modules),
        ];
        for (_, purpose) in purposes.into_iter().filter(|(wanted, _)| *wanted) {
            kernel.check(purpose).map_err(kernel_failure)?;
        }
        let modules = match (&kernel.modules, choice.all_modules) {
            (None, true) => {
                let failure = Failure::words(USAGE, format!("the kernel `{asked}` has no modules"));
                return Err(failure.hint("leave out --all-modules, or add the kernel with --modules DIR"));
            }
            (modules, wanted) => modules.clone().filter(|_| wanted),
        };
        Ok(Some(Self { kernel, modules }))
    }

    /// Refuses modules that are not on the disk with all of them.
    pub fn check_modules(&self, wanted: &[String]) -> Result<(), Failure> {
        self.kernel.check_modules(wanted).map_err(|error| {
            let code = if matches!(error, KernelError::NoModule { .. }) { USAGE } else { HOST };
            Failure::new(code, error)
        })
    }

    /// The image `mini` with this kernel. It is built if it does not exist, or has another agent than the one next to
    /// kiln.
    pub fn image(&self, home: &Home, progress: &Progress) -> Result<Image, Failure> {
        let store = ImageStore::new(home);
        let found = store.with_kernel(&self.kernel.digest).map_err(image_failure)?;
        let agent = match (found, agent_binary::beside_kiln()) {
            (Some(image), None) => return Ok(image),
            (Some(image), Some(agent)) if image.agent_digest == remembered_digest(home, &agent)? => return Ok(image),
            (_, agent) => agent_binary::find(agent)?,
        };
        let release = &self.kernel.release;
        let mut say = |step: BuildStep| progress.say(format!("building mini with Linux {release}: {step}"));
        let kernel = KernelSource::Stored(self.kernel.stored());
        store.build_mini(BuildOptions { agent, kernel, progress: &mut say }).map_err(image_failure)
    }
}

/// A failure of the store of kernels.
pub fn kernel_failure(error: KernelError) -> Failure {
    let hint = error.hint();
    let code = if matches!(error, KernelError::BadName(_)) { USAGE } else { HOST };
    Failure::new(code, error).hint_if_not_writable().maybe_hint(hint)
}
