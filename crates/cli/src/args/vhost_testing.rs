//! What can be typed after `kiln vhost check`, `bench` and `mock`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args as ClapArgs, ValueEnum};
use kiln_vdev::bench::Pattern;
use kiln_vdev::check::{JOBS_MAX, Level, SpawnCommand};
use kiln_vdev::virtio::DeviceKind;

use super::{parse_duration, parse_size_bytes};

/// Check a backend against the specification, rule by rule.
///
/// Each case is one rule with the heading it stands under, how binding it is, a verdict, and what was sent and received.
/// With --spawn the backend is started and watched: exit code, signal, descriptors, memory; a crash is a finding with its
/// messages. Hostile cases and those that look at the process have a backend of their own; the others share one until a case
/// fails. If two backends do not disturb each other, cases run side by side. Without --spawn, the backend that listens on
/// SOCKET is used for all cases, as long as it lives.
///
/// The disk is written in places that are read before and put back after; --no-writes leaves it alone.
///
/// Exit code 100 where a case fails that --expect-failures does not name.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln vhost check /tmp/s --device blk --spawn 'my-backend --socket-path {socket}'\n  \
    kiln vhost check /run/live.sock --device blk --level must --gentle --no-writes\n  \
    kiln vhost check /tmp/s --spawn '…' --junit report.xml --expect-failures known.toml\n  \
    kiln vhost check --list")]
