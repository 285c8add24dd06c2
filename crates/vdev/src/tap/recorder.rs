//! Writes a recording: each entry is one `write` of one line at the end of the file, so whatever kills the process leaves at
//! most a last line that is cut.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use super::entry::{Entry, Opening, RECORDING_VERSION, TapEvent};

/// Kept free at the end of a recording for the line that marks it as full.
const LAST_LINE_BYTES: u64 = 128;
/// The longest opening that is looked for in a file that is there already.
const OPENING_BYTES_MAX: u64 = 16 << 10;

/// Why there is no recording, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum RecorderError {
    /// The file can't be opened.
    #[error("failed to open the recording `{}`", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is something else in the file.
    #[error("`{}` already exists and is not a recording", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file can't be written.
    #[error("failed to write the recording `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Writes a recording; may be used by many threads.
#[derive(Debug)]
pub(super) struct Recorder {
    started: Instant,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Nothing once the recording is full or can't be written.
    file: Option<File>,
    bytes: u64,
    bytes_max: u64,
    entries: u64,
    failure: Option<io::Error>,
    is_full: bool,
    line: Vec<u8>,
}

/// What became of a recording.
#[derive(Debug)]
pub struct RecorderEnd {
    /// Entries that were written.
    pub entries: u64,
    /// Whether it reached its size and entries are missing.
    pub is_full: bool,
    /// Why it broke off, if it did.
    pub failure: Option<RecorderError>,
}

impl Recorder {
    /// Opens a recording and writes its opening. One that is there already goes on behind what it holds.
    ///
    /// # Errors
    /// If the file can't be opened or written, or holds something else.
    pub(super) fn open(path: &Path, bytes_max: u64, listen: &Path, connect: &Path) -> Result<Self, RecorderError> {
        let failed = |source| RecorderError::Open { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        // A pipe without a reader would block the opening forever.
        options.read(true).append(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK);
        let mut file = options.open(path).map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(RecorderError::Foreign { path: path.to_owned() });
        }
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let mut line = Vec::new();
        if bytes > 0 {
            if !is_recording(&mut file).map_err(failed)? {
                return Err(RecorderError::Foreign { path: path.to_owned() });
            }
            if !ends_with_a_line(&mut file).map_err(failed)? {
                line.push(b'\n');
            }
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let opening = Opening {
            kiln_vhost_recording: RECORDING_VERSION,
            started_unix_ms: now.as_millis().try_into().unwrap_or(u64::MAX),
            listen: listen.display().to_string(),
            connect: connect.display().to_string(),
        };
        let state =
            State { file: Some(file), bytes, bytes_max, entries: 0, failure: None, is_full: false, line: Vec::new() };
        let recorder = Self { started: Instant::now(), path: path.to_owned(), state: Mutex::new(state) };
        serde_json::to_writer(&mut line, &opening).expect("numbers and text are always JSON");
        line.push(b'\n');
        let mut state = recorder.lock();
        state.write(&line);
        match state.failure.take() {
            Some(source) => Err(RecorderError::Write { path: path.to_owned(), source }),
            None => {
                drop(state);
                Ok(recorder)
            }
        }
    }

    /// Writes down what happened now. If the recording is full or broke off, nothing happens.
    pub(super) fn record(&self, session: u32, event: TapEvent) {
        let mut state = self.lock();
        if state.file.is_none() {
            return;
        }
        // Under the lock, so that times never go back in the file.
        let time_us = self.started.elapsed().as_micros().try_into().unwrap_or(u64::MAX);
        let mut line = std::mem::take(&mut state.line);
        line.clear();
        serde_json::to_writer(&mut line, &Entry { time_us, session, event }).expect("plain data is always JSON");
        line.push(b'\n');
        if state.bytes.saturating_add(line.len() as u64).saturating_add(LAST_LINE_BYTES) > state.bytes_max {
            line.clear();
            serde_json::to_writer(&mut line, &Entry { time_us, session, event: TapEvent::Full })
                .expect("plain data is always JSON");
            line.push(b'\n');
            state.is_full = true;
        }
        state.write(&line);
        if state.is_full {
            state.file = None;
        }
        state.line = line;
    }

    /// What became of it.
    pub(super) fn end(self) -> RecorderEnd {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let failure = state.failure.map(|source| RecorderError::Write { path: self.path, source });
        RecorderEnd { entries: state.entries, is_full: state.is_full, failure }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn write(&mut self, line: &[u8]) {
        let Some(file) = &mut self.file else { return };
        match file.write_all(line) {
            Ok(()) => {
                self.bytes += line.len() as u64;
                self.entries += 1;
            }
            // The connection is worth more than its recording: messages are forwarded all the same.
            Err(error) => {
                self.failure = Some(error);
                self.file = None;
            }
        }
    }
}

fn is_recording(file: &mut File) -> io::Result<bool> {
    file.seek(SeekFrom::Start(0))?;
    let mut line = Vec::new();
    BufReader::new(&mut *file).take(OPENING_BYTES_MAX).read_until(b'\n', &mut line)?;
    Ok(serde_json::from_slice::<Opening>(&line).is_ok())
}

fn ends_with_a_line(file: &mut File) -> io::Result<bool> {
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::Recording;

    fn open(path: &Path, bytes_max: u64) -> Result<Recorder, RecorderError> {
        Recorder::open(path, bytes_max, Path::new("a.sock"), Path::new("b.sock"))
    }

    fn entries(path: &Path) -> Vec<Entry> {
        let recording = Recording::open(path).expect("a recording");
        recording.map(|entry| entry.expect("a whole line")).collect()
    }

    #[test]
    fn what_was_recorded_is_read_in_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        let recorder = open(&path, 1 << 20).expect("a new file");
        recorder.record(1, TapEvent::Connected);
        recorder.record(1, TapEvent::Over);
        assert_eq!(recorder.end().entries, 3);
        let events: Vec<_> = entries(&path).into_iter().map(|entry| entry.event).collect();
        assert_eq!(events, [TapEvent::Connected, TapEvent::Over]);
    }

    #[test]
    fn a_recording_has_a_size_and_says_when_it_is_reached() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        let recorder = open(&path, 1024).expect("a new file");
        for _ in 0..1000 {
            recorder.record(1, TapEvent::Connected);
        }
        assert!(recorder.end().is_full);
        assert!(std::fs::metadata(&path).expect("is there").len() <= 1024);
        assert_eq!(entries(&path).last().map(|last| last.event.clone()), Some(TapEvent::Full));
    }

    #[test]
    fn a_recording_goes_on_behind_a_line_that_was_cut() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        open(&path, 1 << 20).expect("a new file").record(1, TapEvent::Connected);
        let mut file = OpenOptions::new().append(true).open(&path).expect("is there");
        file.write_all(b"{\"time_us\":12,\"sess").expect("can be written");
        open(&path, 1 << 20).expect("continues").record(2, TapEvent::Over);
        let read: Vec<_> = Recording::open(&path).expect("a recording").collect();
        assert_eq!(read.iter().filter(|entry| entry.is_ok()).count(), 2);
        assert_eq!(read.iter().filter(|entry| entry.is_err()).count(), 1);
    }

    #[test]
    fn a_file_that_holds_something_else_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("precious");
        std::fs::write(&path, "not a recording\n").expect("can be written");
        assert!(matches!(open(&path, 1 << 20), Err(RecorderError::Foreign { .. })));
        assert_eq!(std::fs::read(&path).expect("is there"), b"not a recording\n");
        assert!(matches!(open(Path::new("/dev/null"), 1 << 20), Err(RecorderError::Foreign { .. })));
    }
}
