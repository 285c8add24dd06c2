//! Images that boot: how `mini` is built, how much memory it needs, and which modules it has.

use std::time::Duration;

use camino::Utf8PathBuf;
use kiln_engine::home::Home;
use kiln_engine::image::{BuildOptions, BuildStep, Image, ImageStore, KernelSource, MINI, TooLittleMemory};
use kiln_engine::{Acceleration, QemuEngine};
use owo_colors::OwoColorize as _;

use super::find::{home, image_failure};
use super::list::Listed;
use super::root;
use crate::agent_binary;
use crate::args::image::ImageBuildArgs;
use crate::failure::{Failure, USAGE};
use crate::output::{Progress, plain, print, print_json, say};

/// The image of Debian's packages.
pub(super) const DEBIAN: &str = "debian";
/// For removing what an interrupted VM left.
pub(super) const THREADS_DEADLINE: Duration = Duration::from_secs(2);

/// Runs `kiln image build`.
pub(super) fn build(args: ImageBuildArgs) -> Result<u8, Failure> {
    match args.name.as_str() {
        MINI => {}
        DEBIAN => return root::build_debian(&args),
        other => {
            let failure =
                Failure::words(USAGE, format!("can't build an image `{other}`: kiln builds `{MINI}` and `{DEBIAN}`"));
            return Err(failure.hint("kiln image pull and kiln image import get other images"));
        }
    }
    let kernel = match args.kernel_deb {
        Some(package) => KernelSource::Deb(package),
        None if args.cached && !args.latest => KernelSource::Auto,
        // `kiln image build` takes the newest kernel. `kiln run`, which builds an image only to run it, takes a cached
        // one.
        None => KernelSource::Latest,
    };
    let home = home()?;
    let progress = Progress::long("building mini", args.json);
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

/// Builds `mini` and measures how much memory it needs.
pub(super) fn build_mini(
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

/// The name of an acceleration in flags and reports.
pub const fn accel_name(acceleration: Acceleration) -> &'static str {
    match acceleration {
        Acceleration::Kvm => "kvm",
        Acceleration::Tcg => "tcg",
        Acceleration::Native => "native",
    }
}

/// Fails if an image does not have a module.
pub(super) fn check_modules(image: &Image, wanted: &[String]) -> Result<(), Failure> {
    image.check_modules(wanted).map_err(|error| {
        let hint = format!("the image has these modules: {}", error.has.join(", "));
        Failure::new(USAGE, error).hint(hint)
    })
}
