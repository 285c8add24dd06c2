//! Ready-made snapshots: the first run leaves one for the next runs, under a key of everything that it depends on.
//!
//! ```text
//!   snapshots/ready/<key>        holds the snapshot's id; its time is that of the last use
//!   snapshots/ready/<key>.lock   held by the one process that makes it, while others wait
//!   snapshots/ready/<id>.old     a note: it was replaced, and is to be removed once it is not in use
//! ```

use std::fs::File;
use std::io::{self, Read as _};
use std::time::{Duration, Instant, SystemTime};

use camino::Utf8PathBuf;
use fs_err as fs;
use rustix::fs::{Timespec, Timestamps, UTIME_NOW};

use super::error::SnapshotError;
use super::id::SnapshotId;
use super::locked_dir::{Hold, is_at, lock_until};
use super::store::SnapshotStore;
use crate::files::{plain_file, private_file};
use crate::hex_id::hex_id;

/// Hex digits of a key.
const KEY_DIGITS: usize = 64;
/// The end of the name of such a note.
const OLD_SUFFIX: &str = ".old";
/// The file of a key holds an id and perhaps a line break.
const NAME_BYTES_MAX: u64 = 64;

hex_id! {
    /// The key of a ready-made snapshot: 64 hex digits.
    pub ReadyKey of KEY_DIGITS digits,
    /// Text that is not a key.
    NoReadyKey: "key of a ready-made snapshot"
}

/// While it lives, no other process makes the ready-made snapshot of that key.
#[derive(Debug)]
pub(crate) struct ReadyLock {
    path: Utf8PathBuf,
    // Held, never read.
    _file: fs::File,
}

impl ReadyKey {
    /// The key of these words, in this order. Other words, or another order, give another key.
    pub(crate) fn of(words: &[&str]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for word in words {
            // Without the lengths, "a", "bc" would have the key of "ab", "c".
            hasher.update(&(word.len() as u64).to_le_bytes());
            hasher.update(word.as_bytes());
        }
        Self(hasher.finalize().to_hex().to_string())
    }
}

impl Drop for ReadyLock {
    fn drop(&mut self) {
        // The file is removed before it is unlocked. Removed after that, the file could already be the lock of the next
        // process, which would then be without a name, and a third process could lock a new file beside it. In this
        // order a waiting process gets the lock of a file without a name, `is_at` finds that out, and the process locks
        // the file that has the name now.
        let _ = fs::remove_file(&self.path);
    }
}

impl SnapshotStore {
    /// The ready-made snapshot of a key. Notes that it was used. `None` also if the snapshot was removed.
    ///
    /// # Errors
    /// The file of the key can't be read.
    pub(crate) fn ready(&self, key: &ReadyKey) -> Result<Option<SnapshotId>, SnapshotError> {
        let Some((id, file)) = self.read_ready(key)? else { return Ok(None) };
        if !self.path(&id).is_dir() {
            return Ok(None);
        }
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        // If the use can't be noted, the snapshot only looks less recently used.
        let _ = rustix::fs::futimens(&file, &Timestamps { last_access: now, last_modification: now });
        Ok(Some(id))
    }

    /// Makes a snapshot the ready-made one of a key. Returns the one that it replaces, which still exists.
    ///
    /// # Errors
    /// [`SnapshotError::Unknown`]; or the file of the key can't be written.
    pub(crate) fn set_ready(&self, key: &ReadyKey, id: &SnapshotId) -> Result<Option<SnapshotId>, SnapshotError> {
        if !self.path(id).is_dir() {
            return Err(SnapshotError::Unknown(id.clone()));
        }
        let before = self.read_ready(key)?.map(|(id, _)| id);
        let path = self.ready_path(key);
        self.write_ready(&path, id).map_err(|error| SnapshotError::io("write", path, error))?;
        Ok(before.filter(|before| before != id))
    }

