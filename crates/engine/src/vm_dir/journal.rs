//! `vms/<id>/journal`: what a VM is about to do and what it has done, so that recovery knows it after a crash.
//!
//! ```text
//!   new ──▶ Launching ──▶ Running ◀──▶ Paused        a user's pause and resume
//!   new ──▶ Restoring ──▶ Running | Paused           a fork
//!           Running | Paused ──▶ Saving ──▶ Running | Paused     saved, or the save failed
//!                                Saving ──▶ Stopped              `then: Stop`
//!                                Saving ──▶ Restoring            continues as a fork of the snapshot
//!           Stopped ──▶ Restoring ──▶ Stopped                    a resume that failed
//!           any ──▶ Lost ──▶ Stopped                             recovery goes back to the last whole snapshot
//! ```
//! One JSON line per state. A line is written before the act that it names (`Launching`, `Saving`, `Restoring`) or
//! after it (all others). Each line is one write. A process that is killed leaves whole lines. A host that crashes may
//! leave a torn last line, which counts as not written. The number of a line is the VM's generation.
//!
//! Only `Stopped` is synced to disk, because only that promise to a user has to survive a crash of the host. All other
//! lines may be lost with the host: the VM is lost too, and an older line leads to the same whole snapshot.

mod history;

use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;
use serde::{Deserialize, Serialize};

pub(crate) use self::history::History;

use super::spec_file::SPEC_FILE;
use crate::error::ErrorKind;
use crate::files::private_file;
use crate::snapshot::SnapshotId;

/// Name of the file.
pub(crate) const JOURNAL_FILE: &str = "journal";
/// A journal of this size is rewritten with the lines that still matter.
const JOURNAL_BYTES_MAX: u64 = 256 << 10;
/// Characters of a reason that are kept.
const REASON_CHARS_MAX: usize = 300;

/// What a VM does, or how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Its VMM is being started for a boot.
    Launching,
    /// The guest's CPUs run.
    Running,
    /// Its CPUs are paused at a user's request.
    Paused,
    /// It is being saved, and its CPUs are paused for that.
    Saving {
        /// The snapshot that is being made.
        snapshot: SnapshotId,
        /// What follows the save.
        then: Then,
    },
    /// It has no VMM, and continues from the snapshot when it is resumed.
    Stopped {
        /// The snapshot at which it stopped.
        snapshot: SnapshotId,
    },
    /// Its VMM is being started from a snapshot.
    Restoring {
        /// The snapshot.
        snapshot: SnapshotId,
    },
    /// It ended without being saved.
    Lost {
        /// Why, as text for users.
        reason: String,
    },
}

/// What follows a save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Then {
    /// The VM continues.
    GoOn,
    /// The VM stops.
    Stop,
    /// The VM ends, and only the snapshot is left.
    End,
}

/// A line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The number of the VM's states so far, from 1.
    pub(crate) generation: u64,
    /// The state.
    pub(crate) state: State,
    /// Milliseconds since 1970.
    pub(crate) at_unix_ms: u64,
}

/// Why a state was not written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The state must not follow the last one: a bug of Kiln, or two owners.
    #[error("a VM that is {from} can't become {to}")]
    Illegal {
        /// The last state.
        from: &'static str,
        /// The refused state.
        to: &'static str,
    },
    /// The journal has a line that Kiln did not write.
    #[error("the journal `{path}` is broken: {problem}")]
    Broken {
        /// The journal.
        path: Utf8PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// It can't be read or written.
    #[error("failed to {what} the journal `{path}`")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The journal.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl JournalError {
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Illegal { .. } => ErrorKind::Io,
            Self::Broken { .. } => ErrorKind::Corrupt,
            Self::Io { source, .. } => ErrorKind::of_io(source),
        }
    }
}

impl From<JournalError> for io::Error {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::Io { ref source, .. } => Self::new(source.kind(), error),
            other => Self::other(other),
        }
    }
}

/// The journal of one VM. Only its owner holds it. Clones write to the same journal.
#[derive(Debug, Clone)]
pub(crate) struct Journal(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    directory: Utf8PathBuf,
    file: fs::File,
    /// `JOURNAL_BYTES_MAX` bounds their number.
    records: Vec<Record>,
    bytes: u64,
}

