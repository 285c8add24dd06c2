//! Saves a VM: its CPUs are paused while its device state is written and its memory is put aside.
//!
//! ```text
//!   can it be saved? ─▶ pause ─▶ Saver: devices, memory, disks ─▶ publish ─▶ resume or end ─▶ seal, in the background
//!                         └──────── any failure: the draft is removed, resume ────────▶ error
//! ```
//! The driver decides what is written, see [`Saver`]. This module decides when, and what the journal records.
//!
//! The order makes a crash at any point safe. First the journal names the snapshot (`Saving`). Then the files are
//! written into a draft, which no other process sees. Then one rename publishes the snapshot, and only then the VM
//! continues or ends. A crash before the rename leaves a draft that the next start removes, and a VM that has not
//! changed. After the rename recovery finds the snapshot whole, and `then` in the journal tells what it was for: if the
//! VM was to stop, it counts as stopped there. A VM that continues never shares files with the snapshot: its memory is
//! copied, not linked. So it can't damage what was published, whatever happens to the journal.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use super::control::Shared;
use super::error::{ControlError, SaveError};
use super::vmm::{Files, Monitor, Saver, Written};
use crate::blocking::{blocking, in_background};
use crate::failpoint;
use crate::files::private_file;
use crate::home::Home;
use crate::process::Killer;
use crate::snapshot::{
    AfterSave, Draft, ExternalDisk, NewSnapshot, SaveOrder, Snapshot, SnapshotError, SnapshotId, SnapshotStore, memory,
};
use crate::spec::{DiskRole, VmSpec};
use crate::vm_dir::{Journal, MEMORY_FILE, State, Then};

/// A VMM pauses and resumes in milliseconds, but may first have to flush a busy disk.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);
/// Most snapshots in the chain of a VM that is stopped and resumed repeatedly. Each adds some milliseconds to a
/// restore.
const STOPPED_CHAIN_MAX: usize = 8;

/// Saves one VM when its owner requests it.
#[derive(Debug)]
pub(crate) struct Save {
    /// The VM's directory.
    pub(crate) directory: Utf8PathBuf,
    pub(crate) store: SnapshotStore,
    pub(crate) spec: VmSpec,
    pub(crate) monitor: Arc<dyn Monitor>,
    pub(crate) saver: Arc<dyn Saver>,
}

impl Save {
    /// A save operation for the VM of a directory.
    pub(crate) fn new(
        directory: &Utf8Path,
        home: &Utf8Path,
        spec: &VmSpec,
        monitor: Arc<dyn Monitor>,
        saver: Arc<dyn Saver>,
    ) -> Self {
        let store = SnapshotStore::new(&Home::at(home));
        Self { directory: directory.into(), store, spec: spec.clone(), monitor, saver }
    }

    /// Saves the VM. If that fails, it continues as before.
    pub(crate) async fn run(
        self: &Arc<Self>,
        journal: &Journal,
        order: SaveOrder,
        shared: &Shared,
    ) -> Result<Snapshot, SaveError> {
        if let Some(device) = self.spec.unmigratable() {
            return Err(SaveError::Unmigratable { device });
        }
        let store = self.store.clone();
        let draft = blocking(move || store.draft()).await?;
        self.saver.check().await?;
        let was_running = self.monitor.is_running(COMMAND_DEADLINE).await.map_err(ControlError::from)?;
        let before = if was_running { State::Running } else { State::Paused };
        let after = order.then;
        // An earlier save may have failed to record its end.
        journal.enter(before.clone())?;
        let generation = journal.append(State::Saving { snapshot: draft.id().clone(), then: after.into() })?;
        let saved = match failpoint::hit("save.begun") {
            Ok(()) => self.save_paused(draft, order, was_running, generation).await,
            Err(error) => Err(error.into()),
        };
        let snapshot = match saved {
            Ok(snapshot) if after != AfterSave::GoOn => {
                // From now on only the snapshot has the memory file.
                if let Err(error) = fs_err::remove_file(self.directory.join(MEMORY_FILE))
                    && error.kind() != io::ErrorKind::NotFound
                {
                    tracing::warn!(%error, "failed to unlink the memory of a vm that was saved");
                }
                // The snapshot is recorded before the kill. The owner's task reads the record as soon as the VMM has
                // exited, and without it would remove the directory of a VM that its user wants to resume.
                if after == AfterSave::Stop {
                    shared.keep_as(snapshot.id().clone());
                }
                shared.kill();
                snapshot
            }
            other => match (other, self.restore_state(journal, before).await) {
                (Ok(snapshot), Ok(())) => snapshot,
                (Ok(snapshot), Err(error)) => {
                    // The caller gets an error, so it can't know of the snapshot. It must not stay in the store, where
                    // it would look like one that a user has made.
                    let this = Arc::clone(self);
                    return blocking(move || Err(this.discard(snapshot, error))).await;
                }
                // The first error explains more than an error that followed from it.
                (Err(error), _) => return Err(error),
            },
        };
        let vmm = (after != AfterSave::GoOn).then(|| shared.killer.clone());
        let earlier = if after == AfterSave::Stop { journal.history().stopped_snapshots() } else { Vec::new() };
        tidy_later(self.store.clone(), snapshot.clone(), vmm, earlier);
        Ok(snapshot)
    }

