//! `kiln image`, and how other commands find or build their image and engine.

use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use comfy_table::{Table, presets};
use kiln_engine::home::{Home, HomeError, remembered_digest};
use kiln_engine::image::{BuildOptions, BuildStep, Image, ImageError, ImageStore, KernelSource, MINI, TooLittleMemory};
use kiln_engine::snapshot::{SnapshotError, SnapshotStore};
use kiln_engine::{Acceleration, Engine as _, QemuEngine, Renew, VmSpec};
use owo_colors::OwoColorize as _;
use serde::Serialize;

use crate::agent_binary;
use crate::args::{ImageArgs, ImageBuildArgs, ImageCommand, ImageWarmArgs};
use crate::engine_failure::{launch_failure, ready_failure, snapshot_failure};
use crate::failure::{Failure, HOST, USAGE};
use crate::interrupt::Interrupts;
use crate::output::{Progress, mebibytes, plain, print, print_json, say};
use crate::ready::{self, NotMade, Wanted};

/// Enough digits to distinguish the images of one host.
const DIGEST_CHARS_SHOWN: usize = 12;
/// For removing what an interrupted VM left.
const THREADS_DEADLINE: Duration = Duration::from_secs(2);

/// Runs `kiln image …`.
pub fn run(args: ImageArgs) -> Result<u8, Failure> {
    match args.command {
        ImageCommand::Build(args) => build(args),
        ImageCommand::Warm(args) => warm(&args),
        ImageCommand::Ls { json } => list(json),
        ImageCommand::Rm { names } => remove(&names),
        ImageCommand::Verify { name } => verify(&name),
    }
}

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

/// An existing image.
pub fn find(home: &Home, name: &str) -> Result<Image, Failure> {
    ImageStore::new(home).find(name).map_err(image_failure)
}

/// An existing image. `mini` is built if it does not exist, or if its agent is not the one next to kiln.
pub fn find_or_build(home: &Home, name: &str, progress: &Progress) -> Result<Image, Failure> {
    let store = ImageStore::new(home);
    let found = store.find(name);
    if name != MINI {
        return found.map_err(image_failure);
    }
    let Some(agent) = agent_binary::beside_kiln() else { return found.map_err(image_failure) };
    match found {
        Ok(image) if image.agent_digest == remembered_digest(home, &agent)? => Ok(image),
        Ok(_) | Err(ImageError::Unknown { .. } | ImageError::Damaged { .. }) => {
            build_mini(&store, home, agent, KernelSource::Auto, progress)
        }
        Err(error) => Err(image_failure(error)),
    }
}

fn build(args: ImageBuildArgs) -> Result<u8, Failure> {
    if args.name != MINI {
        return Err(Failure::words(USAGE, format!("can't build an image `{}`: kiln builds only `{MINI}`", args.name))
            .hint(format!("kiln image build {MINI}")));
    }
    let kernel = match args.kernel_deb {
        Some(package) => KernelSource::Deb(package),
        None if args.cached && !args.latest => KernelSource::Auto,
        // `kiln image build` takes the newest kernel. `kiln run`, which builds an image only to run it, takes a cached
        // one.
        None => KernelSource::Latest,
    };
    let home = home()?;
    let progress = Progress::start("building mini");
    let image = build_mini(&ImageStore::new(&home), &home, agent_binary::find(args.agent)?, kernel, &progress)?;
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
    home: &Home,
    agent: Utf8PathBuf,
    kernel: KernelSource,
    progress: &Progress,
) -> Result<Image, Failure> {
    let mut say = |step: BuildStep| progress.say(format!("building mini: {step}"));
    let image = store.build_mini(BuildOptions { agent, kernel, progress: &mut say }).map_err(image_failure)?;
    // Without QEMU the image can't be booted. It is measured later, once a VM requests less memory than is certain to
    // be enough: see `with_memory`.
    let Ok(engine) = QemuEngine::find(home.path()) else { return Ok(image) };
    Ok(measure_memory(store, &engine, image, progress))
}

