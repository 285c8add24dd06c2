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
/// Each case is one rule of the specification. The report has its section, its level (must, should or may), the
/// verdict, and for a failure the messages that were sent and received.
///
/// With --spawn kiln starts the backend and watches its exit code, signals, descriptors and memory. Hostile cases and
/// cases that inspect the process each get a backend of their own; the others share one until a case fails. If two
/// backends do not disturb each other, cases run in parallel. Without --spawn all cases use the backend that listens on
/// SOCKET.
///
/// Cases write to the disk, and restore the sectors that they wrote; --no-writes disables them.
///
/// Exits with code 100 if a case fails that --expect-failures does not name.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln vhost check /tmp/s --device blk --spawn 'my-backend --socket-path {socket}'\n  \
    kiln vhost check /run/live.sock --device blk --level must --gentle --no-writes\n  \
    kiln vhost check /tmp/s --spawn '…' --junit report.xml --expect-failures known.toml\n  \
    kiln vhost check --list")]
pub struct CheckArgs {
    /// The backend's socket; optional with --spawn
    #[arg(required_unless_present_any = ["spawn", "list"])]
    pub socket: Option<PathBuf>,
    /// Start the backend with this command; {socket} is the path to listen on, {dir} a folder of its own
    #[arg(long, value_name = "COMMAND")]
    pub spawn: Option<SpawnCommand>,
    /// The kind of device; needed if features and configuration do not show it
    #[arg(long, value_name = "KIND")]
    pub device: Option<DeviceKind>,
    /// Check rules of this level and stricter ones: must, should, may
    #[arg(long, value_name = "LEVEL", default_value = "should")]
    pub level: Level,
    /// Run only these cases; * matches any text
    #[arg(long = "case", value_name = "ID")]
    pub cases: Vec<String>,
    /// A TOML file of known failures: [group] case = "what it means", or { may-fail = "why" }
    #[arg(long, value_name = "FILE")]
    pub expect_failures: Option<PathBuf>,
    /// Write such a file of the current failures; keeps the meanings of known ones
    #[arg(long, value_name = "FILE")]
    pub write_failures: Option<PathBuf>,
    /// Also fail if a case passes that was expected to fail
    #[arg(long)]
    pub strict: bool,
    /// Write a JUnit XML report
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// The longest time to wait for a reply or a request; after it the verdict is hang
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// With --spawn: how many backends run at the same time [default: one per CPU, at most 8]
    #[arg(long, value_name = "N", requires = "spawn", value_parser = parse_jobs)]
    pub jobs: Option<usize>,
    /// Run each case N times and list the flaky ones
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Leave out hostile cases, which may crash the backend
    #[arg(long)]
    pub gentle: bool,
    /// Leave out cases that write to the disk
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
/// Drives only blk devices. Reads the disk, unless --rw is a pattern that writes: that destroys its contents. Each
/// depth of --qd is a separate load. A latency is the time from the submission of a request until its completion is
/// seen.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln vhost bench /run/disk.sock\n  \
    kiln vhost bench /run/disk.sock --rw randread --bs 4k --qd 1,32 --time 5s --json\n  \
    kiln vhost bench /run/disk.sock --bs 1M --rw read --qd 8 --queues 4 --packed")]
pub struct BenchArgs {
    /// The backend's socket
    pub socket: PathBuf,
    /// The pattern: read, write, randread, randwrite, randrw
    #[arg(long, value_name = "PATTERN", default_value = "randread")]
    pub rw: Pattern,
    /// Bytes of each request
    #[arg(long, value_name = "SIZE", default_value = "4k", value_parser = parse_block)]
    pub bs: u32,
    /// Requests in flight in each queue
    #[arg(long, value_name = "N,N", default_value = "1,32", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=32768))]
    pub qd: Vec<u16>,
    /// The duration of each load
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub time: Duration,
    /// How many queues, each with a thread
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub queues: u32,
    /// Use packed rings instead of split rings
    #[arg(long)]
    pub packed: bool,
    /// Do not use indirect descriptors, even if they are offered
    #[arg(long)]
    pub no_indirect: bool,
    /// Do not use EVENT_IDX, even if it is offered
    #[arg(long)]
    pub no_event_idx: bool,
    /// How many handshakes to measure
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub handshakes: u32,
    /// The seed of the random offsets [default: random; it is printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// The kind of device, if it is not detected; only blk is supported
    #[arg(long, value_name = "KIND")]
    pub device: Option<DeviceKind>,
    /// The longest time to wait for a reply or a request
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Connect many clients to a backend, well-behaved and faulty.
///
/// Each client runs cycles of kinds that the seed chooses: whole sessions, interrupted handshakes, half messages,
/// floods of kicks, stray descriptors. Then checks that the backend still serves, and compares its descriptors and
/// memory with those before.
///
/// A backend may serve one client at a time; this is reported, but not a failure. Exits with code 100 if the backend
/// does not serve any more, or failed a client that kept the rules.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln vhost stress /tmp/s --clients 10 --cycles 1000\n  \
    kiln vhost stress /tmp/s --seed 42 --json")]
pub struct StressArgs {
    /// The backend's socket
    pub socket: PathBuf,
    /// How many clients run at the same time
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub clients: u32,
    /// How many cycles each client runs
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub cycles: u32,
    /// The seed that chooses the cycles [default: random; it is printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// The kind of device
    #[arg(long, value_name = "KIND", default_value = "blk")]
    pub device: DeviceKind,
    /// The longest time that the whole run may take
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    pub time: Duration,
    /// The longest time that a client waits for a reply
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Run a backend: correct by default, faulty by script.
///
/// Serves one frontend at a time, such as QEMU, until SIGTERM or Ctrl-C. Follows the conventions for backend programs:
/// --socket-path, --fd, --print-capabilities, stays in the foreground.
///
/// blk: without --file or --null, the disk is in SOCKET.disk and is removed when the mock exits. net: without --tap, a
/// host at 10.77.0.1 answers ARP and pings. vsock: Unix sockets with `CONNECT port`, like Firecracker's.
#[derive(Debug, ClapArgs)]
#[command(group(ArgGroup::new("where").required(true).args(["socket", "fd", "print_capabilities"])))]
#[command(after_help = "Examples:\n  \
    kiln vhost mock --device blk --socket disk.sock --file disk.img --queues 4\n  \
    kiln vhost mock --device net --socket net.sock --tap tap0\n  \
    kiln vhost mock --device vsock --socket vs.sock --cid 3 --uds vm.vsock\n  \
    kiln vhost mock --socket disk.sock --script misbehave.toml    # how does the VMM react?\n  \
    kiln vhost mock --socket disk.sock --check --junit vmm.xml    # does the VMM keep the rules?")]
pub struct MockArgs {
    /// The kind of device
    #[arg(long, value_name = "KIND", default_value = "blk")]
    pub device: MockDevice,
    /// The socket to listen on
    #[arg(long, alias = "socket-path", value_name = "SOCKET")]
    pub socket: Option<PathBuf>,
    /// Serve on this inherited descriptor: a listening socket, or one frontend's connection
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(3..))]
    pub fd: Option<i32>,
    /// Print the backend's capabilities as JSON and exit
    #[arg(long)]
    pub print_capabilities: bool,
    /// Misbehave as this file describes; its format is in docs/guide/vhost.md
    #[arg(long, value_name = "TOML")]
    pub script: Option<PathBuf>,
    /// Report at the end which rules the frontend kept; exits with code 100 if it broke one
    #[arg(long)]
    pub check: bool,
    /// With --check: check rules of this level and stricter ones: must, should
    #[arg(long, value_name = "LEVEL", default_value = "should", requires = "check")]
    pub level: Level,
    /// With --check: write a JUnit XML report
    #[arg(long, value_name = "FILE", requires = "check")]
    pub junit: Option<PathBuf>,
    /// With --check: a TOML file of known failures
    #[arg(long, value_name = "FILE", requires = "check")]
    pub expect_failures: Option<PathBuf>,
    /// With --check: print JSON
    #[arg(long, requires = "check")]
    pub json: bool,
    /// blk: a file or block device
    #[arg(long, value_name = "FILE", help_heading = "blk")]
    pub file: Option<PathBuf>,
    /// blk: a disk without storage: reads return zeros, writes are discarded
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
    /// net: a TAP device of this host; created if it does not exist
    #[arg(long, value_name = "NAME", help_heading = "net")]
    pub tap: Option<String>,
    /// net: send the guest's frames back to it
    #[arg(long, conflicts_with = "tap", help_heading = "net")]
    pub reflect: bool,
    /// net: how many of 1000 frames to drop
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1000), help_heading = "net")]
    pub loss: u16,
    /// vsock: the guest's CID
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "vsock")]
    pub cid: u64,
    /// vsock: the host's Unix socket; ports are at PATH_PORT [default: SOCKET.vsock]
    #[arg(long, value_name = "PATH", help_heading = "vsock")]
    pub uds: Option<PathBuf>,
}

/// The devices that the mock implements.
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