impl Journal {
    /// Starts the journal of a new VM.
    pub(crate) fn create(directory: &Utf8Path) -> Result<Self, JournalError> {
        let path = directory.join(JOURNAL_FILE);
        let file = private_file::write_new(&path, b"").and_then(|()| private_file::append_existing(&path));
        let file = file.map_err(io_error("create", directory))?;
        Ok(Self::new(directory, file, History::default()))
    }

    /// Opens the journal of an existing VM. A torn last line is cut off.
    pub(crate) fn open(directory: &Utf8Path) -> Result<Self, JournalError> {
        let history = History::read(directory)?;
        if let Some(problem) = history.problem {
            return Err(JournalError::Broken { path: directory.join(JOURNAL_FILE), problem });
        }
        let file = private_file::append_existing(&directory.join(JOURNAL_FILE));
        let file = file.map_err(io_error("open", directory))?;
        file.file().set_len(history.bytes).map_err(io_error("cut", directory))?;
        Ok(Self::new(directory, file, history))
    }

    /// Opens a broken journal and keeps the lines that could be read. The VM counts as lost, for that reason.
    pub(crate) fn repair(directory: &Utf8Path, history: History, reason: &str) -> Result<Self, JournalError> {
        let mut records = history.records;
        if !matches!(records.last(), Some(Record { state: State::Lost { .. }, .. })) {
            records.push(Record::next(&records, State::Lost { reason: reason.into() }));
        }
        let (file, bytes) = rewrite(directory, &records)?;
        Ok(Self::new(directory, file, History { records, problem: None, bytes }))
    }

    fn new(directory: &Utf8Path, file: fs::File, history: History) -> Self {
        let History { records, bytes, .. } = history;
        Self(Arc::new(Mutex::new(Inner { directory: directory.into(), file, records, bytes })))
    }

    /// Writes a state. Returns its generation.
    ///
    /// A state that does not follow the last one is a bug: with debug assertions it panics, otherwise it is refused.
    pub(crate) fn append(&self, state: State) -> Result<u64, JournalError> {
        let mut inner = self.lock();
        if let Err(error) = inner.check(&state) {
            debug_assert!(false, "{error}");
            return Err(error);
        }
        inner.append(state)
    }

    /// Runs [`append`](Self::append), unless the VM is already in that state, or is a fork that was not handed out yet.
    /// Such a fork does not have its own identity, so it must not be adopted, whatever its CPUs do.
    pub(crate) fn enter(&self, state: State) -> Result<u64, JournalError> {
        let is_at_work = matches!(state, State::Running | State::Paused);
        match self.last() {
            Some(last) if last.state == state => Ok(last.generation),
            Some(Record { state: State::Restoring { .. }, generation, .. }) if is_at_work => Ok(generation),
            _ => self.append(state),
        }
    }

    /// The last line.
    pub(crate) fn last(&self) -> Option<Record> {
        self.lock().records.last().cloned()
    }

    /// The history as of now.
    pub(crate) fn history(&self) -> History {
        let inner = self.lock();
        History { records: inner.records.clone(), problem: None, bytes: inner.bytes }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A record is pushed after it was written, so the records are right even after a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn check(&self, to: &State) -> Result<(), JournalError> {
        let from = self.records.last().map(|record| &record.state);
        if follows(from, to) {
            return Ok(());
        }
        Err(JournalError::Illegal { from: from.map_or("new", State::name), to: to.name() })
    }

    fn append(&mut self, state: State) -> Result<u64, JournalError> {
        if self.bytes >= JOURNAL_BYTES_MAX {
            self.records = history::kept(&self.records);
            (self.file, self.bytes) = rewrite(&self.directory, &self.records)?;
        }
        let record = Record::next(&self.records, state);
        let (generation, line) = (record.generation, line(&record));
        // One `write` for the whole line, not `write_all`, which retries after a short count. A short count means that
        // the disk is full. A retry would then fail, with half a line in the file, and the next line would continue
        // that half. So the file is cut back to its last whole line, and the caller gets an error. If this process is
        // killed before it could cut, the line has no end, and a reader takes it as not written.
        let written = self.file.write(&line).and_then(|count| match count == line.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::StorageFull.into()),
        });
        if let Err(source) = written {
            drop(self.file.file().set_len(self.bytes));
            return Err(io_error("write", &self.directory)(source));
        }
        self.bytes += line.len() as u64;
        let durable = matches!(record.state, State::Stopped { .. });
        self.records.push(record);
        if durable {
            self.sync().map_err(io_error("sync", &self.directory))?;
        }
        Ok(generation)
    }

    /// Syncs the journal, and the directories that lead to it.
    fn sync(&self) -> io::Result<()> {
        self.file.file().sync_data()?;
        // A resume needs the spec too.
        match fs::File::open(self.directory.join(SPEC_FILE)) {
            Ok(spec) => spec.sync_data()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        fs::File::open(&self.directory)?.sync_all()?;
        self.directory.parent().map_or(Ok(()), |vms| fs::File::open(vms)?.sync_all())
    }
}

