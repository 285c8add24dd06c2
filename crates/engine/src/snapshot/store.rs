//! The store of snapshots: `$KILN_HOME/snapshots/<id>/`. All functions block; async callers use
//! [`blocking`](crate::blocking).
//!
//! ```text
//!   draft ──files──▶ publish ──▶ snapshots/<id>/ ◀──▶ open, seal, verify, list
//!                                   │        ▲
//!                   remove ◀────────┘        └── compact: a full one in place of a diff, of the same name
//! ```
//! Several processes use the store at once, without a process that coordinates them. Two rules make that safe: each
//! directory has a lock (`locked_dir.rs`), and a directory appears, moves and disappears only by a rename.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::chain::{CHAIN_MAX, Link, Snapshot};
use super::check::{check_boot, check_parent, read_manifest};
use super::draft::Draft;
use super::error::SnapshotError;
use super::id::SnapshotId;
use super::locked_dir::{Hold, LockedDir};
use super::manifest::{MANIFEST_FILE, Seal};
use super::seal::host_boot_id;
use super::verified::{Hashed, Trust, Verified, broken};
use crate::files::{PARTIAL_SUFFIX, partials, sweep};
use crate::hex_id::random_hex;
use crate::home::Home;

/// How long to wait for a remover or a publisher, which holds the directory only for a moment.
pub(super) const OPEN_PATIENCE: Duration = Duration::from_secs(5);
/// How long a remover waits for processes that hold a lock only for a moment: [`SnapshotStore::list`], and a child
/// between `fork` and `exec`.
const REMOVE_PATIENCE: Duration = Duration::from_millis(50);
/// Each attempt fails only if a compaction and a removal come between.
const OPEN_ATTEMPTS_MAX: usize = 3;
/// Children that an error lists by id.
const NAMED_CHILDREN_MAX: usize = 3;

/// The snapshots of a home. Making this value does no I/O.
///
/// ```no_run
/// use kiln_engine::home::Home;
/// use kiln_engine::snapshot::{SnapshotId, SnapshotStore};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = SnapshotStore::new(&Home::from_env()?);
/// let id: SnapshotId = "0123456789abcdef".parse()?;
/// // Checked and locked: it can't be removed before `snapshot` and its copies are dropped.
/// let snapshot = store.open(&id)?;
/// println!("memory {} and {} diffs", snapshot.memory_root(), snapshot.page_files().len());
/// snapshot.seal()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct SnapshotStore {
    directory: Utf8PathBuf,
    verified: Verified,
}

/// What [`SnapshotStore::verify`] has read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Files that match their checksums.
    pub files: usize,
    /// The size of these files, holes included.
    pub bytes: u64,
    /// Snapshots without checksums: their files exist and have the right sizes.
    pub unsealed: Vec<SnapshotId>,
}

impl SnapshotStore {
    /// The store of a home.
    pub fn new(home: &Home) -> Self {
        Self { directory: home.snapshots(), verified: Verified::new(home) }
    }

    /// Starts a new snapshot.
    ///
    /// # Errors
    /// Its directory can't be made.
    pub(crate) fn draft(&self) -> Result<Draft, SnapshotError> {
        Draft::create(self)
    }

    /// Opens a snapshot and its ancestors, so that it can be restored. Files that were checked before and not touched
    /// since are not read.
    ///
    /// A snapshot that is not [sealed](Snapshot::is_sealed) is whole as long as the host runs.
    ///
    /// # Errors
    /// [`SnapshotError::Unknown`], [`SnapshotError::MissingLink`], [`SnapshotError::Broken`]; or it can't be read.
    pub fn open(&self, id: &SnapshotId) -> Result<Snapshot, SnapshotError> {
        let (links, hashed) = self.open_chain(id, Trust::Remembered)?;
        Ok(Snapshot::new(self.clone(), links, hashed.bytes))
    }

    /// Reads all files of a snapshot and of its ancestors, even if they were checked before.
    ///
    /// # Errors
    /// See [`SnapshotStore::open`].
    pub fn verify(&self, id: &SnapshotId) -> Result<VerifyReport, SnapshotError> {
        let (links, hashed) = self.open_chain(id, Trust::Nothing)?;
        let unsealed = links.iter().filter(|link| !link.is_sealed()).map(|link| link.id().clone()).collect();
        Ok(VerifyReport { files: hashed.files, bytes: hashed.bytes, unsealed })
    }

