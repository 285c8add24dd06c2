//! Images with a root filesystem: made from registries, files and Debian's packages, and written to files.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_engine::home::Home;
use kiln_engine::image::{
    AnyImage, DebianError, DebianOptions, ImageStore, ImportError, ImportStep, Origin, RootImage,
};
use kiln_oci::{
    BlobCache, Credentials, Image as OciImage, OpenError, OpenOptions, PullError, PullOptions, Pulled, Reference,
    docker_config_path,
};

use super::boot::DEBIAN;
use super::find::{home, image_failure};
use super::list::Listed;
use crate::args::image::{ImageBuildArgs, ImageImportArgs, ImagePullArgs};
use crate::failure::{Failure, HOST, INTERRUPTED, USAGE};
use crate::output::{Progress, mebibytes, print, print_json, say};

/// The archive comes from stdin.
const STDIN: &str = "-";
/// The folder of the cache for blobs of registries.
const BLOBS: &str = "blobs";

/// Runs `kiln image pull`.
pub(super) fn pull(args: &ImagePullArgs) -> Result<u8, Failure> {
    let home = home()?;
    let progress = Progress::long(format!("pulling {}", args.reference), args.json);
    let options =
        PullOptions { plain_http: args.plain_http, ca_file: args.ca_file.clone().map(Into::into), ..options() };
    let image = pull_as(&home, &args.reference, args.name.as_deref(), &options, &progress)?;
    drop(progress);
    tell(&image, args.json)
}

/// Pulls the image of a run, under the name that the user gave.
pub(super) fn pull_named(home: &Home, name: &str, progress: &Progress) -> Result<RootImage, Failure> {
    progress.say(format!("pulling {name}"));
    pull_as(home, name, None, &options(), progress)
}

