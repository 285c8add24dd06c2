//! Writes a console's log on another thread, because a disk may be slow and the owner of the VM must not wait for it.
//!
//! ```text
//!   owner ──push──▶ waiting (bounded) ──one write at a time──▶ ConsoleLog
//!                      └── full: the bytes are counted, and the log notes how many are missing
//! ```

use std::io;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};

use crate::blocking;
use crate::vm_dir::ConsoleLog;

/// Most bytes that wait for a write. A serial line needs minutes to send so many.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// The writer of one console's log.
pub(crate) struct LogWriter {
    /// `None` while a write runs, and after an error.
    log: Option<ConsoleLog>,
    waiting: BytesMut,
    missed: u64,
    writing: Option<Writing>,
}

type Writing = Pin<Box<dyn Future<Output = (ConsoleLog, io::Result<()>)> + Send>>;

impl LogWriter {
    pub(crate) fn new(log: ConsoleLog) -> Self {
        Self { log: Some(log), waiting: BytesMut::new(), missed: 0, writing: None }
    }

    /// Appends bytes to the queue. Never waits.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.log.is_none() && self.writing.is_none() {
            return;
        }
        let room = WAITING_BYTES_MAX - self.waiting.len();
        if bytes.len() > room || self.missed > 0 {
            // After the first dropped byte all bytes are dropped until the next write, which notes the gap. Otherwise
            // the bytes after the gap would seem to follow those before it.
            self.missed += bytes.len() as u64;
        } else {
            self.waiting.extend_from_slice(bytes);
        }
        self.start();
    }

    /// Waits until the write that runs is done. If no write runs, waits forever. Safe to cancel.
    ///
    /// # Errors
    /// The log can't be written, and ends here.
    pub(crate) async fn written(&mut self) -> io::Result<()> {
        let Some(writing) = &mut self.writing else { return std::future::pending().await };
        let (log, written) = writing.await;
        self.writing = None;
        written?;
        self.log = Some(log);
        self.start();
        Ok(())
    }

    /// Writes all bytes of the queue.
    ///
    /// # Errors
    /// See [`written`](Self::written).
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        while self.writing.is_some() {
            self.written().await?;
        }
        Ok(())
    }

    fn start(&mut self) {
        if self.waiting.is_empty() && self.missed == 0 {
            return;
        }
        let Some(mut log) = self.log.take() else { return };
        if self.missed > 0 {
            self.waiting.extend_from_slice(format!("\n[{} bytes are missing here]\n", self.missed).as_bytes());
            self.missed = 0;
        }
        let bytes: Bytes = self.waiting.split().freeze();
        let write = move || {
            let written = log.append(&bytes);
            (log, written)
        };
        self.writing = Some(Box::pin(blocking(write)));
    }
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;

    use super::*;
    use crate::vm_dir::CONSOLE_LOGS;

    fn writer() -> (tempfile::TempDir, LogWriter) {
        let directory = tempfile::tempdir().expect("a directory");
        let log = ConsoleLog::open(Utf8Path::from_path(directory.path()).expect("UTF-8")).expect("a log");
        (directory, LogWriter::new(log))
    }

    /// All parts of the log.
    fn read(directory: &tempfile::TempDir) -> String {
        let parts = CONSOLE_LOGS.map(|name| directory.path().join(name));
        parts.iter().filter(|part| part.exists()).map(|part| fs_err::read_to_string(part).expect("reads")).collect()
    }

    #[tokio::test]
    async fn all_pushed_bytes_are_written_in_order() {
        let (directory, mut writer) = writer();
        let mut expected = String::new();
        for number in 0..1000 {
            let line = format!("line {number}\n");
            writer.push(line.as_bytes());
            expected += &line;
        }
        writer.finish().await.expect("written");
        assert_eq!(read(&directory), expected);
    }

    #[tokio::test]
    async fn bytes_that_do_not_fit_are_counted_in_the_log() {
        let (directory, mut writer) = writer();
        writer.push(b"first\n");
        // The first write runs, and its end is not polled.
        writer.push(&vec![b'x'; WAITING_BYTES_MAX - 10]);
        writer.push(b"twelve bytes");
        writer.push(b"x");
        writer.finish().await.expect("written");
        writer.push(b"last\n");
        writer.finish().await.expect("written");
        let log = read(&directory);
        assert!(log.starts_with("first\nxxx") && log.ends_with("xxx\n[13 bytes are missing here]\nlast\n"));
        assert_eq!(log.len(), WAITING_BYTES_MAX - 10 + "first\n\n[13 bytes are missing here]\nlast\n".len());
    }
}
