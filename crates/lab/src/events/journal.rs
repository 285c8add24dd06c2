//! The file of events.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};

use camino::{Utf8Path, Utf8PathBuf};
use serde::Serialize;

use super::event::Event;

/// Its name in the directory of a run.
pub const EVENTS_FILE: &str = "events.jsonl";
/// The longest line that is read. Findings are bounded, and so is the text of the cases of an attempt, of which JSON makes
/// six times as much at most.
const LINE_BYTES_MAX: u64 = 256 << 20;

/// Why events can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file can't be opened, locked, read or written.
    #[error("failed to {what} `{path}`")]
    Io {
        /// A verb.
        what: &'static str,
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process writes to it.
    #[error("another process writes to `{path}`: the run still runs")]
    Busy {
        /// The file.
        path: Utf8PathBuf,
    },
}

/// A line of a file that is not an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BadLine {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub problem: String,
}

/// Appends events. Only one process at a time has the journal of a run.
#[derive(Debug)]
pub struct Journal {
    path: Utf8PathBuf,
    file: File,
}

impl Journal {
    /// Opens the journal in the directory of a run, or creates it. A last line without an end, which a killed process
    /// left, is ended, so that it does not spoil the next one.
    ///
    /// # Errors
    /// [`JournalError`]
    pub fn open(directory: &Utf8Path) -> Result<Self, JournalError> {
        let path = directory.join(EVENTS_FILE);
        let failed = |what| {
            let path = path.clone();
            move |source| JournalError::Io { what, path, source }
        };
        let opened = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let mut file = opened.map_err(failed("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(JournalError::Busy { path }),
            Err(std::fs::TryLockError::Error(source)) => return Err(failed("lock")(source)),
        }
        let end = file.seek(SeekFrom::End(0)).map_err(failed("read"))?;
        if end > 0 {
            let mut last = [0];
            file.seek(SeekFrom::Start(end - 1)).and_then(|_| file.read_exact(&mut last)).map_err(failed("read"))?;
            if last != *b"\n" {
                file.write_all(b"\n").map_err(failed("write"))?;
            }
        }
        Ok(Self { path, file })
    }

    /// Whether another process writes to the journal of a run. Of one that does not exist, none does.
    pub fn is_open_elsewhere(directory: &Utf8Path) -> bool {
        let file = File::open(directory.join(EVENTS_FILE));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock)))
    }

    /// Appends an event. One that is [durable](Event::is_durable) is on the disk when this returns.
    ///
    /// # Errors
    /// [`JournalError::Io`], for example if the disk is full.
    pub fn append(&mut self, event: &Event) -> Result<(), JournalError> {
        let mut line = serde_json::to_vec(event).expect("an event is JSON");
        line.push(b'\n');
        let mut write = || {
            // One call, so that a reader sees whole lines, and a full disk leaves at most one that is cut.
            self.file.write_all(&line)?;
            if event.is_durable() { self.file.sync_data() } else { Ok(()) }
        };
        write().map_err(|source| JournalError::Io { what: "write", path: self.path.clone(), source })
    }
}

/// Reads the events of a run. Lines that are not events are returned beside them.
///
/// # Errors
/// The file can't be read.
pub fn read_events(directory: &Utf8Path) -> Result<(Vec<Event>, Vec<BadLine>), JournalError> {
    let path = directory.join(EVENTS_FILE);
    let failed = |what| {
        let path = path.clone();
        move |source| JournalError::Io { what, path, source }
    };
    let mut reader = BufReader::new(File::open(&path).map_err(failed("open"))?);
    let (mut events, mut bad) = (Vec::new(), Vec::new());
    for number in 1.. {
        let mut line = Vec::new();
        let bytes = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).map_err(failed("read"))?;
        if bytes == 0 {
            break;
        }
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        if text.is_empty() {
            continue;
        }
        match serde_json::from_slice(text) {
            Ok(event) => events.push(event),
            Err(error) => bad.push(BadLine { line: number, problem: error.to_string() }),
        }
    }
    Ok((events, bad))
}
