//! Starts a QEMU process, both for a boot and for a restore.
//!
//! ```text
//!   VmDir, listening sockets, memory file ──▶ arguments ──▶ process ──▶ QMP greeting ──▶ Started
//! ```
//! Kiln binds every socket itself and QEMU inherits it. So a connection succeeds from the first moment, and no code has
//! to poll for a path.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::args::{self, Accelerator, Facts, Memory, Names, Netdev, Sockets, Start};
use super::files;
use super::monitor::GuestEvents;
use super::qmp::{Qmp, QmpEvent};
use super::save::QemuSaver;
use super::transport::VirtioSerial;
use crate::blocking::assert_may_block;
use crate::confine::{Border, Policy};
use crate::driver::LaunchError;
use crate::failpoint;
use crate::files::private_file;
use crate::host::tap;
use crate::process::{self, Child, Program, Sink, VmmStatus};
use crate::spec::{Acceleration, Attachment, Nic, VhostUser, VmSpec, connect_at_once};
use crate::vm::{self, AGENT_SOCKET, Ends, Parts, Vm, VmmError, port_socket};
use crate::vm_dir::fifo::{CONSOLE_FIFO, Fifo, STDERR_FIFO};
use crate::vm_dir::{MEMORY_FILE, SocketDir, VmDir};

/// From the start of the process to QMP's greeting: 30 ms on an idle host.
pub(super) const GREETING_DEADLINE: Duration = Duration::from_secs(20);
/// From the end of the monitor connection to the exit of the process.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// How much of a QEMU's stderr is kept if it does not start.
const STDERR_BYTES_MAX: u64 = 4096;

/// How to start a QEMU.
pub(super) struct Plan<'a> {
    pub(super) binary: &'a Utf8Path,
    pub(super) spec: &'a VmSpec,
    pub(super) facts: Facts,
    pub(super) memory: Memory,
    pub(super) start: Start,
    /// The `-blockdev` of each disk of the spec.
    pub(super) disks: Vec<Value>,
    /// The memory of the snapshot of which it is a fork.
    pub(super) snapshot: Option<File>,
    /// Descriptors that it inherits beside its sockets.
    pub(super) inherit: Vec<OwnedFd>,
    pub(super) policy: &'a Policy,
}

/// A QEMU that has sent its greeting.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) child: Child,
    pub(super) stderr: Option<pipe::Receiver>,
    pub(super) console: Option<pipe::Receiver>,
    pub(super) monitor: (Qmp, mpsc::Receiver<QmpEvent>),
    pub(super) at: Instant,
}

