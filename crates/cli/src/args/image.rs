//! Arguments of `kiln image`.

use std::time::Duration;

use camino::Utf8PathBuf;
use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::AccelArg;
use super::kernel::KernelChoice;
use super::quantities::{parse_duration, parse_memory_mib};

/// When to ask a registry for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pull {
    /// If it is not here
    Missing,
    /// Before each run
    Always,
    /// Never
    Never,
}

/// Pull, import, build, list, check and remove images.
///
/// An image is what a VM starts with. `mini` boots: it is a kernel with busybox. All others are root filesystems with a
/// configuration, as in docker; they boot with the kernel of `mini`, or another one (see `kiln kernel`). Each is stored once, in $KILN_HOME/images, and is
/// never changed: a VM writes to a layer of its own.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln image pull python:3.12\n  \
    kiln image import ./image.tar --name app\n  \
    kiln image build debian --packages python3,fio\n  \
    kiln image ls")]
pub struct ImageArgs {
    #[command(subcommand)]
    pub command: ImageCommand,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    Pull(ImagePullArgs),
    Import(ImageImportArgs),
    Build(ImageBuildArgs),
    Warm(ImageWarmArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print all that is known of an image, as JSON
    Inspect {
        /// Name or digest
        name: String,
    },
    /// List the steps that made an image
    History {
        /// Name or digest
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    Export(ImageExportArgs),
    /// Remove images that have no name, and their ready-made snapshots
    ///
    /// An image loses its name when another one is pulled, imported or built under it. Images that a snapshot needs are
    /// kept.
    Prune {
        /// Only list what would be removed
        #[arg(long)]
        dry_run: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove an image and its ready-made snapshots
    ///
    /// Refuses if a snapshot needs it: the snapshot could not be restored any more.
    Rm {
        /// Names or digests
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Check an image's files against its digest
    Verify {
        /// Name or digest
        name: String,
    },
}

/// Build an image: mini or debian.
///
/// `mini` is Debian's cloud kernel, the modules a small VM needs, busybox and the agent, in one initramfs. Building it
/// needs no root. The kernel's package is downloaded once, into $KILN_HOME/cache.
///
/// `debian` is a root filesystem from Debian's packages, made by mmdebstrap: the smallest set that has apt, and
/// --packages. It runs bash if no command is given.
#[derive(Debug, ClapArgs)]
pub struct ImageBuildArgs {
    /// The image: mini or debian
    #[arg(id = "recipe", value_name = "IMAGE")]
    pub name: String,
    /// Name of the new image [default: debian]
    #[arg(long = "name", value_name = "NAME")]
    pub as_name: Option<String>,
    /// debian: the suite
    #[arg(long, value_name = "SUITE", default_value = "bookworm")]
    pub suite: String,
    /// debian: packages to install, separated by commas
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub packages: Vec<String>,
    /// debian: the mirror [default: this host's, or Debian's]
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// mini: the guest agent's binary [default: next to kiln]
    #[arg(long, value_name = "FILE", env = "KILN_AGENT")]
    pub agent: Option<Utf8PathBuf>,
    /// mini: use this Debian kernel package
    #[arg(long, value_name = "DEB")]
    pub kernel_deb: Option<Utf8PathBuf>,
    /// mini: use the newest kernel package in the cache; query apt only if the cache has no package
    #[arg(long, conflicts_with = "kernel_deb")]
    pub cached: bool,
    /// Ask apt for the newest kernel (the default)
    #[arg(long, hide = true, conflicts_with_all = ["kernel_deb", "cached"])]
    pub latest: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Boot an image and save it, so that `kiln run` can fork it.
///
/// `kiln run` does this on its own if the ready-made snapshot does not exist. This command does it in advance, and
/// replaces an existing one. Each memory size, number of CPUs and set of modules has its own snapshot, so give the same
/// flags as to `kiln run`. Without --run, the lines of an earlier --run are used again. Prints the snapshot's id.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln image warm mini\n  \
    kiln image warm python:3.12 --run 'python3 -c pass'\n  \
    kiln image warm mini --memory 512 --cpus 2 --module tun")]
pub struct ImageWarmArgs {
    /// Name or digest of the image
    pub name: String,
    /// Memory of the VM in MiB, or with a unit: 512, 512M, 2G
    #[arg(short, long, value_name = "SIZE", default_value = "256", value_parser = parse_memory_mib)]
    pub memory: u64,
    /// CPUs of the VM
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    #[command(flatten)]
    pub kernel: KernelChoice,
    /// Load a kernel module of the image
    #[arg(long = "module", value_name = "NAME")]
    pub modules: Vec<String>,
    /// Boot the image's own init: see `kiln run --init-system`
    #[arg(long)]
    pub init_system: bool,
    /// Run this line in the VM's shell before it is saved, so that forks find what it reads in their memory
    ///
    /// What the line changes in the VM stays, too. It must exit with 0. Repeat the flag for more lines. The lines run
    /// as the image's own command does: with its variables, in its directory, as its user. They are kept with the
    /// image: all its snapshots run them, also those that `kiln run` makes, for other sizes too. `kiln image inspect`
    /// shows them.
    #[arg(long = "run", value_name = "LINE")]
    pub lines: Vec<String>,
    /// Forget the lines of an earlier --run
    #[arg(long, conflicts_with = "lines")]
    pub no_run: bool,
    /// How to run the VM's CPUs
    #[arg(long, value_name = "HOW", default_value = "auto", env = "KILN_ACCEL")]
    pub accel: AccelArg,
    /// Give up if the VM has not booted after this long
    #[arg(long, value_name = "TIME", default_value = "60s", allow_hyphen_values = true, value_parser = parse_duration)]
    pub boot_timeout: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Pull an image from its registry.
///
/// REFERENCE is a name as in docker: python, python:3.12, ghcr.io/team/app:1, host:5000/app@sha256:… Credentials come
/// from docker's config.json ($DOCKER_CONFIG or ~/.docker), if it is there. Blobs are kept in $KILN_HOME/cache until
/// the image is complete, so an interrupted pull continues where it stopped. Prints the image's digest.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln image pull python:3.12\n  \
    kiln image pull localhost:5000/app:1 --plain-http")]
pub struct ImagePullArgs {
    /// The image in the registry
    #[arg(value_name = "REFERENCE")]
    pub reference: String,
    /// Name of the new image [default: the reference]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Allow a registry without TLS; one on this host's loopback needs no flag
    #[arg(long)]
    pub plain_http: bool,
    /// Trust the certificates in this PEM file, beside this host's
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<Utf8PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Import an image from a file or directory.
///
/// SOURCE is an archive of `docker save`, `podman save` or `skopeo`, an OCI layout as a directory or a tar, or a tar of
/// a root filesystem. It may be compressed with gzip or zstd. Nothing of it is unpacked on this host. Prints the image's
/// digest.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    docker save app:1 -o app.tar && kiln image import app.tar --name app\n  \
    kiln image import ./layout --tag 1.2 --name app")]
pub struct ImageImportArgs {
    /// File or directory, or `-` for stdin
    #[arg(value_name = "SOURCE")]
    pub source: Utf8PathBuf,
    /// Name of the new image [default: the name in the source]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Which of several images in the source
    #[arg(long, value_name = "TAG")]
    pub tag: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Write an image to a file that docker, podman and skopeo read.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln image export python:3.12 python.tar\n  \
    kiln image export app - | docker load")]
pub struct ImageExportArgs {
    /// Name or digest of the image
    pub name: String,
    /// The new file, or `-` for stdout
    #[arg(value_name = "FILE")]
    pub file: Utf8PathBuf,
}