    /// Removes a snapshot and the ready-made keys that name it.
    ///
    /// A user takes a shared lock on each snapshot of a chain, the child first and then its parent. So while a child is
    /// being opened, its parent may not be locked yet, and the exclusive lock on the parent is not enough. But then the
    /// child is in the store, and listing the children under the lock finds it. A child can't appear after that either,
    /// because its publisher holds a shared lock on the parent.
    ///
    /// # Errors
    /// [`SnapshotError::Unknown`]; [`SnapshotError::InUse`] if a VM or a command uses it or it has children; or it
    /// can't be removed.
    pub fn remove(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        let path = self.path(id);
        let held = LockedDir::open(&path, Hold::Exclusive, REMOVE_PATIENCE).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => self.in_use(id, "by a VM or a command".into()),
            _ => SnapshotError::io("lock", &path, error),
        })?;
        // The lock is held until the directory is removed.
        let Some(_lock) = held else { return Err(SnapshotError::Unknown(id.clone())) };
        let children = self.children()?.remove(id).unwrap_or_default();
        if !children.is_empty() {
            return Err(self.in_use(id, as_parent_of(&children)));
        }
        let doomed = self.directory.join(format!("{id}-{}{PARTIAL_SUFFIX}", random_hex::<8>()));
        let failed = |error| SnapshotError::io("remove", &path, error);
        // The directory first loses its name by one rename, and its files are removed after that. A process that opens
        // the snapshot meanwhile finds all files or no snapshot, never some of the files. If this process is killed in
        // between, the new name marks a partial directory, and the next sweep removes it.
        fs::rename(&path, &doomed).map_err(failed)?;
        self.verified.forget(id);
        self.forget_ready(id)?;
        fs::remove_dir_all(&doomed).map_err(failed)?;
        tracing::info!(snapshot = %id, "removed a snapshot");
        self.sweep();
        Ok(())
    }

    /// Whether it has children.
    pub(crate) fn is_parent(&self, id: &SnapshotId) -> Result<bool, SnapshotError> {
        Ok(self.children()?.get(id).is_some_and(|children| !children.is_empty()))
    }

    /// Removes directories without a user: old forms of compacted snapshots, and drafts of processes that have ended.
    pub(crate) fn sweep(&self) {
        let swept = partials(&self.directory).and_then(|found| found.iter().try_for_each(|path| sweep(path).map(drop)));
        if let Err(error) = swept {
            tracing::debug!(path = %self.directory, %error, "failed to sweep the snapshots");
        }
    }

    /// Removes a snapshot that was published a moment ago.
    pub(super) fn withdraw(&self, id: &SnapshotId) {
        let doomed = self.directory.join(format!("{id}-{}{PARTIAL_SUFFIX}", random_hex::<8>()));
        // If it can't be removed, a later sweep does it.
        if let Err(error) = fs::rename(self.path(id), &doomed).and_then(|()| fs::remove_dir_all(&doomed)) {
            tracing::warn!(snapshot = %id, %error, "failed to take back a snapshot");
        }
    }

    fn in_use(&self, id: &SnapshotId, by: String) -> SnapshotError {
        SnapshotError::InUse { id: id.clone(), by }
    }

    /// The links, root first, and what had to be hashed.
    fn open_chain(&self, id: &SnapshotId, trust: Trust) -> Result<(Vec<Arc<Link>>, Hashed), SnapshotError> {
        let mut attempt = 1;
        let links = loop {
            match self.lock_chain(id) {
                // A compaction replaces a diff with a full snapshot, and then the diff's parent may be removed. If that
                // happens between reading the diff's manifest and locking its parent, the parent is missing although
                // the snapshot is whole. The next attempt reads the manifest of the full one.
                Err(SnapshotError::MissingLink { .. }) if attempt < OPEN_ATTEMPTS_MAX => attempt += 1,
                other => break other?,
            }
        };
        for pair in links.windows(2) {
            check_parent(pair[1].manifest(), pair[0].manifest())?;
        }
        let mut hashed = Hashed::default();
        for link in &links {
            let more = self.verified.check(link.dir(), link.manifest(), trust)?;
            hashed.files += more.files;
            hashed.bytes += more.bytes;
        }
        Ok((links, hashed))
    }

    fn lock_chain(&self, id: &SnapshotId) -> Result<Vec<Arc<Link>>, SnapshotError> {
        let mut links: Vec<Arc<Link>> = Vec::new();
        let mut boot_id = None;
        let mut next = Some(id.clone());
        while let Some(current) = next {
            if links.len() == CHAIN_MAX || links.iter().any(|link| *link.id() == current) {
                let problem = format!("leads to itself, or to more than {CHAIN_MAX} snapshots");
                return Err(broken(id, MANIFEST_FILE, problem));
            }
            // The child is locked before its parent, and stays locked. A remover of the parent that comes in between
            // finds the child in the store and refuses. The other order is impossible: only the child's manifest names
            // the parent.
            let dir = match self.lock_shared(&current)? {
                Some(dir) => dir,
                None if links.is_empty() => return Err(SnapshotError::Unknown(current)),
                None => return Err(SnapshotError::MissingLink { of: id.clone(), missing: current }),
            };
            let manifest = read_manifest(&dir, &current)?;
            if manifest.seal != Seal::Done {
                let boot_id = match &mut boot_id {
                    Some(known) => known,
                    unknown => unknown.insert(host_boot_id()?),
                };
                check_boot(&manifest, boot_id)?;
            }
            next = manifest.parent.clone();
            links.push(Arc::new(Link::new(dir, manifest)));
        }
        links.reverse();
        Ok(links)
    }

    fn lock_shared(&self, id: &SnapshotId) -> Result<Option<LockedDir>, SnapshotError> {
        let path = self.path(id);
        LockedDir::open(&path, Hold::Shared, OPEN_PATIENCE).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => SnapshotError::Locked { path, waited: OPEN_PATIENCE },
            _ => SnapshotError::io("lock", path, error),
        })
    }

    /// All ids in the store, of good and broken snapshots.
    pub(super) fn ids(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        let failed = |error| SnapshotError::io("list", &self.directory, error);
        let entries = match self.directory.read_dir_utf8() {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if let Ok(id) = entry.file_name().parse()
                && entry.file_type().is_ok_and(|kind| kind.is_dir())
            {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }

    /// The children of each snapshot, as far as manifests can be read.
    fn children(&self) -> Result<BTreeMap<SnapshotId, Vec<SnapshotId>>, SnapshotError> {
        let mut children = BTreeMap::<_, Vec<_>>::new();
        for id in self.ids()? {
            let dir = LockedDir::open_unlocked(&self.path(&id));
            if let Ok(Some(dir)) = dir
                && let Ok(manifest) = read_manifest(&dir, &id)
                && let Some(parent) = manifest.parent
            {
                children.entry(parent).or_default().push(id);
            }
        }
        Ok(children)
    }

    /// Syncs the store's directory, so that its names are on disk.
    pub(super) fn sync(&self) -> Result<(), SnapshotError> {
        let synced = fs::File::open(&self.directory).and_then(|directory| directory.sync_all());
        synced.map_err(|error| SnapshotError::io("sync", &self.directory, error))
    }

    pub(super) fn directory(&self) -> &Utf8Path {
        &self.directory
    }

    pub(super) fn path(&self, id: &SnapshotId) -> Utf8PathBuf {
        self.directory.join(id.as_str())
    }

    pub(super) fn verified(&self) -> &Verified {
        &self.verified
    }
}

fn as_parent_of(children: &[SnapshotId]) -> String {
    let named = children.iter().take(NAMED_CHILDREN_MAX).map(|id| format!("`{id}`")).collect::<Vec<_>>().join(", ");
    match children.len().saturating_sub(NAMED_CHILDREN_MAX) {
        0 => format!("as the parent of {named}"),
        more => format!("as the parent of {named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::testing::place;

    #[test]
    fn a_chain_gives_its_files_from_the_root_on() {
        let place = place();
        let root = place.full_with_disk("root");
        let middle = place.diff(&root, 1, "middle");
        let leaf = place.diff(&middle, 2, "leaf");
        for snapshot in [leaf.clone(), place.store.open(leaf.id()).expect("opens")] {
            let ids: Vec<_> = snapshot.links().map(|link| link.id().clone()).collect();
            assert_eq!(ids, [root.id().clone(), middle.id().clone(), leaf.id().clone()]);
            assert_eq!(snapshot.parent(), Some(middle.id()));
            assert_eq!(snapshot.memory_root(), root.memory_root());
            let file = |of: &Snapshot, name| place.store.path(of.id()).join(name);
            assert_eq!(snapshot.page_files(), [file(&middle, "pages"), file(&leaf, "pages")]);
            assert_eq!(snapshot.device(), file(&leaf, "device"));
            let disks = [&root, &middle, &leaf].map(|of| file(of, "disk-0"));
            assert_eq!(snapshot.disk_layers(0), disks);
            assert_eq!(snapshot.disk_layers(1), [] as [Utf8PathBuf; 0]);
            assert_eq!(snapshot.lock_fds().len(), 3);
        }
    }

    #[test]
    fn a_missing_parent_is_named_with_its_child() {
        let place = place();
        let root = place.full("root");
        let middle = place.diff(&root, 1, "middle");
        let leaf = place.diff(&middle, 2, "leaf");
        fs::remove_dir_all(place.store.path(middle.id())).expect("removed");
        let error = place.store.open(leaf.id()).expect_err("has a gap");
        assert!(
            matches!(&error, SnapshotError::MissingLink { of, missing } if of == leaf.id() && missing == middle.id())
        );
        place.store.open(root.id()).expect("the full one is whole");
        let unknown = SnapshotId::random();
        assert!(matches!(place.store.open(&unknown), Err(SnapshotError::Unknown(id)) if id == unknown));
    }

    #[test]
    fn a_snapshot_in_use_or_with_children_is_not_removed() {
        let place = place();
        let full = place.full("root");
        let leaf = place.diff(&full, 1, "leaf");
        let (root, leaf_id) = (full.id().clone(), leaf.id().clone());
        drop(full);
        let reason = |id| match place.store.remove(id).expect_err("is in use") {
            SnapshotError::InUse { by, .. } => by,
            other => panic!("{other}"),
        };
        assert_eq!(reason(&leaf_id), "by a VM or a command");
        assert_eq!(reason(&root), "by a VM or a command", "the leaf's user needs the root too");

        // Like a VMM that inherited it.
        let inherited = leaf.lock_fds()[1].try_clone_to_owned().expect("copied");
        drop(leaf);
        assert_eq!(reason(&leaf_id), "by a VM or a command");
        drop(inherited);
        assert_eq!(reason(&root), format!("as the parent of `{leaf_id}`"));

        place.store.remove(&leaf_id).expect("is free");
        assert!(matches!(place.store.remove(&leaf_id), Err(SnapshotError::Unknown(_))));
        place.store.remove(&root).expect("is free");
        assert_eq!(place.names(), [] as [&str; 0]);
    }

    #[test]
    fn removing_a_snapshot_forgets_its_checks() {
        let place = place();
        let snapshot = place.full("root");
        snapshot.seal().expect("seals");
        let (id, remembered) = (snapshot.id().clone(), place.home.cache().join("verified"));
        assert_eq!(fs::read_dir(&remembered).expect("lists").count(), 1);
        drop(snapshot);
        place.store.remove(&id).expect("is free");
        assert_eq!(fs::read_dir(&remembered).expect("lists").count(), 0);
    }

    #[test]
    fn an_error_names_only_some_of_many_children() {
        let ids: Vec<SnapshotId> = (0..5).map(|_| SnapshotId::random()).collect();
        let words = as_parent_of(&ids);
        assert!(words.ends_with(&format!("`{}` and 2 more", ids[2])), "{words}");
    }

    #[test]
    fn a_concurrent_open_and_remove_end_with_a_whole_snapshot_or_no_snapshot() {
        let place = place();
        for _ in 0..50 {
            let id = place.full("short-lived").id().clone();
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| match place.store.open(&id) {
                        Ok(snapshot) => drop(fs::read(snapshot.memory_root()).expect("stays while it is held")),
                        Err(SnapshotError::Unknown(_)) => {}
                        Err(other) => panic!("{other}"),
                    });
                }
                scope.spawn(|| match place.store.remove(&id) {
                    Ok(()) | Err(SnapshotError::InUse { .. }) => {}
                    Err(other) => panic!("{other}"),
                });
            });
        }
    }

    #[test]
    fn a_chain_opens_at_any_moment_of_a_compaction_below_it() {
        let place = place();
        for _ in 0..10 {
            let [root, leaf, child] = {
                let root = place.full("root");
                let leaf = place.diff(&root, 1, "leaf");
                let child = place.diff(&leaf, 2, "child");
                [&root, &leaf, &child].map(|snapshot| snapshot.id().clone())
            };
            let done = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        let snapshot = place.store.open(&child).expect("is whole at any time");
                        fs::metadata(snapshot.device()).expect("is there");
                    }
                });
                place.store.compact(&leaf).expect("compacts");
                // In use at most by the other thread, for a moment.
                let removed = (0..1000).find(|_| place.store.remove(&root).is_ok());
                done.store(true, std::sync::atomic::Ordering::Relaxed);
                removed.expect("it has no child");
            });
        }
    }

    #[test]
    fn leftovers_of_a_crash_are_not_snapshots() {
        let place = place();
        let kept = place.full("kept");
        fs::create_dir(place.store.path(kept.id()).with_extension("partial")).expect("made");
        fs::create_dir(place.home.snapshots().join("ready")).expect("made");
        fs::write(place.home.snapshots().join("0123456789abcdef"), "a file").expect("written");
        std::os::unix::fs::symlink(place.store.path(kept.id()), place.home.snapshots().join("fedcba9876543210"))
            .expect("made");
        assert_eq!(place.store.ids().expect("lists"), [kept.id().clone()]);
        for id in ["0123456789abcdef", "fedcba9876543210"] {
            let error = place.store.open(&id.parse().expect("an id")).expect_err("is not a snapshot");
            assert!(matches!(error, SnapshotError::Unknown(_)), "{error}");
        }
        assert_eq!(place.home.sweep_partials().expect("sweeps").len(), 1);
    }
}
