//! QEMU's part of a restore: a process that maps the snapshot's memory privately and loads the device state.
//!
//! ```text
//!   disk overlays ─▶ QEMU, waiting ─▶ pages of diffs into its memory ─▶ device state ─▶ Vm
//! ```
//! QEMU never sees a migration stream with memory here. It is started with the snapshot's memory file as the guest's
//! memory, mapped privately, and loads only the device state. Two points make the order of the steps:
//!
//! - The pages of diffs are written before the device state is loaded. Virtio devices read their queues in the guest's
//!   memory while they are loaded. With the pages of the root, they would read an older state of the queues, and QEMU
//!   could refuse the state or continue at a wrong index.
//! - Kiln writes the pages from outside into QEMU's memory. QEMU does not touch the guest's memory at that time: it
//!   waits with `-incoming defer`, its CPUs are stopped, its devices are in their reset state, and it copies no
//!   firmware into memory before an incoming state.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;
use tokio::sync::mpsc;

use super::args::{self, Accelerator, Facts, Memory, Start};
use super::blockdev::blockdev;
use super::launch::{self, Plan, Started};
use super::qmp::{Qmp, QmpEvent};
use super::save::{QemuSaver, SavedMemory};
use super::{QemuEngine, guest_memory, machine};
use crate::blocking;
use crate::confine::Policy;
use crate::driver::{LaunchError, RestoreError, Restorer, Waiting};
use crate::failpoint;
use crate::host;
use crate::snapshot::{MANIFEST_FILE, MachineIdentity, Snapshot, SnapshotError, overlay};
use crate::spec::{Disk, DiskFormat, DiskRole, VmSpec};
use crate::vm::{BoxFuture, ControlError, Vm, VmmError};
use crate::vm_dir::VmDir;

/// QEMU loads the device state in milliseconds.
const LOAD_DEADLINE: Duration = Duration::from_secs(20);

/// What the QEMUs of all forks of one snapshot share.
#[derive(Debug, Clone)]
pub(super) struct Common {
    home: Utf8PathBuf,
    binary: Utf8PathBuf,
    snapshot: Snapshot,
    facts: Facts,
    policy: Policy,
}

/// Restores one snapshot.
#[derive(Debug)]
pub(super) struct QemuRestorer {
    machine: MachineIdentity,
    common: Arc<Common>,
}

impl QemuRestorer {
    /// A restorer for a snapshot, with the QEMU of this host.
    pub(super) async fn new(engine: &QemuEngine, snapshot: &Snapshot, spec: &VmSpec) -> Result<Self, RestoreError> {
        let saved = &snapshot.manifest().machine;
        let accelerator = match saved.acceleration.as_str() {
            "kvm" if saved.cpu.starts_with("host,-arch-capabilities") => Accelerator::KvmWithoutArchCapabilities,
            "kvm" => Accelerator::Kvm,
            _ => Accelerator::Tcg,
        };
        if accelerator != Accelerator::Tcg && host::open_kvm().is_err() {
            let (id, what) = (snapshot.id().clone(), "acceleration");
            return Err(RestoreError::OtherMachine { id, what, saved: "kvm".into(), here: "tcg".into() });
        }
        let (home, binary) = (engine.home.clone(), engine.binary.clone());
        let facts = machine::facts(&home, &binary, spec, accelerator).await;
        let machine =
            machine::identity(&home, spec, &facts).map_err(|source| SnapshotError::io("read", &spec.kernel, source))?;
        let (snapshot, policy) = (snapshot.clone(), engine.policy.clone());
        let common = Common { home, binary, snapshot, facts, policy };
        Ok(Self { machine, common: Arc::new(common) })
    }
}

impl Restorer for QemuRestorer {
    fn machine(&self) -> &MachineIdentity {
        &self.machine
    }

    fn start(&self, dir: VmDir, spec: VmSpec) -> BoxFuture<'_, Result<Box<dyn Waiting>, RestoreError>> {
        Box::pin(async {
            let waiting = WaitingQemu::start(Arc::clone(&self.common), dir, spec).await?;
            Ok(Box::new(waiting) as Box<dyn Waiting>)
        })
    }
}

