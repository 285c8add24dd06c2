//! The QEMU driver: KVM or TCG, version 7.2 and later.
//!
//! ```text
//!   VmSpec ──validate──▶ accelerator ──▶ vms/<id>/, listening sockets ──▶ arguments ──▶ process ──▶ QMP greeting ──▶ Vm
//! ```
//! Kiln binds every socket itself and QEMU inherits them, so that connecting works from the first moment and nothing
//! ever polls for a path to appear.

mod adopt;
mod args;
mod blockdev;
mod qmp;
mod version;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use camino::{Utf8Path, Utf8PathBuf};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::OnceCell;

pub use self::adopt::AdoptError;
pub use self::args::TCG_CPU;
pub use self::qmp::QmpError;
pub(crate) use self::qmp::{Qmp, QmpEvent};
pub use self::version::QemuVersion;

use self::args::{Accelerator, Facts, Sockets};
use crate::acceleration;
use crate::engine::{BoxFuture, Capabilities, Engine, Isolation, LaunchError};
use crate::failpoint::{self, FailPoint};
use crate::fifo::{CONSOLE_FIFO, Fifo, STDERR_FIFO};
use crate::home::Home;
use crate::host;
use crate::journal::State;
use crate::owner::{self, Parts};
use crate::process::{self, Child, Program, Sink};
use crate::recover::{self, Outcome, Recovered};
use crate::vm::{AGENT_SOCKET, Acceleration, Vm, VmmStatus, port_socket};
use crate::vm_dir::{SocketDir, VmDir};
use crate::vm_spec::{AccelerationRequest, VmSpec};

/// Name of the program.
pub const QEMU_PROGRAM: &str = "qemu-system-x86_64";
/// Names another QEMU than the one on `PATH`.
pub const QEMU_VARIABLE: &str = "KILN_QEMU";
/// From the start of the process to QMP's greeting: 40 ms on an idle host.
const GREETING_DEADLINE: Duration = Duration::from_secs(20);
/// Between the end of the monitor connection and that of the process.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// What is kept of the words of a QEMU that did not start.
const STDERR_BYTES_MAX: u64 = 4096;
/// What QEMU says when the host refuses `IA32_ARCH_CAPABILITIES`.
const MSR_FAILURE: &str = "failed to set MSR";

/// Starts VMs with QEMU.
#[derive(Debug)]
pub struct QemuEngine {
    home: Utf8PathBuf,
    binary: Utf8PathBuf,
    version: OnceCell<Option<QemuVersion>>,
    recovered: OnceCell<()>,
}

impl QemuEngine {
    /// An engine that keeps its VMs below `home` (`$KILN_HOME`), with the QEMU named by `$KILN_QEMU` or found on `PATH`.
    ///
    /// # Errors
    /// [`LaunchError::VmmMissing`].
    pub fn find(home: impl Into<Utf8PathBuf>) -> Result<Self, LaunchError> {
        let program = std::env::var(QEMU_VARIABLE).unwrap_or_else(|_| QEMU_PROGRAM.into());
        let binary = host::find_program(Utf8Path::new(&program));
        let binary = binary.ok_or_else(|| LaunchError::VmmMissing { program: program.into() })?;
        Ok(Self::new(home, binary))
    }

    /// An engine with a certain QEMU.
    pub fn new(home: impl Into<Utf8PathBuf>, binary: impl Into<Utf8PathBuf>) -> Self {
        Self { home: home.into(), binary: binary.into(), version: OnceCell::new(), recovered: OnceCell::new() }
    }

    /// The program that it starts.
    pub fn binary(&self) -> &Utf8Path {
        &self.binary
    }

    /// Where it keeps its VMs.
    pub fn home(&self) -> &Utf8Path {
        &self.home
    }

    /// QEMU's version, asked once. `None` for a program that doesn't say.
    pub async fn version(&self) -> Option<QemuVersion> {
        let ask = async {
            version::qemu_version(&self.binary).await.unwrap_or_else(|error| {
                tracing::warn!(binary = %self.binary, %error, "failed to learn QEMU's version");
                None
            })
        };
        *self.version.get_or_init(|| ask).await
    }

