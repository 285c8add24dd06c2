//! Turns a diff into a full snapshot under the same id. Its children do not notice.
//!
//! ```text
//!   snapshots/<id>/ (diff)            <id>-x.partial (full) ── memory of the chain, device, disks ── sealed
//!          └────────────── swapped by one rename ──────────────┘
//!   snapshots/<id>/ (full)            <id>-x.partial (diff) ── removed, once it is not in use
//! ```
//! Disk layers do not change. So if the snapshot has a layer on its parent's, it keeps the parent, but only for its
//! disks.
//!
//! The full snapshot takes the id of the diff, so children and users need no change. A child applies its pages to the
//! memory of its parent, and that memory is the same bytes in both forms. Processes that have the diff open keep its
//! directory and its locks. They are not disturbed, because the swap changes names and not directories. Processes that
//! open the snapshot after the swap get the full form. One `RENAME_EXCHANGE` does the swap, so the name exists at every
//! moment, and a crash leaves one form or the other under it.

use camino::Utf8Path;

use super::chain::{Link, Snapshot};
use super::check::{MEMORY_FILE, PAGES_FILE};
use super::draft::{finish_files, make_partial, write_pending};
use super::error::SnapshotError;
use super::id::SnapshotId;
use super::locked_dir::LockedDir;
use super::manifest::{Manifest, MemoryKind, Seal};
use super::memory::{ChainMemory, MemoryError, flatten};
use super::seal::{host_boot_id, lock_manifest, seal_files};
use super::store::SnapshotStore;
use super::verified::broken;
use crate::files;

const MIB: u64 = 1 << 20;

/// The disk space of one snapshot, before and after. The space of its ancestors is freed only when they have no other
/// child and are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// Bytes on disk before.
    pub bytes_before: u64,
    /// Bytes on disk now.
    pub bytes_after: u64,
}

impl SnapshotStore {
    /// Turns a diff into a full snapshot and seals it. A full snapshot is only sealed. Processes that have the diff
    /// open keep using it. It stays on disk until they end, and the next sweep removes it.
    ///
    /// # Errors
    /// See [`SnapshotStore::open`]; or a file can't be read or written. Then nothing has changed.
    pub fn compact(&self, id: &SnapshotId) -> Result<Compacted, SnapshotError> {
        self.sweep();
        loop {
            let snapshot = self.open(id)?;
            if snapshot.manifest().memory == MemoryKind::Full {
                snapshot.seal()?;
                let bytes = bytes_on_disk(snapshot.leaf().dir())?;
                return Ok(Compacted { bytes_before: bytes, bytes_after: bytes });
            }
            // Two processes may compact one snapshot, or one may seal it meanwhile. The lock is on the file of the
            // diff's manifest. The process that gets it second finds that its directory has lost its name, and opens
            // the snapshot again: then it is full.
            let _lock = lock_manifest(snapshot.leaf().dir())?;
            let path = self.path(id);
            let still = snapshot.leaf().dir().is_at(&path);
            if still.map_err(|error| SnapshotError::io("inspect", path, error))? {
                return self.compact_open(snapshot);
            }
        }
    }

    fn compact_open(&self, snapshot: Snapshot) -> Result<Compacted, SnapshotError> {
        let id = snapshot.id().clone();
        let bytes_before = bytes_on_disk(snapshot.leaf().dir())?;
        let partial = make_partial(self.directory(), &id)?;
        write_memory(&snapshot, &partial.path().join(MEMORY_FILE))?;
        link_others(snapshot.leaf(), partial.path())?;

        let failed = |error| SnapshotError::io("inspect", partial.path(), error);
        let dir = LockedDir::open_unlocked(partial.path()).map_err(failed)?;
        let dir = dir.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
        let old = snapshot.manifest();
        let pending = Manifest {
            parent: old.parent.clone().filter(|_| old.disks.iter().any(|layer| layer.on_parent)),
            memory: MemoryKind::Full,
            files: finish_files(&id, partial.path())?,
            seal: Seal::Pending { host_boot_id: host_boot_id()? },
            ..old.clone()
        };
        write_pending(partial.path(), &pending)?;
        let (_, known) = seal_files(&dir, pending)?;
        let bytes_after = bytes_on_disk(&dir)?;

        let path = self.path(&id);
        let replaced = partial.exchange(&path).map_err(|error| SnapshotError::io("replace", &path, error))?;
        self.sync()?;
        drop(snapshot);
        match files::sweep(&replaced) {
            Ok(true) => {}
            Ok(false) => tracing::debug!(path = %replaced, "a compacted snapshot is still in use in its old form"),
            Err(error) => tracing::warn!(path = %replaced, %error, "failed to remove the old form of a snapshot"),
        }
        // Only now. Removing the old hard links has changed the times of the files, and the remembered state must have
        // the new ones.
        self.verified().remember_relinked(&dir, &id, known);
        tracing::info!(snapshot = %id, bytes_before, bytes_after, "compacted a snapshot");
        Ok(Compacted { bytes_before, bytes_after })
    }
}

