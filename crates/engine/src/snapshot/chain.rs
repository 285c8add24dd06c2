//! A snapshot that is open: its links from the full root to itself, each locked for as long as anybody has a copy.
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

/// Links of a chain, the root included. A longer one is [compacted](SnapshotStore::compact) first.
pub(crate) const CHAIN_MAX: usize = 64;

/// A snapshot that can be restored: it was checked, and nobody removes it or what it lies on while a copy of this lives.
///
/// Paths stay right for as long as nobody compacts a link, which moves its directory: ask for them when they are needed.
#[derive(Debug, Clone)]
pub struct Snapshot {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: SnapshotStore,
    /// Root first, never empty.
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

    /// Its name.
    pub fn id(&self) -> &SnapshotId {
        &self.manifest().id
    }

    /// What it is. Once it is sealed, with the checksums.
    pub fn manifest(&self) -> &Manifest {
        self.leaf().manifest()
    }

    /// The snapshot that it lies on.
    pub fn parent(&self) -> Option<&SnapshotId> {
        self.manifest().parent.as_ref()
    }

    /// The chain: the root first, this snapshot last.
    pub fn links(&self) -> impl DoubleEndedIterator<Item = &Link> + ExactSizeIterator {
        self.inner.links.iter().map(Arc::as_ref)
    }

    /// The memory file on which the [`page_files`](Self::page_files) lie.
    pub fn memory_root(&self) -> Utf8PathBuf {
        self.links().nth(self.memory_start()).expect("`memory_start` is one of them").path(MEMORY_FILE)
    }

    /// The diffs' page files, oldest first. The newest has the last word.
    pub fn page_files(&self) -> Vec<Utf8PathBuf> {
        self.links().skip(self.memory_start() + 1).map(|link| link.path(PAGES_FILE)).collect()
    }

    /// The device state.
    pub fn device(&self) -> Utf8PathBuf {
        self.leaf().path(DEVICE_FILE)
    }

    /// The layers of a disk that can be written, the lowest first; none for other disks.
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

    /// The locks. A process that inherits copies of them keeps the snapshot, and all that it lies on, from being removed,
    /// also when this process ends. They must be copied (`dup`), not opened anew.
    pub(crate) fn lock_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.inner.links.iter().map(|link| link.dir.as_fd()).collect()
    }

    /// Bytes that were read to check it when it was opened: none when its files were checked before.
    pub fn hashed_bytes(&self) -> u64 {
        self.inner.hashed_bytes
    }

    /// What its own files take on disk, without those that it lies on.
    ///
    /// # Errors
    /// They can't be looked at.
    pub fn bytes_on_disk(&self) -> Result<u64, SnapshotError> {
        let dir = self.leaf().dir();
        dir.bytes_on_disk().map_err(|source| SnapshotError::io("look at", dir.path(), source))
    }

    /// It and all that it lies on are on disk with their checksums.
    pub fn is_sealed(&self) -> bool {
        self.links().all(Link::is_sealed)
    }

    /// Puts it and all that it lies on on disk, with checksums: then it outlives a crash of the host. Reads all its memory
    /// once, and waits for another process that does so already. Does nothing when it is sealed.
    ///
    /// # Errors
    /// [`SnapshotError::Broken`] when a file was written to in the meantime; or it can't be read or written.
    pub fn seal(&self) -> Result<(), SnapshotError> {
        self.links().try_for_each(|link| seal_link(&self.inner.store, link))
    }

    pub(super) fn leaf(&self) -> &Link {
        self.inner.links.last().expect("a chain has at least the snapshot itself")
    }

    pub(super) fn shared_links(&self) -> &[Arc<Link>] {
        &self.inner.links
    }

    /// Place of the link on whose memory all later pages lie.
    fn memory_start(&self) -> usize {
        let full = |link: &Link| link.manifest().memory == MemoryKind::Full;
        // A diff without a parent is refused, so the root at least is full.
        self.links().rposition(full).unwrap_or(0)
    }
}

impl Link {
    pub(super) fn new(dir: LockedDir, manifest: Manifest) -> Self {
        Self { dir, manifest, sealed: OnceLock::new() }
    }

    /// Its name.
    pub fn id(&self) -> &SnapshotId {
        &self.manifest.id
    }

    /// What it is.
    pub fn manifest(&self) -> &Manifest {
        self.sealed.get().unwrap_or(&self.manifest)
    }

    /// Its directory.
    pub fn directory(&self) -> Utf8PathBuf {
        self.dir.path()
    }

    /// A file of it.
    pub fn path(&self, file: &str) -> Utf8PathBuf {
        self.directory().join(file)
    }

    /// It is on disk, with checksums.
    pub fn is_sealed(&self) -> bool {
        self.manifest().seal == Seal::Done
    }

    pub(super) fn dir(&self) -> &LockedDir {
        &self.dir
    }

    /// Takes the manifest with the checksums in place of the one without. Of two sealers the first wins.
    pub(super) fn set_sealed(&self, manifest: Manifest) {
        debug_assert_eq!(manifest.seal, Seal::Done, "only a sealed manifest has checksums");
        let _ = self.sealed.set(manifest);
    }
}