    /// What would run this spec's instructions. Decides [`AccelerationRequest::Auto`], which takes a probe guest of a
    /// few seconds once; [`launch`](Engine::launch) does the same where this was not asked before.
    ///
    /// # Errors
    /// The spec can't be started on this host.
    pub async fn decide(&self, spec: &VmSpec) -> Result<Acceleration, LaunchError> {
        spec.validate(host::limits())?;
        self.recovered.get_or_init(|| self.recover()).await;
        let kvm = match spec.acceleration {
            AccelerationRequest::Tcg => false,
            AccelerationRequest::Kvm => match acceleration::open_kvm() {
                Ok(()) => true,
                Err(state) => return Err(LaunchError::NoKvm { reason: state.reason(), hint: state.hint() }),
            },
            AccelerationRequest::Auto => acceleration::kvm_works(self, spec).await.works(),
        };
        Ok(if kvm { Acceleration::Kvm } else { Acceleration::Tcg })
    }

    async fn launch_spec(&self, spec: VmSpec) -> Result<Vm, LaunchError> {
        match self.decide(&spec).await? {
            Acceleration::Kvm => self.launch_kvm(&spec).await,
            Acceleration::Tcg | Acceleration::Native => self.launch_with(&spec, Accelerator::Tcg).await,
        }
    }

    /// Clears up after earlier processes; a failure of that keeps no VM from starting.
    async fn recover(&self) {
        let home = Home::at(&self.home);
        match tokio::task::spawn_blocking(move || recover::recover(&home)).await {
            Ok(Ok(recovered)) => {
                for Recovered { id, outcome } in recovered {
                    if outcome == Outcome::Removed {
                        tracing::info!(vm = %id, "removed a vm without an owner");
                    }
                }
            }
            Ok(Err(error)) => tracing::warn!(%error, "failed to look for vms without an owner"),
            Err(error) => tracing::warn!(%error, "looking for vms without an owner was cut short"),
        }
    }

    async fn launch_kvm(&self, spec: &VmSpec) -> Result<Vm, LaunchError> {
        match self.launch_with(spec, Accelerator::Kvm).await {
            Err(LaunchError::VmmFailed { stderr, .. }) if stderr.contains(MSR_FAILURE) => {
                tracing::info!("the host refuses an MSR that it claims to have, starting without it");
                self.launch_with(spec, Accelerator::KvmWithoutArchCapabilities).await
            }
            other => other,
        }
    }

    async fn launch_with(&self, spec: &VmSpec, accelerator: Accelerator) -> Result<Vm, LaunchError> {
        let facts = self.facts(spec, accelerator).await;
        let vms = self.home.join("vms");
        let no_directory = |source| LaunchError::Directory { path: vms.clone(), source };
        let dir = VmDir::create(&vms, spec).map_err(no_directory)?;
        let stopped = |error: FailPoint| no_directory(error.into());
        failpoint::hit("launch.dir").map_err(stopped)?;
        let mut host_side = HostSide::bind(&dir, spec).map_err(no_directory)?;

        let arguments = args::arguments(spec, &facts, &host_side.sockets);
        let inherit = std::mem::take(&mut host_side.listeners);
        let started = Instant::now();
        let console = Fifo::create(&dir.path().join(CONSOLE_FIFO)).map_err(no_directory)?;
        let stderr = Fifo::create(&dir.path().join(STDERR_FIFO)).map_err(no_directory)?;
        let program = Program {
            path: self.binary.clone(),
            arguments,
            inherit,
            stdout: Sink::To(console.writer),
            stderr: Sink::To(stderr.writer),
            pid_file: Some(dir.pid_file().map_err(no_directory)?),
            owner_loss: spec.owner_loss,
        };
        let child = process::spawn(program).await.map_err(|source| self.spawn_error(source))?;
        failpoint::hit("launch.spawned").map_err(stopped)?;
        let (console, mut stderr) = (Some(console.reader), Some(stderr.reader));

        let monitor = match Qmp::handshake(host_side.monitor, GREETING_DEADLINE).await {
            Ok(monitor) => monitor,
            Err(source) => return Err(self.why_no_monitor(child, &mut stderr, source).await),
        };
        let acceleration = match accelerator {
            Accelerator::Kvm | Accelerator::KvmWithoutArchCapabilities => Acceleration::Kvm,
            Accelerator::Tcg => Acceleration::Tcg,
        };
        let parts = Parts {
            dir,
            child,
            stderr,
            console,
            monitor: Some(monitor),
            started,
            acceleration,
            ports: spec.extra_ports.clone(),
        };
        parts.dir.journal().append(State::Running).map_err(|error| no_directory(error.into()))?;
        failpoint::hit("launch.running").map_err(stopped)?;
        owner::start(parts).map_err(no_directory)
    }

