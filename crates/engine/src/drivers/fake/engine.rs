//! The engine: starts the agent of a spec, and lists what it does not support.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use tokio::net::UnixStream;
use tokio::sync::OnceCell;

use super::process::Agent;
use super::saved::FakeRestorer;
use crate::driver::{AdoptError, Capabilities, Driver, Isolation, LaunchError, RestoreError, Restorer};
use crate::files::FileFacts;
use crate::host;
use crate::link::LinkOptions;
use crate::snapshot::{MachineIdentity, Snapshot};
use crate::spec::{Acceleration, OwnerLoss, VmSpec};
use crate::vm::{AGENT_SOCKET, BoxFuture, Ends, Transport, Vm};
use crate::vm_dir::{Orphan, SocketDir, State, VmDir};

/// Its name in errors, capabilities and snapshots.
const DRIVER: &str = "fake";
/// Below a VM's directory: the files of its guest.
pub(super) const GUEST_DIRECTORY: &str = "guest";

/// Starts the agent in its test mode.
#[derive(Debug, Clone)]
pub struct FakeEngine {
    program: Arc<Program>,
    recovered: Arc<OnceCell<()>>,
}

/// The program and the home of its guests.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) home: Utf8PathBuf,
    pub(super) agent: Utf8PathBuf,
}

impl FakeEngine {
    /// An engine that keeps its guests below `home` and starts this agent binary.
    pub fn new(home: impl Into<Utf8PathBuf>, agent: impl Into<Utf8PathBuf>) -> Self {
        let program = Program { home: home.into(), agent: agent.into() };
        Self { program: Arc::new(program), recovered: Arc::default() }
    }

    async fn start(&self, spec: &VmSpec) -> Result<Vm, LaunchError> {
        let vms = self.program.home.join("vms");
        let no_directory = |source| LaunchError::Directory { path: vms.clone(), source };
        let dir = VmDir::create(&vms, spec).map_err(no_directory)?;
        let guest = dir.path().join(GUEST_DIRECTORY);
        crate::files::private_file::create_dir(&guest).map_err(no_directory)?;
        let agent = Agent::start(Arc::clone(&self.program), dir, Vec::new()).await?;
        agent.dir().journal().append(State::Running).map_err(|error| no_directory(error.into()))?;
        agent.own(spec).map_err(no_directory)
    }
}

impl Program {
    /// The identity that a snapshot has to find again: the same agent.
    pub(super) fn machine(&self) -> Result<MachineIdentity, LaunchError> {
        let digest = FileFacts::new(&self.home).digest(&self.agent);
        let agent = digest.map_err(|source| LaunchError::Image { path: self.agent.clone(), source })?;
        Ok(MachineIdentity {
            vmm: DRIVER.into(),
            acceleration: "native".into(),
            cpu: String::new(),
            machine: String::new(),
            firmware: String::new(),
            kernel: agent,
            kernel_release: String::new(),
        })
    }
}

/// The agent's own socket.
#[derive(Debug)]
pub(super) struct UnixSocket;

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
        &self.program.home
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            driver: DRIVER,
            kernel: false,
            console: false,
            pause: true,
            disks: false,
            // Its agent would give the address of a fork's card to a card of the host.
            nics: false,
            snapshots: true,
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
        Box::pin(async { self.program.machine() })
    }

    fn boot<'a>(&'a self, spec: &'a VmSpec, _: Acceleration) -> BoxFuture<'a, Result<Vm, LaunchError>> {
        Box::pin(self.start(spec))
    }

    fn restorer<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        _: &'a VmSpec,
    ) -> BoxFuture<'a, Result<Arc<dyn Restorer>, RestoreError>> {
        Box::pin(async {
            let restorer = FakeRestorer::new(Arc::clone(&self.program), snapshot)?;
            Ok(Arc::new(restorer) as Arc<dyn Restorer>)
        })
    }

    fn reattach<'a>(&'a self, _: &'a VmDir, _: &'a VmSpec, _: &'a Orphan) -> BoxFuture<'a, Result<Ends, AdoptError>> {
        Box::pin(async { Err(AdoptError::Unsupported { driver: DRIVER }) })
    }
}
