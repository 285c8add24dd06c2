//! The fake driver: the real agent as a process of this host, no VM. For tests of everything above the engine.
//!
//! It says what it is: no kernel, no console, no isolation. What only passes here is not done.

mod monitor;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::OnceCell;

use self::monitor::FakeMonitor;
use crate::adopt::AdoptError;
use crate::driver::{Driver, Restorer, Transport};
use crate::engine::{BoxFuture, Capabilities, Isolation, LaunchError};
use crate::error::RestoreError;
use crate::host;
use crate::journal::State;
use crate::link::LinkOptions;
use crate::orphan::Orphan;
use crate::owner::{self, Ends, Parts};
use crate::process::{self, Program, Sink};
use crate::snapshot::{MachineIdentity, Snapshot};
use crate::vm::{AGENT_SOCKET, Acceleration, Vm, VmmStatus};
use crate::vm_dir::{SocketDir, VmDir};
use crate::vm_spec::{OwnerLoss, VmSpec};

/// Its name, in errors and capabilities.
const DRIVER: &str = "fake";
/// Until the agent listens; it takes a few milliseconds.
const LISTEN_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks at whether it listens. The agent binds its own socket, so there is nothing to wait on.
const LISTEN_PAUSE: Duration = Duration::from_millis(2);

/// Starts the agent in its test mode.
#[derive(Debug, Clone)]
pub struct FakeEngine {
    home: Utf8PathBuf,
    agent: Utf8PathBuf,
    recovered: Arc<OnceCell<()>>,
}

impl FakeEngine {
    /// An engine that keeps its guests below `home` and starts this agent binary.
    pub fn new(home: impl Into<Utf8PathBuf>, agent: impl Into<Utf8PathBuf>) -> Self {
        Self { home: home.into(), agent: agent.into(), recovered: Arc::default() }
    }

    async fn start(&self, spec: &VmSpec) -> Result<Vm, LaunchError> {
        let vms = self.home.join("vms");
        let no_directory = |source| LaunchError::Directory { path: vms.clone(), source };
        let spawn_error = |source| LaunchError::Spawn { program: self.agent.clone(), source };
        let dir = VmDir::create(&vms, spec).map_err(no_directory)?;
        let sockets = dir.sockets().map_err(no_directory)?;
        // Too long a path for an address is refused by the agent itself, in its own words.
        let socket = dir.path().join(format!("{AGENT_SOCKET}.sock"));
        let program = Program {
            path: self.agent.clone(),
            arguments: vec!["--listen".into(), socket.into_string().into()],
            // A process for tests: what they set for it is theirs to set.
            environment: std::env::vars_os().collect(),
            directory: ".".into(),
            inherit: Vec::new(),
            stdout: Sink::Null,
            stderr: Sink::Pipe,
            pid_file: Some(dir.pid_file().map_err(no_directory)?),
            owner_loss: OwnerLoss::Kill,
        };
        let started = Instant::now();
        let mut child = process::spawn(program).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => LaunchError::VmmMissing { program: self.agent.clone() },
            _ => spawn_error(source),
        })?;
        let stderr = child.take_stderr().map(pipe::Receiver::from_owned_fd).transpose().map_err(spawn_error)?;
        let deadline = started + LISTEN_DEADLINE;
        // A probing connection is a link of its own to the agent; the next one replaces it.
        while sockets.connect(AGENT_SOCKET).is_err() {
            if let Some(status) = child.try_reap().map_err(spawn_error)? {
                return Err(LaunchError::VmmFailed { program: self.agent.clone(), status, stderr: String::new() });
            }
            if Instant::now() > deadline {
                let status = VmmStatus::Signal(libc::SIGKILL);
                let stderr = format!("it did not listen within {LISTEN_DEADLINE:?}");
                return Err(LaunchError::VmmFailed { program: self.agent.clone(), status, stderr });
            }
            tokio::time::sleep(LISTEN_PAUSE).await;
        }
        let (monitor, events) = FakeMonitor::new(child.pid(), child.killer());
        let ends = Ends {
            stderr,
            console: None,
            monitor: Arc::new(monitor),
            monitor_events: Box::new(events),
            transport: Arc::new(UnixSocket),
            acceleration: Acceleration::Native,
            saver: None,
        };
        dir.journal().append(State::Running).map_err(|error| no_directory(error.into()))?;
        let parts = Parts { home: self.home.clone(), dir, child, spec: spec.clone(), started, ends };
        owner::start(parts).map_err(no_directory)
    }
}

/// The agent's own socket.
#[derive(Debug)]
struct UnixSocket;

impl Transport for UnixSocket {
    fn dial<'a>(&'a self, sockets: &'a SocketDir) -> BoxFuture<'a, io::Result<UnixStream>> {
        Box::pin(async { UnixStream::connect(sockets.address(AGENT_SOCKET)).await })
    }

    fn link_options(&self, deadline: Duration) -> LinkOptions {
        LinkOptions::unix_socket(deadline)
    }
}

impl Driver for FakeEngine {
    fn home(&self) -> &Utf8Path {
        &self.home
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            driver: DRIVER,
            kernel: false,
            console: false,
            pause: true,
            disks: false,
            snapshots: false,
            isolation: Isolation::Process,
        }
    }

    fn recovered(&self) -> &OnceCell<()> {
        &self.recovered
    }

    fn validate(&self, spec: &VmSpec) -> Result<(), LaunchError> {
        spec.validate_size(host::limits())?;
        let asks_for = [
            (!spec.disks.is_empty(), "disks"),
            (!spec.extra_ports.is_empty(), "ports"),
            (!spec.modules.is_empty(), "kernel modules"),
            (spec.root.is_some(), "root filesystem"),
            (!spec.nics.is_empty(), "network cards"),
            (!spec.vhost_user.is_empty(), "vhost-user devices"),
            (spec.forkable, "snapshots"),
            (spec.owner_loss == OwnerLoss::KeepRunning, "guests that outlive their owner"),
        ];
        match asks_for.into_iter().find(|(asked, _)| *asked) {
            Some((_, what)) => Err(LaunchError::Unsupported { driver: DRIVER, what }),
            None => Ok(()),
        }
    }

    fn decide<'a>(&'a self, _: &'a VmSpec) -> BoxFuture<'a, Result<Acceleration, LaunchError>> {
        Box::pin(async { Ok(Acceleration::Native) })
    }

    fn machine<'a>(&'a self, _: &'a VmSpec) -> BoxFuture<'a, Result<MachineIdentity, LaunchError>> {
        Box::pin(async { Err(LaunchError::Unsupported { driver: DRIVER, what: "snapshots" }) })
    }

    fn boot<'a>(&'a self, spec: &'a VmSpec, _: Acceleration) -> BoxFuture<'a, Result<Vm, LaunchError>> {
        Box::pin(self.start(spec))
    }

    fn restorer<'a>(
        &'a self,
        _: &'a Snapshot,
        _: &'a VmSpec,
    ) -> BoxFuture<'a, Result<Arc<dyn Restorer>, RestoreError>> {
        Box::pin(async { Err(LaunchError::Unsupported { driver: DRIVER, what: "snapshots" }.into()) })
    }

    fn reattach<'a>(&'a self, _: &'a VmDir, _: &'a VmSpec, _: &'a Orphan) -> BoxFuture<'a, Result<Ends, AdoptError>> {
        Box::pin(async { Err(AdoptError::Unsupported { driver: DRIVER }) })
    }
}