/// Starts a QEMU for the VM of `dir`.
pub(super) async fn start(dir: &VmDir, plan: Plan<'_>) -> Result<Started, LaunchError> {
    let no_directory = |source| LaunchError::Directory { path: dir.path().into(), source };
    let binary = plan.binary;
    let spawn_error = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => LaunchError::VmmMissing { program: binary.into() },
        _ => LaunchError::Spawn { program: binary.into(), source },
    };
    // Everything that can fail without QEMU is done first, with the errors of Kiln. An error of QEMU about the same
    // cause would be a line of text on its stderr.
    let (backends, networks) = (connect_backends(plan.spec)?, open_networks(plan.spec)?);
    let mut host_side = HostSide::bind(dir, plan.spec, backends, networks).map_err(no_directory)?;
    let mut inherit = std::mem::take(&mut host_side.inherited);
    let Plan { binary: _, spec, facts, mut memory, start, disks, snapshot, inherit: others, policy } = plan;
    inherit.extend(others);
    let file_bytes = files::largest(spec, &disks);
    files::make_device_state(dir).map_err(no_directory)?;
    let needs = files::needs(dir, spec, &facts, &memory, snapshot, file_bytes);
    let border = Border::new(policy, binary, needs);
    match (&memory, border.memory_name()) {
        (Memory::Private(_), Some(name)) => memory = Memory::Brokered(name.to_owned()),
        // QEMU gets the name relative to its working directory, because it may not be allowed to pass through the
        // directories above.
        (Memory::Shared(_), _) => memory = Memory::Shared(MEMORY_FILE.into()),
        _ => {}
    }
    let mut names = Names { disks, ..Names::default() };
    files::open_disks(&mut names, &mut inherit)?;
    if start == Start::Boot {
        files::open_kernel(spec, border.is_another_user(), &mut names, &mut inherit)?;
    }
    let arguments = args::arguments(spec, &facts, &host_side.sockets, &memory, &names, start);
    let at = Instant::now();
    let console = Fifo::create(&dir.path().join(CONSOLE_FIFO)).map_err(no_directory)?;
    let stderr = Fifo::create(&dir.path().join(STDERR_FIFO)).map_err(no_directory)?;
    let program = Program {
        path: binary.into(),
        arguments,
        environment: process::own_environment(),
        // QEMU searches its data files here first, and finds none.
        directory: dir.path().to_owned(),
        inherit,
        stdout: Sink::To(console.writer),
        stderr: Sink::To(stderr.writer),
        pid_file: Some(dir.pid_file().map_err(no_directory)?),
        owner_loss: spec.owner_loss,
        border,
    };
    let mut child = process::spawn(program).await.map_err(spawn_error)?;
    failpoint::hit(start.spawned()).map_err(|error| no_directory(error.into()))?;
    let mut stderr = Some(stderr.reader);
    // Kiln has connected to the monitor before QEMU was started: the socket was bound and listening, so the connection
    // waits in its queue, and the greeting arrives as soon as QEMU accepts it. If QEMU exits before that, the kernel
    // closes the socket with the process, and the handshake ends at once instead of at its deadline.
    let greeted = Qmp::handshake(host_side.monitor, GREETING_DEADLINE).await;
    child.settle();
    child.confinement().store(dir.path()).map_err(no_directory)?;
    for (measure, reason) in child.confinement().missing() {
        tracing::warn!(vm = %dir.id(), %measure, reason, "this host does not confine the vmm as it could");
    }
    match greeted {
        Ok(monitor) => Ok(Started { child, stderr, console: Some(console.reader), monitor, at }),
        Err(source) => {
            let error = why_it_ended(binary, &mut child, &mut stderr, source).await;
            Err(blame_backend(spec, error))
        }
    }
}

/// Connects to the backends whose connection QEMU inherits.
fn connect_backends(spec: &VmSpec) -> Result<Vec<Option<OwnedFd>>, LaunchError> {
    let connect = |device: &VhostUser| match device.reconnects() {
        true => Ok(None),
        false => device.connect().map(Some).map_err(|error| {
            let problem = match error.kind() {
                io::ErrorKind::WouldBlock => "accepts no more clients: its queue is full".into(),
                _ => format!("refuses connections: {error}"),
            };
            LaunchError::Backend { device: device.to_string(), problem }
        }),
    };
    spec.vhost_user.iter().map(connect).collect()
}

/// What a card is connected to.
enum Network {
    Tap(OwnedFd),
    Stream(OwnedFd),
}

/// Opens what the cards are connected to, because QEMU runs in an empty network namespace and reaches no socket.
fn open_networks(spec: &VmSpec) -> Result<Vec<Option<Network>>, LaunchError> {
    let open = |(index, nic): (usize, &Nic)| match &nic.attachment {
        Attachment::Unplugged => Ok(None),
        Attachment::Idle => match tap::idle() {
            Ok(opened) => Ok(Some(Network::Tap(opened))),
            Err(source) => Err(LaunchError::Attachment { index, tap: tap::idle_name(), source }),
        },
        Attachment::Tap(tap) => match tap::open(tap) {
            Ok(opened) => Ok(Some(Network::Tap(opened))),
            Err(source) => Err(LaunchError::Attachment { index, tap: tap.clone(), source }),
        },
        Attachment::Stream { socket } => match connect_at_once(socket) {
            Ok(stream) => Ok(Some(Network::Stream(stream))),
            Err(source) => Err(LaunchError::Stream { index, socket: socket.clone(), source }),
        },
    };
    spec.nics.iter().enumerate().map(open).collect()
}

