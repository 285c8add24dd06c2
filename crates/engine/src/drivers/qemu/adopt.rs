//! Taking over a VM that outlived its owner.
//!
//! ```text
//!   vms/<id>/ ──lock──▶ journal, pid ──decide──▶ monitor.sock, console.fifo, stderr.fifo ──▶ Parts ──▶ Vm
//! ```
//! QEMU serves one client per socket and takes the next one when that is gone, so the new owner connects where the old one
//! did. A VM that an interrupted save left standing goes on; one that its user paused stays so. Nothing is killed when this
//! fails: the VM has no owner then, as before, and [`recover`](crate::recover) looks after it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use serde_json::Value;

use super::args::Accelerator;
use super::launch::{GREETING_DEADLINE, connect};
use super::monitor::GuestEvents;
use super::qmp::Qmp;
use super::save::{SavedMemory, Saver, blocking};
use super::transport::VirtioSerial;
use super::{QemuEngine, machine};
use crate::failpoint;
use crate::fifo::{self, CONSOLE_FIFO, STDERR_FIFO};
use crate::home::Home;
use crate::journal::{JournalError, State};
use crate::orphan::Orphan;
use crate::owner::{self, Parts};
use crate::process::Child;
use crate::recover::{self, Decision};
use crate::snapshot::SnapshotStore;
use crate::snapshot::memory::Mapping;
use crate::vm::{Acceleration, Vm};
use crate::vm_dir::{MEMORY_FILE, ReopenError, VmDir, VmId};
use crate::vm_spec::VmSpec;
use crate::vmm::{Monitor as _, VmmError};

