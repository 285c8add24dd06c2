//! `kiln vhost mock`: a backend for frontends.
#![expect(unsafe_code, reason = "a descriptor is inherited by its number")]

use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use kiln_vdev::backend::{Device, Observer, Options, Server, SessionEvent};
use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
use kiln_vdev::devices::net::{Behind, Net, NetOptions};
use kiln_vdev::devices::vsock::Vsock;
use kiln_vdev::memory::SharedFile;
use kiln_vdev::socket::Listener;
use kiln_vdev::virtio::{DeviceKind, feature};
use tracing::{debug, info, warn};

use super::failure::of_socket;
use super::stop::Stop;
use super::testing_args::{MockArgs, MockDevice};
use crate::failure::{Failure, USAGE};
use crate::output::print_json;

/// Where the host behind a network card without a TAP is.
const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// SIGTERM, by which backends are ended: no failure.
const TERMINATED: u8 = 143;

/// Serves until a signal.
pub fn run(args: &MockArgs) -> Result<u8, Failure> {
    // First of all: later there may be descriptors of ours with that number.
    let inherited = args.fd.map(inherit).transpose()?;
    let (device, _memory) = device(args)?;
    if args.print_capabilities {
        return print_capabilities(&*device);
    }
    let stop = Stop::new()?;
    let options = Options { observer: Arc::new(Log), ..Options::default() };
    let server = Server::new(device, options).context("failed to make a server")?;
    match (inherited, &args.socket) {
        (Some(socket), _) => {
            let number = socket.as_raw_fd();
            server.serve_fd(socket, stop.event()).with_context(|| format!("failed to serve on descriptor {number}"))?;
        }
        (None, Some(path)) => {
            let listener = Listener::bind(path).map_err(|error| of_socket(path, error))?;
            server.serve(&listener, stop.event()).context("failed to wait for frontends")?;
        }
        (None, None) => return Err(Failure::words(USAGE, "there is nowhere to listen").hint("--socket or --fd")),
    }
    Ok(stop.code().filter(|code| *code != TERMINATED).unwrap_or(0))
}

/// A descriptor that this process was started with.
fn inherit(number: i32) -> Result<OwnedFd, Failure> {
    let absent = || Failure::words(USAGE, format!("descriptor {number} is not open"));
    // SAFETY: the borrow ends with the call, which only asks whether there is such a descriptor.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_getfd(borrowed).map_err(|_| absent())?;
    // SAFETY: it is open, was so when the process began, and nothing else in kiln knows of it: the user gave it to us.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC).map_err(|_| absent())?;
    Ok(socket)
}

/// The device, and what must live as long as it.
fn device(args: &MockArgs) -> Result<(Arc<dyn Device>, Option<SharedFile>), Failure> {
    Ok(match args.device {
        MockDevice::Blk => {
            let mut memory = None;
            let backing = match &args.file {
                Some(path) => Backing::File(path.clone()),
                None if args.null => Backing::Null { bytes: args.size },
                None => Backing::File(in_memory(args.size, &mut memory)?),
            };
            let options = BlkOptions {
                read_only: args.read_only,
                serial: args.serial.clone(),
                queues: args.queues,
                ..BlkOptions::new(backing)
            };
            (Arc::new(Blk::open(&options)?), memory)
        }
        MockDevice::Net => {
            let behind = match &args.tap {
                Some(name) => Behind::Tap(name.clone()),
                None if args.reflect => Behind::Reflection,
                None => Behind::Host(HOST_ADDRESS),
            };
            let options = NetOptions { behind, loss_permille: args.loss, ..NetOptions::default() };
            let name = args.tap.as_deref().unwrap_or_default();
            let net = Net::new(options).with_context(|| format!("failed to open the TAP device `{name}`"));
            (
                Arc::new(
                    net.map_err(|error| Failure::new(1, error).hint("it takes root, or a TAP made for this user"))?,
                ),
                None,
            )
        }
        MockDevice::Vsock => {
            let path = uds(args);
            (Arc::new(Vsock::new(args.cid, &path).map_err(|error| of_socket(&path, error))?), None)
        }
    })
}

/// A file that has no name but this process's.
fn in_memory(bytes: u64, keep: &mut Option<SharedFile>) -> anyhow::Result<PathBuf> {
    let file = SharedFile::new(bytes).context("failed to make a disk in memory")?;
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    *keep = Some(file);
    Ok(path.into())
}

fn uds(args: &MockArgs) -> PathBuf {
    args.uds.clone().unwrap_or_else(|| {
        let mut path = args.socket.as_deref().unwrap_or(Path::new("kiln")).as_os_str().to_owned();
        path.push(".vsock");
        path.into()
    })
}

/// As "Backend program conventions" has it: `{"type": "block", "features": […]}`.
fn print_capabilities(device: &dyn Device) -> Result<u8, Failure> {
    let kind = device.kind();
    let name = if kind == DeviceKind::Blk { "block" } else { kind.name() };
    let features = match kind {
        DeviceKind::Blk => vec!["read-only", "blk-file"],
        _ => Vec::new(),
    };
    let virtio: Vec<_> = feature::names(Some(kind), device.features()).iter().map(ToString::to_string).collect();
    print_json(&serde_json::json!({ "type": name, "features": features, "virtio-features": virtio }))?;
    Ok(0)
}

/// Tells what happens, for `-v`.
struct Log;

impl Observer for Log {
    fn event(&self, event: &SessionEvent<'_>) {
        match event {
            SessionEvent::Connected { client } => info!(client, "frontend connected"),
            SessionEvent::Received { header, payload, fds } => {
                debug!(request = header.request, bytes = payload.len(), fds, "message");
            }
            SessionEvent::Refused { request, refusal, told } => warn!(request, %refusal, told, "refused a message"),
            SessionEvent::RingStarted { queue, size, enabled } => info!(queue, size, enabled, "ring started"),
            SessionEvent::RingStopped { queue, base } => info!(queue, base, "ring stopped"),
            SessionEvent::RingBroke { queue, error } => warn!(queue, %error, "ring can't be believed"),
            SessionEvent::KickLost { queue, error } => warn!(queue, %error, "kick is of no use"),
            SessionEvent::Ended { client, error: Some(error) } => warn!(client, %error, "session ended"),
            SessionEvent::Ended { client, error: None } => info!(client, "frontend left"),
            SessionEvent::Handled { .. } | SessionEvent::Kicked { .. } => {}
        }
    }
}
