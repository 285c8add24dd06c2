//! Finds the image of a run.

use kiln_engine::home::{Home, HomeError, remembered_digest};
use kiln_engine::image::{AnyImage, Image, ImageError, ImageStore, KernelSource, MINI, RootImage};
use kiln_engine::snapshot::Snapshot;
use kiln_engine::{QemuEngine, VmSpec};
use kiln_oci::{ImageConfig, PATH_DEFAULT};
use kiln_wire::{ExecRequest, Text};

use super::kernel::Chosen;
use super::{boot, root};
use crate::agent_binary;
use crate::args::image::Pull;
use crate::args::kernel::KernelChoice;
use crate::engine_failure::launch_failure;
use crate::failure::{Failure, HOST, USAGE};
use crate::output::Progress;

/// The shell of lines that run before a save.
const SHELL: &str = "/bin/sh";

/// Waits until systemd has started its services, or one of them has failed, for five minutes at most. It never fails:
/// how the system is, is for the user's command to find out. Of other inits nothing is known.
const WAIT_FOR_SYSTEMD: &str = "command -v systemctl > /dev/null || exit 0; n=0; while [ $n -lt 300 ]; do \
    case $(systemctl is-system-running 2> /dev/null) in running|degraded|maintenance) exit 0;; esac; \
    n=$((n + 1)); sleep 1; done";

/// `$KILN_HOME`. Fails if another user could have written to it.
pub fn home() -> Result<Home, Failure> {
    let home = unchecked_home()?;
    home.check().map_err(home_failure)?;
    Ok(home)
}

/// `$KILN_HOME`, without a check who could have written to it. The caller must not use its content unchecked.
pub fn unchecked_home() -> Result<Home, Failure> {
    Home::from_env().map_err(home_failure)
}

fn home_failure(error: HomeError) -> Failure {
    let hint = error.hint();
    Failure::new(if error.is_usage() { USAGE } else { HOST }, error).hint(hint)
}

/// The engine that runs VMs on this host.
pub fn engine(home: &Home) -> Result<QemuEngine, Failure> {
    QemuEngine::find(home.path()).map_err(launch_failure)
}

/// An image that boots, if it exists.
pub fn find_boot(home: &Home, name: &str) -> Result<Image, Failure> {
    ImageStore::new(home).find_boot(name).map_err(image_failure)
}

/// An image that boots. `mini` is built if it does not exist, or if its agent is not the one next to kiln.
pub fn find_or_build(home: &Home, name: &str, progress: &Progress) -> Result<Image, Failure> {
    let store = ImageStore::new(home);
    let found = store.find_boot(name);
    if name != MINI {
        return found.map_err(image_failure);
    }
    let Some(agent) = agent_binary::beside_kiln() else { return found.map_err(image_failure) };
    match found {
        Ok(image) if image.agent_digest == remembered_digest(home, &agent)? => Ok(image),
        Ok(_) | Err(ImageError::Unknown { .. } | ImageError::Damaged { .. }) => {
            boot::build_mini(&store, home, agent, KernelSource::Auto, progress)
        }
        Err(error) => Err(image_failure(error)),
    }
}

/// An image that a VM can be made of.
#[derive(Debug, Clone)]
pub struct Runnable {
    /// What boots.
    pub boot: Image,
    /// The root filesystem, unless it is the initramfs.
    pub root: Option<RootImage>,
    /// The kernel, unless it is that of the image.
    kernel: Option<Chosen>,
}

/// What a VM has that not every kernel has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wants {
    /// A root filesystem.
    pub root: bool,
    /// Volumes.
    pub volumes: bool,
    /// Network cards.
    pub network: bool,
}

impl Runnable {
    /// An image with the kernel that it has.
    pub fn of(boot: Image, root: Option<RootImage>) -> Self {
        Self { boot, root, kernel: None }
    }

    /// The image of a run. One with a root filesystem boots with the kernel and agent of `mini`. A chosen kernel replaces
    /// that of `mini`, and is refused if it lacks what the VM has.
    pub fn find(
        home: &Home,
        name: &str,
        pull: Pull,
        kernel: (&KernelChoice, Wants),
        progress: &Progress,
    ) -> Result<Self, Failure> {
        let store = ImageStore::new(home);
        let found = if name == MINI { Err(None) } else { store.find(name).map_err(Some) };
        let root = match found {
            Err(None) | Ok(AnyImage::Boot(_)) => {
                let chosen = Chosen::find(home, kernel.0, Wants { root: false, ..kernel.1 })?;
                if chosen.is_some() && name != MINI {
                    let words = format!("the image `{name}` has a kernel of its own, so --kernel can't replace it");
                    return Err(Failure::words(USAGE, words).hint("leave out --kernel, or run another image"));
                }
                let boot = match &chosen {
                    Some(chosen) => chosen.image(home, progress)?,
                    None => find_or_build(home, name, progress)?,
                };
                return Ok(Self { boot, root: None, kernel: chosen });
            }
            Ok(AnyImage::Root(_)) if pull == Pull::Always => root::pull_named(home, name, progress)?,
            Ok(AnyImage::Root(image)) => *image,
            Err(Some(ImageError::Unknown { .. })) if pull != Pull::Never => root::pull_named(home, name, progress)?,
            Err(Some(error)) => return Err(image_failure(error)),
        };
        let chosen = Chosen::find(home, kernel.0, Wants { root: true, ..kernel.1 })?;
        let boot = match &chosen {
            Some(chosen) => chosen.image(home, progress)?,
            None => find_or_build(home, MINI, progress)?,
        };
        Ok(Self { boot, root: Some(root), kernel: chosen })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.root.as_ref().map_or(&self.boot.name, |root| &root.name)
    }