/// A QEMU with the snapshot's memory that has not loaded the device state yet.
#[derive(Debug)]
struct WaitingQemu {
    // Dropped first: the directory is removed after the process is gone.
    started: Started,
    dir: VmDir,
    common: Arc<Common>,
    spec: VmSpec,
    overlays: Vec<(usize, Utf8PathBuf)>,
    /// The memory file.
    mapped: File,
    /// The descriptor of the device state in QEMU.
    device_fd: RawFd,
}

impl WaitingQemu {
    async fn start(common: Arc<Common>, dir: VmDir, spec: VmSpec) -> Result<Self, RestoreError> {
        let snapshot = &common.snapshot;
        let no_directory = |source| LaunchError::Directory { path: dir.path().into(), source };
        let overlays = make_overlays(&dir, &spec, snapshot)?;
        let disks = spec.disks.iter().enumerate().map(|(index, disk)| {
            let node = args::disk_node(index);
            let Some((_, overlay)) = overlays.iter().find(|(of, _)| *of == index) else {
                return Ok(blockdev(&node, disk, &[]));
            };
            let (root, mut above) = layers(snapshot, index, disk)?;
            above.push(overlay.clone());
            Ok(blockdev(&node, &root, &above))
        });
        let disks = disks.collect::<Result<_, SnapshotError>>()?;
        let device = snapshot.device();
        let opened = OwnedFd::from(open(&device)?);
        let device_fd = opened.as_raw_fd();
        // The VMM holds the locks too, so the snapshot can't be removed while a fork runs, with an owner or without.
        let locks = snapshot.lock_fds().into_iter().map(|lock| lock.try_clone_to_owned());
        let mut inherit = locks.collect::<io::Result<Vec<_>>>().map_err(no_directory)?;
        inherit.push(opened);
        let mapped = open(&snapshot.memory_root())?;
        let plan = Plan {
            binary: &common.binary,
            spec: &spec,
            facts: common.facts.clone(),
            memory: Memory::Private(snapshot.memory_root()),
            start: Start::Restore,
            disks,
            snapshot: Some(mapped.try_clone().map_err(no_directory)?),
            inherit,
            policy: &common.policy,
        };
        let started = launch::start(&dir, plan).await?;
        Ok(Self { dir, started, common, spec, overlays, mapped, device_fd })
    }

    /// Writes the pages of the diffs into its memory and loads the device state. It stays paused.
    async fn load_state(mut self) -> Result<Vm, RestoreError> {
        let (pid, common) = (self.started.child.pid(), Arc::clone(&self.common));
        if !common.snapshot.page_files().is_empty() {
            let snapshot = common.snapshot.clone();
            // The blocking thread owns the process meanwhile. If the caller's future is dropped, the thread keeps
            // writing to the memory of this pid until it is done. The process is reaped only after that, because `self`
            // moves with the thread, so the pid can't belong to another process.
            self = blocking(move || guest_memory::apply_diffs(pid, &self.mapped, &snapshot).map(|()| self)).await?;
        }
        failpoint::hit("restore.pages")?;
        if let Err(error) = load(&mut self.started.monitor, self.device_fd).await {
            let Started { child, stderr, .. } = &mut self.started;
            return Err(match error {
                // If QEMU can't load a state, it exits. The reason is the last line of its stderr.
                VmmError::Closed { .. } => launch::why_it_ended(&common.binary, child, stderr, error).await.into(),
                other => ControlError::from(other).into(),
            });
        }
        failpoint::hit("restore.loaded")?;
        let base = common.snapshot.id().clone();
        let memory = SavedMemory::Fork { base, mapped: self.mapped, overlays: self.overlays };
        let qmp = self.started.monitor.0.clone();
        let saver = QemuSaver::new(&common.home, &self.dir, &self.spec, common.facts.clone(), qmp, pid, memory);
        let path = self.dir.path().to_owned();
        let vm = launch::own(&common.home, self.dir, self.started, &self.spec, common.facts.accelerator, saver)
            .map_err(|source| LaunchError::Directory { path, source })?;
        Ok(vm)
    }
}

