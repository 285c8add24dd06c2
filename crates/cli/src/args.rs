//! What can be typed. `-h` fits a screen, `--help` teaches.

pub mod docker;
mod quantities;
pub mod vhost;
pub mod vhost_testing;
mod vhost_user;

use std::ffi::OsString;
use std::time::Duration;

use camino::Utf8PathBuf;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use kiln_engine::{AccelerationRequest, FORKS_MAX, VhostUser};

pub use self::quantities::{parse_duration, parse_size_bytes};
use self::quantities::{parse_grace, parse_memory_mib};
use self::vhost::VhostArgs;

/// Fires real virtual machines: a real kernel of its own for every command.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, propagate_version = true, infer_long_args = false)]
pub struct Args {
    /// Say more on stderr; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a VM of its own
    Run(Box<RunArgs>),
    /// Tell what this host can do, what is missing and how to get it
    Doctor(DoctorArgs),
    /// Build, warm, list and remove guest images
    Image(ImageArgs),
    /// Create, list, check, compact and remove snapshots
    Snapshot(SnapshotArgs),
    /// Find crashes in a saved kernel log
    Scan(ScanArgs),
    /// Prove on this host that VMs are what they must be
    Verify(VerifyArgs),
    /// Measure what Kiln promises, on this host
    Bench(BenchArgs),
    /// Talk to vhost-user backends, test them, and stand in for them
    Vhost(Box<VhostArgs>),
    /// Print the completion of a shell
    Completion(CompletionArgs),
    /// Print kiln's man page, or write those of all commands
    Man(ManArgs),
    /// Print the version
    Version(VersionArgs),
}

/// Print the completion of a shell.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln completion bash > ~/.local/share/bash-completion/completions/kiln\n  \
    kiln completion zsh > ~/.zfunc/_kiln\n  \
    kiln completion fish > ~/.config/fish/completions/kiln.fish")]
pub struct CompletionArgs {
    /// Which shell
    pub shell: clap_complete::Shell,
}

/// Print kiln's man page, or write those of all commands.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln man | man -l -\n  \
    kiln man ~/.local/share/man/man1")]
