//! Saving a VM: its CPUs stand still while the state of its devices is written and its memory is put aside.
//!
//! ```text
//!   migratable? ─▶ stop ─▶ device ─▶ memory ─▶ disks ─▶ publish ─▶ cont (or the end) ─▶ seal, in the background
//!                   └──────── any failure: the draft is removed, cont ────────▶ error
//! ```
//! The state of the devices alone comes from `xen-save-devices-state`, which has nothing to do with Xen: it is the one
//! command that writes them without the memory, also of a guest whose memory is private.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;

use super::args::Facts;
use super::qmp::Qmp;
use super::{guest_memory, machine};
use crate::failpoint;
use crate::home::Home;
use crate::journal::{Journal, State, Then};
use crate::process::Killer;
use crate::snapshot::{
    AfterSave, DEVICE_FILE, DiskLayer, Draft, ExternalDisk, MEMORY_FILE, MemoryKind, NewSnapshot, PAGES_FILE,
    SaveOrder, Snapshot, SnapshotError, SnapshotId, SnapshotStore,
};
use crate::vm::{ControlError, Shared};
use crate::vm_spec::VmSpec;
use crate::vmm::VmmError;

/// A VMM answers `stop` and `cont` in milliseconds, and a flush of a busy disk may come before that.
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

/// Links of the chain of a VM that stops and goes on; each costs a restore some milliseconds for its pages.
const STOPPED_CHAIN_MAX: usize = 8;

/// Saves one VM.
#[derive(Debug)]
pub(crate) struct Saver {
    home: Utf8PathBuf,
    store: SnapshotStore,
    spec: VmSpec,
    facts: Facts,
    qmp: Qmp,
    pid: u32,
    memory: SavedMemory,
}

/// What is published without being made anew: files that are the snapshot's from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Give {
    /// The VM goes on writing to them.
    Copy,
    /// The VM ends.
    Link,
}

impl Saver {
    pub(super) fn new(home: &Utf8Path, spec: &VmSpec, facts: Facts, qmp: Qmp, pid: u32, memory: SavedMemory) -> Self {
        let store = SnapshotStore::new(&Home::at(home));
        Self { home: home.into(), store, spec: spec.clone(), facts, qmp, pid, memory }
    }

    /// Saves the VM. On failure it goes on as before.
    pub(crate) async fn save(
        self: &Arc<Self>,
        journal: &Journal,
        order: SaveOrder,
        shared: &Shared,
    ) -> Result<Snapshot, SnapshotError> {
        let qmp = &self.qmp;
        if let Some(device) = self.spec.unmigratable() {
            return Err(SnapshotError::Unmigratable { device });
        }
        if matches!(self.memory, SavedMemory::None) {
            return Err(SnapshotError::NotForkable);
        }
        let store = self.store.clone();
        let draft = blocking(move || store.draft()).await?;
        check_migratable(qmp).await?;
        let was_running = is_running(qmp).await?;
        let before = if was_running { State::Running } else { State::Paused };
        let after = order.then;
        // After a save whose end could not be written down.
        journal.enter(before.clone())?;
        let generation = journal.append(State::Saving { snapshot: draft.id().clone(), then: after.into() })?;
        let saved = match failpoint::hit("save.begun") {
            Ok(()) => self.save_stopped(qmp, draft, order, was_running, generation).await,
            Err(error) => Err(error.into()),
        };
        let snapshot = match saved {
            Ok(snapshot) if after != AfterSave::GoOn => {
                // The memory is the snapshot's alone from now on.
                if let SavedMemory::Whole(file) = &self.memory
                    && let Err(error) = fs_err::remove_file(file)
                {
                    tracing::warn!(%error, "failed to unlink the memory of a vm that was saved");
                }
                if after == AfterSave::Stop {
                    shared.keep_as(snapshot.id().clone());
                }
                shared.kill();
                snapshot
            }
            other => match (other, go_on(qmp, journal, before).await) {
                (Ok(snapshot), Ok(())) => snapshot,
                (Ok(snapshot), Err(error)) => {
                    let this = Arc::clone(self);
                    return blocking(move || Err(this.discard(snapshot, error))).await;
                }
                // Why it was not saved says more than what followed from that.
                (Err(error), _) => return Err(error),
            },
        };
        let vmm = (after != AfterSave::GoOn).then(|| shared.killer.clone());
        let earlier = if after == AfterSave::Stop { journal.history().stopped_snapshots() } else { Vec::new() };
        tidy_later(self.store.clone(), snapshot.clone(), vmm, earlier);
        Ok(snapshot)
    }

