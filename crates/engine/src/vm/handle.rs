//! A running VM, and the handle to it.
//!
//! ```text
//!   Vm ──Command──▶ Owner (one task) ──▶ VMM process, monitor, console
//!   VmEvents ◀─────────┘
//! ```
//! Dropping the [`Vm`] kills the guest and removes its directory.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::control::{Command, MONITOR_DEADLINE, Shared};
use super::error::{ControlError, PortError, SaveError, VmmError};
use super::events::{ExitReason, VmEvents, VmExit};
use super::pulse::Pulse;
use super::vmm::Transport;
use crate::deadlines::RENEW_DEADLINE;
use crate::link::{GuestLink, LinkError, Renewal, StreamError};
use crate::process::VmmStatus;
use crate::snapshot::{AfterSave, SaveOrder, Snapshot, SnapshotError, SnapshotRequest};
use crate::spec::Acceleration;
use crate::vm_dir::{SocketDir, VmId};

/// From SIGKILL to the end of the owner's work. Only a host in trouble needs longer.
const KILL_DEADLINE: Duration = Duration::from_secs(30);

/// A handle to a running VM.
///
/// ```no_run
/// # async fn example(
/// #     engine: &dyn kiln_engine::Engine,
/// #     spec: kiln_engine::VmSpec,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// use kiln_engine::VmEvent;
///
/// let mut vm = engine.launch(spec).await?;
/// let mut events = vm.take_events().expect("the first call gets them");
/// while let Some(event) = events.next().await {
///     if let VmEvent::Console { bytes, .. } = event {
///         print!("{}", String::from_utf8_lossy(&bytes));
///     }
/// }
/// println!("{}", vm.wait().await);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Vm {
    pub(crate) id: VmId,
    pub(crate) path: Utf8PathBuf,
    pub(crate) pid: u32,
    pub(crate) acceleration: Acceleration,
    pub(crate) ports: Vec<String>,
    pub(crate) sockets: SocketDir,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) events: Option<VmEvents>,
    pub(crate) exit: watch::Receiver<Option<VmExit>>,
}

/// Socket of the agent's port.
pub(crate) const AGENT_SOCKET: &str = "agent";

impl Vm {
    /// Its id on this host.
    pub fn id(&self) -> &VmId {
        &self.id
    }

    /// Its directory, which is removed when the VM ends.
    pub fn dir(&self) -> &Utf8Path {
        &self.path
    }

    /// The pid of its VMM.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What runs its instructions.
    pub fn acceleration(&self) -> Acceleration {
        self.acceleration
    }

    /// Its events. Only the first call gets them.
    pub fn take_events(&mut self) -> Option<VmEvents> {
        self.events.take()
    }

    /// Pauses the guest's CPUs.
    ///
    /// # Errors
    /// The VM has ended, can't be paused, or its VMM does not answer.
    pub async fn pause(&self) -> Result<(), ControlError> {
        self.command(Command::Pause).await
    }

    /// Resumes the guest's CPUs.
    ///
    /// # Errors
    /// See [`Vm::pause`].
    pub async fn resume(&self) -> Result<(), ControlError> {
        self.resume_within(MONITOR_DEADLINE).await
    }

    pub(crate) async fn resume_within(&self, deadline: Duration) -> Result<(), ControlError> {
        self.command(|reply| Command::Resume(deadline, reply)).await
    }

    /// Makes a disk as large as its file, which the caller has made larger: a raw one that the guest writes to. The
    /// guest sees the new size soon after.
    ///
    /// # Errors
    /// See [`Vm::pause`]; or the VMM may not write to so large a file, and this user can't allow it.
    pub async fn grow_disk(&self, index: usize, bytes: u64) -> Result<(), ControlError> {
        crate::process::allow_file_size(self.pid(), bytes).map_err(|error| VmmError::Refused {
            command: "block_resize".into(),
            description: format!("the VMM may not write to a file of {bytes} bytes, and its limit stays: {error}"),
        })?;
        self.command(|reply| Command::GrowDisk(index, bytes, reply)).await
    }

    /// Presses the power button, and kills the VM if it still runs at the deadline.
    pub async fn shutdown(&self, deadline: Duration) -> VmExit {
        // If the owner has ended, so has the VM.
        drop(self.commands.send(Command::PowerDown).await);
        match tokio::time::timeout(deadline, self.wait()).await {
            Ok(exit) => exit,
            Err(_) => self.kill().await,
        }
    }

