//! Makes a snapshot durable: writes to disk what one rename has published, and adds checksums.
//!
//! ```text
//!   manifest.json (pending) ──lock──▶ each file: fsync, hash ──▶ manifest.json.tmp
//!                                     manifest.json (done) ◀──rename, fsync──┘
//! ```
//! The lock is on the file of the pending manifest itself. The process that gets it second finds another file under
//! that name, and reads the new manifest.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use camino::Utf8Path;
use fs_err as fs;

use super::chain::Link;
use super::check::{MEMORY_FILE, read_manifest};
use super::error::SnapshotError;
use super::locked_dir::{Hold, LockedDir, lock_until};
use super::manifest::{MANIFEST_FILE, Manifest, Seal};
use super::memory;
use super::store::SnapshotStore;
use super::verified::{KnownFile, KnownFiles, broken, open_file};
use crate::failpoint;
use crate::files::Witness;

/// How long to wait for another process that seals the same snapshot: some gigabytes on a slow disk.
const SEAL_PATIENCE: Duration = Duration::from_secs(10 * 60);

/// Identifies this boot of the host.
pub(super) fn host_boot_id() -> Result<String, SnapshotError> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(path).map_err(|error| SnapshotError::io("read", path, error))?;
    Ok(text.trim().to_owned())
}

/// Seals one link, if it is not sealed already.
pub(super) fn seal_link(store: &SnapshotStore, link: &Link) -> Result<(), SnapshotError> {
    if link.is_sealed() {
        return Ok(());
    }
    let _lock = lock_manifest(link.dir())?;
    let manifest = read_manifest(link.dir(), link.id())?;
    if manifest.seal == Seal::Done {
        link.set_sealed(manifest);
        return Ok(());
    }
    let (manifest, known) = seal_files(link.dir(), manifest)?;
    // The seal has synced the snapshot's own directory. The rename that published it changed the store's directory,
    // which is synced here. Only now a crash of the host leaves the snapshot under its name.
    store.sync()?;
    store.verified().remember(link.id(), &known);
    link.set_sealed(manifest);
    Ok(())
}

/// Keeps other processes from sealing or compacting the snapshot meanwhile. A seal replaces the manifest by a rename,
/// so a process that waited may hold the lock of the old file. It checks the name after locking, and starts again if
/// another file has it.
pub(super) fn lock_manifest(dir: &LockedDir) -> Result<File, SnapshotError> {
    let path = || dir.path().join(MANIFEST_FILE);
    let deadline = Instant::now() + SEAL_PATIENCE;
    loop {
        let file = dir.file(MANIFEST_FILE).map_err(|error| SnapshotError::io("open", path(), error))?;
        lock_until(&file, Hold::Exclusive, deadline).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => SnapshotError::Locked { path: path(), waited: SEAL_PATIENCE },
            _ => SnapshotError::io("lock", path(), error),
        })?;
        let now = dir.file(MANIFEST_FILE).and_then(|file| file.metadata());
        let held = file.metadata();
        let witness = |meta: &_| Witness::of_metadata(meta);
        if now.as_ref().map(witness).ok() == held.as_ref().map(witness).ok() {
            return Ok(file);
        }
    }
}

/// Syncs and hashes the files of a directory, then replaces its manifest.
///
/// The order matters for a crash of the host. All files are on disk before the manifest that has their checksums, so a
/// manifest that is sealed never names a file that is not on disk. A crash before the rename leaves the pending
/// manifest, which the next boot refuses because of its boot id. The state of each file is taken before it is hashed
/// and compared after it, so a write in between is found.
pub(super) fn seal_files(dir: &LockedDir, mut manifest: Manifest) -> Result<(Manifest, KnownFiles), SnapshotError> {
    let id = manifest.id.clone();
    let mut known = KnownFiles::new();
    for entry in &mut manifest.files {
        if entry.name == MEMORY_FILE {
            give_back_room(&dir.path().join(MEMORY_FILE));
        }
        let file = open_file(dir, &id, entry)?;
        let failed = |error| SnapshotError::io("sync and hash", dir.path().join(&entry.name), error);
        file.sync_all().map_err(failed)?;
        let found = KnownFile::of(&file).map_err(failed)?;
        if !found.is_unwritten(&file).map_err(failed)? {
            return Err(broken(&id, &entry.name, "was written to while it was sealed"));
        }
        entry.blake3 = Some(found.blake3().to_owned());
        known.insert(entry.name.clone(), found);
    }
    failpoint::hit("seal.hashed")?;
    manifest.seal = Seal::Done;
    write_manifest(dir, &manifest)?;
    failpoint::hit("seal.renamed")?;
    Ok((manifest, known))
}

