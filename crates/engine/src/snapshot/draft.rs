//! A snapshot that is being written. No other process sees it before one rename publishes it.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::chain::{CHAIN_MAX, Link, Snapshot};
use super::check::{FILES_MAX, check, check_parent, is_file_name};
use super::error::SnapshotError;
use super::id::SnapshotId;
use super::locked_dir::{Hold, LockedDir};
use super::manifest::{
    DiskLayer, ExternalDisk, FileEntry, MANIFEST_FILE, MachineIdentity, Manifest, MemoryKind, SNAPSHOT_FORMAT, Seal,
};
use super::seal::host_boot_id;
use super::store::{OPEN_PATIENCE, SnapshotStore};
use super::verified::broken;
use crate::failpoint;
use crate::files::{Partial, private_file};
use crate::spec::VmSpec;

/// Only its owner may read guest memory.
const DIRECTORY_MODE: u32 = 0o700;
/// Root can open a file for writing that has no write permission. Other users can't, and QEMU 7.2 opens memory for
/// writing even if it maps a private copy.
const FILE_MODE_OF_ROOT: u32 = 0o444;
const FILE_MODE_OF_OTHERS: u32 = 0o600;

/// The directory of a snapshot while its files are written. If it is dropped before [`Draft::publish`], it is removed.
#[derive(Debug)]
pub(crate) struct Draft {
    store: SnapshotStore,
    id: SnapshotId,
    partial: Partial,
}

/// The description of a new snapshot.
#[derive(Debug, Clone)]
pub(crate) struct NewSnapshot {
    /// The parent that the diff's pages and disk layers apply to. If neither needs a parent, the manifest names none.
    pub(crate) parent: Option<Snapshot>,
    /// See [`Manifest::generation`].
    pub(crate) generation: u64,
    /// See [`Manifest::label`].
    pub(crate) label: String,
    /// See [`Manifest::spec`].
    pub(crate) spec: VmSpec,
    /// See [`Manifest::machine`].
    pub(crate) machine: MachineIdentity,
    /// See [`Manifest::frozen`].
    pub(crate) frozen: bool,
    /// See [`Manifest::memory`].
    pub(crate) memory: MemoryKind,
    /// See [`Manifest::disks`].
    pub(crate) disks: Vec<DiskLayer>,
    /// See [`Manifest::external`].
    pub(crate) external: Vec<ExternalDisk>,
    /// See [`Manifest::volumes`].
    pub(crate) volumes: Vec<ExternalDisk>,
}

impl Draft {
    pub(super) fn create(store: &SnapshotStore) -> Result<Self, SnapshotError> {
        let (id, parent) = (SnapshotId::random(), store.directory());
        let partial = make_partial(parent, &id)?;
        Ok(Self { store: store.clone(), id, partial })
    }

    /// The id that it will have.
    pub(crate) fn id(&self) -> &SnapshotId {
        &self.id
    }

    /// The path for one of its files.
    pub(crate) fn path(&self, file: &str) -> Utf8PathBuf {
        self.partial.path().join(file)
    }

