//! Checks files against their checksums once, and remembers the result as long as the files are the same. So opening a
//! snapshot again takes one `stat` per file and reads none.
//!
//! ```text
//!   check(link) ── each file: size ── same device, inode, times as remembered ──▶ good
//!                                  └── else hash ── as in the manifest ──▶ good, remembered
//!                                                └── else ──▶ SnapshotError::Broken
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::digest::digest;
use super::error::SnapshotError;
use super::id::SnapshotId;
use super::locked_dir::LockedDir;
use super::manifest::{FileEntry, Manifest};
use crate::files::{Witness, plain_file, private_file};
use crate::home::Home;

/// Some dozens of files with 200 bytes each.
const MEMORY_BYTES_MAX: u64 = 64 << 10;

/// The directory of remembered checks.
#[derive(Debug, Clone)]
pub(super) struct Verified {
    cache: Utf8PathBuf,
    directory: Utf8PathBuf,
}

/// What is known of a snapshot's files, by name.
pub(super) type KnownFiles = BTreeMap<String, KnownFile>;

/// A file's state when it was hashed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownFile {
    witness: Witness,
    blake3: String,
}

/// Whether earlier checks count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// Files with a remembered check are not hashed again.
    Remembered,
    /// All files are hashed.
    Nothing,
}

/// The work of a check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Hashed {
    pub(super) files: usize,
    pub(super) bytes: u64,
}

impl Verified {
    pub(super) fn new(home: &Home) -> Self {
        Self { cache: home.cache(), directory: home.cache().join("verified") }
    }

    /// Checks that all files of a snapshot exist and, if it has checksums, that they match.
    pub(super) fn check(&self, dir: &LockedDir, manifest: &Manifest, trust: Trust) -> Result<Hashed, SnapshotError> {
        let id = &manifest.id;
        let known = match trust {
            Trust::Remembered => self.recall(id),
            Trust::Nothing => KnownFiles::new(),
        };
        let (mut good, mut hashed) = (KnownFiles::new(), Hashed::default());
        for entry in &manifest.files {
            let file = open_file(dir, id, entry)?;
            let Some(expected) = &entry.blake3 else { continue };
            let failed = |source| SnapshotError::io("read", dir.path().join(&entry.name), source);
            let witness = Witness::of_metadata(&file.metadata().map_err(failed)?);
            let mut found = KnownFile { witness, blake3: expected.clone() };
            if known.get(&entry.name) != Some(&found) {
                found = KnownFile::of(&file).map_err(failed)?;
                hashed.files += 1;
                hashed.bytes += entry.bytes;
            }
            if found.blake3 != *expected {
                self.forget(id);
                return Err(broken(id, &entry.name, "does not match its checksum"));
            }
            good.insert(entry.name.clone(), found);
        }
        if hashed.files > 0 {
            tracing::debug!(snapshot = %id, files = hashed.files, bytes = hashed.bytes, "checked a snapshot's files");
            self.remember(id, &good);
        }
        Ok(hashed)
    }

    /// Remembers the result. If that fails, the files are only hashed again, so the caller gets no error.
    pub(super) fn remember(&self, id: &SnapshotId, known: &KnownFiles) {
        let write = || -> io::Result<()> {
            private_file::create_dir_all(&self.directory)?;
            private_file::replace(&self.file(id), &self.cache, &serde_json::to_vec(known)?)
        };
        if let Err(error) = write() {
            tracing::debug!(snapshot = %id, %error, "failed to remember that a snapshot was checked");
        }
    }

    /// Remembers files that were not written to since they were hashed, but whose hard links have changed.
    pub(super) fn remember_relinked(&self, dir: &LockedDir, id: &SnapshotId, mut known: KnownFiles) {
        known.retain(|name, one| {
            let Ok(now) = dir.file(name).and_then(|file| file.metadata()) else { return false };
            let (before, now) = (one.witness, Witness::of_metadata(&now));
            now.settle();
            one.witness = now;
            now.is_unwritten_since(&before)
        });
        self.remember(id, &known);
    }

