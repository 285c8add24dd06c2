//! `kiln image`, and how other commands come to their image and engine.

use camino::{Utf8Path, Utf8PathBuf};
use comfy_table::{Table, presets};
use kiln_engine::home::Home;
use kiln_engine::image::{BuildOptions, BuildStep, Image, ImageError, ImageStore, KernelSource, MINI};
use kiln_engine::{Acceleration, LaunchError, QemuEngine, VmSpec};
use serde::Serialize;

use crate::agent_binary;
use crate::args::{ImageArgs, ImageBuildArgs, ImageCommand};
use crate::failure::{Failure, HOST, USAGE};
use crate::output::{Progress, print, print_json, say};

/// Enough to tell the images of one host apart.
const DIGEST_CHARS_SHOWN: usize = 12;

/// Runs `kiln image …`.
pub fn run(args: ImageArgs) -> Result<u8, Failure> {
    match args.command {
        ImageCommand::Build(args) => build(args),
        ImageCommand::Ls { json } => list(json),
        ImageCommand::Rm { names } => remove(&names),
        ImageCommand::Verify { name } => verify(&name),
    }
}

/// `$KILN_HOME`.
pub fn home() -> Result<Home, Failure> {
    Home::from_env().map_err(|error| Failure::new(USAGE, error))
}

/// The engine that runs VMs here.
pub fn engine(home: &Home) -> Result<QemuEngine, Failure> {
    QemuEngine::find(home.path()).map_err(launch_failure)
}

/// A failure to launch, with what the user can do.
pub fn launch_failure(error: LaunchError) -> Failure {
    let code = if matches!(error, LaunchError::Spec(_)) { USAGE } else { HOST };
    let hint = error.hint();
    Failure::new(code, error).maybe_hint(hint)
}

/// An image that is there.
pub fn find(home: &Home, name: &str) -> Result<Image, Failure> {
    ImageStore::new(home).find(name).map_err(image_failure)
}

/// An image that is there, or `mini`, built where it is missing or holds another agent than the one beside kiln.
pub fn find_or_build(home: &Home, name: &str, progress: &Progress) -> Result<Image, Failure> {
    let store = ImageStore::new(home);
    let found = store.find(name);
    if name != MINI {
        return found.map_err(image_failure);
    }
    let Some(agent) = agent_binary::beside_kiln() else { return found.map_err(image_failure) };
    match found {
        Ok(image) if image.agent_digest == digest(&agent)? => Ok(image),
        Ok(_) | Err(ImageError::Unknown { .. }) => build_mini(&store, agent, KernelSource::Auto, progress),
        Err(error) => Err(image_failure(error)),
    }
}

fn digest(agent: &Utf8Path) -> Result<String, Failure> {
    Ok(blake3::hash(&fs_err::read(agent)?).to_hex().to_string())
}

fn build(args: ImageBuildArgs) -> Result<u8, Failure> {
    if args.name != MINI {
        return Err(Failure::words(USAGE, format!("no recipe for an image `{}`", args.name))
            .hint(format!("kiln image build {MINI}")));
    }
    let kernel = match args.kernel_deb {
        Some(package) => KernelSource::Deb(package),
        None if args.latest => KernelSource::Latest,
        None => KernelSource::Auto,
    };
    let progress = Progress::start("building mini");
    let image = build_mini(&ImageStore::new(&home()?), agent_binary::find(args.agent)?, kernel, &progress)?;
    drop(progress);
    if args.json {
        print_json(&Listed::from(&image))?;
    } else {
        say(format_args!("image {}: Linux {}", image.name, image.kernel_version));
        print(&image.digest)?;
    }
    Ok(0)
}

fn build_mini(
    store: &ImageStore,
    agent: Utf8PathBuf,
    kernel: KernelSource,
    progress: &Progress,
) -> Result<Image, Failure> {
    let mut say = |step: BuildStep| progress.say(format!("building mini: {step}"));
    store.build_mini(BuildOptions { agent, kernel, progress: &mut say }).map_err(image_failure)
}

/// An image as `--json` has it.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    digest: String,
    kernel: String,
    agent_digest: String,
    modules: Vec<String>,
    created_unix_seconds: u64,
    size_bytes: u64,
    dir: Utf8PathBuf,
}

impl From<&Image> for Listed {
    fn from(image: &Image) -> Self {
        let image = image.clone();
        Self {
            name: image.name,
            digest: image.digest,
            kernel: image.kernel_version,
            agent_digest: image.agent_digest,
            modules: image.modules,
            created_unix_seconds: image.created_unix_seconds,
            size_bytes: image.size_bytes,
            dir: image.dir,
        }
    }
}

fn list(json: bool) -> Result<u8, Failure> {
    let images = ImageStore::new(&home()?).list().map_err(image_failure)?;
    if json {
        let listed: Vec<Listed> = images.iter().map(Listed::from).collect();
        print_json(&listed)?;
        return Ok(0);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NAME", "DIGEST", "KERNEL", "SIZE"]);
    for image in &images {
        let size = format!("{:.1} MiB", image.size_bytes as f64 / f64::from(1 << 20));
        table.add_row([
            image.name.clone(),
            image.digest.chars().take(DIGEST_CHARS_SHOWN).collect(),
            image.kernel_version.clone(),
            size,
        ]);
    }
    print(table)?;
    Ok(0)
}

fn remove(names: &[String]) -> Result<u8, Failure> {
    let store = ImageStore::new(&home()?);
    for name in names {
        store.remove(name).map_err(image_failure)?;
    }
    Ok(0)
}

fn verify(name: &str) -> Result<u8, Failure> {
    find(&home()?, name)?.verify().map_err(image_failure)?;
    say(format_args!("image {name} is as it was built"));
    Ok(0)
}

/// How a VM's CPU runs, as flags and reports name it.
pub const fn accel_name(acceleration: Acceleration) -> &'static str {
    match acceleration {
        Acceleration::Kvm => "kvm",
        Acceleration::Tcg => "tcg",
        Acceleration::Native => "native",
    }
}

/// A VM of an image, with the defaults of [`VmSpec`].
pub fn spec(image: &Image) -> VmSpec {
    VmSpec { cmdline: image.cmdline.clone(), ..VmSpec::new(&image.kernel, &image.initramfs) }
}

/// Refuses modules that an image does not have: its guest would only say so on its console.
pub fn check_modules(image: &Image, wanted: &[String]) -> Result<(), Failure> {
    // The kernel takes both for the same.
    let plain = |name: &str| name.replace('-', "_");
    match wanted.iter().find(|wanted| !image.modules.iter().any(|module| plain(module) == plain(wanted))) {
        None => Ok(()),
        Some(missing) => {
            let words = format!("the image `{}` has no module `{missing}`", image.name);
            Err(Failure::words(USAGE, words).hint(format!("it has: {}", image.modules.join(", "))))
        }
    }
}

fn image_failure(error: ImageError) -> Failure {
    let hint = error.hint();
    Failure::new(HOST, error).hint_where_not_writable().maybe_hint(hint)
}