    async fn save_stopped(
        self: &Arc<Self>,
        qmp: &Qmp,
        draft: Draft,
        order: SaveOrder,
        was_running: bool,
        generation: u64,
    ) -> Result<Snapshot, SnapshotError> {
        if was_running {
            execute(qmp, "stop", None).await?;
        }
        failpoint::hit("save.paused")?;
        let device = json!({"filename": draft.path(DEVICE_FILE), "live": false});
        if let Err(error) = qmp.execute("xen-save-devices-state", Some(device), COMMAND_DEADLINE).await {
            // QEMU says that writing failed, and not why.
            check_room(&self.home)?;
            return Err(ControlError::from(error).into());
        }
        failpoint::hit("save.device")?;
        let this = Arc::clone(self);
        blocking(move || this.publish(draft, order, generation)).await
    }

    fn publish(&self, draft: Draft, order: SaveOrder, generation: u64) -> Result<Snapshot, SnapshotError> {
        let give = if order.then == AfterSave::GoOn { Give::Copy } else { Give::Link };
        let (kind, parent) = match &self.memory {
            SavedMemory::None => return Err(SnapshotError::NotForkable),
            SavedMemory::Whole(file) => {
                give.file(file, &draft.path(MEMORY_FILE))?;
                (MemoryKind::Full, None)
            }
            SavedMemory::Fork { base, mapped, .. } => {
                // Opened anew: it may have been compacted since, and what it was made of is gone then.
                let base = self.store.open(base)?;
                guest_memory::save_pages(self.pid, mapped, &base, &draft.path(PAGES_FILE))?;
                (MemoryKind::Diff, Some(base))
            }
        };
        failpoint::hit("save.memory")?;
        let disks = self.save_disks(&draft, give)?;
        failpoint::hit("save.disks")?;
        let external = self.spec.disks.iter().filter(|disk| disk.read_only).map(|disk| ExternalDisk::of(&disk.path));
        let machine = machine::identity(&self.home, &self.spec, &self.facts)
            .map_err(|source| SnapshotError::io("read", &self.spec.kernel, source))?;
        let snapshot = draft.publish(NewSnapshot {
            parent,
            generation,
            label: order.label,
            spec: self.spec.clone(),
            machine,
            frozen: order.frozen,
            memory: kind,
            disks,
            external: external.collect::<Result<_, _>>()?,
        })?;
        match failpoint::hit("save.published") {
            Ok(()) => Ok(snapshot),
            Err(error) => Err(self.discard(snapshot, error.into())),
        }
    }

    /// Removes what was published in vain: nobody learns its name, and the VM may go on writing to files that it has.
    fn discard(&self, snapshot: Snapshot, why: SnapshotError) -> SnapshotError {
        let id = snapshot.id().clone();
        drop(snapshot);
        if let Err(error) = self.store.remove(&id) {
            tracing::warn!(snapshot = %id, %error, "failed to remove the snapshot of a save that failed");
        }
        why
    }

    fn save_disks(&self, draft: &Draft, give: Give) -> Result<Vec<DiskLayer>, SnapshotError> {
        let mut layers = Vec::new();
        let writable = self.spec.disks.iter().enumerate().filter(|(_, disk)| !disk.read_only);
        for (index, disk) in writable {
            let file = format!("disk-{index}");
            let overlay = match &self.memory {
                SavedMemory::Fork { overlays, .. } => overlays.iter().find(|(of, _)| *of == index),
                _ => None,
            };
            match overlay {
                Some((_, overlay)) => give.file(overlay, &draft.path(&file))?,
                // The user's own file: the guest wrote to it, and others may.
                None => Give::Copy.file(&disk.path, &draft.path(&file))?,
            }
            layers.push(DiskLayer { index, file, on_parent: overlay.is_some() });
        }
        Ok(layers)
    }
}