    /// Forgets all checks of a snapshot.
    pub(super) fn forget(&self, id: &SnapshotId) {
        // A result that can't be removed does no harm, because ids are not reused.
        let _ = fs::remove_file(self.file(id));
    }

    fn recall(&self, id: &SnapshotId) -> KnownFiles {
        let read = plain_file::read(&self.file(id), MEMORY_BYTES_MAX);
        read.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    fn file(&self, id: &SnapshotId) -> Utf8PathBuf {
        self.directory.join(format!("{id}.json"))
    }
}

impl KnownFile {
    /// Hashes a file. Its state is taken before that, so a write during the hashing makes the result invalid.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let witness = Witness::of_metadata(&file.metadata()?);
        witness.settle();
        Ok(Self { witness, blake3: digest(file)? })
    }

    /// Whether the file was not written to since it was hashed.
    pub(super) fn is_unwritten(&self, file: &File) -> io::Result<bool> {
        Ok(Witness::of_metadata(&file.metadata()?).is_unwritten_since(&self.witness))
    }

    /// The checksum.
    pub(super) fn blake3(&self) -> &str {
        &self.blake3
    }
}

/// Opens a file that has the size in the manifest.
pub(super) fn open_file(dir: &LockedDir, id: &SnapshotId, entry: &FileEntry) -> Result<File, SnapshotError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => broken(id, &entry.name, "is missing"),
        io::ErrorKind::InvalidInput => broken(id, &entry.name, "is not an ordinary file"),
        _ => SnapshotError::io("open", dir.path().join(&entry.name), source),
    };
    let file = dir.file(&entry.name).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    if bytes == entry.bytes {
        return Ok(file);
    }
    Err(broken(id, &entry.name, format!("has {bytes} bytes, not {}", entry.bytes)))
}