pub struct ManArgs {
    /// Directory to write to; it is made if it is missing
    #[arg(value_name = "DIR")]
    pub folder: Option<Utf8PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct VersionArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Run a command in a VM of its own.
///
/// A fresh VM with its own kernel is started, the command runs in it, its output and exit code become kiln's, and
/// nothing is left behind. There is no network in the VM.
///
/// The VM is a fork of the image's ready-made snapshot: booted and saved once for each size and set of modules, on first
/// use or by `kiln image warm`. A fork has a host name, machine id, clock and randomness of its own. --cold boots, and so
/// does --vhost-user.
///
/// Exit codes: the command's own; 128 + n for signal n; 124 timed out; 125 the VM could not run it to its end (it
/// crashed, powered off, or never came up); 126 not executable; 127 not found; 130 interrupted; 2 wrong usage; 69 this
/// host lacks something.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln run -- uname -a\n  \
    kiln run -e NAME=x -w /tmp -i -- sh -c 'cat; echo $NAME; exit 3' < file\n  \
    kiln run -t -- sh\n  \
    kiln run --in ./dir:/job --out /job/result:./result -- sh /job/run.sh\n  \
    kiln run --from prepared -- sh /job/run.sh\n  \
    kiln run --vhost-user blk:./backend.sock -- dd if=/dev/vda of=/dev/null bs=1M")]
pub struct RunArgs {
    /// Set a variable; NAME alone passes on this shell's value
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,
    /// Working directory in the guest
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<OsString>,
    /// User in the guest: USER, USER:GROUP or :GROUP, names or ids
    #[arg(short, long)]
    pub user: Option<String>,
    /// Pass stdin to the command
    #[arg(short = 'i', long = "stdin", alias = "interactive")]
    pub stdin: bool,
    /// Give the command a terminal (implies --stdin)
    #[arg(short, long)]
    pub tty: bool,
    /// Copy a file or directory into the guest before the command runs
    #[arg(long = "in", value_name = "HOST:GUEST")]
    pub copy_in: Vec<OsString>,
    /// Copy a file or directory out of the guest afterwards
    ///
    /// What is there keeps its kind: a file its permissions, a folder is merged into, a device, a FIFO or `-` (stdout) is
    /// written into.
    #[arg(long = "out", value_name = "GUEST:HOST")]
    pub copy_out: Vec<OsString>,
    /// The most that all of --out may write here
    ///
    /// Each file, folder and symlink counts 16 KiB beside its bytes.
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = parse_size_bytes)]
    pub out_limit: u64,
    /// Image to boot; see `kiln image ls`
    #[arg(long, default_value = "mini", env = "KILN_IMAGE")]
    pub image: String,
    /// Memory of the VM in MiB, or with a unit: 512, 512M, 2G
    #[arg(short, long, value_name = "SIZE", default_value = "256", value_parser = parse_memory_mib)]
    pub memory: u64,
    /// CPUs of the VM
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// End the run this long after its VM is there: 30s, 2m, 1h30m, 500ms
    ///
    /// It bounds --in, the command and --out. A command that reaches it is ended as by --grace, and what it has left is
    /// still copied out. Kiln ends with 124.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// What a command gets between SIGTERM and SIGKILL when its time is up, or when a signal ends kiln; 0 kills it at once
    #[arg(long, value_name = "TIME", default_value = "2s", allow_hyphen_values = true, value_parser = parse_grace, hide_short_help = true)]
    pub grace: Duration,
    /// Give up on a VM that has not come up after this long
    #[arg(long, value_name = "TIME", default_value = "60s", allow_hyphen_values = true, value_parser = parse_duration)]
    pub boot_timeout: Duration,
    /// The most memory that the command and its children may use
    #[arg(long, value_name = "SIZE", value_parser = parse_size_bytes)]
    pub limit_memory: Option<u64>,
    /// The most processes and threads
    #[arg(long, value_name = "N")]
    pub limit_pids: Option<u64>,
    /// The most CPU time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_duration)]
    pub limit_cpu: Option<Duration>,
    /// The most output that is passed on; the rest is dropped
    #[arg(long, value_name = "SIZE", value_parser = parse_size_bytes)]
    pub limit_output: Option<u64>,
    /// How the VM's CPU runs
    #[arg(long, value_name = "HOW", default_value = "auto", env = "KILN_ACCEL")]
    pub accel: AccelArg,
    /// Load a kernel module of the image before the command runs
    #[arg(long = "module", value_name = "NAME")]
    pub modules: Vec<String>,
    /// Attach a device that another process serves: blk:SOCKET, net:SOCKET, vsock:SOCKET, fs:SOCKET,tag=NAME
    ///
    /// The backend must listen on SOCKET before kiln starts, and serves this VM alone. In the guest a disk is /dev/vda, a
    /// card eth0 without an address, and a share is mounted with `mount -t virtiofs NAME /mnt`; the vsock device has the
    /// CID that its backend says. A disk or card waits for a backend that ended and listens again, and goes on.
    ///
    /// Options follow the path: queues=N (blk, net, fs), mac=ADDRESS (net), tag=NAME (fs).
    ///
    /// Such a VM can't be saved or forked, so it boots, as with --cold. Give it more than once for more devices.
    #[arg(long, value_name = "DEVICE:SOCKET", value_parser = vhost_user::parse)]
    pub vhost_user: Vec<VhostUser>,
    /// Fork this snapshot instead of the image's: name or id
    ///
    /// See `kiln snapshot create`. Image, memory, CPUs, acceleration and modules are those of the snapshot: their flags are
    /// refused, and $KILN_IMAGE and $KILN_ACCEL have no effect.
    #[arg(long, value_name = "SNAPSHOT")]
    pub from: Option<String>,
    /// Boot the VM instead of forking the image's ready-made snapshot
    #[arg(long)]
    pub cold: bool,
    #[command(flatten)]
    pub docker: docker::DockerArgs,
    /// Show the guest's console on stderr, each row behind `console|`
    #[arg(long)]
    pub console: bool,
    /// Print one JSON object instead of the command's output
    #[arg(long, conflicts_with = "tty")]
    pub json: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AccelArg {
    /// KVM where it really runs Linux here, else TCG
    Auto,
    /// Hardware virtualisation
    Kvm,
    /// Emulation in software
    Tcg,
}

impl From<AccelArg> for AccelerationRequest {
    fn from(arg: AccelArg) -> Self {
        match arg {
            AccelArg::Auto => Self::Auto,
            AccelArg::Kvm => Self::Kvm,
            AccelArg::Tcg => Self::Tcg,
        }
    }
}

/// Tell what this host can do, what is missing and how to get it.
///
/// Exit code 69 where VMs can't run here.
#[derive(Debug, ClapArgs)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Forget what was found out about KVM here and try it again
    #[arg(long)]
    pub probe: bool,
}

