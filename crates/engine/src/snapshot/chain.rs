//! An open snapshot: all snapshots of its chain, from the full root to itself. Each is locked as long as a copy of this
//! lives.
//!
//! ```text
//!   root: memory ──▶ diff: pages ──▶ … ──▶ the snapshot itself: pages, device
//!         disk-0 ◀── disk-0 (overlay) ◀── disk-0 (overlay)
//! ```

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::{Arc, OnceLock};

use camino::Utf8PathBuf;

use super::check::{DEVICE_FILE, MEMORY_FILE, PAGES_FILE};
use super::error::SnapshotError;
use super::id::SnapshotId;
use super::locked_dir::LockedDir;
use super::manifest::{Manifest, MemoryKind, Seal};
use super::seal::seal_link;
use super::store::SnapshotStore;

/// Snapshots in a chain, the root included. A longer chain has to be [compacted](SnapshotStore::compact) first.
pub(crate) const CHAIN_MAX: usize = 64;

/// A snapshot that can be restored. It was checked, and neither it nor an ancestor can be removed while a copy of this
/// lives.
///
/// Compacting a link moves its directory, which changes paths. So request paths when they are needed.
#[derive(Debug, Clone)]
pub struct Snapshot {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: SnapshotStore,
    /// The root first. Never empty.
    links: Vec<Arc<Link>>,
    hashed_bytes: u64,
}

/// One snapshot of a chain.
#[derive(Debug)]
pub struct Link {
    dir: LockedDir,
    manifest: Manifest,
    sealed: OnceLock<Manifest>,
}

impl Snapshot {
    /// `links` has the root first and is not empty.
    pub(super) fn new(store: SnapshotStore, links: Vec<Arc<Link>>, hashed_bytes: u64) -> Self {
        assert!(!links.is_empty(), "a chain has at least the snapshot itself");
        Self { inner: Arc::new(Inner { store, links, hashed_bytes }) }
    }

    /// Its id.
    pub fn id(&self) -> &SnapshotId {
        &self.manifest().id
    }

    /// Its manifest. Once it is sealed, with checksums.
    pub fn manifest(&self) -> &Manifest {
        self.leaf().manifest()
    }

    /// Its parent.
    pub fn parent(&self) -> Option<&SnapshotId> {
        self.manifest().parent.as_ref()
    }

    /// The chain: the root first, this snapshot last.
    pub fn links(&self) -> impl DoubleEndedIterator<Item = &Link> + ExactSizeIterator {
        self.inner.links.iter().map(Arc::as_ref)
    }

    /// The memory file that the [`page_files`](Self::page_files) apply to.
    pub fn memory_root(&self) -> Utf8PathBuf {
        self.links().nth(self.memory_start()).expect("`memory_start` is one of them").path(MEMORY_FILE)
    }

    /// The page files of the diffs, the oldest first. A newer file's page replaces an older file's.
    pub fn page_files(&self) -> Vec<Utf8PathBuf> {
        self.links().skip(self.memory_start() + 1).map(|link| link.path(PAGES_FILE)).collect()
    }

    /// The device state.
    pub fn device(&self) -> Utf8PathBuf {
        self.leaf().path(DEVICE_FILE)
    }

    /// The layers of a writable disk, the lowest first. Empty for other disks.
    pub fn disk_layers(&self, index: usize) -> Vec<Utf8PathBuf> {
        let mut layers = Vec::new();
        for link in self.links().rev() {
            let Some(layer) = link.manifest().disks.iter().find(|layer| layer.index == index) else { break };
            layers.push(link.path(&layer.file));
            if !layer.on_parent {
                break;
            }
        }
        layers.reverse();
        layers
    }

    /// The locks. If a process inherits copies of them, the snapshot and its ancestors can't be removed while it lives,
    /// also after this process has ended. Copy them with `dup`; opening the directory again gives another lock.
    pub(crate) fn lock_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.inner.links.iter().map(|link| link.dir.as_fd()).collect()
    }

    /// Bytes that were read to check it when it was opened. 0 if its files had been checked before.
    pub fn hashed_bytes(&self) -> u64 {
        self.inner.hashed_bytes
    }

    /// Disk space of its own files, without its ancestors'.
    ///
    /// # Errors
    /// If they can't be read.
    pub fn bytes_on_disk(&self) -> Result<u64, SnapshotError> {
        let dir = self.leaf().dir();
        dir.bytes_on_disk().map_err(|source| SnapshotError::io("inspect", dir.path(), source))
    }

    /// Whether it and all its ancestors are on disk with checksums.
    pub fn is_sealed(&self) -> bool {
        self.links().all(Link::is_sealed)
    }

    /// Writes it and all its ancestors to disk, with checksums. After that it survives a crash of the host. Reads all
    /// its memory once. If another process seals it already, waits for that. Does nothing if it is sealed.
    ///
    /// # Errors
    /// [`SnapshotError::Broken`] if a file was written to in the meantime; or a file can't be read or written.
    pub fn seal(&self) -> Result<(), SnapshotError> {
        self.links().try_for_each(|link| seal_link(&self.inner.store, link))
    }

    pub(super) fn leaf(&self) -> &Link {
        self.inner.links.last().expect("a chain has at least the snapshot itself")
    }

    pub(super) fn shared_links(&self) -> &[Arc<Link>] {
        &self.inner.links
    }

    /// Index of the link whose memory file all later page files apply to.
    fn memory_start(&self) -> usize {
        let full = |link: &Link| link.manifest().memory == MemoryKind::Full;
        // A diff without a parent is refused, so at least the root is full.
        self.links().rposition(full).unwrap_or(0)
    }
}

impl Link {
    pub(super) fn new(dir: LockedDir, manifest: Manifest) -> Self {
        Self { dir, manifest, sealed: OnceLock::new() }
    }

    /// Its id.
    pub fn id(&self) -> &SnapshotId {
        &self.manifest.id
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        self.sealed.get().unwrap_or(&self.manifest)
    }

    /// Its directory.
    pub fn directory(&self) -> Utf8PathBuf {
        self.dir.path()
    }

    /// The path of one of its files.
    pub fn path(&self, file: &str) -> Utf8PathBuf {
        self.directory().join(file)
    }

    /// Whether it is on disk with checksums.
    pub fn is_sealed(&self) -> bool {
        self.manifest().seal == Seal::Done
    }

    pub(super) fn dir(&self) -> &LockedDir {
        &self.dir
    }

    /// Replaces the manifest with the sealed one. If two threads seal at once, the first one wins.
    pub(super) fn set_sealed(&self, manifest: Manifest) {
        debug_assert_eq!(manifest.seal, Seal::Done, "only a sealed manifest has checksums");
        let _ = self.sealed.set(manifest);
    }
}