fn write_memory(snapshot: &Snapshot, path: &Utf8Path) -> Result<(), SnapshotError> {
    let guest_bytes = snapshot.manifest().spec.memory_mib.saturating_mul(MIB);
    let failed = |error| memory_error(snapshot.id(), error);
    let chain = ChainMemory::open(&snapshot.memory_root(), &snapshot.page_files(), guest_bytes).map_err(failed)?;
    flatten(&chain, path).map_err(failed)
}

/// Hard-links all files except the pages into another directory. Both can share them, because they are never written
/// to.
fn link_others(link: &Link, directory: &Utf8Path) -> Result<(), SnapshotError> {
    for entry in link.manifest().files.iter().filter(|entry| entry.name != PAGES_FILE) {
        let to = directory.join(&entry.name);
        fs_err::hard_link(link.path(&entry.name), &to).map_err(|error| SnapshotError::io("link", to, error))?;
    }
    Ok(())
}

fn bytes_on_disk(dir: &LockedDir) -> Result<u64, SnapshotError> {
    dir.bytes_on_disk().map_err(|error| SnapshotError::io("inspect", dir.path(), error))
}

fn memory_error(id: &SnapshotId, error: MemoryError) -> SnapshotError {
    match error {
        MemoryError::Broken { path, problem } => broken(id, path.file_name().unwrap_or(PAGES_FILE), problem),
        MemoryError::File { what, path, source } => SnapshotError::io(what, path, source),
        // Flattening reads only files, so an error about a process can't occur.
        other => SnapshotError::io("flatten", MEMORY_FILE, std::io::Error::other(other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::*;
    use crate::snapshot::SnapshotError;
    use crate::snapshot::testing::place;

    /// The first bytes of a page of a full memory.
    fn page(snapshot: &Snapshot, number: usize, length: usize) -> String {
        assert_eq!(snapshot.page_files(), [] as [&str; 0]);
        let memory = fs::read(snapshot.memory_root()).expect("reads");
        String::from_utf8_lossy(&memory[number * 4096..][..length]).into_owned()
    }

    #[test]
    fn a_compacted_diff_is_full_and_needs_nothing_else() {
        let place = place();
        let root = place.full("root");
        let middle = place.diff(&root, 1, "middle");
        let leaf = place.diff(&middle, 2, "leaf");
        let child = place.diff(&leaf, 3, "child");
        let (root, middle, leaf, child) = [root, middle, leaf, child].map(|snapshot| snapshot.id().clone()).into();

        let compacted = place.store.compact(&leaf).expect("compacts");
        let blocks = |bytes| (4096..1 << 19).contains(&bytes);
        assert!(blocks(compacted.bytes_before) && blocks(compacted.bytes_after), "{compacted:?}");
        let snapshot = place.store.open(&leaf).expect("opens");
        assert!(snapshot.is_sealed() && snapshot.parent().is_none());
        assert_eq!((snapshot.id(), snapshot.hashed_bytes()), (&leaf, 0), "what was just hashed is known");
        assert_eq!(
            (page(&snapshot, 0, 4), page(&snapshot, 1, 6), page(&snapshot, 2, 4)),
            ("root".into(), "middle".into(), "leaf".into())
        );
        assert_eq!(fs::read_to_string(snapshot.device()).expect("reads"), "device of leaf");
        assert!(!snapshot.leaf().path("pages").exists());
        assert!(place.names().iter().all(|name| !name.ends_with(".partial")), "{:?}", place.names());

        place.store.remove(&middle).expect("it has no child");
        place.store.remove(&root).expect("it has no child");
        let child = place.store.open(&child).expect("its parent is full now");
        assert_eq!(child.memory_root(), snapshot.memory_root());
        assert_eq!(child.page_files().len(), 1);
    }

    #[test]
    fn disks_keep_their_layers_and_thus_the_parent() {
        let place = place();
        let root = place.full_with_disk("root");
        let leaf = place.diff(&root, 1, "leaf");
        let child = place.diff(&leaf, 2, "child");
        let layers = child.disk_layers(0);
        let ids = [&root, &leaf, &child].map(|snapshot| snapshot.id().clone());
        drop((root, leaf, child));

        place.store.compact(&ids[1]).expect("compacts");
        let child = place.store.open(&ids[2]).expect("opens");
        assert_eq!(child.links().len(), 3);
        assert_eq!(child.memory_root(), place.store.path(&ids[1]).join("memory"));
        assert_eq!(child.page_files(), [place.store.path(&ids[2]).join("pages")]);
        assert_eq!(child.disk_layers(0), layers);
        assert_eq!(fs::read_to_string(&layers[1]).expect("reads"), "disk of leaf");
        drop(child);
        let error = place.store.remove(&ids[0]).expect_err("its disks have layers above");
        assert!(matches!(error, SnapshotError::InUse { .. }));
    }

    #[test]
    fn an_open_diff_stays_usable_after_its_compaction() {
        let place = place();
        let root = place.full("root");
        let leaf = place.diff(&root, 1, "leaf");
        place.store.compact(leaf.id()).expect("compacts");

        let pages = leaf.page_files();
        assert!(pages[0].exists() && !pages[0].starts_with(place.store.path(leaf.id())), "{pages:?}");
        assert_eq!(fs::read_to_string(leaf.device()).expect("reads"), "device of leaf");
        assert_eq!(place.home.sweep_partials().expect("sweeps").len(), 0);
        // A new diff of it has the full snapshot of the same id as its parent.
        let child = place.diff(&leaf, 2, "child");
        assert_eq!(child.links().len(), 2);
        let id = leaf.id().clone();
        drop(leaf);
        assert_eq!(place.home.sweep_partials().expect("sweeps").len(), 1);
        assert_eq!(place.store.open(&id).expect("opens").hashed_bytes(), 14, "the device state lost a link");
        assert_eq!(place.store.open(&id).expect("opens").hashed_bytes(), 0);
    }

    #[test]
    fn a_full_snapshot_is_only_sealed() {
        let place = place();
        let snapshot = place.full("root");
        let compacted = place.store.compact(snapshot.id()).expect("is sealed");
        assert_eq!(compacted.bytes_before, compacted.bytes_after);
        assert!(place.store.open(snapshot.id()).expect("opens").is_sealed());
        assert!(snapshot.memory_root().exists());
    }

    #[test]
    fn several_compactions_at_once_end_with_one_full_snapshot() {
        let place = place();
        let root = place.full("root");
        let id = place.diff(&root, 1, "leaf").id().clone();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| place.store.compact(&id).expect("compacts"));
            }
        });
        place.home.sweep_partials().expect("sweeps");
        assert_eq!(place.names().len(), 2);
        let snapshot = place.store.open(&id).expect("opens");
        assert_eq!((page(&snapshot, 0, 4), page(&snapshot, 1, 4)), ("root".into(), "leaf".into()));
    }

    #[test]
    fn a_broken_chain_is_not_compacted_and_nothing_changes() {
        let place = place();
        let root = place.full("root");
        let leaf = place.diff(&root, 1, "leaf");
        fs::write(&leaf.page_files()[0], vec![7; 3 * 4096]).expect("written");
        place.forge(leaf.id(), |manifest| manifest["files"][1]["bytes"] = (3 * 4096).into());
        let error = place.store.compact(leaf.id()).expect_err("is not a page file");
        assert!(matches!(error, SnapshotError::Broken { file, .. } if file == "pages"));
        assert_eq!(place.names().len(), 2);
        assert_eq!(place.store.open(leaf.id()).expect("is as it was").page_files().len(), 1);
    }
}
