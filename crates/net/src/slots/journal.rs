//! The journal: a directory for each slot, made before anything of the slot exists.
//!
//! ```text
//!   STATE/lock            held while directories are made or searched
//!   STATE/ID/lock         held by the owner as long as it lives
//!   STATE/ID/ns           the file of the namespace
//!   STATE/ID/about.json   what `kiln net ls` shows
//! ```
//! All names of a slot follow from its id: the link `kiln-ID`, the table `kiln-ID`, the file `STATE/ID/ns`. So the one
//! `mkdir` names everything that may exist from then on, and recovery needs no other record. `flock` is released by the
//! kernel when the owner dies, also by `kill -9`, so a directory whose lock is free has no owner.
//!
//! Two processes: a new directory has no lock for a moment, and recovery must not take it for an abandoned one. Both
//! happen under `STATE/lock`. A removed directory can leave a process with the lock of a deleted file, so each lock is
//! compared with the file of that name after it was taken.

use std::fmt;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::str::FromStr;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// Bytes of random data in an id. A link's name has at most 15 bytes: `kiln-` and ten hexadecimal digits.
const ID_BYTES: usize = 5;
/// The start of the names of links and tables on the host.
pub(super) const PREFIX: &str = "kiln-";
const LOCK: &str = "lock";
const NAMESPACE: &str = "ns";
const ABOUT: &str = "about.json";

/// The name of a slot or of a lab network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SlotId(String);

/// A text is not the name of a slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the id of a network slot")]
pub struct NotASlotId(String);

impl SlotId {
    /// A new id.
    fn random() -> io::Result<Self> {
        let mut bytes = [0; ID_BYTES];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The link on the host, and the table of its rules there.
    pub fn link(&self) -> String {
        format!("{PREFIX}{}", self.0)
    }
}

impl FromStr for SlotId {
    type Err = NotASlotId;

    fn from_str(text: &str) -> Result<Self, NotASlotId> {
        let valid = text.len() == 2 * ID_BYTES && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if valid { Ok(Self(text.to_owned())) } else { Err(NotASlotId(text.chars().take(40).collect())) }
    }
}

impl TryFrom<String> for SlotId {
    type Error = NotASlotId;

    fn try_from(text: String) -> Result<Self, NotASlotId> {
        text.parse()
    }
}

impl From<SlotId> for String {
    fn from(id: SlotId) -> Self {
        id.0
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The directory of all slots of one Kiln home.
#[derive(Debug, Clone)]
pub(super) struct Journal {
    directory: Utf8PathBuf,
}

/// The directory of one slot, with its lock held.
#[derive(Debug)]
pub(super) struct Entry {
    id: SlotId,
    directory: Utf8PathBuf,
    /// The lock lasts as long as this descriptor, which is close-on-exec.
    _lock: File,
}

impl Journal {
    /// Opens the journal, and makes its directory if it does not exist.
    pub(super) fn open(directory: &Utf8Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Makes the directory of a new slot and takes its lock.
    pub(super) fn create(&self) -> io::Result<Entry> {
        let _all = self.lock_all()?;
        let id = SlotId::random()?;
        let directory = self.directory.join(id.as_str());
        DirBuilder::new().mode(0o700).create(&directory)?;
        let lock = lock_file(&directory.join(LOCK), true)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Entry { id, directory, _lock: lock })
    }

    /// The ids of all slots, with and without an owner, in order.
    pub(super) fn ids(&self) -> io::Result<Vec<SlotId>> {
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&self.directory)? {
            // Other names are not ours.
            ids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<SlotId>().ok()));
        }
        ids.sort();
        Ok(ids)
    }

    /// Takes the lock of a slot, if no other process has it. `None` if one has, or there is no such slot.
    pub(super) fn claim(&self, id: &SlotId) -> io::Result<Option<Entry>> {
        let _all = self.lock_all()?;
        let directory = self.directory.join(id.as_str());
        let path = directory.join(LOCK);
        // Killed between its `mkdir` and the file, a process leaves a directory without a lock.
        let lock = match lock_file(&path, directory.exists()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            other => other?,
        }
        let is_current =
            std::fs::metadata(&path).is_ok_and(|now| lock.metadata().is_ok_and(|of| of.ino() == now.ino()));
        Ok(is_current.then(|| Entry { id: id.clone(), directory, _lock: lock }))
    }