    /// Publishes a snapshot of the files in the draft. It can be restored at once, but is only on disk after it is
    /// [sealed](Snapshot::seal).
    ///
    /// Another process sees nothing or a whole snapshot, because the only step that it can see is one rename of the
    /// directory, after the manifest. The lock is held across that rename: the draft's directory is locked exclusively
    /// from its creation, the lock belongs to the open directory and not to its name, and here it is only changed to a
    /// shared one. The kernel does that in two steps, so a remover can come between them. It takes the exclusive lock
    /// and moves the directory away. Then `relock` waits for the remover, and `is_at` finds that the name is gone.
    ///
    /// Nothing is synced. A crash of Kiln loses nothing, because the files are in the page cache. A crash of the host
    /// may lose any of the files, and even keep the rename without them. So the manifest has the boot id of the host
    /// until the seal, and another boot refuses it.
    ///
    /// # Errors
    /// [`SnapshotError::Broken`] if a file is missing or does not fit the description, [`SnapshotError::ChainTooLong`],
    /// [`SnapshotError::MissingLink`] if the parent was removed; or a file can't be written. The draft's files are
    /// removed then.
    pub(crate) fn publish(self, new: NewSnapshot) -> Result<Snapshot, SnapshotError> {
        let Self { store, id, partial } = self;
        let on_parent = new.memory == MemoryKind::Diff || new.disks.iter().any(|layer| layer.on_parent);
        let parent = new.parent.filter(|_| on_parent).map(|parent| current(&store, &id, parent)).transpose()?;
        let mut links = parent.as_ref().map(|parent| parent.shared_links().to_vec()).unwrap_or_default();
        if links.len() >= CHAIN_MAX {
            let parent = parent.map_or_else(|| id.clone(), |parent| parent.id().clone());
            return Err(SnapshotError::ChainTooLong { id: parent, max: CHAIN_MAX });
        }
        let manifest = Manifest {
            format: SNAPSHOT_FORMAT,
            parent: parent.as_ref().map(|parent| parent.id().clone()),
            generation: new.generation,
            created_unix_ms: unix_ms(),
            label: new.label,
            spec: new.spec,
            machine: new.machine,
            frozen: new.frozen,
            memory: new.memory,
            disks: new.disks,
            external: new.external,
            volumes: new.volumes,
            files: finish_files(&id, partial.path())?,
            seal: Seal::Pending { host_boot_id: host_boot_id()? },
            id: id.clone(),
        };
        check(&manifest)?;
        if let Some(parent) = &parent {
            check_parent(&manifest, parent.manifest())?;
        }
        write_pending(partial.path(), &manifest)?;
        failpoint::hit("save.manifest")?;
        let path = store.path(&id);
        let failed = |error| SnapshotError::io("publish", &path, error);
        let dir = LockedDir::from_locked(partial.publish_unsynced(&path).map_err(failed)?, &path);
        match dir.relock(Hold::Shared, OPEN_PATIENCE).and_then(|()| dir.is_at(&path)) {
            Ok(true) => {}
            // Another process has listed the store and removed it before this call returned.
            Ok(false) => return Err(SnapshotError::Unknown(id)),
            Err(error) => {
                // The VM keeps running, and its files must not become part of a snapshot.
                store.withdraw(&id);
                return Err(failed(error));
            }
        }
        links.push(Arc::new(Link::new(dir, manifest)));
        Ok(Snapshot::new(store, links, 0))
    }
}

/// A partial directory that only its owner can read.
pub(super) fn make_partial(parent: &Utf8Path, id: &SnapshotId) -> Result<Partial, SnapshotError> {
    let failed = |error| SnapshotError::io("make a directory in", parent, error);
    let partial = Partial::create(parent, id.as_str()).map_err(failed)?;
    fs::set_permissions(partial.path(), std::fs::Permissions::from_mode(DIRECTORY_MODE)).map_err(failed)?;
    Ok(partial)
}

/// Gives the files of a directory their final modes, and returns them.
pub(super) fn finish_files(id: &SnapshotId, directory: &Utf8Path) -> Result<Vec<FileEntry>, SnapshotError> {
    let mode = if rustix::process::geteuid().is_root() { FILE_MODE_OF_ROOT } else { FILE_MODE_OF_OTHERS };
    let failed = |error| SnapshotError::io("finish the files in", directory, error);
    let mut files = Vec::new();
    for entry in directory.read_dir_utf8().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_owned();
        if files.len() == FILES_MAX || !is_file_name(&name) || name == MANIFEST_FILE {
            return Err(broken(id, &name, "is not a file of a snapshot, or one file too many"));
        }
        let meta = entry.metadata().map_err(failed)?;
        if !meta.is_file() {
            return Err(broken(id, &name, "is not an ordinary file"));
        }
        fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(mode)).map_err(failed)?;
        files.push(FileEntry { name, bytes: meta.len(), blake3: None });
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(files)
}

/// Writes a manifest without syncing it.
pub(super) fn write_pending(directory: &Utf8Path, manifest: &Manifest) -> Result<(), SnapshotError> {
    let path = directory.join(MANIFEST_FILE);
    let bytes = serde_json::to_vec_pretty(manifest).expect("a manifest has no maps with odd keys");
    private_file::write_new(&path, &bytes).map_err(|error| SnapshotError::io("write", path, error))
}