/// Guest memory reserves room on the disk for all of it. Frees what was never written. If that fails, the snapshot is
/// only larger.
fn give_back_room(memory: &Utf8Path) {
    let punched = fs::OpenOptions::new().write(true).open(memory).and_then(|file| memory::punch_zeros(file.file()));
    if let Err(error) = punched {
        tracing::debug!(%error, "failed to make holes in a snapshot's memory");
    }
}

fn write_manifest(dir: &LockedDir, manifest: &Manifest) -> Result<(), SnapshotError> {
    let bytes = serde_json::to_vec_pretty(manifest).expect("a manifest has no maps with odd keys");
    dir.replace(MANIFEST_FILE, &bytes)
        .map_err(|error| SnapshotError::io("write", dir.path().join(MANIFEST_FILE), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::SnapshotError;
    use crate::snapshot::testing::{flip_bit, place};

    #[test]
    fn a_sealed_snapshot_has_the_checksums_of_its_files() {
        let place = place();
        let root = place.full("root");
        let diff = place.diff(&root, 1, "diff");
        diff.seal().expect("seals");
        assert!(diff.is_sealed() && root.is_sealed());
        for entry in &diff.manifest().files {
            let contents = fs::read(diff.leaf().path(&entry.name)).expect("reads");
            assert_eq!(entry.blake3, Some(blake3::hash(&contents).to_hex().to_string()), "{}", entry.name);
        }
        let opened = place.store.open(diff.id()).expect("opens");
        assert!(opened.is_sealed());
        assert_eq!(opened.manifest(), diff.manifest());
        assert_eq!(opened.hashed_bytes(), 0);
        diff.seal().expect("is sealed already");
    }

    #[test]
    fn several_sealers_at_once_agree() {
        let place = place();
        let id = place.full("root").id().clone();
        let snapshots: Vec<_> = (0..4).map(|_| place.store.open(&id).expect("opens")).collect();
        std::thread::scope(|scope| {
            for snapshot in &snapshots {
                scope.spawn(|| snapshot.seal().expect("seals"));
            }
        });
        for snapshot in &snapshots {
            assert!(snapshot.is_sealed());
            assert_eq!(snapshot.manifest(), snapshots[0].manifest());
        }
        assert_eq!(place.store.open(&id).expect("opens").hashed_bytes(), 0);
    }

    #[test]
    fn a_seal_that_a_crash_interrupted_can_be_repeated() {
        let place = place();
        let id = place.full("root").id().clone();
        let unfinished = place.store.path(&id).join("manifest.json.tmp");
        fs::write(&unfinished, "{\"format\":").expect("written");
        let snapshot = place.store.open(&id).expect("opens");
        snapshot.seal().expect("seals");
        assert!(!unfinished.exists());
        assert!(place.store.open(&id).expect("opens").is_sealed());
    }

    #[test]
    fn an_unsealed_snapshot_is_refused_after_a_reboot() {
        let place = place();
        let id = place.full("root").id().clone();
        place.store.open(&id).expect("is whole while the host runs");
        place.forge(&id, |manifest| manifest["seal"]["pending"]["host_boot_id"] = "another".into());
        let words = place.store.open(&id).expect_err("may be incomplete").to_string();
        assert!(words.contains("was not on disk yet when the host went down"), "{words}");
    }

    #[test]
    fn a_file_of_another_size_is_not_sealed() {
        let place = place();
        let snapshot = place.full("root");
        fs::OpenOptions::new().append(true).open(snapshot.memory_root()).and_then(|file| file.set_len(5)).expect("cut");
        let error = snapshot.seal().expect_err("is cut");
        assert!(matches!(error, SnapshotError::Broken { file, .. } if file == "memory"));
        assert!(!snapshot.is_sealed());
    }

    #[test]
    fn a_write_after_the_seal_is_found() {
        let place = place();
        let snapshot = place.full("root");
        snapshot.seal().expect("seals");
        flip_bit(&snapshot.memory_root());
        let error = place.store.open(snapshot.id()).expect_err("is another memory");
        assert!(matches!(error, SnapshotError::Broken { file, problem, .. }
            if file == "memory" && problem == "does not match its checksum"));
    }
}