impl Record {
    fn next(records: &[Self], state: State) -> Self {
        let generation = records.last().map_or(1, |record| record.generation.saturating_add(1));
        Self { generation, state: state.bounded(), at_unix_ms: unix_ms() }
    }
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Launching => "launching",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Saving { .. } => "being saved",
            Self::Stopped { .. } => "stopped",
            Self::Restoring { .. } => "being restored",
            Self::Lost { .. } => "lost",
        }
    }

    fn bounded(self) -> Self {
        match self {
            Self::Lost { reason } => Self::Lost { reason: reason.chars().take(REASON_CHARS_MAX).collect() },
            other => other,
        }
    }
}

/// The arrows of the drawing above.
fn follows(from: Option<&State>, to: &State) -> bool {
    use State::{Launching, Lost, Paused, Restoring, Running, Saving, Stopped};
    match (from, to) {
        (None, Launching | Restoring { .. } | Lost { .. }) => true,
        (None, _) => false,
        (Some(Lost { .. }), Stopped { .. }) => true,
        (Some(Lost { .. }), _) => false,
        (Some(_), Lost { .. }) => true,
        (Some(Launching | Restoring { .. }), Running | Paused) => true,
        (Some(Running), Paused | Saving { .. }) => true,
        (Some(Paused), Running | Saving { .. }) => true,
        (Some(Saving { .. }), Running | Paused) => true,
        (Some(Saving { snapshot: saved, .. }), Stopped { snapshot } | Restoring { snapshot }) => saved == snapshot,
        (Some(Stopped { snapshot: stopped }), Restoring { snapshot }) => stopped == snapshot,
        (Some(Restoring { snapshot: restored }), Stopped { snapshot }) => restored == snapshot,
        _ => false,
    }
}

/// Replaces the journal with these records, completely or not at all.
///
/// The new file is synced before the rename. Otherwise a crash of the host could leave the new name with an empty file:
/// a file system may write the rename to disk before the contents. The rename itself is not synced. If it is lost, the
/// old journal is there, with the same states. A later `Stopped` syncs the directory, and the rename with it.
fn rewrite(directory: &Utf8Path, records: &[Record]) -> Result<(fs::File, u64), JournalError> {
    let write = || {
        let new = directory.join(format!("{JOURNAL_FILE}.new"));
        let bytes: Vec<u8> = records.iter().flat_map(line).collect();
        let mut file = private_file::restart(&new)?;
        file.write_all(&bytes)?;
        file.sync_data()?;
        let path = directory.join(JOURNAL_FILE);
        fs::rename(&new, &path)?;
        Ok((private_file::append_existing(&path)?, bytes.len() as u64))
    };
    write().map_err(io_error("rewrite", directory))
}

fn line(record: &Record) -> Vec<u8> {
    let mut line = serde_json::to_vec(record).expect("a record has no map with keys that JSON lacks");
    line.push(b'\n');
    line
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn io_error(what: &'static str, directory: &Utf8Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = directory.join(JOURNAL_FILE);
    move |source| JournalError::Io { what, path, source }
}

#[cfg(test)]
mod tests;