    /// What is noted about a slot. `None` if it is not ready yet, or no longer there.
    pub(super) fn about<T: for<'a> Deserialize<'a>>(&self, id: &SlotId) -> Option<T> {
        let text = std::fs::read(self.directory.join(id.as_str()).join(ABOUT)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// The file of the namespace of a slot.
    pub(super) fn namespace(&self, id: &SlotId) -> Utf8PathBuf {
        self.directory.join(id.as_str()).join(NAMESPACE)
    }

    fn lock_all(&self) -> io::Result<File> {
        wait_for_lock(&self.directory.join(LOCK))
    }
}

/// Waits for the lock of a file, which lasts as long as the descriptor. The holders need milliseconds.
pub(super) fn wait_for_lock(path: &Utf8Path) -> io::Result<File> {
    let lock = lock_file(path, true)?;
    loop {
        match flock(&lock, FlockOperation::LockExclusive) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    }
    Ok(lock)
}

impl Entry {
    pub(super) fn id(&self) -> &SlotId {
        &self.id
    }

    /// The file of its namespace.
    pub(super) fn namespace(&self) -> Utf8PathBuf {
        self.directory.join(NAMESPACE)
    }

    /// Notes what is known about the slot. A reader gets the old text or the new one.
    pub(super) fn note(&self, about: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_vec(about).map_err(io::Error::other)?;
        let new = self.directory.join("about.new");
        std::fs::write(&new, text)?;
        std::fs::rename(new, self.directory.join(ABOUT))
    }

    /// Removes the directory, once all that it names is gone.
    pub(super) fn remove(self) -> io::Result<()> {
        std::fs::remove_dir_all(&self.directory)
    }
}

fn lock_file(path: &Utf8Path, create: bool) -> io::Result<File> {
    File::options().read(true).write(true).create(create).truncate(false).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> (tempfile::TempDir, Journal) {
        let directory = tempfile::tempdir().expect("a directory");
        let journal = Journal::open(Utf8Path::from_path(directory.path()).expect("UTF-8")).expect("opens");
        (directory, journal)
    }

    #[test]
    fn a_slot_with_an_owner_is_not_claimed_and_one_without_is() {
        let (_directory, journal) = journal();
        let entry = journal.create().expect("is made");
        let id = entry.id().clone();
        assert!(journal.claim(&id).expect("reads").is_none());
        drop(entry);
        let claimed = journal.claim(&id).expect("reads").expect("has no owner");
        claimed.remove().expect("is removed");
        assert!(journal.claim(&id).expect("reads").is_none(), "it is gone");
        assert_eq!(journal.ids().expect("reads"), []);
    }

    #[test]
    fn a_directory_whose_owner_died_before_its_lock_existed_is_claimed() {
        let (directory, journal) = journal();
        std::fs::create_dir(directory.path().join("00aa00aa00")).expect("is made");
        let ids = journal.ids().expect("reads");
        journal.claim(&ids[0]).expect("reads").expect("has no owner").remove().expect("is removed");
        assert_eq!(journal.ids().expect("reads"), []);
    }

    #[test]
    fn other_names_are_not_ids() {
        for wrong in ["", "lock", "00aa00aa0", "00aa00aa000", "00AA00AA00", "../etc/pass", "00aa00aa0g"] {
            wrong.parse::<SlotId>().expect_err(wrong);
        }
        let id: SlotId = "00aa00aa00".parse().expect("is one");
        assert_eq!(id.link().len(), 15);
    }

    #[test]
    fn a_note_is_read_back_and_a_missing_one_is_none() {
        let (_directory, journal) = journal();
        let entry = journal.create().expect("is made");
        assert_eq!(journal.about::<u32>(entry.id()), None);
        entry.note(&7_u32).expect("is written");
        assert_eq!(journal.about::<u32>(entry.id()), Some(7));
    }
}