impl Waiting for WaitingQemu {
    fn pid(&self) -> u32 {
        self.started.child.pid()
    }

    fn load(self: Box<Self>) -> BoxFuture<'static, Result<Vm, RestoreError>> {
        Box::pin(self.load_state())
    }
}

/// Loads the device state.
///
/// The reply to `migrate-incoming` only means that the load has begun. The result comes as an event: `completed`, or
/// `failed`. But a QEMU that can't load a state may exit at once, before it has sent an event. Then the events end,
/// because QMP closes, and the caller reads the reason from QEMU's stderr.
async fn load(monitor: &mut (Qmp, mpsc::Receiver<QmpEvent>), device_fd: RawFd) -> Result<(), VmmError> {
    let (qmp, events) = monitor;
    let from = json!({"uri": format!("fd:{device_fd}")});
    qmp.execute("migrate-incoming", Some(from), LOAD_DEADLINE).await?;
    let loaded = async {
        while let Some(event) = events.recv().await {
            match (event.name.as_str(), event.data["status"].as_str()) {
                ("MIGRATION", Some("completed")) => return Ok(()),
                ("MIGRATION", Some("failed")) => break,
                _ => {}
            }
        }
        Err(VmmError::Closed { reason: "the state of the devices was not loaded".into() })
    };
    let late = |_| VmmError::Deadline { command: "migrate-incoming".into(), waited: LOAD_DEADLINE };
    tokio::time::timeout(LOAD_DEADLINE, loaded).await.map_err(late)?
}

fn open(path: &Utf8Path) -> Result<File, SnapshotError> {
    let file = fs_err::File::open(path).map_err(|source| SnapshotError::io("open", path, source))?;
    Ok(file.into_file())
}

/// Creates an overlay for each scratch disk.
fn make_overlays(dir: &VmDir, spec: &VmSpec, snapshot: &Snapshot) -> Result<Vec<(usize, Utf8PathBuf)>, SnapshotError> {
    let scratch = spec.disks.iter().enumerate().filter(|(_, disk)| disk.role == DiskRole::Scratch);
    let overlays = scratch.map(|(index, disk)| {
        let (root, above) = layers(snapshot, index, disk)?;
        overlay::refuse_other_files(&root.path, root.format)
            .map_err(|source| SnapshotError::io("use", &root.path, source))?;
        let (top, format) = above.last().map_or((&root.path, root.format), |top| (top, DiskFormat::Qcow2));
        let path = dir.path().join(format!("disk-{index}"));
        let bytes = overlay::virtual_size(top, format).map_err(|source| SnapshotError::io("read", top, source))?;
        overlay::create(&path, bytes).map_err(|source| SnapshotError::io("make", &path, source))?;
        Ok((index, path))
    });
    overlays.collect()
}

/// The layers of a disk in a snapshot: the image, and its overlays.
fn layers(snapshot: &Snapshot, index: usize, disk: &Disk) -> Result<(Disk, Vec<Utf8PathBuf>), SnapshotError> {
    let mut layers = snapshot.disk_layers(index).into_iter();
    let path = layers.next().ok_or_else(|| SnapshotError::Broken {
        id: snapshot.id().clone(),
        file: MANIFEST_FILE.into(),
        problem: format!("has no layer of disk {index}, which can be written"),
    })?;
    Ok((Disk { path, ..disk.clone() }, layers.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_a_layer_is_a_broken_manifest() {
        let place = crate::snapshot::testing::place();
        let snapshot = place.full("root");
        let disk = Disk { path: "/d".into(), format: DiskFormat::Raw, role: DiskRole::Scratch };
        let error = layers(&snapshot, 0, &disk).expect_err("has none");
        assert!(matches!(&error, SnapshotError::Broken { file, .. } if file == MANIFEST_FILE), "{error:?}");
    }
}
