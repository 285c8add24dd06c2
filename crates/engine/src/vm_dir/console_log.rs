//! A console's log on disk: the first part is kept, and of the rest the last part.

use std::io::{self, Write as _};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use crate::files::private_file;

/// Size of the log's first part. It is kept, because boots fail early.
pub const CONSOLE_LOG_HEAD_BYTES: u64 = 1 << 20;
/// Size of a file of the log's last part. One full file and the current one are kept.
pub const CONSOLE_LOG_TAIL_BYTES: u64 = 4 << 20;

/// Names of the log's files in a VM's directory: the first part, the file before the current one, the current file.
pub(crate) const CONSOLE_LOGS: [&str; 3] = ["console.log", "console.tail.1.log", "console.tail.log"];

/// The log on disk.
pub(crate) struct ConsoleLog {
    directory: Utf8PathBuf,
    part: Part,
    file: fs::File,
    written: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Head,
    Tail,
}

impl ConsoleLog {
    /// Starts a log, or continues an existing one.
    pub(crate) fn open(directory: &Utf8Path) -> io::Result<Self> {
        let [head, _, tail] = CONSOLE_LOGS;
        let open = |part, name| {
            let file = private_file::append(&directory.join(name))?;
            let written = file.metadata()?.len();
            Ok(Self { directory: directory.into(), part, file, written })
        };
        let this: Self = open(Part::Head, head)?;
        if this.written < CONSOLE_LOG_HEAD_BYTES { Ok(this) } else { open(Part::Tail, tail) }
    }

    /// Appends bytes. When the current file is full, continues in the next one.
    pub(crate) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let size_max = match self.part {
                Part::Head => CONSOLE_LOG_HEAD_BYTES,
                Part::Tail => CONSOLE_LOG_TAIL_BYTES,
            };
            let room = usize::try_from(size_max.saturating_sub(self.written)).unwrap_or(usize::MAX);
            if room == 0 {
                self.turn()?;
                continue;
            }
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.file.write_all(now)?;
            self.written += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        let [_, before, tail] = CONSOLE_LOGS.map(|name| self.directory.join(name));
        if self.part == Part::Tail {
            fs::rename(&tail, before)?;
        }
        self.file = private_file::restart(&tail)?;
        self.part = Part::Tail;
        self.written = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_part_of_a_log_are_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = Utf8Path::from_path(directory.path()).expect("UTF-8");
        let mut log = ConsoleLog::open(path).expect("a log");
        let total = CONSOLE_LOG_HEAD_BYTES + 3 * CONSOLE_LOG_TAIL_BYTES + 100;
        let mut written = 0;
        while written < total {
            let chunk: Vec<u8> = (0..4096).map(|index| u8::try_from((written + index) % 251).expect("< 251")).collect();
            log.append(&chunk).expect("written");
            if written.is_multiple_of(64 * 4096) {
                log = ConsoleLog::open(path).expect("another owner continues");
            }
            written += 4096;
        }
        let size = |name| fs::metadata(path.join(name)).expect("there").len();
        assert_eq!(size("console.log"), CONSOLE_LOG_HEAD_BYTES);
        assert_eq!(size("console.tail.1.log"), CONSOLE_LOG_TAIL_BYTES);
        let last = fs::read(path.join("console.tail.log")).expect("there");
        assert!(last.len() as u64 <= CONSOLE_LOG_TAIL_BYTES);
        assert_eq!(u64::from(*last.last().expect("not empty")), (written - 1) % 251);
        assert_eq!(fs::read_dir(path).expect("lists").count(), 3);
    }
}