/// Returns the parent, or the full snapshot that a compaction has put in its place: the locks must be those of the
/// directory that has the name now.
fn current(store: &SnapshotStore, of: &SnapshotId, parent: Snapshot) -> Result<Snapshot, SnapshotError> {
    let path = store.path(parent.id());
    if parent.leaf().dir().is_at(&path).map_err(|error: io::Error| SnapshotError::io("inspect", &path, error))? {
        return Ok(parent);
    }
    match store.open(parent.id()) {
        Err(SnapshotError::Unknown(missing)) => Err(SnapshotError::MissingLink { of: of.clone(), missing }),
        other => other,
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::testing::{layer, new, place};
    use crate::snapshot::{DEVICE_FILE, MEMORY_FILE, PAGES_FILE};

    fn refusal(draft: Draft, new: NewSnapshot) -> String {
        draft.publish(new).expect_err("does not fit").to_string()
    }

    #[test]
    fn a_draft_is_not_listed_and_leaves_nothing() {
        let place = place();
        let draft = place.store.draft().expect("a draft");
        fs::write(draft.path(MEMORY_FILE), "memory").expect("written");
        assert_eq!(place.store.ids().expect("lists"), []);
        assert!(matches!(place.store.open(draft.id()), Err(SnapshotError::Unknown(_))));
        assert_eq!(place.home.sweep_partials().expect("sweeps"), [] as [Utf8PathBuf; 0]);
        drop(draft);
        assert_eq!(place.names(), [] as [&str; 0]);
    }

    #[test]
    fn a_published_snapshot_is_readable_at_once_by_its_owner_only() {
        let place = place();
        let snapshot = place.full("one");
        assert_eq!(place.names(), [snapshot.id().as_str()]);
        assert!(!snapshot.is_sealed());
        assert_eq!(snapshot.memory_root(), place.store.path(snapshot.id()).join("memory"));
        assert_eq!(snapshot.device(), place.store.path(snapshot.id()).join("device"));
        let mode = |path: &Utf8Path| fs::metadata(path).expect("facts").permissions().mode() & 0o7777;
        assert_eq!(mode(&place.store.path(snapshot.id())), 0o700);
        let expected = if rustix::process::geteuid().is_root() { 0o444 } else { 0o600 };
        assert_eq!(mode(&snapshot.memory_root()), expected);
        let names: Vec<_> = snapshot.manifest().files.iter().map(|entry| (entry.name.as_str(), entry.bytes)).collect();
        assert_eq!(names, [("device", 13), ("memory", 1 << 20)]);
        assert!(place.store.open(snapshot.id()).is_ok());
    }

    #[test]
    fn files_that_do_not_fit_are_refused_and_removed() {
        let place = place();
        let draft = place.store.draft().expect("a draft");
        fs::write(draft.path(MEMORY_FILE), "memory").expect("written");
        let words = refusal(draft, new(None, MemoryKind::Full));
        assert!(words.contains("does not have the file \"device\""), "{words}");

        let draft = place.store.draft().expect("a draft");
        fs::write(draft.path(DEVICE_FILE), "device").expect("written");
        fs::write(draft.path(PAGES_FILE), "pages").expect("written");
        let words = refusal(draft, new(None, MemoryKind::Diff));
        assert!(words.contains("a diff without a parent"), "{words}");

        let draft = place.store.draft().expect("a draft");
        std::os::unix::fs::symlink("/etc/passwd", draft.path(MEMORY_FILE)).expect("made");
        let words = refusal(draft, new(None, MemoryKind::Full));
        assert!(words.contains("`memory` is not an ordinary file"), "{words}");

        let parent = place.full("no disk");
        let draft = place.store.draft().expect("a draft");
        for name in [PAGES_FILE, DEVICE_FILE, "disk-0"] {
            fs::write(draft.path(name), name).expect("written");
        }
        let words = refusal(draft, NewSnapshot { disks: vec![layer(true)], ..new(Some(&parent), MemoryKind::Diff) });
        assert!(words.contains("a layer of disk 0 on its parent"), "{words}");
        assert_eq!(place.names(), [parent.id().as_str()]);
    }

    #[test]
    fn a_chain_ends_at_its_bound() {
        let place = place();
        let mut last = place.full("root");
        for number in 1..CHAIN_MAX {
            last = place.diff(&last, 0, &number.to_string());
        }
        assert_eq!(place.store.open(last.id()).expect("opens").links().len(), CHAIN_MAX);
        let draft = place.store.draft().expect("a draft");
        let error = draft.publish(new(Some(&last), MemoryKind::Diff)).expect_err("too long");
        assert!(matches!(error, SnapshotError::ChainTooLong { id, .. } if id == *last.id()));
        assert_eq!(place.names().len(), CHAIN_MAX);
    }

    #[test]
    fn a_parent_that_is_gone_is_named() {
        let place = place();
        let parent = place.full("root");
        fs::remove_dir_all(place.store.path(parent.id())).expect("removed");
        let draft = place.store.draft().expect("a draft");
        let error = draft.publish(new(Some(&parent), MemoryKind::Diff)).expect_err("its parent is gone");
        assert!(matches!(error, SnapshotError::MissingLink { missing, .. } if missing == *parent.id()));
    }
}
