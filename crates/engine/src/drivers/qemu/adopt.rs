//! Connects to a QEMU that has outlived its owner.
//!
//! QEMU serves one client per socket. When that client is gone, it accepts the next one. So the new owner connects to
//! the same sockets as the old one.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::args::Accelerator;
use super::launch::{GREETING_DEADLINE, connect};
use super::monitor::GuestEvents;
use super::qmp::Qmp;
use super::save::{QemuSaver, SavedMemory};
use super::transport::VirtioSerial;
use super::{QemuEngine, machine};
use crate::blocking;
use crate::driver::AdoptError;
use crate::home::Home;
use crate::snapshot::SnapshotStore;
use crate::snapshot::memory::Mapping;
use crate::spec::{Acceleration, VmSpec};
use crate::vm::{Ends, Saver};
use crate::vm_dir::fifo::{CONSOLE_FIFO, STDERR_FIFO};
use crate::vm_dir::{MEMORY_FILE, Orphan, VmDir, fifo};

/// QEMU answers in milliseconds.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

impl QemuEngine {
    pub(super) async fn reattach_to(&self, dir: &VmDir, spec: &VmSpec, vmm: &Orphan) -> Result<Ends, AdoptError> {
        let failed = |source| AdoptError::Io { path: dir.path().to_owned(), source };
        let sockets = dir.sockets().map_err(failed)?;
        let console = fifo::open_reader(&dir.path().join(CONSOLE_FIFO)).map_err(failed)?;
        let stderr = fifo::open_reader(&dir.path().join(STDERR_FIFO)).map_err(failed)?;
        let stream = connect(&sockets, "monitor").map_err(failed)?;
        let (qmp, events) = Qmp::handshake(stream, GREETING_DEADLINE).await?;
        // The spec has what was requested, perhaps `Auto`. What this VM runs with was decided by its first owner, and
        // the result of a new decision could differ. So QEMU is asked.
        let kvm = qmp.execute("query-kvm", None, ANSWER_DEADLINE).await?;
        let acceleration = if kvm["enabled"] == Value::Bool(true) { Acceleration::Kvm } else { Acceleration::Tcg };
        let saver = self.saver_of(dir, spec, acceleration, &qmp, vmm.pid).await;
        Ok(Ends {
            stderr: Some(stderr),
            console: Some(console),
            monitor: Arc::new(qmp),
            monitor_events: Box::new(GuestEvents(events)),
            transport: Arc::new(VirtioSerial),
            acceleration,
            saver,
        })
    }

    /// What can save an adopted VM. Its memory is a file of its own, or that of the snapshot of which it is a fork.
    async fn saver_of(
        &self,
        dir: &VmDir,
        spec: &VmSpec,
        acceleration: Acceleration,
        qmp: &Qmp,
        pid: u32,
    ) -> Option<Arc<dyn Saver>> {
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
                // The snapshot may have been compacted since the fork was made. Then its path leads to another memory
                // file, whose pages the VMM does not map. A diff against that file would be wrong. So the file is taken
                // from the VMM's own mappings.
                let mapped = Mapping::private_file(pid, &Home::at(&self.home).snapshots()).ok()?;
                let overlay = |index| (index, dir.path().join(format!("disk-{index}")));
                let overlays = (0..spec.disks.len()).map(overlay).filter(|(_, path)| path.exists()).collect();
                SavedMemory::Fork { base: snapshot.id().clone(), mapped, overlays }
            }
        };
        Some(Arc::new(QemuSaver::new(&self.home, dir, spec, facts, qmp.clone(), pid, memory)))
    }
}