/// The error for a file of a snapshot that is not what it should be.
pub(super) fn broken(id: &SnapshotId, file: impl AsRef<Utf8Path>, problem: impl Into<String>) -> SnapshotError {
    SnapshotError::Broken { id: id.clone(), file: file.as_ref().to_string(), problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Snapshot;
    use crate::snapshot::testing::{Place, flip_bit, place};

    /// A chain of two with all kinds of files, sealed.
    fn chain(place: &Place) -> Snapshot {
        let root = place.full_with_disk("root");
        let diff = place.diff(&root, 1, "diff");
        diff.seal().expect("seals");
        diff
    }

    fn broken_file(place: &Place, id: &SnapshotId) -> (SnapshotId, String) {
        match place.store.open(id).expect_err("is broken") {
            SnapshotError::Broken { id, file, .. } => (id, file),
            other => panic!("{other}"),
        }
    }

    #[test]
    fn a_bit_that_changed_is_found_in_every_file_of_the_chain() {
        for (link, name) in [(0, "memory"), (0, "device"), (0, "disk-0"), (1, "pages"), (1, "device"), (1, "disk-0")] {
            let place = place();
            let snapshot = chain(&place);
            let link = snapshot.links().nth(link).expect("two links");
            flip_bit(&link.path(name));
            assert_eq!(broken_file(&place, snapshot.id()), (link.id().clone(), name.to_owned()));
            let words = place.store.open(snapshot.id()).expect_err("still is").to_string();
            assert!(words.ends_with(&format!("`{name}` does not match its checksum")), "{words}");
        }
    }

    #[test]
    fn a_broken_snapshot_leaves_its_parent_usable() {
        let place = place();
        let snapshot = chain(&place);
        flip_bit(&snapshot.leaf().path("pages"));
        assert_eq!(broken_file(&place, snapshot.id()).0, *snapshot.id());
        place.store.open(snapshot.parent().expect("has one")).expect("the full one is whole");
    }

    #[test]
    fn a_cut_or_missing_or_special_file_is_found() {
        let place = place();
        let snapshot = chain(&place);
        let path = snapshot.device();
        let contents = fs::read(&path).expect("reads");
        let problem = || place.store.open(snapshot.id()).expect_err("is broken").to_string();

        fs::remove_file(&path).expect("removed");
        assert!(problem().ends_with("`device` is missing"));
        fs::write(&path, &contents[1..]).expect("written");
        assert!(problem().ends_with("`device` has 13 bytes, not 14"), "{}", problem());
        fs::remove_file(&path).expect("removed");
        std::os::unix::fs::symlink("/etc/passwd", &path).expect("made");
        assert!(problem().ends_with("`device` is not an ordinary file"));
        fs::remove_file(&path).expect("removed");
        rustix::fs::mknodat(rustix::fs::CWD, path.as_std_path(), rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .expect("a pipe");
        assert!(problem().ends_with("`device` is not an ordinary file"));
        fs::remove_file(&path).expect("removed");
        fs::write(&path, &contents).expect("written");
        place.store.open(snapshot.id()).expect("is as it was");
    }

    #[test]
    fn an_untouched_file_is_hashed_once() {
        let place = place();
        let id = chain(&place).id().clone();
        let all = (1 << 20) + 3 * 4096;
        assert_eq!(place.store.open(&id).expect("opens").hashed_bytes(), 0, "sealing has hashed it");

        fs::remove_dir_all(place.home.cache()).expect("a cache can be removed at any time");
        let first = place.store.open(&id).expect("opens").hashed_bytes();
        assert!((all - 4096..all + 4096).contains(&first), "{first}");
        assert_eq!(place.store.open(&id).expect("opens").hashed_bytes(), 0);

        // Its times change, but its contents don't. That costs one more reading of this file only.
        let device = place.store.path(&id).join("device");
        let contents = fs::read(&device).expect("reads");
        fs::remove_file(&device).expect("removed");
        fs::write(&device, &contents).expect("written");
        assert_eq!(place.store.open(&id).expect("opens").hashed_bytes(), contents.len() as u64);
        assert_eq!(place.store.open(&id).expect("opens").hashed_bytes(), 0);
    }

    #[test]
    fn remembered_garbage_and_other_checksums_do_not_count() {
        let place = place();
        let snapshot = place.full("root");
        snapshot.seal().expect("seals");
        let remembered = place.home.cache().join(format!("verified/{}.json", snapshot.id()));
        fs::write(&remembered, vec![b'['; 1 << 20]).expect("written");
        assert!(place.store.open(snapshot.id()).expect("opens").hashed_bytes() > 0);

        place.forge(snapshot.id(), |manifest| manifest["files"][0]["blake3"] = "0".repeat(64).into());
        assert_eq!(broken_file(&place, snapshot.id()).1, "device");
    }

    #[test]
    fn verify_reads_all_of_it_again() {
        let place = place();
        let snapshot = chain(&place);
        let report = place.store.verify(snapshot.id()).expect("is whole");
        assert_eq!((report.files, report.unsealed.len()), (6, 0));
        assert!(report.bytes > 1 << 20);

        let pending = place.diff(&snapshot, 2, "more");
        assert_eq!(place.store.verify(pending.id()).expect("is whole").unsealed, [pending.id().clone()]);

        // A failing disk does not change a file's times. Here the remembered check is changed to fit.
        flip_bit(&snapshot.leaf().path("disk-0"));
        let dir = snapshot.leaf().dir();
        let lie = snapshot.manifest().files.iter().map(|entry| {
            let file = dir.file(&entry.name).expect("opens");
            let witness = Witness::of_metadata(&file.metadata().expect("facts"));
            (entry.name.clone(), KnownFile { witness, blake3: entry.blake3.clone().expect("is sealed") })
        });
        place.store.verified().remember(snapshot.id(), &lie.collect());
        place.store.open(snapshot.id()).expect("is remembered as good");
        let error = place.store.verify(snapshot.id()).expect_err("is broken");
        assert!(matches!(error, SnapshotError::Broken { file, .. } if file == "disk-0"));
        assert_eq!(broken_file(&place, snapshot.id()).1, "disk-0");
    }
}