/// Measures the least memory that an image boots with. A failure is printed, and the image can still be used.
fn measure_memory(store: &ImageStore, engine: &QemuEngine, image: Image, progress: &Progress) -> Image {
    let known = image.clone();
    let mut steps = |step: BuildStep| progress.say(format!("measuring how much memory the image needs: {step}"));
    let measured = on_a_thread(store.measure_memory(engine, image, &mut steps));
    measured.unwrap_or_else(|error| {
        let failure = image_failure(error);
        say(format_args!("{} {}", "kiln:".yellow().bold(), plain(&failure.message())));
        known
    })
}

/// The image for a VM of this size. Fails if the image does not boot with so little memory. An image that was not
/// measured when it was built is measured now if that decides.
pub fn with_memory(
    home: &Home,
    image: Image,
    memory_mib: u64,
    cpus: u32,
    progress: &Progress,
) -> Result<Image, Failure> {
    let image = match image.check_memory(memory_mib, cpus) {
        Err(TooLittleMemory { is_measured: false, .. }) => match QemuEngine::find(home.path()) {
            Ok(engine) => measure_memory(&ImageStore::new(home), &engine, image, progress),
            Err(_) => image,
        },
        _ => image,
    };
    image.check_memory(memory_mib, cpus).map_err(|error| {
        let mut hint = format!("--memory {}", error.needed_mib);
        if !error.is_measured {
            hint.push_str(&format!(", or install QEMU and measure the image: kiln image build {}", image.name));
        }
        Failure::new(USAGE, error).hint(hint)
    })?;
    Ok(image)
}

/// Waits for a future on another thread, because the caller may be in a runtime already.
fn on_a_thread<T: Send>(future: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("this process could start its first runtime");
            let done = runtime.block_on(future);
            runtime.shutdown_timeout(THREADS_DEADLINE);
            done
        });
        waiter.join().expect("a panic of the future is a panic of its caller")
    })
}

/// An image as `--json` prints it.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    digest: String,
    kernel: String,
    agent_digest: String,
    modules: Vec<String>,
    memory_mib_min: Option<u64>,
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
            memory_mib_min: image.memory_mib_min,
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
    print(table(&images))?;
    Ok(0)
}

fn table(images: &[Image]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["NAME", "DIGEST", "KERNEL", "SIZE", "LEAST MEMORY"]);
    for image in images {
        let size = mebibytes(image.size_bytes);
        table.add_row([
            image.name.clone(),
            image.digest.chars().take(DIGEST_CHARS_SHOWN).collect(),
            image.kernel_version.clone(),
            size,
            least_memory(image),
        ]);
    }
    table
}

/// The least memory that an image boots with, as text.
pub fn least_memory(image: &Image) -> String {
    let note = if image.memory_mib_min.is_some() { "" } else { " (not measured)" };
    format!("{} MiB{note}", image.memory_mib_needed())
}

fn remove(names: &[String]) -> Result<u8, Failure> {
    let home = home()?;
    let store = ImageStore::new(&home);
    for name in names {
        store.remove(name).map_err(image_failure)?;
    }
    remove_ready_of_gone(&home)?;
    Ok(0)
}

/// Removes the ready-made snapshots of removed images: a snapshot can't be restored without its kernel.
fn remove_ready_of_gone(home: &Home) -> Result<(), Failure> {
    let store = SnapshotStore::new(home);
    for one in store.list().map_err(snapshot_failure)? {
        let Some(kernel) = one.manifest.as_ref().map(|manifest| &manifest.spec.kernel) else { continue };
        if one.ready_for.is_none() || !kernel.starts_with(home.images()) || kernel.exists() {
            continue;
        }
        match store.remove(&one.id) {
            Ok(()) | Err(SnapshotError::Unknown(_)) => {}
            Err(error @ SnapshotError::InUse { .. }) => say(format_args!("not removed: {error}")),
            Err(error) => return Err(snapshot_failure(error)),
        }
    }
    Ok(())
}

/// A ready-made snapshot as `--json` prints it.
#[derive(Debug, Serialize)]
struct Warmed {
    id: String,
    image: String,
    accel: &'static str,
    bytes_on_disk: u64,
    took_ms: f64,
}