fn pull_as(
    home: &Home,
    text: &str,
    name: Option<&str>,
    options: &PullOptions,
    progress: &Progress,
) -> Result<RootImage, Failure> {
    let reference: Reference = text.parse().map_err(|error: kiln_oci::ReferenceError| {
        let hint = error.hint().map(str::to_owned);
        Failure::words(USAGE, format!("`{text}` is not an image of a registry: {error}")).maybe_hint(hint)
    })?;
    let blobs = home.cache().join(BLOBS);
    let cache = BlobCache::open(blobs.as_std_path()).map_err(|error| Failure::new(HOST, error))?;
    let mut watch = |now: &kiln_oci::Progress| {
        if now.total() > 0 {
            progress.say(format!("pulling {text}: {} of {}", mebibytes(now.bytes()), mebibytes(now.total())));
        }
        if is_interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let Pulled { digest, image, .. } =
        kiln_oci::pull(&reference, &cache, options, &mut watch).map_err(|error| pull_failure(&reference, error))?;
    let name = name.map_or_else(|| reference.familiar(), str::to_owned);
    let manifest = Some(image.manifest_digest.as_ref().unwrap_or(&digest).to_string());
    let origin = Origin { source: reference.to_string(), manifest, ..Origin::default() };
    make(home, &name, &image, origin, progress)
}

/// Runs `kiln image import`.
pub(super) fn import(args: &ImageImportArgs) -> Result<u8, Failure> {
    let home = home()?;
    let progress = Progress::long(format!("reading {}", args.source), args.json);
    let mut options = OpenOptions::new(home.cache().join("import").as_std_path());
    fs_err::create_dir_all(&options.scratch)?;
    options.name = args.tag.clone();
    let opened = match &args.source {
        source if source == STDIN => OciImage::read_archive(std::io::stdin().lock(), &options),
        source if source.is_dir() => OciImage::open_folder(source.as_std_path(), &options),
        source => OciImage::open_archive(source.as_std_path(), &options),
    };
    let image = opened.map_err(|error| open_failure(args, error))?;
    let name = match (&args.name, image.names.first()) {
        (Some(name), _) => name.clone(),
        (None, Some(name)) => name.parse::<Reference>().map_or_else(|_| name.clone(), |name| name.familiar()),
        (None, None) => {
            let failure = Failure::words(USAGE, format!("the image in `{}` has no name", args.source));
            return Err(failure.hint("--name NAME gives it one"));
        }
    };
    let manifest = image.manifest_digest.as_ref().map(ToString::to_string);
    let origin = Origin { source: args.source.to_string(), manifest, ..Origin::default() };
    let made = make(&home, &name, &image, origin, &progress)?;
    drop(progress);
    tell(&made, args.json)
}

fn make(home: &Home, name: &str, source: &OciImage, origin: Origin, progress: &Progress) -> Result<RootImage, Failure> {
    let mut step = |step: ImportStep| progress.say(format!("importing {name}: {step}"));
    let mut made = ImageStore::new(home).import(name, source, origin, &mut step).map_err(import_failure)?;
    // Both are for the user who has just made it: what the source had, and what its layers had.
    made.origin.notes = source.notes.iter().cloned().chain(made.origin.notes).collect();
    Ok(made)
}

/// Runs `kiln image build debian`.
pub(super) fn build_debian(args: &ImageBuildArgs) -> Result<u8, Failure> {
    let name = args.as_name.as_deref().unwrap_or(DEBIAN);
    let (suite, packages) = (args.suite.clone(), args.packages.clone());
    let options = DebianOptions { suite, packages, mirror: args.mirror.clone() };
    let progress =
        Progress::long(format!("installing Debian {}; this takes a minute or more", options.suite), args.json);
    let mut step = |step: ImportStep| match step {
        // mmdebstrap writes its archive at the end of its work.
        ImportStep::Layer { .. } => {}
        step => progress.say(format!("building {name}: {step}")),
    };
    let built = ImageStore::new(&home()?).build_debian(name, &options, &mut step);
    drop(progress);
    tell(&built.map_err(debian_failure)?, args.json)
}

/// An image with a root filesystem, for commands that need one.
pub(super) fn find_root(home: &Home, name: &str) -> Result<RootImage, Failure> {
    match ImageStore::new(home).find(name).map_err(image_failure)? {
        AnyImage::Root(image) => Ok(*image),
        AnyImage::Boot(_) => {
            Err(Failure::words(USAGE, format!("`{name}` boots, and has no root filesystem of its own")))
        }
    }
}

/// What every pull has: docker's credentials, if there are any.
fn options() -> PullOptions {
    let credentials = docker_config_path().map_or(Credentials::None, Credentials::Docker);
    PullOptions { credentials, ..PullOptions::default() }
}

/// Whether Ctrl-C was pressed since the first call. The handler stays for the rest of the process: its commands end soon
/// after a pull.
fn is_interrupted() -> bool {
    static INTERRUPTED_NOW: AtomicBool = AtomicBool::new(false);
    static WATCHER: std::sync::Once = std::sync::Once::new();
    WATCHER.call_once(|| {
        let watch = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(tokio::signal::ctrl_c())?;
            INTERRUPTED_NOW.store(true, Ordering::Relaxed);
            Ok::<_, std::io::Error>(())
        };
        // Without the thread, Ctrl-C ends the process as it does by default.
        let _ = std::thread::Builder::new().name("ctrl-c".into()).spawn(watch);
    });
    INTERRUPTED_NOW.load(Ordering::Relaxed)
}

/// Prints a new image.
pub(super) fn tell(image: &RootImage, json: bool) -> Result<u8, Failure> {
    if json {
        print_json(&Listed::from(image))?;
        return Ok(0);
    }
    for note in &image.origin.notes {
        say(format_args!("note: {note}"));
    }
    say(format_args!("image {}: {} files and directories", image.name, image.entries));
    print(&image.digest)?;
    Ok(0)
}

fn pull_failure(reference: &Reference, error: PullError) -> Failure {
    if matches!(error, PullError::Cancelled) {
        return Failure::words(INTERRUPTED, "interrupted");
    }
    let hint = error.hint().unwrap_or("kiln image ls lists the images that are here").to_owned();
    let error = anyhow::Error::new(error).context(format!("failed to pull `{}`", reference.familiar()));
    Failure::new(HOST, error).hint(hint)
}

fn open_failure(args: &ImageImportArgs, error: OpenError) -> Failure {
    let hint = error.hint().map(str::to_owned);
    let error = anyhow::Error::new(error).context(format!("failed to read an image from `{}`", args.source));
    Failure::new(HOST, error).maybe_hint(hint)
}

fn debian_failure(error: DebianError) -> Failure {
    match error {
        DebianError::Import(error) => import_failure(error),
        error => {
            let hint = error.hint();
            Failure::new(HOST, error).maybe_hint(hint)
        }
    }
}

/// An image that could not be made.
pub(super) fn import_failure(error: ImportError) -> Failure {
    match error {
        ImportError::Store(error) => image_failure(error),
        error => {
            let hint = error.hint();
            Failure::new(HOST, error).maybe_hint(hint)
        }
    }
}
