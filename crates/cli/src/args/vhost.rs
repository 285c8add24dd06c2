//! What can be typed after `kiln vhost`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};
use kiln_vdev::virtio::DeviceKind;

use super::vhost_testing::{BenchArgs, CheckArgs, MockArgs, StressArgs};
use super::{parse_duration, parse_size_bytes};

/// Test vhost-user backends and frontends.
///
/// A vhost-user backend serves a virtio device to a VMM, the frontend, through a Unix socket. `probe`, `check`,
/// `bench`, `stress` and `replay` are frontends that test a backend. `mock` is a backend that tests a frontend. `tap`
/// sits between the two and records their messages; `show` prints the recording.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln vhost probe /run/disk.sock\n  \
    kiln vhost check /tmp/s --device blk --spawn 'my-backend --socket-path {socket}' --junit report.xml\n  \
    kiln vhost tap --listen a.sock --connect b.sock --record session.ndjson\n\
    The guide has a page for authors of backends: docs/guide/vhost.md")]
pub struct VhostArgs {
    #[command(subcommand)]
    pub command: VhostCommand,
}

#[derive(Debug, Subcommand)]
pub enum VhostCommand {
    Probe(ProbeArgs),
    Check(CheckArgs),
    Bench(BenchArgs),
    Stress(StressArgs),
    Mock(MockArgs),
    Tap(TapArgs),
    Show(ShowArgs),
    Replay(ReplayArgs),
}

/// Show what a backend offers.
///
/// Prints features and protocol features by name, queues, memory slots, configuration field by field, and how the
/// backend behaves in cases that backends treat differently. Shares no memory and starts no ring. A backend that exits
/// with its first client exits after this command.
///
/// vhost-user has no request for the kind of device. It is guessed, and marked as a guess, unless you give it with
/// --device.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln vhost probe /run/disk.sock\n  \
    kiln vhost probe /run/fs.sock --device fs --json\n  \
    kiln vhost probe /tmp/mine.sock --quirks       # may crash the backend")]
pub struct ProbeArgs {
    /// The backend's socket
    pub socket: PathBuf,
    /// The kind of device: blk, net, fs, vsock, scsi, gpu, …
    #[arg(long, value_name = "KIND")]
    pub device: Option<DeviceKind>,
    /// Also send messages that may crash the backend or make it leak
    #[arg(long)]
    pub quirks: bool,
    /// The longest time that the whole probe may take
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Forward and record the messages of a frontend and a backend.
///
/// Frontends connect to --listen, one at a time; the tap connects each of them to the backend at --connect. It forwards
/// every byte and every descriptor unchanged, even malformed messages, and also the shutdown of either direction. The
/// backend's own channel (SET_BACKEND_REQ_FD) is recorded too. Rings and memory are neither recorded nor slowed down.
///
/// Appends to a recording that already exists. Ctrl-C stops it; the exit code is then 130.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln vhost tap --listen a.sock --connect b.sock --record session.ndjson\n  \
    qemu-system-x86_64 … -chardev socket,id=c,path=a.sock -device vhost-user-blk-pci,chardev=c\n  \
    kiln vhost show session.ndjson")]
pub struct TapArgs {
    /// The socket that frontends connect to
    #[arg(long, value_name = "SOCKET")]
    pub listen: PathBuf,
    /// The backend's socket
    #[arg(long, value_name = "SOCKET")]
    pub connect: PathBuf,
    /// The recording: one JSON object per line
    #[arg(long, value_name = "FILE")]
    pub record: PathBuf,
    /// The largest size of the recording; later messages are forwarded, but not recorded
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size_bytes)]
    pub limit: u64,
    /// Exit after N frontends
    #[arg(long, value_name = "N")]
    pub sessions: Option<u32>,
    /// The longest time to connect to the backend
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// Print a recording, field by field.
///
/// Prints each message with its fields, its descriptors, the time until its reply, and the rules of the specification
/// that it violates. A summary comes last. With --json prints one object per line; the last one is {"summary": …}.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln vhost show session.ndjson\n  \
    kiln vhost show session.ndjson --summary\n  \
    kiln vhost show session.ndjson --json | jq 'select(.violations)'")]
pub struct ShowArgs {
    /// The recording; - for stdin
    pub recording: PathBuf,
    /// The kind of device [default: guessed]
    #[arg(long, value_name = "KIND")]
    pub device: Option<DeviceKind>,
    /// Print only the summary
    #[arg(long)]
    pub summary: bool,
    /// Print only this session
    #[arg(long, value_name = "N")]
    pub session: Option<u32>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Replay the frontend's messages of a recording and compare replies.
///
/// Sends the recorded messages with new descriptors: events, memory of the recorded sizes, sockets. Memory is zeros and
/// rings are idle, so only messages are compared: features, configuration, refusals, closed connections.
///
/// Exits with code 100 if a reply differs.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln vhost replay session.ndjson --connect new-version.sock")]
pub struct ReplayArgs {
    /// The recording; - for stdin
    pub recording: PathBuf,
    /// The backend's socket
    #[arg(long, value_name = "SOCKET")]
    pub connect: PathBuf,
    /// Replay only this session
    #[arg(long, value_name = "N")]
    pub session: Option<u32>,
    /// The kind of device [default: guessed]
    #[arg(long, value_name = "KIND")]
    pub device: Option<DeviceKind>,
    /// The longest time to wait for a reply
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use crate::args::Args;

    #[test]
    fn short_help_of_every_command_fits_a_screen_and_long_help_has_an_example() {
        let mut command = Args::command();
        let vhost = command.find_subcommand_mut("vhost").expect("there is a vhost command");
        for one in vhost.get_subcommands_mut() {
            let lines = one.render_help().to_string().lines().count();
            assert!(lines <= 50, "{}: {lines} lines", one.get_name());
            let long = one.render_long_help().to_string();
            assert!(long.contains("Examples:\n  kiln vhost"), "{}", one.get_name());
        }
    }
}
