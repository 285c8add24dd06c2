//! An agent that listens, both for a boot and for a restore.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::unix::pipe;

use super::engine::{GUEST_DIRECTORY, Program, UnixSocket};
use super::monitor::FakeMonitor;
use super::saved::FakeSaver;
use crate::confine::Border;
use crate::driver::LaunchError;
use crate::process::{self, Child, Sink, VmmStatus};
use crate::spec::{Acceleration, OwnerLoss, VmSpec};
use crate::vm::{self, AGENT_SOCKET, Ends, Parts, Vm};
use crate::vm_dir::VmDir;

/// Until the agent listens; it takes a few milliseconds.
const LISTEN_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between two checks whether the agent listens. It binds its own socket, so there is no event to wait for.
const LISTEN_PAUSE: Duration = Duration::from_millis(2);

/// An agent that listens.
#[derive(Debug)]
pub(super) struct Agent {
    // Dropped first: the directory is removed after the process is gone.
    child: Child,
    stderr: Option<pipe::Receiver>,
    dir: VmDir,
    program: Arc<Program>,
    started: Instant,
}

impl Agent {
    /// Starts the agent for the VM of that directory, in which its files already are. The agent inherits these
    /// descriptors.
    pub(super) async fn start(program: Arc<Program>, dir: VmDir, inherit: Vec<OwnedFd>) -> Result<Self, LaunchError> {
        let no_directory = |source| LaunchError::Directory { path: dir.path().into(), source };
        let spawn_error = |source| LaunchError::Spawn { program: program.agent.clone(), source };
        let sockets = dir.sockets().map_err(no_directory)?;
        let guest = dir.path().join(GUEST_DIRECTORY);
        // If the path is too long for an address, the agent reports it.
        let socket = dir.path().join(format!("{AGENT_SOCKET}.sock"));
        let arguments = ["--listen".into(), socket.into_string(), "--stand-in".into(), guest.clone().into_string()];
        let order = process::Program {
            path: program.agent.clone(),
            arguments: arguments.map(Into::into).to_vec(),
            // The tests' own environment, because the process is part of a test.
            environment: std::env::vars_os().collect(),
            directory: guest,
            inherit,
            stdout: Sink::Null,
            stderr: Sink::Pipe,
            pid_file: Some(dir.pid_file().map_err(no_directory)?),
            owner_loss: OwnerLoss::Kill,
            border: Border::default(),
        };
        let started = Instant::now();
        let mut child = process::spawn(order).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => LaunchError::VmmMissing { program: program.agent.clone() },
            _ => spawn_error(source),
        })?;
        let stderr = child.take_stderr().map(pipe::Receiver::from_owned_fd).transpose().map_err(spawn_error)?;
        let deadline = started + LISTEN_DEADLINE;
        // A connection that only probes is a link to the agent, which the next link replaces.
        while sockets.connect(AGENT_SOCKET).is_err() {
            if let Some(status) = child.try_reap().map_err(spawn_error)? {
                return Err(LaunchError::VmmFailed { program: program.agent.clone(), status, stderr: String::new() });
            }
            if Instant::now() > deadline {
                let status = VmmStatus::Signal(libc::SIGKILL);
                let stderr = format!("it did not listen within {LISTEN_DEADLINE:?}");
                return Err(LaunchError::VmmFailed { program: program.agent.clone(), status, stderr });
            }
            tokio::time::sleep(LISTEN_PAUSE).await;
        }
        Ok(Self { child, stderr, dir, program, started })
    }

    /// The VM's directory.
    pub(super) fn dir(&self) -> &VmDir {
        &self.dir
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Hands it to the task that owns it.
    pub(super) fn own(self, spec: &VmSpec) -> io::Result<Vm> {
        let Self { child, stderr, dir, program, started } = self;
        let (monitor, events) = FakeMonitor::new(child.pid(), child.killer());
        let ends = Ends {
            stderr,
            console: None,
            monitor: Arc::new(monitor),
            monitor_events: Box::new(events),
            transport: Arc::new(UnixSocket),
            acceleration: Acceleration::Native,
            saver: Some(Arc::new(FakeSaver::new(Arc::clone(&program), dir.path(), spec))),
        };
        vm::start(Parts { home: program.home.clone(), dir, child, spec: spec.clone(), started, ends })
    }
}