/// QEMU does the handshake with every backend before its greeting. Its error about a backend contains the id of the
/// connection.
fn blame_backend(spec: &VmSpec, error: LaunchError) -> LaunchError {
    let devices = || spec.vhost_user.iter().enumerate();
    match error {
        LaunchError::VmmFailed { ref stderr, .. } => {
            let named = devices().find(|(index, _)| names_backend(stderr, &args::backend_id(*index)));
            let Some((_, device)) = named else { return error };
            LaunchError::Backend { device: device.to_string(), problem: format!("kept the VM from starting: {stderr}") }
        }
        LaunchError::Monitor { .. } if !spec.vhost_user.is_empty() => {
            let names: Vec<_> = devices().map(|(_, device)| device.to_string()).collect();
            let problem = "did not complete QEMU's handshake in time".to_owned();
            LaunchError::Backend { device: names.join(" or "), problem }
        }
        other => other,
    }
}

/// Whether `words` contain this id, and not a longer one.
fn names_backend(words: &str, id: &str) -> bool {
    words.match_indices(id).any(|(at, _)| !words[at + id.len()..].starts_with(|next: char| next.is_ascii_digit()))
}

/// Hands a VM to the task that owns it.
pub(super) fn own(
    home: &Utf8Path,
    dir: VmDir,
    started: Started,
    spec: &VmSpec,
    accelerator: Accelerator,
    saver: QemuSaver,
) -> io::Result<Vm> {
    let Started { child, stderr, console, monitor: (qmp, events), at } = started;
    let acceleration = match accelerator {
        Accelerator::Kvm | Accelerator::KvmWithoutArchCapabilities => Acceleration::Kvm,
        Accelerator::Tcg => Acceleration::Tcg,
    };
    let ends = Ends {
        stderr,
        console,
        monitor: Arc::new(qmp),
        monitor_events: Box::new(GuestEvents(events)),
        transport: Arc::new(VirtioSerial),
        acceleration,
        saver: Some(Arc::new(saver)),
    };
    vm::start(Parts { home: home.into(), dir, child, spec: spec.clone(), started: at, ends })
}

/// Prefers QEMU's own error to that of a monitor that does not answer.
///
/// QEMU closes QMP before it exits. So when the connection ends, there is no exit status yet, and stderr may lack the
/// last lines. Both arrive soon after, and are awaited. The text on stderr names the cause, for example a missing
/// firmware. The error of the connection only shows that it ended. If instead a deadline has passed, QEMU is still
/// connected and will hardly exit on its own, so its exit is not awaited.
pub(super) async fn why_it_ended(
    binary: &Utf8Path,
    child: &mut Child,
    stderr: &mut Option<pipe::Receiver>,
    source: VmmError,
) -> LaunchError {
    let program = binary.to_owned();
    let patience = if matches!(source, VmmError::Deadline { .. }) { Duration::ZERO } else { END_DEADLINE };
    match tokio::time::timeout(patience, last_words(child, stderr)).await {
        Ok(Ok((status, stderr))) => LaunchError::VmmFailed { program, status, stderr },
        Ok(Err(source)) => LaunchError::Spawn { program, source },
        Err(_) => LaunchError::Monitor { program, source },
    }
}

/// Creates the file for a guest's memory and reserves disk space for all of it. Otherwise the kernel would allocate
/// blocks when the guest writes to its memory. On a full disk that fails inside QEMU's CPU thread, where it can't be
/// reported, and the kernel kills QEMU with `SIGBUS`.
pub(super) fn memory_file(dir: &VmDir, spec: &VmSpec) -> Result<Utf8PathBuf, LaunchError> {
    assert_may_block();
    let path = dir.path().join(MEMORY_FILE);
    let make = || {
        let file = private_file::create_new(&path)?;
        let bytes = spec.memory_mib << 20;
        file.set_len(bytes)?;
        match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
            // Some filesystems can't reserve space.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(io::Error::from(error)),
        }
    };
    make().map(|()| path.clone()).map_err(|source| LaunchError::Directory { path, source })
}

/// Kiln's ends of the sockets that QEMU inherits.
struct HostSide {
    sockets: Sockets,
    inherited: Vec<OwnedFd>,
    monitor: UnixStream,
}