/// QEMU answers what it is and goes on in milliseconds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Why a VM was not adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It is not there, or belongs to another process.
    #[error("failed to take over the VM's directory")]
    Directory(#[from] ReopenError),
    /// It does not run, or was not asked to outlive its owner.
    #[error("the VM `{0}` can't be adopted: it does not run, or ends with its owner")]
    NotAdoptable(VmId),
    /// Its monitor does not answer.
    #[error("the VM's monitor does not answer")]
    Monitor(#[from] VmmError),
    /// Its new state can't be written down.
    #[error("failed to write down that the VM runs")]
    Journal(#[from] JournalError),
    /// Its sockets or files can't be opened.
    #[error("failed to open what is in `{path}`")]
    Io {
        /// The VM's directory.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl QemuEngine {
    /// Takes over a VM with [`OwnerLoss::KeepRunning`](crate::OwnerLoss::KeepRunning) whose owner is gone, as
    /// [`recover`](crate::recover) names it [`Adoptable`](crate::Outcome::Adoptable). From then on it is this process's
    /// VM: dropping the handle ends it.
    ///
    /// The guest link is begun anew with [`Vm::connect`]. Where the owner was lost in the middle of a save, the guest's
    /// commands may still be frozen for it: send `Thaw` before anything else, which does no harm elsewhere. Console bytes
    /// from before are in the log; those that were printed while there was no owner are lost. How the VMM exits will be
    /// unknown, because it is not this process's child.
    ///
    /// # Errors
    /// [`AdoptError`]; the VM is then as it was.
    pub async fn adopt(&self, id: &VmId) -> Result<Vm, AdoptError> {
        let home = Home::at(&self.home);
        let (vms, wanted) = (home.vms(), id.clone());
        let reopened = tokio::task::spawn_blocking(move || VmDir::reopen(&vms, &wanted)).await;
        let dir = reopened.expect("opening a directory does not panic, and nobody aborts it")?;
        let path = dir.path().to_owned();
        let failed = |source| AdoptError::Io { path: path.clone(), source };
        let vmm = Orphan::find(dir.path()).map_err(failed)?;
        let history = dir.journal().history();
        let (Decision::Adopt, Some(vmm)) = (recover::decide(&home, dir.path(), &history, vmm.is_some()), vmm) else {
            return Err(AdoptError::NotAdoptable(id.clone()));
        };
        let spec = dir.spec().map_err(failed)?;

        let sockets = dir.sockets().map_err(failed)?;
        let console = fifo::open_reader(&dir.path().join(CONSOLE_FIFO)).map_err(failed)?;
        let stderr = fifo::open_reader(&dir.path().join(STDERR_FIFO)).map_err(failed)?;
        let monitor = Qmp::handshake(connect(&sockets, "monitor").map_err(failed)?, GREETING_DEADLINE).await?;
        failpoint::hit("adopt.connected").map_err(|error| failed(error.into()))?;
        let kvm = monitor.0.execute("query-kvm", None, ANSWER_DEADLINE).await?;
        let acceleration = if kvm["enabled"] == Value::Bool(true) { Acceleration::Kvm } else { Acceleration::Tcg };
        self.settle(&dir, &monitor.0).await?;
        failpoint::hit("adopt.resumed").map_err(|error| failed(error.into()))?;

        let fate = dir.fate().clone();
        let (qmp, events) = monitor;
        let saver = self.saver_of(&dir, &spec, acceleration, &qmp, vmm.pid).await;
        let parts = Parts {
            dir,
            child: Child::adopt(vmm),
            stderr: Some(stderr),
            console: Some(console),
            monitor: Arc::new(qmp),
            monitor_events: Box::new(GuestEvents(events)),
            transport: Arc::new(VirtioSerial),
            started: Instant::now(),
            acceleration,
            ports: spec.extra_ports,
            saver,
        };
        let vm = owner::start(parts).map_err(failed)?;
        fate.remove_on_drop();
        Ok(vm)
    }

    /// What saves an adopted VM: its memory is a file of its own, or that of the snapshot that it is a fork of.
    async fn saver_of(
        &self,
        dir: &VmDir,
        spec: &VmSpec,
        acceleration: Acceleration,
        qmp: &Qmp,
        pid: u32,
    ) -> Option<Saver> {
        let accelerator = match acceleration {
            Acceleration::Kvm => Accelerator::Kvm,
            Acceleration::Tcg | Acceleration::Native => Accelerator::Tcg,
        };
        let facts = machine::facts(&self.home, &self.binary, spec, accelerator).await;
        let own = dir.path().join(MEMORY_FILE);
        let memory = match dir.journal().history().restored_from() {
            _ if own.exists() => SavedMemory::Whole(own),
            None => SavedMemory::None,
            Some(base) => {
                let store = SnapshotStore::new(&Home::at(&self.home));
                let snapshot = blocking(move || store.open(&base)).await.ok()?;
                // It may have been compacted since, so its memory may be another file than the one that the VMM has.
                let mapped = Mapping::private_file(pid, &Home::at(&self.home).snapshots()).ok()?;
                let overlay = |index| (index, dir.path().join(format!("disk-{index}")));
                let overlays = (0..spec.disks.len()).map(overlay).filter(|(_, path)| path.exists()).collect();
                SavedMemory::Fork { base: snapshot.id().clone(), mapped, overlays }
            }
        };
        Some(Saver::new(&self.home, spec, facts, qmp.clone(), pid, memory))
    }

    /// Ends what the lost owner began, and makes the journal say what the VM does.
    async fn settle(&self, dir: &VmDir, qmp: &Qmp) -> Result<(), AdoptError> {
        let saved = dir.journal().last().is_some_and(|last| matches!(last.state, State::Saving { .. }));
        if saved {
            // Its snapshot never became whole, and nobody will finish it.
            if let Err(error) = Home::at(&self.home).sweep_partials() {
                tracing::warn!(vm = %dir.id(), %error, "failed to sweep an interrupted snapshot");
            }
        }
        if saved && !qmp.is_running(ANSWER_DEADLINE).await? {
            qmp.resume(ANSWER_DEADLINE).await?;
        }
        let state = if qmp.is_running(ANSWER_DEADLINE).await? { State::Running } else { State::Paused };
        dir.journal().enter(state)?;
        Ok(())
    }
}
