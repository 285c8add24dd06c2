//! Reads a recording, which may be hostile: lines have a bound, and what is not an entry is an error with its line's
//! number, after which reading goes on.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::entry::{Entry, Opening, RECORDING_VERSION};

/// The longest line: a message of 4 KiB takes 8 KiB, and its descriptors some hundred bytes each.
pub(super) const LINE_BYTES_MAX: usize = 64 << 10;
/// Lines that are no entries, after which the file is given up.
const BAD_LINES_MAX: usize = 100;

/// Why a recording, or a line of it, can't be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file can't be read.
    #[error("failed to read the recording `{name}`")]
    Read {
        /// The file.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// It does not begin as a recording does.
    #[error("`{name}` is not a recording of vhost-user messages")]
    Foreign {
        /// The file.
        name: String,
    },
    /// It was written by another version.
    #[error("`{name}` has format {found}, this kiln reads {RECORDING_VERSION}")]
    Version {
        /// The file.
        name: String,
        /// The format in its header.
        found: u32,
    },
    /// A line that is no entry.
    #[error("line {line} of `{name}` is not an entry: {reason}")]
    Line {
        /// The file.
        name: String,
        /// Its number, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The last line was cut, as it is when the tap was killed; all before it is whole.
    #[error("the last line of `{name}` is incomplete")]
    Cut {
        /// The file.
        name: String,
    },
    /// Too many lines are no entries.
    #[error("more than {BAD_LINES_MAX} lines of `{name}` are not entries")]
    Hopeless {
        /// The file.
        name: String,
    },
}

/// The entries of a recording, in order.
pub struct Recording {
    input: Box<dyn BufRead>,
    name: String,
    opening: Opening,
    buffer: Vec<u8>,
    line: u64,
    bad_lines: usize,
    session_base: u32,
    session_max: u32,
    is_over: bool,
}

impl Recording {
    /// Opens a recording; `-` is stdin.
    ///
    /// # Errors
    /// If the file can't be read, or does not begin as a recording.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        if path == Path::new("-") {
            return Self::new(Box::new(BufReader::new(io::stdin())), "-");
        }
        let name = path.display().to_string();
        let failed = |source| RecordingError::Read { name: name.clone(), source };
        let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = opened.map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !std::os::unix::fs::FileTypeExt::is_fifo(&kind) {
            return Err(RecordingError::Foreign { name: path.display().to_string() });
        }
        let flags = rustix::fs::fcntl_getfl(&file).map_err(|error| failed(error.into()))?;
        rustix::fs::fcntl_setfl(&file, flags - rustix::fs::OFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
        Self::new(Box::new(BufReader::new(file)), path.display().to_string())
    }

    /// Reads a recording from anywhere. `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn new(input: Box<dyn BufRead>, name: impl Into<String>) -> Result<Self, RecordingError> {
        let opening = Opening {
            kiln_vhost_recording: RECORDING_VERSION,
            started_unix_ms: 0,
            listen: String::new(),
            connect: String::new(),
        };
        let mut recording = Self {
            input,
            name: name.into(),
            opening,
            buffer: Vec::new(),
            line: 0,
            bad_lines: 0,
            session_base: 0,
            session_max: 0,
            is_over: false,
        };
        let first = recording.next_line()?;
        match first.then(|| serde_json::from_slice::<Opening>(&recording.buffer)) {
            Some(Ok(opening)) => recording.begin(opening)?,
            _ => return Err(RecordingError::Foreign { name: recording.name }),
        }
        Ok(recording)
    }

    fn begin(&mut self, opening: Opening) -> Result<(), RecordingError> {
        if opening.kiln_vhost_recording != RECORDING_VERSION {
            return Err(RecordingError::Version { name: self.name.clone(), found: opening.kiln_vhost_recording });
        }
        self.opening = opening;
        // Sessions of a recording that was appended are others than those before.
        self.session_base = self.session_max;
        Ok(())
    }

    /// Takes the next line into the buffer, without its end. Returns whether there was one.
    fn next_line(&mut self) -> Result<bool, RecordingError> {
        self.buffer.clear();
        let mut bounded = (&mut self.input).take(LINE_BYTES_MAX as u64);
        let read = bounded.read_until(b'\n', &mut self.buffer);
        let read = read.map_err(|source| RecordingError::Read { name: self.name.clone(), source })?;
        if read == 0 {
            return Ok(false);
        }
        self.line += 1;
        if self.buffer.pop_if(|last| *last == b'\n').is_some() {
            return Ok(true);
        }
        if read < LINE_BYTES_MAX {
            return Err(RecordingError::Cut { name: self.name.clone() });
        }
        self.skip_line()?;
        Err(self.bad_line(format!("it has more than {LINE_BYTES_MAX} bytes")))
    }

    fn skip_line(&mut self) -> Result<(), RecordingError> {
        loop {
            let chunk = self.input.fill_buf();
            let chunk = chunk.map_err(|source| RecordingError::Read { name: self.name.clone(), source })?;
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let (used, is_over) = end.map_or((chunk.len(), chunk.is_empty()), |at| (at + 1, true));
            self.input.consume(used);
            if is_over {
                return Ok(());
            }
        }
    }

    fn bad_line(&self, reason: String) -> RecordingError {
        RecordingError::Line { name: self.name.clone(), line: self.line, reason }
    }

    fn next_entry(&mut self) -> Result<Option<Entry>, RecordingError> {
        while self.next_line()? {
            if self.buffer.is_empty() {
                continue;
            }
            match serde_json::from_slice::<Entry>(&self.buffer) {
                Ok(mut entry) => {
                    entry.session = entry.session.saturating_add(self.session_base);
                    self.session_max = self.session_max.max(entry.session);
                    return Ok(Some(entry));
                }
                Err(error) => match serde_json::from_slice::<Opening>(&self.buffer) {
                    Ok(opening) => self.begin(opening)?,
                    Err(_) => return Err(self.bad_line(error.to_string())),
                },
            }
        }
        Ok(None)
    }
}