    /// Saves the VM: memory, devices and disks of one moment. Its CPUs are paused meanwhile.
    ///
    /// With a link, the guest's commands are frozen before and thawed afterwards. Those of a fork are thawed once the
    /// fork has its own identity. If saving fails, the VM continues as before, and nothing of the attempt is left.
    ///
    /// A VM that was booted is saved as a whole. If it stops, its memory is not copied. If it continues, the memory
    /// that it has used is copied. A fork is saved as the pages that differ from its parent.
    ///
    /// The snapshot can be restored at once. It survives a crash of the host once it is sealed, which happens in the
    /// background; [`Snapshot::seal`] waits for that.
    ///
    /// ```no_run
    /// # async fn example(
    /// #     engine: &dyn kiln_engine::Engine,
    /// #     fork: kiln_engine::Fork,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// use kiln_engine::snapshot::{AfterSave, SnapshotRequest};
    ///
    /// // A snapshot to go back to. The VM continues.
    /// let request = SnapshotRequest { link: Some(&fork.link), then: AfterSave::GoOn, label: "before".into() };
    /// let before = fork.vm.snapshot(request).await?;
    /// println!("the parent of {} is {:?}", before.id(), before.parent());
    /// // Stopped until it is needed again.
    /// let id = fork.vm.id().clone();
    /// let request = SnapshotRequest { link: Some(&fork.link), then: AfterSave::Stop, label: "away".into() };
    /// fork.vm.snapshot(request).await?;
    /// let back = engine.resume(&id).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`SaveError`]
    pub async fn snapshot(&self, request: SnapshotRequest<'_>) -> Result<Snapshot, SaveError> {
        if self.shared.saving.swap(true, Ordering::AcqRel) {
            return Err(SaveError::Busy);
        }
        let saving = Saving(Arc::clone(&self.shared));
        let commands = self.commands.clone();
        let link = request.link.cloned();
        let order = SaveOrder { then: request.then, label: request.label, frozen: link.is_some() };
        // A save freezes the guest's commands, pauses its CPUs, and undoes both at its end. A caller that gives up
        // drops this future at any await. If the steps ran in it, a guest could stay frozen or paused forever. So they
        // run in a task of their own, which continues to its end. `saving` is cleared by that task too, because a
        // second save must not begin before the first has thawed the guest.
        let saved = tokio::spawn(async move {
            let _saving = saving;
            save(&commands, link.as_ref(), order).await
        });
        let snapshot = saved.await.map_err(|_| ControlError::Ended)??;
        if request.then != AfterSave::GoOn {
            self.wait().await;
        }
        if self.shared.is_kept() {
            let source = io::Error::other("the next recovery of its home completes the stop");
            return Err(SnapshotError::io("write down the stop of the VM in", &self.path, source).into());
        }
        Ok(snapshot)
    }

    /// Ends the VM now. When this returns, its VMM is gone.
    pub async fn kill(&self) -> VmExit {
        self.shared.kill();
        let killed = VmExit { status: VmmStatus::Signal(libc::SIGKILL), reason: ExitReason::Killed };
        tokio::time::timeout(KILL_DEADLINE, self.wait()).await.unwrap_or(killed)
    }