    /// The lines that its VM runs before it is saved.
    pub fn warm(&self) -> &[String] {
        self.root.as_ref().map_or(&self.boot.warm, |root| &root.warm)
    }

    /// Lines for its shell as commands. They run as its own command does: with its variables, in its directory, as its
    /// user.
    pub fn rehearse(&self, lines: &[String]) -> Vec<ExecRequest> {
        let config = self.root.as_ref().map(|root| &root.config);
        let env = config.map(image_env).unwrap_or_default();
        let command = |line: &String| ExecRequest {
            argv: [SHELL, "-c", line].map(Text::from).to_vec(),
            env: env.clone(),
            cwd: config.and_then(|config| config.working_dir.as_deref()).map(Text::from),
            user: config.and_then(|config| config.user.as_ref()).map(ToString::to_string),
            ..ExecRequest::default()
        };
        lines.iter().map(command).collect()
    }

    /// Refuses modules that neither the image nor its disk with all modules of the kernel has.
    pub fn check_modules(&self, wanted: &[String]) -> Result<(), Failure> {
        match &self.kernel {
            Some(chosen) if chosen.modules.is_some() => chosen.check_modules(wanted),
            Some(_) => boot::check_modules(&self.boot, wanted)
                .map_err(|failure| failure.hint("--all-modules attaches all modules of the kernel")),
            None => boot::check_modules(&self.boot, wanted),
        }
    }

    /// Lets the image's own init boot a VM of it. Returns the command that waits until it has.
    pub fn use_init(&self, spec: &mut VmSpec) -> Result<ExecRequest, Failure> {
        let Some(root) = &mut spec.root else {
            let words = format!("--init-system: the image `{}` has no init of its own", self.name());
            return Err(Failure::words(USAGE, words)
                .hint("kiln image build debian --packages systemd-sysv makes an image that has one"));
        };
        root.init = true;
        let argv = [SHELL, "-c", WAIT_FOR_SYSTEMD].map(Text::from).to_vec();
        let env = vec![(Text::from("PATH"), Text::from(PATH_DEFAULT))];
        Ok(ExecRequest { argv, env, cwd: Some(Text::from("/")), ..ExecRequest::default() })
    }

    /// A VM of it, with the defaults of [`VmSpec`].
    pub fn vm_spec(&self) -> VmSpec {
        let spec = match &self.root {
            Some(root) => root.vm_spec(&self.boot),
            None => self.boot.vm_spec(),
        };
        match self.kernel.as_ref().and_then(|chosen| chosen.modules.as_ref()) {
            Some(disk) => spec.with_module_disk(disk),
            None => spec,
        }
    }
}

/// The variables that an image sets, with docker's `PATH` if it sets none.
pub fn image_env(config: &ImageConfig) -> Vec<(Text, Text)> {
    let of_image = config.env.iter().filter_map(|variable| variable.split_once('='));
    let mut env: Vec<_> = of_image.map(|(name, value)| (Text::from(name), Text::from(value))).collect();
    if !env.iter().any(|(name, _)| name.as_bytes() == b"PATH") {
        env.push((Text::from("PATH"), Text::from(PATH_DEFAULT)));
    }
    env
}

/// The image whose root the VM of a snapshot has, if it is one with a root filesystem.
pub fn of_snapshot(home: &Home, snapshot: &Snapshot) -> Result<Option<RootImage>, Failure> {
    ImageStore::new(home).root_of(&snapshot.manifest().spec).map_err(|error| {
        let hint = match &error {
            ImageError::Unknown { .. } | ImageError::Damaged { .. } | ImageError::OtherRoot { .. } => {
                "its memory fits only the image that it was made of; make the snapshot again: kiln snapshot create"
            }
            _ => return image_failure(error),
        };
        let words = format!("the image of the snapshot `{}` can't be used", snapshot.id());
        Failure::new(HOST, anyhow::Error::new(error).context(words)).hint(hint)
    })
}

/// A failure of the store.
pub fn image_failure(error: ImageError) -> Failure {
    let hint = error.hint();
    Failure::new(HOST, error).hint_if_not_writable().maybe_hint(hint)
}
