//! What can be typed after `kiln vhost`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};
use kiln_vdev::virtio::DeviceKind;

use super::vhost_testing::{BenchArgs, CheckArgs, MockArgs, StressArgs};
use super::{parse_duration, parse_size_bytes};

/// Talk to vhost-user backends, test them, and stand in for them.
///
/// A vhost-user backend serves a virtio device to a VMM, the frontend, through a Unix socket. These commands are a frontend
/// for backends that are tested, a backend for frontends that are tested, and a man in the middle for both.
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
    /// Ask a backend who it is
    Probe(ProbeArgs),
    /// Check a backend against the specification, rule by rule
    Check(CheckArgs),
    /// Measure a backend: handshake, round trip, a disk under load
    Bench(BenchArgs),
    /// Send a backend many clients, good and bad ones
    Stress(StressArgs),
    /// Be a backend: right by default, wrong on purpose by script
    Mock(MockArgs),
    /// Forward and record what a frontend and a backend say
    Tap(TapArgs),
    /// Tell a recording, field by field
    Show(ShowArgs),
    /// Play the frontend's part of a recording to a backend and compare
    Replay(ReplayArgs),
}

/// Ask a backend who it is.
///
/// Features and protocol features by name, queues, memory slots, configuration field by field, and how it behaves where
/// backends differ. Nothing is shared with it and no ring is started. A backend that ends with its first client ends after
/// this.
///
/// vhost-user has no question for the kind of device, so it is guessed and said to be a guess; --device says it.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln vhost probe /run/disk.sock\n  \
    kiln vhost probe /run/fs.sock --device fs --json\n  \
    kiln vhost probe /tmp/mine.sock --quirks       # may end it")]
pub struct ProbeArgs {
    /// The backend's socket
    pub socket: PathBuf,
    /// The kind of device: blk, net, fs, vsock, scsi, gpu, …
    #[arg(long, value_name = "KIND")]
    pub device: Option<DeviceKind>,
    /// Also try what may end the backend or make it leak
    #[arg(long)]
    pub quirks: bool,
    /// How long all of it may take
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Forward and record what a frontend and a backend say.
///
/// Frontends connect to --listen, one after the other; each is connected to the backend at --connect. Every byte and every
/// descriptor is passed on as it is, malformed ones too, and so is the end of either direction. The backend's own channel
/// (SET_BACKEND_REQ_FD) goes through here as well. What lies in rings and memory is not seen and not slowed down.
///
/// A recording that is there already goes on. Ctrl-C ends it; exit code 130.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln vhost tap --listen a.sock --connect b.sock --record session.ndjson\n  \
    qemu-system-x86_64 … -chardev socket,id=c,path=a.sock -device vhost-user-blk-pci,chardev=c\n  \
    kiln vhost show session.ndjson")]
pub struct TapArgs {
    /// Where frontends connect
    #[arg(long, value_name = "SOCKET")]
    pub listen: PathBuf,
    /// The backend's socket
    #[arg(long, value_name = "SOCKET")]
    pub connect: PathBuf,
    /// Where to record, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub record: PathBuf,
    /// The most that the recording may take; more is forwarded and not recorded
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size_bytes)]
    pub limit: u64,
    /// End after so many frontends
    #[arg(long, value_name = "N")]
    pub sessions: Option<u32>,
    /// How long connecting to the backend may take
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// Tell a recording, field by field.
///
/// Each message with its fields, its descriptors, how long its answer took, and what it breaks of the specification; a
/// summary at the end. With --json one object a line, the last of which is {"summary": …}.
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
    /// Only the summary
    #[arg(long)]
    pub summary: bool,
    /// Only this session
    #[arg(long, value_name = "N")]
    pub session: Option<u32>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Play the frontend's part of a recording to a backend and compare its answers.
///
/// Descriptors are made anew: events, memory of the recorded sizes, sockets. Memory is zeros and rings are idle, so what is
/// compared is what the backend says: features, configuration, refusals, closed connections.
///
/// Exit code 100 where an answer differs.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln vhost replay session.ndjson --connect new-version.sock")]
pub struct ReplayArgs {
    /// The recording; - for stdin
    pub recording: PathBuf,
    /// The backend's socket
    #[arg(long, value_name = "SOCKET")]
    pub connect: PathBuf,
    /// Only this session
    #[arg(long, value_name = "N")]
    pub session: Option<u32>,
    /// The kind of device [default: guessed]
    #[arg(long, value_name = "KIND")]
    pub device: Option<DeviceKind>,
    /// How long one answer may take
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