    async fn save_paused(
        self: &Arc<Self>,
        draft: Draft,
        order: SaveOrder,
        was_running: bool,
        generation: u64,
    ) -> Result<Snapshot, SaveError> {
        if was_running {
            self.monitor.pause(COMMAND_DEADLINE).await.map_err(ControlError::from)?;
        }
        failpoint::hit("save.paused")?;
        let files = if order.then == AfterSave::GoOn { Files::Copy } else { Files::Link };
        let written = Arc::clone(&self.saver).write(draft, files).await?;
        let this = Arc::clone(self);
        blocking(move || this.publish(written, order, generation)).await
    }

    fn publish(&self, written: Written, order: SaveOrder, generation: u64) -> Result<Snapshot, SaveError> {
        let Written { draft, parent, memory, disks, machine } = written;
        let outside = |is: fn(DiskRole) -> bool| {
            let disks = self.spec.disks.iter().filter(move |disk| is(disk.role));
            disks.map(ExternalDisk::of).collect::<Result<_, SnapshotError>>()
        };
        let (external, volumes) = (outside(|role| role == DiskRole::Shared)?, outside(DiskRole::is_volume)?);
        let snapshot = draft.publish(NewSnapshot {
            parent,
            generation,
            label: order.label,
            spec: self.spec.clone(),
            machine,
            frozen: order.frozen,
            memory,
            disks,
            external,
            volumes,
        })?;
        match failpoint::hit("save.published") {
            Ok(()) => Ok(snapshot),
            Err(error) => Err(self.discard(snapshot, error.into())),
        }
    }

    /// Restores what a paused VM did before the save.
    async fn restore_state(&self, journal: &Journal, before: State) -> Result<(), SaveError> {
        if before == State::Running {
            self.monitor.resume(COMMAND_DEADLINE).await.map_err(ControlError::from)?;
        }
        failpoint::hit("save.resumed")?;
        journal.append(before)?;
        Ok(())
    }

    /// Removes a snapshot that was published before a later step failed. Its id was not returned to any caller, and the
    /// VM may continue to write to its files.
    fn discard(&self, snapshot: Snapshot, why: SaveError) -> SaveError {
        let id = snapshot.id().clone();
        drop(snapshot);
        if let Err(error) = self.store.remove(&id) {
            tracing::warn!(snapshot = %id, %error, "failed to remove the snapshot of a save that failed");
        }
        why
    }
}

/// Puts one of a VM's files into a draft.
pub(crate) fn put(files: Files, from: &Utf8Path, to: &Utf8Path) -> Result<(), SnapshotError> {
    match files {
        Files::Link => match fs_err::hard_link(from, to) {
            // The VM is paused for the rest of its life, so a copy is as good.
            Err(error) if has_no_links(error.kind()) => copy(from, to),
            linked => linked.map_err(|source| SnapshotError::io("link", from, source)),
        },
        Files::Copy => copy(from, to),
    }
}

/// Copies a file that is mostly holes.
fn copy(from: &Utf8Path, to: &Utf8Path) -> Result<(), SnapshotError> {
    let source = fs_err::File::open(from).map_err(|error| SnapshotError::io("open", from, error))?;
    let target = private_file::create_new(to).map_err(|error| SnapshotError::io("create", to, error))?;
    memory::copy_sparse(source.file(), target.file()).map_err(|error| SnapshotError::io("copy to", to, error))
}