impl Iterator for Recording {
    type Item = Result<Entry, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let next = self.next_entry().transpose();
        match &next {
            Some(Err(RecordingError::Line { .. })) => {
                self.bad_lines += 1;
                if self.bad_lines > BAD_LINES_MAX {
                    self.is_over = true;
                    return Some(Err(RecordingError::Hopeless { name: self.name.clone() }));
                }
            }
            Some(Ok(_)) => {}
            Some(Err(_)) | None => self.is_over = true,
        }
        next
    }
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording").field("name", &self.name).field("line", &self.line).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::TapEvent;

    const OPENING: &str = "{\"kiln_vhost_recording\":1,\"started_unix_ms\":5}\n";
    const CONNECTED: &str = "{\"time_us\":1,\"session\":1,\"event\":\"connected\"}\n";

    fn read(text: &str) -> Result<Recording, RecordingError> {
        Recording::new(Box::new(io::Cursor::new(text.as_bytes().to_vec())), "f")
    }

    #[test]
    fn a_last_line_that_is_cut_costs_only_itself() {
        let mut recording = read(&format!("{OPENING}{CONNECTED}{}", &CONNECTED[..20])).expect("a recording");
        assert_eq!(recording.next().map(|entry| entry.expect("whole").event), Some(TapEvent::Connected));
        assert!(matches!(recording.next(), Some(Err(RecordingError::Cut { .. }))));
        assert!(recording.next().is_none());
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_named() {
        let long = "x".repeat(3 * LINE_BYTES_MAX);
        let mut recording = read(&format!("{OPENING}{long}\n{CONNECTED}")).expect("a recording");
        assert!(matches!(recording.next(), Some(Err(RecordingError::Line { line: 2, .. }))));
        assert!(recording.next().is_some_and(|entry| entry.is_ok()));
        assert!(recording.buffer.capacity() <= 2 * LINE_BYTES_MAX);
    }

    #[test]
    fn a_file_of_rubbish_is_given_up() {
        let recording = read(&format!("{OPENING}{}", "rubbish\n".repeat(10_000))).expect("it begins well");
        let read: Vec<_> = recording.collect();
        assert_eq!(read.len(), BAD_LINES_MAX + 1);
        assert!(matches!(read.last(), Some(Err(RecordingError::Hopeless { .. }))));
    }

    #[test]
    fn what_is_no_recording_is_refused() {
        for text in ["", "\n", "hello\n", "{}\n", "{\"kiln_vhost_recording\":\"1\"}\n"] {
            assert!(matches!(read(text), Err(RecordingError::Foreign { .. } | RecordingError::Cut { .. })), "{text}");
        }
        let error = read("{\"kiln_vhost_recording\":9}\n").expect_err("another version");
        assert_eq!(error.to_string(), "`f` has format 9, this kiln reads 1");
    }

    #[test]
    fn sessions_of_an_appended_recording_are_others() {
        let recording = read(&format!("{OPENING}{CONNECTED}{OPENING}{CONNECTED}")).expect("a recording");
        let sessions: Vec<_> = recording.map(|entry| entry.expect("whole").session).collect();
        assert_eq!(sessions, [1, 2]);
    }
}