    /// Waits until this is the only process that makes the ready-made snapshot of a key. After waiting, the caller
    /// first has to check whether it [exists](Self::ready) by now.
    ///
    /// # Errors
    /// [`SnapshotError::Locked`] if another process still holds it after that time; or the lock can't be made.
    pub(crate) fn ready_lock(&self, key: &ReadyKey, patience: Duration) -> Result<ReadyLock, SnapshotError> {
        let path = Utf8PathBuf::from(format!("{}.lock", self.ready_path(key)));
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock => SnapshotError::Locked { path: path.clone(), waited: patience },
            _ => SnapshotError::io("lock", &path, error),
        };
        private_file::create_dir_all(&self.ready_directory()).map_err(failed)?;
        let deadline = Instant::now() + patience;
        loop {
            let file = private_file::lock_file(&path).map_err(failed)?;
            lock_until(&file, Hold::Exclusive, deadline).map_err(failed)?;
            if is_at(&file, &path).map_err(failed)? {
                return Ok(ReadyLock { path, _file: file });
            }
        }
    }

    /// Removes a ready-made snapshot that was replaced. If it is still in use, leaves a note, so that
    /// [`trim_ready`](Self::trim_ready) removes it later.
    ///
    /// # Errors
    /// It can't be removed, or the note can't be written.
    pub(crate) fn retire(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        let note = self.ready_directory().join(format!("{id}{OLD_SUFFIX}"));
        match self.remove(id) {
            Ok(()) | Err(SnapshotError::Unknown(_)) => {
                fs::remove_file(&note).or_else(unless_gone).map_err(|error| SnapshotError::io("remove", note, error))
            }
            Err(SnapshotError::InUse { by, .. }) => {
                tracing::debug!(snapshot = %id, by, "a ready-made snapshot that was replaced stays for now");
                private_file::lock_file(&note).map(drop).map_err(|error| SnapshotError::io("write", note, error))
            }
            Err(error) => Err(error),
        }
    }

    /// Removes ready-made snapshots until at most `max` are left, the least recently used first. Snapshots in use stay.
    /// Returns the removed ones.
    ///
    /// # Errors
    /// The store can't be read, or a snapshot can't be removed.
    pub(crate) fn trim_ready(&self, max: usize) -> Result<Vec<SnapshotId>, SnapshotError> {
        for id in self.retired()? {
            self.retire(&id)?;
        }
        let mut used = Vec::new();
        for (key, id) in self.ready_names()? {
            let path = self.ready_path(&key);
            // A file that is removed meanwhile counts as the oldest, which does no harm.
            let time = fs::metadata(&path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            if self.path(&id).is_dir() {
                used.push((time, id));
            } else {
                fs::remove_file(&path)
                    .or_else(unless_gone)
                    .map_err(|error| SnapshotError::io("remove", path, error))?;
            }
        }
        used.sort();
        let (mut over, mut removed) = (used.len().saturating_sub(max), Vec::new());
        for (_, id) in used {
            if over == 0 {
                break;
            }
            match self.remove(&id) {
                Ok(()) => removed.push(id),
                Err(SnapshotError::InUse { .. }) => continue,
                Err(SnapshotError::Unknown(_)) => {}
                Err(error) => return Err(error),
            }
            over -= 1;
        }
        Ok(removed)
    }

    /// Ready-made snapshots that were replaced while they were in use.
    fn retired(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        let id = |name: &str| name.strip_suffix(OLD_SUFFIX)?.parse().ok();
        Ok(self.ready_files()?.iter().filter_map(|name| id(name)).collect())
    }

    /// Names of the files in `snapshots/ready`.
    fn ready_files(&self) -> Result<Vec<String>, SnapshotError> {
        let directory = self.ready_directory();
        let failed = |error| SnapshotError::io("list", &directory, error);
        match directory.read_dir_utf8() {
            Ok(entries) => {
                entries.map(|entry| entry.map(|entry| entry.file_name().to_owned()).map_err(failed)).collect()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(failed(error)),
        }
    }

    /// All keys and their snapshots, existing or not.
    pub(super) fn ready_names(&self) -> Result<Vec<(ReadyKey, SnapshotId)>, SnapshotError> {
        let mut names = Vec::new();
        for name in self.ready_files()? {
            let Ok(key) = name.parse() else { continue };
            if let Some((id, _)) = self.read_ready(&key)? {
                names.push((key, id));
            }
        }
        Ok(names)
    }

    /// Removes the keys of a snapshot that is gone.
    pub(super) fn forget_ready(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        for (key, _) in self.ready_names()?.into_iter().filter(|(_, ready)| ready == id) {
            let path = self.ready_path(&key);
            fs::remove_file(&path).or_else(unless_gone).map_err(|error| SnapshotError::io("remove", path, error))?;
        }
        Ok(())
    }

    fn read_ready(&self, key: &ReadyKey) -> Result<Option<(SnapshotId, File)>, SnapshotError> {
        let path = self.ready_path(key);
        let failed = |error| SnapshotError::io("read", &path, error);
        let mut file = match plain_file::open(&path) {
            Ok(file) => file,
            // If the key is not an ordinary file, it has no snapshot.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {
                return Ok(None);
            }
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Vec::new();
        (&mut file).take(NAME_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
        // If it holds no id, for example after a crash of the host, it has no snapshot.
        let id = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim_end().parse().ok());
        Ok(id.map(|id| (id, file)))
    }

    fn write_ready(&self, path: &Utf8PathBuf, id: &SnapshotId) -> io::Result<()> {
        private_file::create_dir_all(&self.ready_directory())?;
        private_file::replace(path, self.directory(), format!("{id}\n").as_bytes())
    }

    fn ready_directory(&self) -> Utf8PathBuf {
        self.directory().join("ready")
    }

    fn ready_path(&self, key: &ReadyKey) -> Utf8PathBuf {
        self.ready_directory().join(key.as_str())
    }
}

fn unless_gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::testing::{Place, place};

    fn age(place: &Place, key: &ReadyKey, seconds: u64) {
        let then = SystemTime::now() - Duration::from_secs(seconds);
        let file = fs::File::open(place.store.ready_path(key)).expect("opens");
        file.file().set_modified(then).expect("set");
    }

    #[test]
    fn keys_tell_all_words_apart() {
        let key = ReadyKey::of(&["a", "bc"]);
        assert_eq!(key.as_str().parse(), Ok(key.clone()));
        assert_ne!(key, ReadyKey::of(&["ab", "c"]));
        for wrong in ["", "..", &"A".repeat(64), &"a".repeat(63), &"a".repeat(65)] {
            assert!(wrong.parse::<ReadyKey>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_ready_name_leads_to_its_snapshot_until_the_snapshot_is_removed() {
        let place = place();
        let key = ReadyKey::of(&["image"]);
        assert_eq!(place.store.ready(&key).expect("reads"), None);
        let (one, two) = (place.full("one").id().clone(), place.full("two").id().clone());
        assert_eq!(place.store.set_ready(&key, &one).expect("written"), None);
        assert_eq!(place.store.ready(&key).expect("reads"), Some(one.clone()));
        assert_eq!(place.store.set_ready(&key, &one).expect("written"), None);
        assert_eq!(place.store.set_ready(&key, &two).expect("written"), Some(one.clone()));
        assert_eq!(place.store.ready(&key).expect("reads"), Some(two.clone()));
        assert_eq!(place.store.ids().expect("lists").len(), 2);

        place.store.remove(&two).expect("is free");
        assert_eq!(place.store.ready_names().expect("lists"), []);
        assert!(matches!(place.store.set_ready(&key, &two), Err(SnapshotError::Unknown(id)) if id == two));
        assert_eq!(place.names(), [one.as_str(), "ready"]);
    }

    #[test]
    fn a_key_with_garbage_has_no_snapshot() {
        let place = place();
        let (key, id) = (ReadyKey::of(&["image"]), place.full("one").id().clone());
        place.store.set_ready(&key, &id).expect("written");
        for garbage in [&b""[..], b"../../../etc", b"\xff\xff", &[b'a'; 4096], SnapshotId::random().as_str().as_bytes()]
        {
            fs::write(place.store.ready_path(&key), garbage).expect("written");
            assert_eq!(place.store.ready(&key).expect("reads"), None);
        }
    }

    #[test]
    fn a_snapshot_replaced_while_in_use_is_removed_later() {
        let place = place();
        let (key, old) = (ReadyKey::of(&["image"]), place.full("old"));
        place.store.set_ready(&key, old.id()).expect("written");
        let new = place.full("new").id().clone();
        let before = place.store.set_ready(&key, &new).expect("written").expect("there was one");
        place.store.retire(&before).expect("is noted");
        assert_eq!(place.store.trim_ready(4).expect("trims"), []);
        assert!(old.memory_root().exists(), "a fork may still run on it");
        drop(old);
        place.store.trim_ready(4).expect("trims");
        assert_eq!(place.store.ids().expect("lists"), [new]);
        assert_eq!(place.store.ready_files().expect("lists"), [key.as_str()]);
    }

    #[test]
    fn one_at_a_time_makes_a_ready_snapshot() {
        let place = place();
        let (key, other) = (ReadyKey::of(&["image"]), ReadyKey::of(&["other"]));
        let held = place.store.ready_lock(&key, Duration::ZERO).expect("is free");
        let error = place.store.ready_lock(&key, Duration::from_millis(5)).expect_err("is held");
        assert!(matches!(error, SnapshotError::Locked { .. }), "{error}");
        drop(place.store.ready_lock(&other, Duration::ZERO).expect("is another"));
        drop(held);
        drop(place.store.ready_lock(&key, Duration::ZERO).expect("is free again"));
        assert_eq!(fs::read_dir(place.store.ready_directory()).expect("lists").count(), 0);
    }

    #[test]
    fn many_makers_get_the_lock_in_turn() {
        let place = place();
        let key = ReadyKey::of(&["image"]);
        let inside = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let lock = place.store.ready_lock(&key, Duration::from_secs(30)).expect("in turn");
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        drop(lock);
                    }
                });
            }
        });
    }

    #[test]
    fn the_least_recently_used_are_removed_first_and_those_in_use_stay() {
        let place = place();
        let keys = ["a", "b", "c", "d"].map(|word| ReadyKey::of(&[word]));
        let snapshots = ["a", "b", "c", "d"].map(|word| place.full(word));
        for (seconds, (key, snapshot)) in [400, 300, 200, 100].into_iter().zip(keys.iter().zip(&snapshots)) {
            place.store.set_ready(key, snapshot.id()).expect("written");
            age(&place, key, seconds);
        }
        let ids = snapshots.each_ref().map(|snapshot| snapshot.id().clone());
        let [_in_use, others @ ..] = snapshots;
        drop(others);
        assert_eq!(place.store.ready(&keys[1]).expect("reads").as_ref(), Some(&ids[1]), "used just now");
        assert_eq!(place.store.trim_ready(4).expect("trims"), []);
        assert_eq!(place.store.trim_ready(2).expect("trims"), [ids[2].clone(), ids[3].clone()]);
        assert_eq!(place.store.ids().expect("lists").len(), 2);
        assert_eq!(place.store.trim_ready(0).expect("trims"), [ids[1].clone()]);
        assert_eq!(place.store.ready_names().expect("lists"), [(keys[0].clone(), ids[0].clone())]);
    }
}