/// Whether an error means that the filesystem has no hard links, or that there are two filesystems.
fn has_no_links(error: io::ErrorKind) -> bool {
    use io::ErrorKind::{CrossesDevices, PermissionDenied, TooManyLinks, Unsupported};
    matches!(error, CrossesDevices | PermissionDenied | TooManyLinks | Unsupported)
}

/// Runs [`tidy`] in the background.
fn tidy_later(store: SnapshotStore, snapshot: Snapshot, vmm: Option<Killer>, earlier: Vec<SnapshotId>) {
    in_background(move || tidy(&store, snapshot, vmm.as_ref(), &earlier));
}

/// Seals a snapshot while its owner continues, after the VMM that wrote to its memory has exited. If the process ends
/// before, the next one that opens the snapshot on this boot of the host finds it whole. A VM that stops again and
/// again would get a longer chain each time, so a long chain is compacted, and the snapshots of earlier stops are
/// removed.
fn tidy(store: &SnapshotStore, snapshot: Snapshot, vmm: Option<&Killer>, earlier: &[SnapshotId]) {
    let id = snapshot.id().clone();
    let long = !earlier.is_empty() && snapshot.links().len() > STOPPED_CHAIN_MAX;
    let gone = vmm.map_or(Ok(()), Killer::wait);
    let sealed = gone.map_err(|error| SnapshotError::io("wait for the VMM that wrote to", id.as_str(), error));
    let sealed = sealed.and_then(|()| snapshot.seal());
    let sealed = sealed.and_then(|()| if long { store.compact(&id).map(drop) } else { Ok(()) });
    drop(snapshot);
    // Until now this task held the old forms of compacted snapshots open, and no other process removes them.
    store.sweep();
    match sealed {
        Ok(()) => forget(store, earlier, &id),
        // An earlier stop may be the only snapshot that survives a crash of the host, so it stays.
        Err(error) => tracing::warn!(snapshot = %id, %error, "failed to seal a snapshot"),
    }
}

/// Removes the snapshots of earlier stops. `earlier` has the oldest first.
fn forget(store: &SnapshotStore, earlier: &[SnapshotId], now: &SnapshotId) {
    // Each is the child of the one before, so the newest has to be removed first.
    for old in earlier.iter().rev().filter(|old| *old != now) {
        // Refused if it has other children.
        if let Err(error) = store.remove(old) {
            tracing::debug!(snapshot = %old, %error, "the snapshot of an earlier stop stays");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::MemoryKind;

    #[test]
    fn earlier_stops_are_removed_from_the_newest_on() {
        let place = crate::snapshot::testing::place();
        let root = place.full("root");
        let middle = place.diff(&root, 1, "middle");
        let now = place.diff(&middle, 2, "now");
        let [root, middle, now] = [root, middle, now].map(|snapshot| snapshot.id().clone());
        let earlier = [root, middle];
        forget(&place.store, &earlier, &now);
        assert_eq!(place.store.open(&now).expect("is their child").links().len(), 3);

        place.store.compact(&now).expect("compacts");
        forget(&place.store, &earlier, &now);
        assert_eq!(place.names(), [now.as_str()]);
    }

    #[test]
    fn the_old_form_of_a_compacted_stop_is_removed_even_if_no_stop_is() {
        let place = crate::snapshot::testing::place();
        let mut chain = vec![place.full_with_disk("root")];
        for number in 1..=STOPPED_CHAIN_MAX as u64 {
            chain.push(place.diff(&chain[chain.len() - 1], number, "stop"));
        }
        // The layers of a disk stay, and so do the snapshots that hold them.
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
    fn a_file_is_copied_if_there_are_no_links() {
        let memory = Utf8Path::new("/dev/shm");
        let place = crate::snapshot::testing::place();
        let from = tempfile::NamedTempFile::new_in(memory).expect("another filesystem");
        fs_err::write(from.path(), "the guest's").expect("written");
        fs_err::create_dir_all(place.home.path()).expect("made");
        let to = place.home.path().join("memory");
        let from = Utf8Path::from_path(from.path()).expect("UTF-8");
        put(Files::Link, from, &to).expect("is copied");
        assert_eq!(fs_err::read_to_string(to).expect("reads"), "the guest's");
    }
}