impl Give {
    fn file(self, from: &Utf8Path, to: &Utf8Path) -> Result<(), SnapshotError> {
        match self {
            Self::Link => match fs_err::hard_link(from, to) {
                // The VM stands still from now on, so a copy is as good.
                Err(error) if has_no_links(error.kind()) => guest_memory::copy(from, to),
                linked => linked.map_err(|source| SnapshotError::io("link", from, source)),
            },
            Self::Copy => guest_memory::copy(from, to),
        }
    }
}

/// Whether a filesystem, or two of them, have no links.
fn has_no_links(error: io::ErrorKind) -> bool {
    use io::ErrorKind::{CrossesDevices, PermissionDenied, TooManyLinks, Unsupported};
    matches!(error, CrossesDevices | PermissionDenied | TooManyLinks | Unsupported)
}

/// Lets a VM that stands still for a save do what it did before.
async fn go_on(qmp: &Qmp, journal: &Journal, before: State) -> Result<(), SnapshotError> {
    if before == State::Running {
        execute(qmp, "cont", None).await?;
    }
    failpoint::hit("save.resumed")?;
    journal.append(before)?;
    Ok(())
}

/// Whether the disk is full: QEMU says that writing failed, and not why.
fn check_room(path: &Utf8Path) -> Result<(), SnapshotError> {
    let free = rustix::fs::statvfs(path.as_std_path()).map_or(u64::MAX, |stat| stat.f_bavail * stat.f_frsize);
    if free >= DEVICE_BYTES {
        return Ok(());
    }
    Err(SnapshotError::NoSpace { path: path.into(), source: io::ErrorKind::StorageFull.into() })
}

/// Asks QEMU itself whether anything in the machine can't be saved.
async fn check_migratable(qmp: &Qmp) -> Result<(), SnapshotError> {
    let nowhere = json!({"uri": format!("fd:{NO_DESCRIPTOR}")});
    match qmp.execute("migrate", Some(nowhere), COMMAND_DEADLINE).await {
        Err(VmmError::Refused { description, .. }) if description.contains(NO_DESCRIPTOR) => Ok(()),
        Err(VmmError::Refused { description, .. }) => {
            Err(SnapshotError::Unmigratable { device: format!("what QEMU says of it: {description}") })
        }
        Err(error) => Err(ControlError::from(error).into()),
        Ok(_) => Ok(()),
    }
}

async fn is_running(qmp: &Qmp) -> Result<bool, SnapshotError> {
    let status = execute(qmp, "query-status", None).await?;
    Ok(status["running"].as_bool().unwrap_or(false))
}

async fn execute(
    qmp: &Qmp,
    command: &'static str,
    arguments: Option<serde_json::Value>,
) -> Result<serde_json::Value, SnapshotError> {
    qmp.execute(command, arguments, COMMAND_DEADLINE).await.map_err(|error| ControlError::from(error).into())
}

/// [`tidy`], in the background.
fn tidy_later(store: SnapshotStore, snapshot: Snapshot, vmm: Option<Killer>, earlier: Vec<SnapshotId>) {
    tokio::task::spawn_blocking(move || tidy(&store, snapshot, vmm.as_ref(), &earlier));
}