fn warm(args: &ImageWarmArgs) -> Result<u8, Failure> {
    let start = Instant::now();
    let home = home()?;
    let progress = Progress::start("finding the image");
    let image = find_or_build(&home, &args.name, &progress)?;
    check_modules(&image, &args.modules)?;
    let image = with_memory(&home, image, args.memory, args.cpus, &progress)?;
    let (memory_mib, cpus, modules) = (args.memory, args.cpus, args.modules.clone());
    let mut spec = VmSpec { memory_mib, cpus, modules, ..image.vm_spec() };
    spec.acceleration = args.accel.into();
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
        let wanted = Wanted { spec: &spec, label: &image.name, renew: Renew::Always, boot_timeout: args.boot_timeout };
        match ready::get(&engine, wanted, &mut interrupts, &progress).await {
            Ok(made) => Ok(Ok((made.snapshot, accel))),
            Err(NotMade::Interrupted(code)) => Ok(Err(code)),
            Err(NotMade::Failed(error)) => Err(ready_failure(error, args.boot_timeout)),
        }
    });
    runtime.shutdown_timeout(THREADS_DEADLINE);
    let (snapshot, accel) = match made? {
        Ok(made) => made,
        Err(code) => return Ok(code),
    };
    drop(progress);
    let bytes_on_disk = snapshot.bytes_on_disk().map_err(snapshot_failure)?;
    if args.json {
        let (id, image) = (snapshot.id().to_string(), image.name);
        let took_ms = start.elapsed().as_secs_f64() * 1000.0;
        print_json(&Warmed { id, image, accel: accel_name(accel), bytes_on_disk, took_ms })?;
    } else {
        let size = mebibytes(bytes_on_disk);
        say(format_args!(
            "saved {} with {} MiB of memory: {size} on disk, {:.1?}",
            image.name,
            args.memory,
            start.elapsed()
        ));
        print(snapshot.id())?;
    }
    Ok(0)
}

fn verify(name: &str) -> Result<u8, Failure> {
    find(&home()?, name)?.verify().map_err(image_failure)?;
    say(format_args!("image `{name}` matches its digest"));
    Ok(0)
}

/// The name of an acceleration in flags and reports.
pub const fn accel_name(acceleration: Acceleration) -> &'static str {
    match acceleration {
        Acceleration::Kvm => "kvm",
        Acceleration::Tcg => "tcg",
        Acceleration::Native => "native",
    }
}

/// Fails if an image does not have a module.
pub fn check_modules(image: &Image, wanted: &[String]) -> Result<(), Failure> {
    image.check_modules(wanted).map_err(|error| {
        let hint = format!("the image has these modules: {}", error.has.join(", "));
        Failure::new(USAGE, error).hint(hint)
    })
}

fn image_failure(error: ImageError) -> Failure {
    let hint = error.hint();
    Failure::new(HOST, error).hint_if_not_writable().maybe_hint(hint)
}

#[cfg(test)]
mod tests {
    use kiln_engine::image::KernelFormat;

    use super::*;

    #[test]
    fn the_list_is_a_table_or_json() {
        let measured = Image {
            name: "mini".into(),
            digest: "0123456789abcdef".repeat(4),
            dir: "/images/0123".into(),
            kernel: "/images/0123/kernel".into(),
            initramfs: "/images/0123/initramfs".into(),
            cmdline: String::new(),
            kernel_version: "6.1.0-1-cloud-amd64".into(),
            kernel_format: KernelFormat::BzImage,
            agent_digest: "fedc".repeat(16),
            modules: vec!["tun".into()],
            kernel_package: None,
            memory_mib_min: Some(80),
            created_unix_seconds: 1_000_000,
            size_bytes: 21 << 20,
        };
        let unmeasured = Image { name: "other".into(), memory_mib_min: None, ..measured.clone() };
        let json = serde_json::to_string_pretty(&Listed::from(&measured)).expect("plain data");
        let warmed = Warmed { id: "1".into(), image: "mini".into(), accel: "tcg", bytes_on_disk: 1, took_ms: 2.5 };
        let warmed = serde_json::to_string_pretty(&warmed).expect("plain data");
        insta::assert_snapshot!(format!("{}\n\n{json}\n\n{warmed}", table(&[measured, unmeasured])));
    }
}
