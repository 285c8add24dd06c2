//! Facts about files that are expensive to compute, such as the digest of a kernel or the version of a program. A fact
//! is computed once and remembered as long as the file does not change.
//!
//! ```text
//!   fact(file, name) ──▶ cache/facts/<hash>.json ── same inode, size, times ──▶ remembered
//!                                  ▲── otherwise ── compute ──────────────────▶ new
//! ```
//! Whether a file has changed is decided by its inode, its size and its times, without reading it. A program can set
//! the modification time to any value, but not the change time, which the kernel sets at each write. So equal change
//! times mean that the file was not written to, with one exception. The kernel takes the time from its last timer tick.
//! Two writes in the same tick have equal times, and a write right after a fact was computed would not be noticed. So
//! before a fact is computed, [`Witness::settle`] waits until the tick of the last change has passed. Every later write
//! then gets another change time. If the file changes while the fact is computed, the fact is not remembered.

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
/// More than the time between two timer ticks. A kernel has at least a hundred in a second.
const TIME_STEP_MAX: Duration = Duration::from_millis(20);
const NS_PER_SECOND: i128 = 1_000_000_000;

/// Identifies one state of a file without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Witness {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Witness {
    /// The current state of a file.
    pub(crate) fn of(path: &Utf8Path) -> io::Result<Self> {
        fs::metadata(path).map(|meta| Self::of_metadata(&meta))
    }

    /// The state in a file's metadata, for example of an open file.
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

    /// Whether it is the same file and was not written to since. Its number of links may differ: adding or removing a
    /// link changes only the change time.
    pub(crate) fn is_unwritten_since(&self, earlier: &Self) -> bool {
        Self { changed_ns: 0, ..*self } == Self { changed_ns: 0, ..*earlier }
    }

    /// Waits until another change would get another change time. Takes some milliseconds at most.
    pub(crate) fn settle(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().cast_signed();
        // A change time in the future means that the clock was set back. A short wait would not help.
        let age = u64::try_from(now - self.changed_ns).map_or(TIME_STEP_MAX, Duration::from_nanos);
        std::thread::sleep(TIME_STEP_MAX.saturating_sub(age));
    }
}

/// The remembered facts, in the cache of a home.
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
    /// The facts of a home.
    pub(crate) fn new(home: &Utf8Path) -> Self {
        Self { cache: home.join("cache"), directory: home.join("cache/facts") }
    }

    /// The BLAKE3 digest of a file, in hex digits.
    pub(crate) fn digest(&self, path: &Utf8Path) -> io::Result<String> {
        self.text(path, "blake3", || {
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(fs::File::open(path)?)?;
            Ok(hasher.finalize().to_hex().to_string())
        })
    }

    /// A fact that `find_out` computes from the file, unless it is remembered.
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
        // Without this, a write right afterwards could leave the file with the same times.
        before.settle();
        let value = find_out()?;
        // If the file has changed meanwhile, it is not known which state the value belongs to.
        if Witness::of(path)? == before {
            self.remember(path, name, before, &value);
        }
        Ok(value)
    }

    /// The remembered fact, if the file has not changed since.
    pub(crate) fn recall(&self, path: &Utf8Path, name: &str) -> io::Result<Option<String>> {
        let witness = Witness::of(path)?;
        let Ok(bytes) = plain_file::read(&self.file(path, name), FACT_BYTES_MAX) else { return Ok(None) };
        let fact = serde_json::from_slice::<Fact>(&bytes).ok();
        let same = |fact: &Fact| fact.path == path && fact.name == name && fact.witness == witness;
        Ok(fact.filter(same).map(|fact| fact.value))
    }

    /// Remembers a fact. A failure is only logged, because the fact can be computed again.
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
    fn a_damaged_fact_is_computed_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let home = Utf8Path::from_path(directory.path()).expect("UTF-8");
        let (facts, file) = (FileFacts::new(home), home.join("file"));
        fs::write(&file, "one").expect("written");
        let digest = facts.digest(&file).expect("reads");
        fs::write(facts.file(&file, "blake3"), "{\"path\":").expect("written");
        assert_eq!(facts.digest(&file).expect("reads"), digest);
    }
}