/// Seals a snapshot while its owner goes on, once the VMM whose memory it has is gone. One that is not sealed when the
/// process ends is whole for the next that opens it on this boot of the host. A VM that stops time and again would lie on a
/// longer chain each time: a long one is made short, and where the VM stood before is forgotten.
fn tidy(store: &SnapshotStore, snapshot: Snapshot, vmm: Option<&Killer>, earlier: &[SnapshotId]) {
    let id = snapshot.id().clone();
    let long = !earlier.is_empty() && snapshot.links().len() > STOPPED_CHAIN_MAX;
    let gone = vmm.map_or(Ok(()), Killer::wait);
    let sealed = gone.map_err(|error| SnapshotError::io("wait for the VMM that wrote to", id.as_str(), error));
    let sealed = sealed.and_then(|()| snapshot.seal());
    let sealed = sealed.and_then(|()| if long { store.compact(&id).map(drop) } else { Ok(()) });
    drop(snapshot);
    // Until now this task held what a compaction has replaced, here or below: nobody else looks for it.
    store.sweep();
    match sealed {
        Ok(()) => forget(store, earlier, &id),
        // Where it stood before may be all that outlives the host.
        Err(error) => tracing::warn!(snapshot = %id, %error, "failed to seal a snapshot"),
    }
}

/// Removes where a VM stood before, oldest first in `earlier`.
fn forget(store: &SnapshotStore, earlier: &[SnapshotId], now: &SnapshotId) {
    // Each lies on the one before it, so the newest goes first.
    for old in earlier.iter().rev().filter(|old| *old != now) {
        // Refused while anything lies on it.
        if let Err(error) = store.remove(old) {
            tracing::debug!(snapshot = %old, %error, "where a vm stood before stays");
        }
    }
}

impl From<AfterSave> for Then {
    fn from(after: AfterSave) -> Self {
        match after {
            AfterSave::GoOn => Self::GoOn,
            AfterSave::Stop => Self::Stop,
            AfterSave::End => Self::End,
        }
    }
}

/// Runs what blocks on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, SnapshotError> {
    // The runtime that is being shut down is the only reason for a task's end without its result.
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(ControlError::Ended.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_vm_stood_before_is_forgotten_from_the_newest_on() {
        let place = crate::snapshot::testing::place();
        let root = place.full("root");
        let middle = place.diff(&root, 1, "middle");
        let now = place.diff(&middle, 2, "now");
        let [root, middle, now] = [root, middle, now].map(|snapshot| snapshot.id().clone());
        let earlier = [root, middle];
        forget(&place.store, &earlier, &now);
        assert_eq!(place.store.open(&now).expect("lies on both").links().len(), 3);

        place.store.compact(&now).expect("compacts");
        forget(&place.store, &earlier, &now);
        assert_eq!(place.names(), [now.as_str()]);
    }

    #[test]
    fn the_old_form_of_what_a_stop_has_compacted_goes_also_where_nothing_is_forgotten() {
        let place = crate::snapshot::testing::place();
        let mut chain = vec![place.full_with_disk("root")];
        for number in 1..=STOPPED_CHAIN_MAX as u64 {
            chain.push(place.diff(&chain[chain.len() - 1], number, "stop"));
        }
        // Layers of a disk stay, and so does all that they lie in.
        let mut ids: Vec<_> = chain.iter().map(|snapshot| snapshot.id().clone()).collect();
        let now = chain.pop().expect("has links");
        drop(chain);
        tidy(&place.store, now, None, &ids[1..]);

        let now = place.store.open(&ids[STOPPED_CHAIN_MAX]).expect("is whole");
        assert_eq!((now.manifest().memory, now.links().len()), (MemoryKind::Full, ids.len()));
        ids.sort();
        assert_eq!(place.names(), ids.iter().map(SnapshotId::as_str).collect::<Vec<_>>());
    }

    #[test]
    fn a_file_is_given_as_a_copy_where_there_are_no_links() {
        let memory = Utf8Path::new("/dev/shm");
        let place = crate::snapshot::testing::place();
        let from = tempfile::NamedTempFile::new_in(memory).expect("another filesystem");
        fs_err::write(from.path(), "the guest's").expect("written");
        fs_err::create_dir_all(place.home.path()).expect("made");
        let to = place.home.path().join("memory");
        let from = Utf8Path::from_path(from.path()).expect("UTF-8");
        Give::Link.file(from, &to).expect("is copied");
        assert_eq!(fs_err::read_to_string(to).expect("reads"), "the guest's");
    }
}