    async fn facts(&self, spec: &VmSpec, accelerator: Accelerator) -> Facts {
        let kernel = version::kernel_version(&spec.kernel).unwrap_or_else(|error| {
            tracing::warn!(%error, "failed to read the kernel's version");
            None
        });
        // Asking costs a process; only a new kernel under TCG makes the answer matter.
        let matters = accelerator == Accelerator::Tcg && args::kernel_needs_sound_cmpxchg16b(kernel);
        let qemu = if matters { self.version().await } else { None };
        // Only what was measured: under KVM the BIOS takes no time that counts.
        let qboot = accelerator == Accelerator::Tcg && self.has_firmware(args::QBOOT);
        Facts { accelerator, qboot, qemu, kernel }
    }

    /// Whether a firmware lies where this QEMU looks for it.
    fn has_firmware(&self, name: &str) -> bool {
        let prefix = self.binary.parent().and_then(Utf8Path::parent);
        prefix.is_some_and(|prefix| prefix.join("share/qemu").join(name).is_file())
    }

    fn spawn_error(&self, source: io::Error) -> LaunchError {
        let program = self.binary.clone();
        match source.kind() {
            io::ErrorKind::NotFound => LaunchError::VmmMissing { program },
            _ => LaunchError::Spawn { program, source },
        }
    }

    /// QEMU's own words say more than a monitor that does not greet.
    async fn why_no_monitor(
        &self,
        mut child: Child,
        stderr: &mut Option<pipe::Receiver>,
        source: QmpError,
    ) -> LaunchError {
        let program = self.binary.clone();
        match tokio::time::timeout(END_DEADLINE, last_words(&mut child, stderr)).await {
            Ok(Ok((status, stderr))) => LaunchError::VmmFailed { program, status, stderr },
            Ok(Err(source)) => LaunchError::Spawn { program, source },
            Err(_) => LaunchError::Monitor { program, source },
        }
    }
}

impl Engine for QemuEngine {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            driver: "qemu",
            kernel: true,
            console: true,
            pause: true,
            disks: true,
            isolation: Isolation::Emulated,
        }
    }

    fn launch(&self, spec: VmSpec) -> BoxFuture<'_, Result<Vm, LaunchError>> {
        Box::pin(self.launch_spec(spec))
    }
}

/// Kiln's ends of what QEMU inherits.
struct HostSide {
    sockets: Sockets,
    listeners: Vec<OwnedFd>,
    monitor: UnixStream,
}

impl HostSide {
    fn bind(dir: &VmDir, spec: &VmSpec) -> io::Result<Self> {
        let directory = dir.sockets()?;
        let monitor = directory.listen("monitor")?;
        let agent = directory.listen(AGENT_SOCKET)?;
        let extra = (0..spec.extra_ports.len()).map(|index| directory.listen(&port_socket(index)));
        let extra = extra.collect::<io::Result<Vec<UnixListener>>>()?;
        let sockets = Sockets {
            monitor: monitor.as_raw_fd(),
            agent: agent.as_raw_fd(),
            extra: extra.iter().map(UnixListener::as_raw_fd).collect(),
        };
        let listeners = [monitor, agent].into_iter().chain(extra).map(OwnedFd::from).collect();
        Ok(Self { sockets, listeners, monitor: connect(&directory, "monitor")? })
    }
}

fn connect(directory: &SocketDir, name: &str) -> io::Result<UnixStream> {
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
