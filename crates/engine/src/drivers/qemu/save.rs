//! What QEMU does of a save: the state of its devices, the guest's memory, and the disks.
//!
//! The state of the devices alone comes from `xen-save-devices-state`, which has nothing to do with Xen: it is the one
//! command that writes them without the memory, also of a guest whose memory is private.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;

use super::args::Facts;
use super::qmp::Qmp;
use super::{guest_memory, machine};
use crate::blocking;
use crate::failpoint;
use crate::home::Home;
use crate::snapshot::{
    DEVICE_FILE, DiskLayer, Draft, MEMORY_FILE, MemoryKind, PAGES_FILE, Snapshot, SnapshotError, SnapshotId,
    SnapshotStore,
};
use crate::spec::{DiskRole, VmSpec};
use crate::vm::{BoxFuture, ControlError, Files, SaveError, Saver, VmmError, Written, put};
use crate::vm_dir::{DEVICE_STATE_FILE, VmDir};

/// To write the state of the devices, after the flush of a busy disk.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);
/// More than the devices of a machine take.
const DEVICE_BYTES: u64 = 4 << 20;
/// A migration to a descriptor of this name is refused for want of it, once QEMU has found that nothing else is against.
const NO_DESCRIPTOR: &str = "kiln-none";

/// What a VM's memory is made of.
#[derive(Debug)]
pub(super) enum SavedMemory {
    /// Nothing that could be saved.
    None,
    /// One file that the guest writes to.
    Whole(Utf8PathBuf),
    /// A private mapping of a snapshot's memory.
    Fork {
        /// The snapshot.
        base: SnapshotId,
        /// Its memory file, as the fork maps it.
        mapped: File,
        /// The overlay of each disk that can be written, by its place in the spec.
        overlays: Vec<(usize, Utf8PathBuf)>,
    },
}

/// Saves one QEMU.
#[derive(Debug)]
pub(super) struct QemuSaver {
    home: Utf8PathBuf,
    /// Of the state of its devices, as QEMU writes it.
    device_state: Utf8PathBuf,
    spec: VmSpec,
    facts: Facts,
    qmp: Qmp,
    pid: u32,
    memory: SavedMemory,
}

impl QemuSaver {
    pub(super) fn new(
        home: &Utf8Path,
        dir: &VmDir,
        spec: &VmSpec,
        facts: Facts,
        qmp: Qmp,
        pid: u32,
        memory: SavedMemory,
    ) -> Self {
        let device_state = dir.path().join(DEVICE_STATE_FILE);
        Self { home: home.into(), device_state, spec: spec.clone(), facts, qmp, pid, memory }
    }

    /// Writes the state of the devices, in the VM's directory: QEMU reaches no other file of the home.
    async fn save_devices(&self) -> Result<(), SaveError> {
        let device = json!({"filename": DEVICE_STATE_FILE, "live": false});
        if let Err(error) = self.qmp.execute("xen-save-devices-state", Some(device), COMMAND_DEADLINE).await {
            // QEMU says that writing failed, and not why.
            check_room(&self.home)?;
            return Err(ControlError::from(error).into());
        }
        Ok(())
    }

    fn save_files(&self, draft: Draft, files: Files) -> Result<Written, SaveError> {
        put(Files::Copy, &self.device_state, &draft.path(DEVICE_FILE))?;
        let (memory, parent) = self.save_memory(&draft, files)?;
        failpoint::hit("save.memory")?;
        let disks = self.save_disks(&draft, files)?;
        failpoint::hit("save.disks")?;
        let machine = machine::identity(&self.home, &self.spec, &self.facts)
            .map_err(|source| SnapshotError::io("read", &self.spec.kernel, source))?;
        Ok(Written { draft, parent, memory, disks, machine })
    }

    fn save_memory(&self, draft: &Draft, files: Files) -> Result<(MemoryKind, Option<Snapshot>), SaveError> {
        match &self.memory {
            SavedMemory::None => Err(SaveError::NotForkable),
            SavedMemory::Whole(file) => {
                put(files, file, &draft.path(MEMORY_FILE))?;
                // The VMM's user, if it has one of its own, is nobody to the snapshot.
                own(&draft.path(MEMORY_FILE))?;
                Ok((MemoryKind::Full, None))
            }
            SavedMemory::Fork { base, mapped, .. } => {
                // Opened anew: it may have been compacted since, and what it was made of is gone then.
                let base = SnapshotStore::new(&Home::at(&self.home)).open(base)?;
                guest_memory::save_pages(self.pid, mapped, &base, &draft.path(PAGES_FILE))?;
                Ok((MemoryKind::Diff, Some(base)))
            }
        }
    }

    fn save_disks(&self, draft: &Draft, files: Files) -> Result<Vec<DiskLayer>, SnapshotError> {
        let mut layers = Vec::new();
        let scratch = self.spec.disks.iter().enumerate().filter(|(_, disk)| disk.role == DiskRole::Scratch);
        for (index, disk) in scratch {
            let file = format!("disk-{index}");
            let overlay = match &self.memory {
                SavedMemory::Fork { overlays, .. } => overlays.iter().find(|(of, _)| *of == index),
                _ => None,
            };
            match overlay {
                Some((_, overlay)) => put(files, overlay, &draft.path(&file))?,
                // The user's own file: the guest wrote to it, and others may.
                None => put(Files::Copy, &disk.path, &draft.path(&file))?,
            }
            layers.push(DiskLayer { index, file, on_parent: overlay.is_some() });
        }
        Ok(layers)
    }
}

impl Saver for QemuSaver {
    /// Asks QEMU itself whether anything in the machine can't be saved.
    fn check(&self) -> BoxFuture<'_, Result<(), SaveError>> {
        Box::pin(async move {
            if matches!(self.memory, SavedMemory::None) {
                return Err(SaveError::NotForkable);
            }
            let nowhere = json!({"uri": format!("fd:{NO_DESCRIPTOR}")});
            match self.qmp.execute("migrate", Some(nowhere), COMMAND_DEADLINE).await {
                Err(VmmError::Refused { description, .. }) if description.contains(NO_DESCRIPTOR) => Ok(()),
                Err(VmmError::Refused { description, .. }) => {
                    Err(SaveError::Unmigratable { device: format!("what QEMU says of it: {description}") })
                }
                Err(error) => Err(ControlError::from(error).into()),
                Ok(_) => Ok(()),
            }
        })
    }

    fn write(self: Arc<Self>, draft: Draft, files: Files) -> BoxFuture<'static, Result<Written, SaveError>> {
        Box::pin(async move {
            self.save_devices().await?;
            failpoint::hit("save.device")?;
            blocking(move || self.save_files(draft, files)).await
        })
    }
}

/// Makes a file this user's.
fn own(file: &Utf8Path) -> Result<(), SnapshotError> {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let owned = std::os::unix::fs::chown(file, Some(user), Some(group));
    owned.map_err(|source| SnapshotError::io("take over", file, source))
}

/// Whether the disk is full: QEMU says that writing failed, and not why.
fn check_room(path: &Utf8Path) -> Result<(), SnapshotError> {
    let free = rustix::fs::statvfs(path.as_std_path()).map_or(u64::MAX, |stat| stat.f_bavail * stat.f_frsize);
    if free >= DEVICE_BYTES {
        return Ok(());
    }
    Err(SnapshotError::NoSpace { path: path.into(), source: std::io::ErrorKind::StorageFull.into() })
}