pub struct CheckArgs {
    /// Where the backend listens; with --spawn it may be left out
    #[arg(required_unless_present_any = ["spawn", "list"])]
    pub socket: Option<PathBuf>,
    /// Start the backend as often as needed; {socket} is where it must listen, {dir} a folder of its own
    #[arg(long, value_name = "COMMAND")]
    pub spawn: Option<SpawnCommand>,
    /// The kind of device; needed if the backend's features and configuration leave a doubt
    #[arg(long, value_name = "KIND")]
    pub device: Option<DeviceKind>,
    /// Leave out rules that bind less: must, should, may
    #[arg(long, value_name = "LEVEL", default_value = "should")]
    pub level: Level,
    /// Run only these cases; * stands for anything
    #[arg(long = "case", value_name = "ID")]
    pub cases: Vec<String>,
    /// Known failures, a TOML file: [group] case = "what it means", or { may-fail = "why" }
    #[arg(long, value_name = "FILE")]
    pub expect_failures: Option<PathBuf>,
    /// Write such a file of what fails now; meanings that are known are kept
    #[arg(long, value_name = "FILE")]
    pub write_failures: Option<PathBuf>,
    /// Also fail where a case passes that was expected to fail
    #[arg(long)]
    pub strict: bool,
    /// Write a JUnit XML report
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// The longest that anything is waited for; a backend that takes longer hangs
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// With --spawn: how many backends are used at the same time [default: one for each CPU, 8 at most]
    #[arg(long, value_name = "N", requires = "spawn", value_parser = parse_jobs)]
    pub jobs: Option<usize>,
    /// Run each case N times and name those that come out in more than one way
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Leave out what may harm the backend
    #[arg(long)]
    pub gentle: bool,
    /// Leave out what writes to the disk
    #[arg(long)]
    pub no_writes: bool,
    /// List the cases instead of running them
    #[arg(long)]
    pub list: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Measure a backend: handshake, round trip, a disk under load.
///
/// It drives blk devices, and refuses others. The disk is only read unless --rw writes, which changes what is on it. Each of
/// --qd is a load of its own; latencies are from submitting a request to seeing it done.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln vhost bench /run/disk.sock\n  \
    kiln vhost bench /run/disk.sock --rw randread --bs 4k --qd 1,32 --time 5s --json\n  \
    kiln vhost bench /run/disk.sock --bs 1M --rw read --qd 8 --queues 4 --packed")]
pub struct BenchArgs {
    /// The backend's socket
    pub socket: PathBuf,
    /// What to do: read, write, randread, randwrite, randrw
    #[arg(long, value_name = "PATTERN", default_value = "randread")]
    pub rw: Pattern,
    /// Bytes of each request
    #[arg(long, value_name = "SIZE", default_value = "4k", value_parser = parse_block)]
    pub bs: u32,
    /// Requests under way at once in each queue
    #[arg(long, value_name = "N,N", default_value = "1,32", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=32768))]
    pub qd: Vec<u16>,
    /// How long each load takes
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub time: Duration,
    /// How many queues, a thread each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub queues: u32,
    /// Packed rings instead of split ones
    #[arg(long)]
    pub packed: bool,
    /// No indirect descriptors, even where they are offered
    #[arg(long)]
    pub no_indirect: bool,
    /// No notifications by index, even where they are offered
    #[arg(long)]
    pub no_event_idx: bool,
    /// Handshakes that are measured
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub handshakes: u32,
    /// Where offsets come from [default: another each time; it is printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// The kind of device, if it does not show: only blk can be driven
    #[arg(long, value_name = "KIND")]
    pub device: Option<DeviceKind>,
    /// The longest that one answer or request may take
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Clients that come, go, stop half-way and say too much.
///
/// Each client does cycles of a kind that the seed chooses: whole sessions, handshakes cut anywhere, half messages, kicks
/// without end, stray descriptors. Afterwards: does the backend still serve, and what does it hold that it did not before?
///
/// A backend that serves one client at a time is reported as such, and is no failure. Exit code 100 where it does not serve
/// any more, or failed a client that kept the rules.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln vhost stress /tmp/s --clients 10 --cycles 1000\n  \
    kiln vhost stress /tmp/s --seed 42 --json")]
pub struct StressArgs {
    /// The backend's socket
    pub socket: PathBuf,
    /// Clients at the same time
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub clients: u32,
    /// Cycles of each
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub cycles: u32,
    /// What chooses the cycles [default: another each time; it is printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// The kind of device
    #[arg(long, value_name = "KIND", default_value = "blk")]
    pub device: DeviceKind,
    /// How long all of it may take
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    pub time: Duration,
    /// How long one client waits for an answer
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Be a backend: right by default, wrong on purpose by script.
///
/// It serves one frontend after the other, QEMU or kiln's own, until SIGTERM or Ctrl-C. It keeps to what backend programs
/// agree on: --socket-path, --fd, --print-capabilities, no daemonising.
///
/// blk: without --file or --null a disk in SOCKET.disk, removed when the mock ends. net: --tap, else a host that answers ARP and
/// pings at 10.77.0.1. vsock: Unix sockets with `CONNECT port`, as Firecracker has them.
#[derive(Debug, ClapArgs)]
#[command(group(ArgGroup::new("where").required(true).args(["socket", "fd", "print_capabilities"])))]
#[command(after_help = "Examples:\n  \
    kiln vhost mock --device blk --socket disk.sock --file disk.img --queues 4\n  \
    kiln vhost mock --device net --socket net.sock --tap tap0\n  \
    kiln vhost mock --device vsock --socket vs.sock --cid 3 --uds vm.vsock\n  \
    kiln vhost mock --socket disk.sock --script misbehave.toml    # what does the VMM do?\n  \
    kiln vhost mock --socket disk.sock --check --junit vmm.xml    # does the VMM keep the rules?")]
pub struct MockArgs {
    /// What to be
    #[arg(long, value_name = "KIND", default_value = "blk")]
    pub device: MockDevice,
    /// Where to listen
    #[arg(long, alias = "socket-path", value_name = "SOCKET")]
    pub socket: Option<PathBuf>,
    /// Serve on this inherited descriptor: a socket that listens, or one frontend
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(3..))]
    pub fd: Option<i32>,
    /// Say what the backend can, as JSON, and end
    #[arg(long)]
    pub print_capabilities: bool,
    /// Be wrong where this file says so; the guide has its format
    #[arg(long, value_name = "TOML")]
    pub script: Option<PathBuf>,
    /// Watch the frontend and report at the end which rules it kept; exit code 100 where it broke one
    #[arg(long)]
    pub check: bool,
    /// With --check: leave out rules that bind less: must, should
    #[arg(long, value_name = "LEVEL", default_value = "should", requires = "check")]
    pub level: Level,
    /// With --check: write a JUnit XML report
    #[arg(long, value_name = "FILE", requires = "check")]
    pub junit: Option<PathBuf>,
    /// With --check: known failures, a TOML file
    #[arg(long, value_name = "FILE", requires = "check")]
    pub expect_failures: Option<PathBuf>,
    /// With --check: print JSON
    #[arg(long, requires = "check")]
    pub json: bool,
    /// blk: a file or block device
    #[arg(long, value_name = "FILE", help_heading = "blk")]
    pub file: Option<PathBuf>,
    /// blk: no bytes at all; reads are zeros, writes are forgotten
    #[arg(long, conflicts_with = "file", help_heading = "blk")]
    pub null: bool,
    /// blk: the size of the disk without --file
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_size_bytes, conflicts_with = "file", help_heading = "blk")]
    pub size: u64,
    /// blk: refuse writes
    #[arg(long, help_heading = "blk")]
    pub read_only: bool,
    /// blk: how many queues [default: 4]; net: how many pairs of queues [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=128))]
    pub queues: Option<u16>,
    /// blk: the serial number, at most 20 bytes
    #[arg(long, value_name = "TEXT", default_value = "kiln", help_heading = "blk")]
    pub serial: String,
    /// net: a TAP device of this host; made if it is not there
    #[arg(long, value_name = "NAME", help_heading = "net")]
    pub tap: Option<String>,
    /// net: the guest's frames come back to it
    #[arg(long, conflicts_with = "tap", help_heading = "net")]
    pub reflect: bool,
    /// net: of 1000 frames, how many are lost
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1000), help_heading = "net")]
    pub loss: u16,
    /// vsock: the guest's number
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "vsock")]
    pub cid: u64,
    /// vsock: where the host connects; ports are at PATH_PORT [default: SOCKET.vsock]
    #[arg(long, value_name = "PATH", help_heading = "vsock")]
    pub uds: Option<PathBuf>,
}

/// Devices that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MockDevice {
    /// A disk
    #[value(alias = "block")]
    Blk,
    /// A network card
    Net,
    /// Sockets between host and guest
    Vsock,
}

fn parse_jobs(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(jobs @ 1..=JOBS_MAX) => Ok(jobs),
        _ => Err(format!("`{text}` is not 1 to {JOBS_MAX}")),
    }
}

fn parse_block(text: &str) -> Result<u32, String> {
    let bytes = parse_size_bytes(text)?;
    match u32::try_from(bytes) {
        Ok(bytes) if bytes > 0 && bytes.is_multiple_of(512) && bytes <= 16 << 20 => Ok(bytes),
        _ => Err(format!("`{text}` is not whole sectors of 512 bytes, at most 16M")),
    }
}