#[derive(Debug, ClapArgs)]
pub struct ImageArgs {
    #[command(subcommand)]
    pub command: ImageCommand,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Build an image
    Build(ImageBuildArgs),
    /// Boot an image once and save it, to be forked by `kiln run`
    Warm(ImageWarmArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove an image and its ready-made snapshots
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

/// Build an image.
///
/// `mini` is Debian's cloud kernel, the modules a small VM needs, busybox and the agent, in one initramfs. It is built
/// as an ordinary user; the kernel's package is downloaded once, into $KILN_HOME/cache.
#[derive(Debug, ClapArgs)]
pub struct ImageBuildArgs {
    /// Which one: mini
    pub name: String,
    /// The guest agent's binary [default: beside kiln]
    #[arg(long, value_name = "FILE", env = "KILN_AGENT")]
    pub agent: Option<Utf8PathBuf>,
    /// A Debian kernel package to use
    #[arg(long, value_name = "DEB")]
    pub kernel_deb: Option<Utf8PathBuf>,
    /// Use the newest kernel package that was downloaded before, and ask apt only if there is none
    #[arg(long, conflicts_with = "kernel_deb")]
    pub cached: bool,
    /// Ask apt for the newest kernel, which is the default
    #[arg(long, hide = true, conflicts_with_all = ["kernel_deb", "cached"])]
    pub latest: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Boot an image once and save it, to be forked by `kiln run`.
///
/// `kiln run` does it by itself where the snapshot is not there; this does it before, and anew where it is there. There is
/// one for each memory size, number of CPUs and set of modules, so give the same flags as to `kiln run`. Prints its id.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln image warm mini\n  \
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
    /// Load a kernel module of the image
    #[arg(long = "module", value_name = "NAME")]
    pub modules: Vec<String>,
    /// How the VM's CPU runs
    #[arg(long, value_name = "HOW", default_value = "auto", env = "KILN_ACCEL")]
    pub accel: AccelArg,
    /// Give up on a VM that has not come up after this long
    #[arg(long, value_name = "TIME", default_value = "60s", allow_hyphen_values = true, value_parser = parse_duration)]
    pub boot_timeout: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Create, list, check, compact and remove snapshots.
///
/// A snapshot is a VM saved whole: memory, devices, disks. A full one holds all memory; a diff holds what differs from its
/// parent. They lie in $KILN_HOME/snapshots. Each goes by its name, or by the first digits of its id, at least six.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln snapshot create prepared --in ./dir:/job -- sh /job/prepare.sh\n  \
    kiln run --from prepared -- sh /job/test.sh\n  \
    kiln snapshot ls\n  \
    kiln snapshot verify --all\n  \
    kiln snapshot compact 55b901f4\n  \
    kiln snapshot rm 55b901f4 739a65ac")]
pub struct SnapshotArgs {
    #[command(subcommand)]
    pub command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Prepare a VM with a command and save it, to be forked by `kiln run --from`
    Create(Box<SnapshotCreateArgs>),
    /// List snapshots, broken ones too
    ///
    /// A ready-made one is what `kiln run` forks. One that is not sealed yet is whole for as long as this host runs: its
    /// checksums are still to come. No file is read for the list; `kiln snapshot verify` reads them.
    #[command(visible_alias = "list")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Read snapshots whole and compare them with their checksums
    ///
    /// So is all that they lie on. Exit code 1 where one of them is broken; each is named with the file that is.
    Verify {
        /// Names or ids
        #[arg(value_name = "SNAPSHOT", required_unless_present = "all")]
        ids: Vec<String>,
        /// All of them
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Make a full snapshot of a diff, so that it restores faster and needs no parent's memory
    Compact {
        /// Its name or id
        #[arg(value_name = "SNAPSHOT")]
        id: String,
    },
    /// Remove snapshots
    ///
    /// One that a VM uses, a stopped VM goes on from, or another snapshot lies on is not removed, and named with what
    /// keeps it.
    Rm {
        /// Names or ids
        #[arg(value_name = "SNAPSHOT", required_unless_present = "ready")]
        ids: Vec<String>,
        /// All ready-made ones that nothing uses; they are made again when they are needed
        #[arg(long, conflicts_with = "ids")]
        ready: bool,
    },
}

/// Prepare a VM with a command and save it, to be forked by `kiln run --from`.
///
/// The command runs as with `kiln run`, with the same flags. If it ends with 0, the VM is saved under the name; else its
/// exit code becomes kiln's and nothing is saved. What it has changed is in the snapshot: files, mounts, modules, settings of
/// the kernel. Processes that it has started are not: they end with the command.
///
/// Prints the snapshot's id. The snapshot stays until `kiln snapshot rm NAME`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln snapshot create prepared --in ./dir:/job -- sh /job/prepare.sh\n  \
    kiln run --from prepared -- sh /job/test.sh\n  \
    kiln snapshot create further --from prepared -- sh -c 'echo x > /job/x'\n  \
    kiln snapshot rm prepared")]
pub struct SnapshotCreateArgs {
    /// What the snapshot is called from then on
    #[arg(id = "snapshot_name", value_name = "NAME")]
    pub name: String,
    #[command(flatten)]
    pub run: RunArgs,
}

/// Find crashes in a saved kernel log.
///
/// Reads what consoles, `dmesg` (with any of its options), `journalctl -k` and syslog write, also packed by gzip, xz or
/// zstd. Exit code 100 if something at least as bad as an error is found, 2 if this is not a kernel log.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    dmesg -T | kiln scan -\n  \
    journalctl -k -b -1 | kiln scan -\n  \
    kiln scan --json /var/log/kern.log.2.gz")]
pub struct ScanArgs {
    /// The log; - for stdin
    pub log: Utf8PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub struct VerifyArgs {
    #[command(subcommand)]
    pub command: VerifyCommand,
}

#[derive(Debug, Subcommand)]
pub enum VerifyCommand {
    /// Prove that forks differ where they must and agree where they must
    Fork(VerifyForkArgs),
}

/// Prove that forks differ where they must and agree where they must.
///
/// A VM is booted, prepared, saved and forked; then its forks are compared. Exit code 100 where a check fails, 69 where
/// VMs can't run here.
#[derive(Debug, ClapArgs)]
pub struct VerifyForkArgs {
    /// How many forks are made at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = parse_forks)]
    pub forks: usize,
    /// Image to boot; see `kiln image ls`
    #[arg(long, default_value = "mini", env = "KILN_IMAGE")]
    pub image: String,
    /// How the VM's CPU runs
    #[arg(long, value_name = "HOW", default_value = "auto", env = "KILN_ACCEL")]
    pub accel: AccelArg,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Measure what Kiln promises, on this host.
///
/// Each number is printed beside its floor, measured in the same run: QEMU alone, a bare port, a round trip.
#[derive(Debug, ClapArgs)]
pub struct BenchArgs {
    /// Which groups; all of them where none is named
    pub groups: Vec<BenchGroup>,
    /// Samples of a fast measurement; slow ones take fewer
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = parse_samples)]
    pub samples: usize,
    /// How the VM's CPU runs
    #[arg(long, value_name = "HOW", default_value = "auto", env = "KILN_ACCEL")]
    pub accel: AccelArg,
    /// Write every sample and the machine's facts there, as JSON
    #[arg(long, value_name = "FILE")]
    pub out: Option<Utf8PathBuf>,
    /// Print that JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// End with exit code 100 where a promise was not kept
    #[arg(long)]
    pub check: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BenchGroup {
    /// Cold boot
    Boot,
    /// Commands
    Exec,
    /// Commands on a terminal
    Terminal,
    /// Files in and out
    Files,
    /// The agent's size
    Agent,
    /// Forks, snapshots and pauses
    Fork,
    /// Crashes found in a kernel log
    Scan,
    /// Whole checks of vhost-user backends
    Vhost,
}

impl BenchGroup {
    /// All groups, in the order they run.
    pub const ALL: [Self; 8] =
        [Self::Boot, Self::Exec, Self::Terminal, Self::Files, Self::Agent, Self::Fork, Self::Scan, Self::Vhost];
}

/// One fork is no twin of anybody.
fn parse_forks(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(forks @ 2..=FORKS_MAX) => Ok(forks),
        _ => Err(format!("`{text}` is not 2 to {FORKS_MAX}")),
    }
}

fn parse_samples(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(samples @ 1..=10_000) => Ok(samples),
        _ => Err(format!("`{text}` is not 1 to 10000")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn short_help_fits_a_screen() {
        let mut command = Args::command();
        let run = command.find_subcommand_mut("run").expect("there is a run command");
        let lines = run.render_help().to_string().lines().count();
        assert!(lines <= 50, "{lines} lines");
    }

    /// The words of a shell's line: quotes are taken off, and a comment and what goes to or comes from a file are left out.
    fn words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quoted = false;
        for character in line.chars() {
            match character {
                '\'' => quoted = !quoted,
                ' ' if !quoted => words.push(String::new()),
                '<' | '>' | '#' if !quoted => break,
                other => words.last_mut().expect("there is one").push(other),
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }

    fn examples(command: &clap::Command) -> Vec<String> {
        let own = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let parts = own.split(['\n', '|']).map(str::trim).filter(|part| part.starts_with("kiln "));
        let mut all: Vec<String> = parts.map(str::to_owned).collect();
        all.extend(command.get_subcommands().flat_map(examples));
        all
    }

    #[test]
    fn every_example_of_the_help_is_a_good_line() {
        let examples = examples(&Args::command());
        assert!(examples.len() > 10, "{examples:?}");
        for example in examples {
            if let Err(error) = Args::try_parse_from(words(&example)) {
                panic!("{example}: {error}");
            }
        }
    }
}
