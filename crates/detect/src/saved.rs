//! A saved log of any program: bytes in, findings out.
//!
//! ```text
//!   bytes ── Lines ──▶ row ── Form ──▶ Kernel(line) ───────────────────▶ Scanner
//!                                     Console(text) ── KernelLine::split ──▶ (its stamped lines, or all if none has one)
//!                                     Program ──▶ dropped
//! ```
//!
//! For rows that look like a console, the rule of the live console holds ([which lines are the kernel's](crate)). Rows
//! that a daemon or `dmesg` marks as the kernel's count as the kernel's: these programs read the kernel's log from the
//! kernel. After the first row with a mark, rows without a mark are not the kernel's.

use std::time::Duration;

use crate::console::{self, KernelLine};
use crate::finding::Finding;
use crate::headings;
use crate::lines::Lines;
use crate::row::{self, Form, Row};
use crate::scanner::Scanner;
use crate::signatures;

/// Reads a saved kernel log in any of the usual forms: a console, `dmesg` with any option, `journalctl -k`, syslog;
/// with or without times of the host, levels (`<4>`) and callers (`[T1]`).
///
/// ```
/// let mut log = kiln_detect::SavedLog::new();
/// let rows = b"Nov  1 12:00:00 web1 kernel: Kernel panic - not syncing: No working init found.\n";
/// let mut findings = log.push(rows);
/// findings.extend(log.finish());
/// assert_eq!(findings[0].title, "kernel panic: No working init found");
/// ```
#[derive(Debug, Default)]
pub struct SavedLog {
    lines: Lines,
    form: Form,
    scanner: Scanner,
    /// The first time of day. Times are counted from it.
    began: Option<Duration>,
    last: Duration,
    has_kernel_lines: bool,
}

impl SavedLog {
    /// A log of which nothing was read yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the log and returns the findings that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut lines = std::mem::take(&mut self.lines);
        lines.feed(bytes, |row| findings.extend(self.row(&row)));
        self.lines = lines;
        findings
    }

    /// Call this at the end of the log. Returns the findings of reports that were still open.
    pub fn finish(&mut self) -> Vec<Finding> {
        let last = self.lines.finish().and_then(|row| self.row(&row));
        let mut findings: Vec<Finding> = last.into_iter().collect();
        findings.extend(self.scanner.finish());
        self.has_kernel_lines |= !findings.is_empty();
        findings
    }

    /// Whether any row so far was the kernel's. If none was, the text is not a kernel log, and "no findings" means
    /// nothing.
    #[must_use]
    pub fn has_kernel_lines(&self) -> bool {
        self.has_kernel_lines
    }

    fn row(&mut self, row: &str) -> Option<Finding> {
        self.scanner.begin_row();
        if self.skip(row) {
            return None;
        }
        match self.form.read(row) {
            Row::Program => {}
            Row::Kernel { time, mut line } => {
                let time = time.map(|time| self.since_begin(time));
                line.stamp = line.stamp.or(time);
                self.take(&line, true);
            }
            Row::Console { time, rest } => {
                let time = time.map(|time| self.since_begin(time));
                for line in KernelLine::split(rest) {
                    if line.stamp.is_some() {
                        self.take(&row::text(line.text, line.stamp, line.level, line.caller), true);
                    } else if !self.scanner.has_marked_lines() {
                        let mut line = row::message(line.text, None, line.level);
                        line.stamp = line.stamp.or(time);
                        self.take(&line, false);
                    }
                }
            }
        }
        let finding = self.scanner.next_finding();
        self.has_kernel_lines |= finding.is_some();
        finding
    }

    /// Takes an ordinary row of a console in the quickest way. Returns false if the row needs to be read as a whole.
    ///
    /// Nearly all rows of a log are ordinary, and all that they change is the time. A row is ordinary if each of these
    /// holds: the log is a console, so no row before had a tag; the row begins with a stamp and has no other; it doesn't
    /// begin a tag; it has no word of a heading; no report is open to which it could belong.
    fn skip(&mut self, row: &str) -> bool {
        #[cfg(test)]
        if crate::reference::is_enabled() {
            return false;
        }
        if !self.form.is_plain_console() || !self.scanner.is_idle() {
            return false;
        }
        let rest = console::level(row).map_or(row, |(_, rest)| rest);
        let Some((stamp, rest)) = console::stamp(rest) else { return false };
        // Without an early exit the compiler uses vector instructions.
        let has_bracket = rest.bytes().fold(false, |has, byte| has | (byte == b'['));
        let has_other_stamp = has_bracket && console::next_prefix(rest).is_some();
        if has_other_stamp || row::begins_tag(rest) || headings::may_matter(rest) {
            return false;
        }
        let is_skipped = self.scanner.skip_line(stamp);
        if is_skipped {
            self.last = stamp;
            self.has_kernel_lines = true;
        }
        is_skipped
    }

    /// Passes a line to the scanner. `is_marked` if a stamp or a tag shows that the line is the kernel's.
    fn take(&mut self, line: &KernelLine<'_>, is_marked: bool) {
        self.last = line.stamp.unwrap_or(self.last);
        self.has_kernel_lines = self.has_kernel_lines || is_marked || signatures::is_ordinary(line.text);
        self.scanner.forgive_reboots(self.form.is_tagged());
        self.scanner.push_line(line, self.last, is_marked);
    }

    fn since_begin(&mut self, time: Duration) -> Duration {
        time.saturating_sub(*self.began.get_or_insert(time))
    }
}
