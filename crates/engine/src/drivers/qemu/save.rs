//! QEMU's part of a save: the device state, the guest's memory and the disks.
//!
//! The device state comes from `xen-save-devices-state`, which works without Xen despite its name. It is the only
//! command that writes the devices without the memory. A migration would write the memory too, and Kiln has that
//! already as a file or as a private mapping. The command writes no section for the machine's configuration, so the
//! restoring QEMU must not expect one (`migration.send-configuration=off` in `args.rs`). The owner has paused the CPUs
//! before the command.
//!
//! The order is: pause, device state, memory, disks. The pause comes first, because it also completes the requests that
//! the disks have begun and flushes them. After that neither the guest nor a device writes to the memory or to the
//! disks, so all three parts are those of one moment, although they are written one after the other. The VM continues
//! only after all of them were copied.

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

/// For a command that may first have to flush a busy disk.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);
/// More than the device state of a machine takes.
const DEVICE_BYTES: u64 = 4 << 20;
/// The name of a descriptor that does not exist. A migration to it is refused for that reason, but only after QEMU has
/// checked that no device blocks it. So this answer means that the machine can be saved.
const NO_DESCRIPTOR: &str = "kiln-none";

/// The storage of a VM's memory.
#[derive(Debug)]
pub(super) enum SavedMemory {
    /// Memory that can't be saved.
    None,
    /// A file that the guest writes to.
    Whole(Utf8PathBuf),
    /// A private mapping of a snapshot's memory.
    Fork {
        /// The snapshot.
        base: SnapshotId,
        /// The memory file that the fork maps.
        mapped: File,
        /// The overlay of each writable disk, by the disk's index in the spec.
        overlays: Vec<(usize, Utf8PathBuf)>,
    },
}

/// Saves one QEMU.
#[derive(Debug)]
pub(super) struct QemuSaver {
    home: Utf8PathBuf,
    /// The file that QEMU writes its device state to.
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

    /// Writes the device state to the VM's directory, the only place of the home that QEMU can write to.
    async fn save_devices(&self) -> Result<(), SaveError> {
        let device = json!({"filename": DEVICE_STATE_FILE, "live": false});
        if let Err(error) = self.qmp.execute("xen-save-devices-state", Some(device), COMMAND_DEADLINE).await {
            // QEMU reports that the write failed, but not why.
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
                // If the VMM has a user of its own, that user must lose its access to the file, which belongs to the
                // snapshot now.
                own(&draft.path(MEMORY_FILE))?;
                Ok((MemoryKind::Full, None))
            }
            SavedMemory::Fork { base, mapped, .. } => {
                // Opened again: if the base was compacted since, the old files of its chain are gone.
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
                // This is the user's own file. The guest wrote to it, and other programs may too, so the snapshot gets
                // a copy.
                None => put(Files::Copy, &disk.path, &draft.path(&file))?,
            }
            layers.push(DiskLayer { index, file, on_parent: overlay.is_some() });
        }
        Ok(layers)
    }
}

impl Saver for QemuSaver {
    /// Asks QEMU itself whether the machine can be saved.
    fn check(&self) -> BoxFuture<'_, Result<(), SaveError>> {
        Box::pin(async move {
            if matches!(self.memory, SavedMemory::None) {
                return Err(SaveError::NotForkable);
            }
            let nowhere = json!({"uri": format!("fd:{NO_DESCRIPTOR}")});
            match self.qmp.execute("migrate", Some(nowhere), COMMAND_DEADLINE).await {
                Err(VmmError::Refused { description, .. }) if description.contains(NO_DESCRIPTOR) => Ok(()),
                Err(VmmError::Refused { description, .. }) => Err(SaveError::Unmigratable {
                    device: format!("a device that QEMU refuses to save: {description}"),
                }),
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

/// Makes this user the owner of a file.
fn own(file: &Utf8Path) -> Result<(), SnapshotError> {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let owned = std::os::unix::fs::chown(file, Some(user), Some(group));
    owned.map_err(|source| SnapshotError::io("take over", file, source))
}

/// Checks whether the disk is full, because QEMU reports that the write failed but not why.
fn check_room(path: &Utf8Path) -> Result<(), SnapshotError> {
    let free = rustix::fs::statvfs(path.as_std_path()).map_or(u64::MAX, |stat| stat.f_bavail * stat.f_frsize);
    if free >= DEVICE_BYTES {
        return Ok(());
    }
    Err(SnapshotError::NoSpace { path: path.into(), source: std::io::ErrorKind::StorageFull.into() })
}