impl HostSide {
    fn bind(
        dir: &VmDir,
        spec: &VmSpec,
        backends: Vec<Option<OwnedFd>>,
        networks: Vec<Option<Network>>,
    ) -> io::Result<Self> {
        let directory = dir.sockets()?;
        let monitor = directory.listen("monitor")?;
        let agent = directory.listen(AGENT_SOCKET)?;
        let extra = (0..spec.extra_ports.len()).map(|index| directory.listen(&port_socket(index)));
        let extra = extra.collect::<io::Result<Vec<UnixListener>>>()?;
        let sockets = Sockets {
            monitor: monitor.as_raw_fd(),
            agent: agent.as_raw_fd(),
            extra: extra.iter().map(UnixListener::as_raw_fd).collect(),
            netdevs: networks.iter().map(|network| network.as_ref().map(Network::netdev)).collect(),
            backends: numbers(&backends),
        };
        let networks = networks.into_iter().flatten().map(Network::into_fd);
        let inherited = [monitor, agent].into_iter().chain(extra).map(OwnedFd::from);
        let inherited = inherited.chain(backends.into_iter().flatten()).chain(networks).collect();
        Ok(Self { sockets, inherited, monitor: connect(&directory, "monitor")? })
    }
}

impl Network {
    fn netdev(&self) -> Netdev {
        match self {
            Self::Tap(fd) => Netdev::Tap(fd.as_raw_fd()),
            Self::Stream(fd) => Netdev::Stream(fd.as_raw_fd()),
        }
    }

    fn into_fd(self) -> OwnedFd {
        match self {
            Self::Tap(fd) | Self::Stream(fd) => fd,
        }
    }
}

fn numbers(descriptors: &[Option<OwnedFd>]) -> Vec<Option<RawFd>> {
    descriptors.iter().map(|descriptor| descriptor.as_ref().map(AsRawFd::as_raw_fd)).collect()
}

pub(super) fn connect(directory: &SocketDir, name: &str) -> io::Result<UnixStream> {
    let stream = directory.connect(name)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

async fn last_words(child: &mut Child, stderr: &mut Option<pipe::Receiver>) -> io::Result<(VmmStatus, String)> {
    drop(child.watch()?.readable().await?);
    let status = child.try_reap()?.unwrap_or(VmmStatus::Signal(0));
    let mut words = BytesMut::new();
    if let Some(stderr) = stderr {
        let mut stderr = stderr.take(STDERR_BYTES_MAX);
        while stderr.read_buf(&mut words).await? > 0 {}
    }
    Ok((status, String::from_utf8_lossy(&words).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::VhostUserDevice;

    fn spec(devices: usize) -> VmSpec {
        let device = |index| VhostUser::new(VhostUserDevice::Blk, format!("/s{index}"));
        VmSpec { vhost_user: (0..devices).map(device).collect(), ..VmSpec::new("/k", "/i") }
    }

    fn failed(stderr: &str) -> LaunchError {
        LaunchError::VmmFailed { program: "qemu".into(), status: VmmStatus::Code(1), stderr: stderr.into() }
    }

    #[test]
    fn the_backend_in_an_error_of_qemu_is_named_with_its_socket() {
        let words = "-device vhost-user-blk-pci,chardev=vhost11: Failed to read config";
        let error = blame_backend(&spec(12), failed(words)).to_string();
        assert!(error.starts_with("the vhost-user-blk device `/s11` kept the VM from starting: "), "{error}");
        assert!(error.ends_with(words), "{error}");
    }

    #[test]
    fn an_error_about_no_backend_stays_unchanged() {
        for (devices, words) in [(2, "no kernel"), (2, "vhost22"), (0, "vhost0")] {
            let error = blame_backend(&spec(devices), failed(words));
            assert!(matches!(error, LaunchError::VmmFailed { .. }), "{error}");
        }
    }

    #[test]
    fn a_vmm_that_does_not_greet_is_blamed_on_its_backends() {
        let silent = || LaunchError::Monitor {
            program: "qemu".into(),
            source: VmmError::Deadline { command: "greeting".into(), waited: GREETING_DEADLINE },
        };
        let error = blame_backend(&spec(2), silent()).to_string();
        assert!(error.contains("`/s0` or ") && error.contains("`/s1`"), "{error}");
        assert!(matches!(blame_backend(&spec(0), silent()), LaunchError::Monitor { .. }));
    }
}
