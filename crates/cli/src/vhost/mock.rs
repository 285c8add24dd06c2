//! `kiln vhost mock`: a backend for frontends.
#![expect(unsafe_code, reason = "a descriptor is inherited by its number")]

use std::net::Ipv4Addr;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kiln_vdev::backend::{Device, Observer, SessionEvent};
use kiln_vdev::check::{ExpectedFailures, Report};
use kiln_vdev::devices::blk::{Backing, Blk, BlkError, BlkOptions};
use kiln_vdev::devices::net::{Behind, Net, NetOptions};
use kiln_vdev::devices::vsock::Vsock;
use kiln_vdev::mock::{Mock, MockError, Script, ScriptError, Watch};
use kiln_vdev::virtio::{DeviceKind, feature};
use tracing::{debug, info, warn};

use super::FAILED;
use super::check::plain_lines;
use super::failure::of_socket;
use super::own_disk::OwnDisk;
use super::stop::Stop;
use crate::args::vhost_testing::{MockArgs, MockDevice};
use crate::failure::{Failure, USAGE};
use crate::output::{print, print_json};

/// Where the host behind a network card without a TAP is.
const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Queues of a disk without --queues.
const BLK_QUEUES: u16 = 4;
/// Warnings that are written within [`WARNINGS_TIME`].
const WARNINGS_MAX: u32 = 20;
const WARNINGS_TIME: Duration = Duration::from_secs(10);
/// SIGTERM, by which backends are ended: no failure.
const TERMINATED: u8 = 143;

/// Serves until a signal.
pub fn run(args: &MockArgs) -> Result<u8, Failure> {
    // First of all: later there may be descriptors of ours with that number.
    let inherited = args.fd.map(inherit).transpose()?;
    let (device, _disk) = device(args)?;
    let kind = device.kind();
    if args.print_capabilities {
        return print_capabilities(&*device);
    }
    let watch = args.check.then(|| Arc::new(Watch::new(target(args)).of_device(kind)));
    let expected = expected(args)?;
    let mut mock = Mock::new(device).observer(Arc::new(Observers::new(watch.clone())));
    if let Some(path) = &args.script {
        let script: Script = fs_err::read_to_string(path)?.parse().map_err(|error| of_script(path, error))?;
        mock = mock.script(&script).map_err(|error| of_script(path, error))?;
    }
    let stop = Stop::new()?;
    let served = match (inherited, &args.socket) {
        (Some(socket), _) => mock.serve_fd(socket, stop.event()),
        (None, Some(path)) => mock.serve(path, stop.event()),
        (None, None) => {
            return Err(Failure::words(USAGE, "there is no socket to listen on").hint("give --socket or --fd"));
        }
    };
    served.map_err(|error| match error {
        MockError::Listen(error) => of_socket(args.socket.as_deref().unwrap_or(Path::new("")), error),
        error @ MockError::Serve(_) => error.into(),
    })?;
    let code = stop.code().filter(|code| *code != TERMINATED).unwrap_or(0);
    match watch {
        Some(watch) => report(args, &expected, watch.report(), code),
        None => Ok(code),
    }
}

fn target(args: &MockArgs) -> String {
    match (&args.socket, args.fd) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(fd)) => format!("descriptor {fd}"),
        (None, None) => String::new(),
    }
}

fn of_script(path: &Path, error: ScriptError) -> Failure {
    Failure::new(USAGE, anyhow::Error::new(error).context(format!("`{}` is not a script", path.display())))
}

fn expected(args: &MockArgs) -> Result<ExpectedFailures, Failure> {
    let Some(path) = &args.expect_failures else { return Ok(ExpectedFailures::default()) };
    let rules = Watch::new("").report();
    let mut is_known = |id: &str| rules.cases.iter().any(|case| case.id == id);
    ExpectedFailures::read(path, &mut is_known).map_err(|error| Failure::new(USAGE, error))
}

/// Which rules the frontend kept.
fn report(args: &MockArgs, expected: &ExpectedFailures, mut report: Report, code: u8) -> Result<u8, Failure> {
    report.cases.retain(|case| case.level <= args.level);
    for case in &mut report.cases {
        case.expectation = expected.judge(case.id, &case.verdict);
    }
    if let Some(path) = &args.junit {
        fs_err::write(path, report.to_junit())?;
    }
    match args.json {
        true => print_json(&report.to_json())?,
        false => print(plain_lines(&report.to_text()).trim_end())?,
    }
    Ok(if report.is_as_expected(false) { code } else { FAILED })
}

/// A descriptor that this process was started with.
fn inherit(number: i32) -> Result<OwnedFd, Failure> {
    let absent = || Failure::words(USAGE, format!("descriptor {number} is not open"));
    // SAFETY: the borrow ends with the call, which only checks whether there is such a descriptor.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_getfd(borrowed).map_err(|_| absent())?;
    // SAFETY: it is open, was so when the process began, and nothing else in kiln uses it: the user passed it to kiln.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC).map_err(|_| absent())?;
    Ok(socket)
}