    /// Waits until the VM has ended. Safe to cancel, and to call more than once.
    pub async fn wait(&self) -> VmExit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(value) => value.clone().expect("it was waited for"),
            // The owner ended with its runtime, and killed the VM.
            Err(_) => VmExit { status: VmmStatus::Signal(libc::SIGKILL), reason: ExitReason::Killed },
        }
    }

    /// The end of the VM, for a caller that drops the handle meanwhile. It waits for as long as [`Vm::kill`] at most.
    pub(crate) fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut exit = self.exit.clone();
        async move { drop(tokio::time::timeout(KILL_DEADLINE, exit.wait_for(Option::is_some)).await) }
    }

    /// The last lines of its console, oldest first. Also available after its end.
    pub fn console_tail(&self, lines: usize) -> Vec<String> {
        self.shared.ring.tail(lines)
    }

    /// Console bytes that no event has, because the events were not read in time. The log has them.
    pub fn console_bytes_dropped(&self) -> u64 {
        self.shared.dropped_console_bytes.load(Ordering::Relaxed)
    }

    /// A pulse of the VM, which does not keep it alive.
    pub(crate) fn pulse(&self) -> Pulse {
        Pulse::new(self.pid, Arc::clone(&self.shared), self.commands.downgrade())
    }

    /// A raw stream to the agent, for callers that implement its protocol themselves.
    ///
    /// # Errors
    /// The VM has ended.
    pub async fn dial(&self) -> io::Result<UnixStream> {
        self.transport.dial(&self.sockets).await
    }

    /// A new link to the agent, which may still be booting. An agent serves one link at a time. If the transport
    /// accepts a second connection, that ends the first link. If not, the second waits until the first has closed.
    ///
    /// # Errors
    /// [`LinkError`]: the agent does not answer within the deadline, or the VM has ended.
    pub async fn connect(&self, deadline: Duration) -> Result<GuestLink, LinkError> {
        let until = Instant::now() + deadline;
        let stream = match tokio::time::timeout_at(until, self.dial()).await {
            Ok(dialed) => dialed?,
            Err(_) => return Err(LinkError::TimedOut { waiting_for: "connection", waited: deadline }),
        };
        let left = until.saturating_duration_since(Instant::now());
        GuestLink::connect(stream, self.transport.link_options(left)).await
    }

    /// A new connection to one of [`VmSpec::extra_ports`](crate::VmSpec::extra_ports).
    ///
    /// # Errors
    /// The VM has no such port, or has ended.
    pub async fn port_stream(&self, name: &str) -> Result<UnixStream, PortError> {
        let index = self.ports.iter().position(|port| port == name);
        let index = index.ok_or_else(|| PortError::Unknown { name: name.into() })?;
        let stream = UnixStream::connect(self.sockets.address(&port_socket(index))).await;
        stream.map_err(|source| PortError::Connect { name: name.into(), source })
    }

    async fn command(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<(), ControlError>>) -> Command,
    ) -> Result<(), ControlError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| ControlError::Ended)?;
        answer.await.map_err(|_| ControlError::Ended)?
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // The owner notices the dropped handle by the closed channel, and would kill the VMM itself. But the owner is a
        // task: if the runtime ends now, it never runs again. The kill is one system call and needs no runtime. If the
        // owner still runs, it reaps the VMM and removes the directory.
        self.shared.kill();
    }
}

/// A running save. Dropping it marks its end.
struct Saving(Arc<Shared>);

impl Drop for Saving {
    fn drop(&mut self) {
        self.0.saving.store(false, Ordering::Release);
    }
}

async fn save(
    commands: &mpsc::Sender<Command>,
    link: Option<&GuestLink>,
    order: SaveOrder,
) -> Result<Snapshot, SaveError> {
    let then = order.then;
    if let Some(link) = link
        && let Err(error) = link.freeze().await
    {
        if matches!(error, StreamError::LinkLost(_) | StreamError::NoAnswer { .. }) {
            // The agent may have frozen the commands after its deadline.
            let link = link.clone();
            tokio::spawn(async move { drop(link.thaw().await) });
        }
        return Err(SaveError::Freeze(error));
    }
    let (reply, answer) = oneshot::channel();
    let saved = match commands.send(Command::Save(order, reply)).await {
        Ok(()) => answer.await.unwrap_or_else(|_| Err(ControlError::Ended.into())),
        Err(_) => Err(ControlError::Ended.into()),
    };
    if let Some(link) = link
        && (then == AfterSave::GoOn || saved.is_err())
    {
        let thawed = thaw(link).await;
        // A VM that has ended needs no thaw. The error already reports its end.
        if saved.is_ok() {
            thawed.map_err(SaveError::Freeze)?;
        }
    }
    saved
}

/// Thaws the commands of a guest that was paused for a save. Its clock did not run meanwhile, so it gets the current
/// time first.
async fn thaw(link: &GuestLink) -> Result<(), StreamError> {
    match link.renew(Renewal::default(), RENEW_DEADLINE).await {
        // The agent thaws the commands as the last step of that.
        Ok(()) => Ok(()),
        Err(error) => {
            tracing::warn!(%error, "failed to set the clock of a guest that was saved");
            link.thaw().await
        }
    }
}

/// The socket of an extra port. Its name on disk is a number, because a port's name may be longer than a socket's
/// address.
pub(crate) fn port_socket(index: usize) -> String {
    format!("port{index}")
}
