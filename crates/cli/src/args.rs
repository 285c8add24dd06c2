//! The command line. `-h` fits a screen, `--help` teaches.

pub mod docker;
#[cfg(test)]
mod help;
pub mod image;
pub mod kernel;
pub mod lab;
pub mod network;
pub mod publish;
mod quantities;
#[cfg(test)]
mod refusals;
pub mod vhost;
pub mod vhost_testing;
mod vhost_user;
pub mod volumes;

use std::ffi::OsString;
use std::time::Duration;

use camino::Utf8PathBuf;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use kiln_engine::{AccelerationRequest, FORKS_MAX, VhostUser};

use self::image::{ImageArgs, Pull};
use self::kernel::{KernelArgs, KernelChoice};
use self::lab::LabArgs;
use self::network::{NetArgs, NetworkArgs};
pub use self::quantities::{parse_duration, parse_size_bytes};
use self::quantities::{parse_grace, parse_memory_mib};
use self::vhost::VhostArgs;
use self::volumes::{StorageArgs, VolumeArgs};

/// Run commands in real virtual machines, each with a kernel of its own.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, propagate_version = true, infer_long_args = false)]
pub struct Args {
    /// Log more on stderr; -vv logs everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

// A doc comment of a variant replaces the help of its arguments, also the long help. So only variants whose arguments
// have no doc comment have one, here and below.
#[derive(Debug, Subcommand)]
pub enum Command {
    Run(Box<RunArgs>),
    Doctor(DoctorArgs),
    Image(ImageArgs),
    Kernel(KernelArgs),
    Commit(CommitArgs),
    Net(NetArgs),
    Snapshot(SnapshotArgs),
    Volume(VolumeArgs),
    Lab(Box<LabArgs>),
    Scan(ScanArgs),
    /// Check Kiln's guarantees on this host
    Verify(VerifyArgs),
    Bench(BenchArgs),
    Vhost(Box<VhostArgs>),
    Completion(CompletionArgs),
    Man(ManArgs),
    /// Print the version
    Version(VersionArgs),
}

/// Print a shell's completion script.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln completion bash > ~/.local/share/bash-completion/completions/kiln\n  \
    kiln completion zsh > ~/.zfunc/_kiln\n  \
    kiln completion fish > ~/.config/fish/completions/kiln.fish")]
pub struct CompletionArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// Print kiln's man page, or write the man pages of all commands.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln man | man -l -\n  \
    kiln man ~/.local/share/man/man1")]
pub struct ManArgs {
    /// Directory for the man pages; created if it does not exist
    #[arg(value_name = "DIR")]
    pub folder: Option<Utf8PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct VersionArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Run a command in a new VM.
///
/// The VM has its own kernel, and no network without --net. Kiln passes on the command's output, exits with its exit code and removes
/// the VM. The image decides what else is in it, and what runs if no command is given.
///
/// The VM is a fork of the image's ready-made snapshot: a VM that was booted and saved once for its size and modules,
/// on first use or by `kiln image warm`. Each fork has its own host name, machine id, clock and randomness. With --cold
/// or --vhost-user the VM boots instead.
///
/// Exit codes: the command's own; 128 + n if signal n ended it; 124 timed out; 125 the VM failed before the command
/// ended (it crashed, powered off, or did not boot); 126 not executable; 127 not found; 130 interrupted; 2 wrong usage;
/// 69 this host lacks something.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln run -- uname -a\n  \
    kiln run -e NAME=x -w /tmp -i -- sh -c 'cat; echo $NAME; exit 3' < file\n  \
    kiln run -t -- sh\n  \
    kiln run python:3.12 python3 -c 'print(1)'\n  \
    kiln run --in ./dir:/job --out /job/result:./result -- sh /job/run.sh\n  \
    kiln run --from prepared -- sh /job/run.sh\n  \
    kiln run -v data:/var/lib/x -- sh -c 'date >> /var/lib/x/log'\n  \
    kiln run --vhost-user blk:./backend.sock -- dd if=/dev/vda of=/dev/null bs=1M")]
pub struct RunArgs {
    /// Set a variable; NAME alone takes this shell's value
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<OsString>,
    /// Working directory in the guest
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<OsString>,
    /// User in the guest: USER, USER:GROUP or :GROUP, by name or id
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
    /// Copy a file or directory out of the guest after the command
    ///
    /// If HOST exists, it keeps its type. A file is replaced and keeps its permissions, a directory is merged into, and
    /// a device, a FIFO or `-` (stdout) is written to.
    #[arg(long = "out", value_name = "GUEST:HOST")]
    pub copy_out: Vec<OsString>,
    /// The most that all --out together may write
    ///
    /// Each file, directory and symlink counts as its bytes plus 16 KiB.
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = parse_size_bytes, hide_short_help = true)]
    pub out_limit: u64,
    /// Image to run: a name, a reference such as python:3.12, or a digest [default: mini]
    ///
    /// An image that is not here is pulled from its registry, see --pull. Without this flag, the first word of the
    /// command is the image if it is the name of one, or has a `:` or `/` as references have: `kiln run python:3.12
    /// python3 -V`. After `--` it never is.
    #[arg(long, env = "KILN_IMAGE")]
    pub image: Option<String>,
    #[command(flatten)]
    pub kernel: KernelChoice,
    /// Run this program instead of the image's entrypoint, with the command as its arguments
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<OsString>,
    /// Boot the image's own init, such as systemd, with its services; the command runs beside them
    ///
    /// The image needs /sbin/init or systemd. The VM is saved for later forks once systemd has started its services, or
    /// after five minutes.
    #[arg(long, hide_short_help = true)]
    pub init_system: bool,
    /// When to pull the image
    #[arg(long, value_name = "WHEN", default_value = "missing", hide_short_help = true)]
    pub pull: Pull,
    /// Memory of the VM in MiB, or with a unit: 512, 512M, 2G
    #[arg(short, long, value_name = "SIZE", default_value = "256", value_parser = parse_memory_mib)]
    pub memory: u64,
    /// CPUs of the VM
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// Stop the run this long after its VM has started: 30s, 2m, 1h30m, 500ms
    ///
    /// The limit covers --in, the command and --out. A command that reaches it gets SIGTERM, then SIGKILL (see
    /// --grace). Its files are still copied out. Kiln exits with 124.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_duration)]
    pub timeout: Option<Duration>,
    /// Time between SIGTERM (see --stop-signal) and SIGKILL when the run times out or kiln gets a signal; 0 kills the
    /// command at once
    #[arg(long, visible_alias = "stop-timeout", value_name = "TIME", default_value = "2s", allow_hyphen_values = true, value_parser = parse_grace, hide_short_help = true)]
    pub grace: Duration,
    /// Give up if the VM has not booted after this long
    #[arg(long, value_name = "TIME", default_value = "60s", allow_hyphen_values = true, value_parser = parse_duration, hide_short_help = true)]
    pub boot_timeout: Duration,
    /// The most memory that the command and its children may use
    #[arg(long, value_name = "SIZE", value_parser = parse_size_bytes, hide_short_help = true)]
    pub limit_memory: Option<u64>,
    /// The most processes and threads
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub limit_pids: Option<u64>,
    /// The most CPU time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_duration, hide_short_help = true)]
    pub limit_cpu: Option<Duration>,
    /// The most output that is passed on; the rest is dropped
    #[arg(long, value_name = "SIZE", value_parser = parse_size_bytes, hide_short_help = true)]
    pub limit_output: Option<u64>,
    /// How to run the VM's CPUs
    #[arg(long, value_name = "HOW", default_value = "auto", env = "KILN_ACCEL", hide_short_help = true)]
    pub accel: AccelArg,
    /// Load a kernel module of the image before the command runs
    #[arg(long = "module", value_name = "NAME", hide_short_help = true)]
    pub modules: Vec<String>,
    /// Attach a device that another process serves: blk:SOCKET, net:SOCKET, vsock:SOCKET, fs:SOCKET,tag=NAME
    ///
    /// The backend must listen on SOCKET before kiln starts, and must serve no other VM. In the guest, a disk is
    /// /dev/vda, or the next letter after the disks of -v and of the image, a network card is eth0 without an address, and a share is mounted with `mount -t virtiofs NAME /mnt`.
    /// The backend sets the CID of a vsock device. If the backend of a disk or card exits, the device waits until it
    /// listens again.
    ///
    /// Options follow the path: queues=N (blk, net, fs), mac=ADDRESS (net), tag=NAME (fs).
    ///
    /// Such a VM can't be saved or forked, so it boots, as with --cold. Repeat the flag for more devices.
    #[arg(long, value_name = "DEVICE:SOCKET", value_parser = vhost_user::parse, hide_short_help = true)]
    pub vhost_user: Vec<VhostUser>,
    /// Fork this snapshot (name or id) instead of the image's
    ///
    /// See `kiln snapshot create`. The snapshot decides image, memory, CPUs, acceleration and modules: their flags are
    /// refused, and $KILN_IMAGE and $KILN_ACCEL have no effect.
    #[arg(long, value_name = "SNAPSHOT")]
    pub from: Option<String>,
    /// Boot the VM instead of forking the image's ready-made snapshot
    #[arg(long)]
    pub cold: bool,
    #[command(flatten)]
    pub storage: StorageArgs,
    #[command(flatten)]
    pub network: NetworkArgs,
    #[command(flatten)]
    pub docker: docker::DockerArgs,
    /// Show the guest's console on stderr, each line prefixed with `console|`
    #[arg(long, hide_short_help = true)]
    pub console: bool,
    /// Print one JSON object instead of the command's output
    #[arg(long, conflicts_with = "tty")]
    pub json: bool,
    /// The command and its arguments [default: the image's]
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AccelArg {
    /// KVM if it runs Linux on this host, else TCG
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

/// Report what this host can do, what is missing and how to get it.
///
/// Exit code 69 if VMs can't run on this host.
#[derive(Debug, ClapArgs)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Test KVM again instead of using the remembered result
    #[arg(long)]
    pub probe: bool,
}

/// Create, list, check, compact and remove snapshots.
///
/// A snapshot is a whole saved VM: memory, devices, disks. A full snapshot holds all memory; a diff holds only the
/// differences from its parent. Snapshots are stored in $KILN_HOME/snapshots. Name a snapshot by its name, or by at
/// least the first six digits of its id.
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
    Create(Box<SnapshotCreateArgs>),
    /// List snapshots, broken ones too
    ///
    /// `ready-made`: `kiln run` forks it. `not sealed yet`: it is usable, but its checksums are not written yet, and a
    /// crash of the host may damage it. The list does not read the files; `kiln snapshot verify` does.
    #[command(visible_alias = "list")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Read all files of snapshots and compare them with their checksums
    ///
    /// Parents are checked too. Names each broken snapshot and its broken file. Exit code 1 if a snapshot is broken.
    Verify {
        /// Names or ids
        #[arg(value_name = "SNAPSHOT", required_unless_present = "all")]
        ids: Vec<String>,
        /// Check all snapshots
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Turn a diff into a full snapshot, which restores faster and does not need its parent's memory
    Compact {
        /// Name or id
        #[arg(value_name = "SNAPSHOT")]
        id: String,
    },
    /// Remove snapshots
    ///
    /// Refuses to remove a snapshot that a VM uses, that a stopped VM resumes from, or that is another snapshot's
    /// parent. The error names what uses it.
    Rm {
        /// Names or ids
        #[arg(value_name = "SNAPSHOT", required_unless_present = "ready")]
        ids: Vec<String>,
        /// Remove all ready-made snapshots that are not in use; `kiln run` makes them again when it needs them
        #[arg(long, conflicts_with = "ids")]
        ready: bool,
    },
}

/// Run a command in a VM and save the VM, so that `kiln run --from` can fork it.
///
/// The command runs as with `kiln run`, with the same flags. If it exits with 0, the VM is saved under the name.
/// Otherwise nothing is saved and kiln exits with the command's exit code. The snapshot has what the command changed:
/// files, mounts, modules, kernel settings. It does not have processes that the command started: they end with the
/// command.
///
/// Prints the snapshot's id. The snapshot exists until `kiln snapshot rm NAME`.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln snapshot create prepared --in ./dir:/job -- sh /job/prepare.sh\n  \
    kiln run --from prepared -- sh /job/test.sh\n  \
    kiln snapshot create further --from prepared -- sh -c 'echo x > /job/x'\n  \
    kiln snapshot rm prepared")]
pub struct SnapshotCreateArgs {
    /// Name of the new snapshot
    #[arg(id = "snapshot_name", value_name = "NAME")]
    pub name: String,
    #[command(flatten)]
    pub run: RunArgs,
}

/// Make an image of a snapshot: its files, as they were when it was saved.
///
/// The snapshot must be of a VM with an image, see `kiln snapshot create NAME --image IMAGE`. The new image has the files
/// of that image and what the VM changed in them, and its configuration, which --change changes. It has nothing of
/// memory, processes and volumes, nor of /tmp, /run and /dev, and nothing of the machine: /etc/hostname, /etc/hosts,
/// /etc/resolv.conf and /etc/machine-id. Prints the image's digest.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln snapshot create work --image debian --net nat -- sh -c 'apt-get update && apt-get install -y jq'\n  \
    kiln commit work --name debian-jq\n  \
    kiln commit work --name jq --change 'ENTRYPOINT [\"jq\"]' --change 'USER daemon'")]
pub struct CommitArgs {
    /// Name or id of the snapshot
    #[arg(id = "snapshot", value_name = "SNAPSHOT")]
    pub snapshot: String,
    /// Name of the new image
    #[arg(long = "name", value_name = "NAME")]
    pub image_name: String,
    /// Change the configuration in the words of a Dockerfile: CMD, ENTRYPOINT, ENV, WORKDIR, USER, …
    ///
    /// Also EXPOSE, LABEL, STOPSIGNAL and VOLUME. Repeat the flag for more changes.
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    pub changes: Vec<String>,
    /// A note for the image's history
    #[arg(short = 'M', long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Give up if the VM is not up after this long
    #[arg(long, value_name = "TIME", default_value = "60s", allow_hyphen_values = true, value_parser = parse_duration)]
    pub boot_timeout: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Find crashes in a saved kernel log.
///
/// Reads the output of consoles, `dmesg` (with any options), `journalctl -k` and syslog, also compressed by gzip, xz or
/// zstd. Exit code 100 if it finds something, 2 if the file is not a kernel log.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    dmesg -T | kiln scan -\n  \
    journalctl -k -b -1 | kiln scan -\n  \
    kiln scan --json /var/log/kern.log.2.gz\n  \
    kiln scan --vmlinux build/vmlinux console.log")]
pub struct ScanArgs {
    /// The log; - for stdin
    pub log: Utf8PathBuf,
    /// Add file and line to stack frames, from this kernel with debug information
    ///
    /// The kernel must be the one that printed the log. Functions that the compiler inlined are shown too. Functions of
    /// modules are not.
    #[arg(long, value_name = "FILE")]
    pub vmlinux: Option<Utf8PathBuf>,
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
    Fork(VerifyForkArgs),
}

/// Check that each fork of a VM is complete and independent.
///
/// Boots a VM, saves it, forks it and compares the forks: host names, ids, randomness, clocks, processes, files. Exit
/// code 100 if a check fails, 69 if VMs can't run on this host.
#[derive(Debug, ClapArgs)]
pub struct VerifyForkArgs {
    /// Number of forks to start at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = parse_forks)]
    pub forks: usize,
    /// Image to boot; see `kiln image ls`
    #[arg(long, default_value = "mini", env = "KILN_IMAGE")]
    pub image: String,
    /// How to run the VM's CPUs
    #[arg(long, value_name = "HOW", default_value = "auto", env = "KILN_ACCEL")]
    pub accel: AccelArg,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Measure Kiln's speed and size on this host.
///
/// Each number is printed beside the best possible one, measured in the same run: QEMU without Kiln, a port without a
/// protocol, a round trip.
#[derive(Debug, ClapArgs)]
pub struct BenchArgs {
    /// Groups to measure [default: all]
    pub groups: Vec<BenchGroup>,
    /// Number of samples; slow measurements take fewer
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = parse_samples)]
    pub samples: usize,
    /// How to run the VM's CPUs
    #[arg(long, value_name = "HOW", default_value = "auto", env = "KILN_ACCEL")]
    pub accel: AccelArg,
    /// Write every sample and a description of the machine to FILE, as JSON
    #[arg(long, value_name = "FILE")]
    pub out: Option<Utf8PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Exit with 100 if a promised number was not reached
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
    /// Images with a root filesystem: making, forking and using one of Debian
    Images,
    /// Networks of VMs: what a slot adds to a fork, and the speed of TCP; needs root
    Network,
    /// Crash detection in a kernel log
    Scan,
    /// Whole checks of vhost-user backends
    Vhost,
}

impl BenchGroup {
    /// All groups, in the order they run.
    pub const ALL: [Self; 10] = [
        Self::Boot,
        Self::Exec,
        Self::Terminal,
        Self::Files,
        Self::Agent,
        Self::Fork,
        Self::Images,
        Self::Network,
        Self::Scan,
        Self::Vhost,
    ];
}

/// A number of forks. One fork has no other fork to be compared with.
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

    /// The words of a shell's line, without quotes, comments and redirections.
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
    fn every_example_of_the_help_parses() {
        let examples = examples(&Args::command());
        assert!(examples.len() > 10, "{examples:?}");
        for example in examples {
            if let Err(error) = Args::try_parse_from(words(&example)) {
                panic!("{example}: {error}");
            }
        }
    }
}