/// The device, and the disk that must live as long as it and is removed then.
fn device(args: &MockArgs) -> Result<(Arc<dyn Device>, Option<OwnDisk>), Failure> {
    Ok(match args.device {
        MockDevice::Blk => {
            let own = match (&args.file, args.null, &args.socket) {
                (None, false, Some(socket)) => Some(OwnDisk::beside(socket, args.size)?),
                (None, false, None) => Some(OwnDisk::in_memory(args.size)?),
                _ => None,
            };
            let backing = match (&args.file, &own) {
                (Some(path), _) => Backing::File(path.clone()),
                (None, Some(own)) => Backing::File(own.path()),
                (None, None) => Backing::Null { bytes: args.size },
            };
            let options = BlkOptions {
                read_only: args.read_only,
                serial: args.serial.clone(),
                queues: args.queues.unwrap_or(BLK_QUEUES),
                ..BlkOptions::new(backing)
            };
            let disk = Blk::open(&options);
            let disk = disk.map_err(|error| match (&own, &args.socket) {
                // Its path means nothing to a person.
                (Some(_), Some(socket)) if matches!(error, BlkError::InUse { .. }) => {
                    Failure::words(1, format!("another mock serves `{}`", socket.display()))
                }
                _ => error.into(),
            })?;
            (Arc::new(disk), own.map(OwnDisk::remove_at_end))
        }
        MockDevice::Net => {
            let behind = match &args.tap {
                Some(name) => Behind::Tap(name.clone()),
                None if args.reflect => Behind::Reflection,
                None => Behind::Host(HOST_ADDRESS),
            };
            let pairs = args.queues.unwrap_or(1);
            let options = NetOptions { behind, pairs, loss_permille: args.loss, ..NetOptions::default() };
            let name = args.tap.as_deref().unwrap_or_default();
            let net = Net::new(options).with_context(|| format!("failed to open the TAP device `{name}`"));
            let hint = "run as root, or use a TAP that was made for this user";
            (Arc::new(net.map_err(|error| Failure::new(1, error).hint(hint))?), None)
        }
        MockDevice::Vsock => {
            if args.queues.is_some() {
                return Err(Failure::words(
                    USAGE,
                    "--queues is for blk and net: a vsock device always has three queues",
                ));
            }
            let path = uds(args);
            (Arc::new(Vsock::new(args.cid, &path).map_err(|error| of_socket(&path, error))?), None)
        }
    })
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

/// The observers of a session: the log, and the judge of the frontend if there is one.
struct Observers {
    watch: Option<Arc<Watch>>,
    /// Since when warnings are counted, and how many there were.
    warned: Mutex<(Instant, u32)>,
}

impl Observers {
    fn new(watch: Option<Arc<Watch>>) -> Self {
        Self { watch, warned: Mutex::new((Instant::now(), 0)) }
    }

    /// Whether one more warning may be written: a frontend can cause as many as it likes.
    fn may_warn(&self) -> bool {
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, count) = &mut *warned;
        if since.elapsed() >= WARNINGS_TIME {
            (*since, *count) = (Instant::now(), 0);
        }
        *count += 1;
        *count <= WARNINGS_MAX
    }
}

impl Observer for Observers {
    fn event(&self, event: &SessionEvent<'_>) {
        if let Some(watch) = &self.watch {
            watch.event(event);
        }
        let is_warning = match event {
            SessionEvent::Refused { .. } | SessionEvent::RingBroke { .. } | SessionEvent::KickLost { .. } => true,
            SessionEvent::Ended { error, .. } => error.is_some(),
            _ => false,
        };
        if is_warning && !self.may_warn() {
            return;
        }
        match event {
            SessionEvent::Connected { client } => info!(client, "frontend connected"),
            SessionEvent::Received { header, payload, fds } => {
                debug!(request = header.request, bytes = payload.len(), fds, "message");
            }
            SessionEvent::Refused { request, refusal, told } => warn!(request, %refusal, told, "refused a message"),
            SessionEvent::RingStarted { queue, size, enabled } => info!(queue, size, enabled, "ring started"),
            SessionEvent::RingStopped { queue, base } => info!(queue, base, "ring stopped"),
            SessionEvent::RingBroke { queue, error } => warn!(queue, %error, "ring broken"),
            SessionEvent::KickLost { queue, error } => warn!(queue, %error, "kick descriptor lost"),
            SessionEvent::Ended { client, error: Some(error) } => warn!(client, %error, "session ended"),
            SessionEvent::Ended { client, error: None } => info!(client, "frontend disconnected"),
            SessionEvent::Offered { .. } | SessionEvent::Handled { .. } | SessionEvent::Kicked { .. } => {}
        }
    }
}
