//! Facts about files that are dear to find out, such as the digest of a kernel or the version of a program: found out
//! once and remembered for as long as the file is the same.
//!
//! ```text
//!   fact(file, name) ──▶ cache/facts/<hash>.json ── same inode, size, times ──▶ remembered
//!                                  ▲── else ── find out ──────────────────────▶ new
//! ```

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::{plain_file, private_file};

/// A fact has a few hundred bytes.
const FACT_BYTES_MAX: u64 = 16 << 10;
/// Hex digits of a fact's file name.
const NAME_DIGITS: usize = 32;
/// Files have the time of the last tick, of which there are at least a hundred in a second.
const TIME_STEP_MAX: Duration = Duration::from_millis(20);
const NS_PER_SECOND: i128 = 1_000_000_000;

/// What tells one state of a file from another, without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Witness {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Witness {
    /// Of the file as it is now.
    pub(crate) fn of(path: &Utf8Path) -> io::Result<Self> {
        fs::metadata(path).map(|meta| Self::of_metadata(&meta))
    }

    /// Of a file that is open, say.
    pub(crate) fn of_metadata(meta: &Metadata) -> Self {
        let ns = |seconds: i64, ns: i64| i128::from(seconds) * NS_PER_SECOND + i128::from(ns);
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.size(),
            modified_ns: ns(meta.mtime(), meta.mtime_nsec()),
            changed_ns: ns(meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// It is the same file and was not written to in between. A link to it may have come or gone.
    pub(crate) fn is_unwritten_since(&self, earlier: &Self) -> bool {
        Self { changed_ns: 0, ..*self } == Self { changed_ns: 0, ..*earlier }
    }

    /// Waits until another change would have another time than the last one, which takes some milliseconds at most.
    pub(crate) fn settle(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().cast_signed();
        // A time to come is of a clock that was set back, which no wait helps.
        let age = u64::try_from(now - self.changed_ns).map_or(TIME_STEP_MAX, Duration::from_nanos);
        std::thread::sleep(TIME_STEP_MAX.saturating_sub(age));
    }
}

/// The memory of facts, below a home's cache.
#[derive(Debug, Clone)]
pub(crate) struct FileFacts {
    cache: Utf8PathBuf,
    directory: Utf8PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
struct Fact {
    path: Utf8PathBuf,
    name: String,
    witness: Witness,
    value: String,
}

impl FileFacts {
    /// The memory below `home`.
    pub(crate) fn new(home: &Utf8Path) -> Self {
        Self { cache: home.join("cache"), directory: home.join("cache/facts") }
    }

    /// The blake3 of a file, as hex digits.
    pub(crate) fn digest(&self, path: &Utf8Path) -> io::Result<String> {
        self.text(path, "blake3", || {
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(fs::File::open(path)?)?;
            Ok(hasher.finalize().to_hex().to_string())
        })
    }

    /// A fact that can be found out from the file at once.
    pub(crate) fn text(
        &self,
        path: &Utf8Path,
        name: &str,
        find_out: impl FnOnce() -> io::Result<String>,
    ) -> io::Result<String> {
        if let Some(known) = self.recall(path, name)? {
            return Ok(known);
        }
        let before = Witness::of(path)?;
        // Else a write that comes at once could leave the file with the same times.
        before.settle();
        let value = find_out()?;
        // What a file was that changed meanwhile is not worth remembering.
        if Witness::of(path)? == before {
            self.remember(path, name, before, &value);
        }
        Ok(value)
    }

    /// What was remembered of a file that is still the same.
    pub(crate) fn recall(&self, path: &Utf8Path, name: &str) -> io::Result<Option<String>> {
        let witness = Witness::of(path)?;
        let Ok(bytes) = plain_file::read(&self.file(path, name), FACT_BYTES_MAX) else { return Ok(None) };
        let fact = serde_json::from_slice::<Fact>(&bytes).ok();
        let same = |fact: &Fact| fact.path == path && fact.name == name && fact.witness == witness;
        Ok(fact.filter(same).map(|fact| fact.value))
    }

    /// Remembers a fact. It can be found out again, so a failure is not one of the caller's.
    pub(crate) fn remember(&self, path: &Utf8Path, name: &str, witness: Witness, value: &str) {
        let fact = Fact { path: path.into(), name: name.into(), witness, value: value.into() };
        let write = || {
            private_file::create_dir_all(&self.directory)?;
            private_file::replace(&self.file(path, name), &self.cache, &serde_json::to_vec(&fact)?)
        };
        if let Err(error) = write() {
            tracing::debug!(%path, name, %error, "failed to remember a fact");
        }
    }

    fn file(&self, path: &Utf8Path, name: &str) -> Utf8PathBuf {
        let digest = blake3::hash(format!("{name}\n{path}").as_bytes()).to_hex();
        self.directory.join(format!("{}.json", &digest[..NAME_DIGITS]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_is_remembered_until_its_file_changes() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Utf8Path::from_path(directory.path()).expect("UTF-8");
        let (facts, file) = (FileFacts::new(home), home.join("file"));
        fs::write(&file, "one").expect("written");
        let first = facts.digest(&file).expect("reads");
        assert_eq!(first, blake3::hash(b"one").to_hex().to_string());
        assert_eq!(facts.recall(&file, "blake3").expect("reads"), Some(first));
        assert_eq!(facts.recall(&file, "version").expect("reads"), None);
        fs::write(&file, "two").expect("written");
        assert_eq!(facts.recall(&file, "blake3").expect("reads"), None);
        assert_eq!(facts.digest(&file).expect("reads"), blake3::hash(b"two").to_hex().to_string());
        facts.digest(&home.join("nowhere")).expect_err("is not there");
    }

    #[test]
    fn a_memory_of_garbage_is_no_memory() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Utf8Path::from_path(directory.path()).expect("UTF-8");
        let (facts, file) = (FileFacts::new(home), home.join("file"));
        fs::write(&file, "one").expect("written");
        let digest = facts.digest(&file).expect("reads");
        fs::write(facts.file(&file, "blake3"), "{\"path\":").expect("written");
        assert_eq!(facts.digest(&file).expect("reads"), digest);
    }
}
