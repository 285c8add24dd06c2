//! The scanner: takes kernel lines one by one and returns findings.
//!
//! ```text
//!                heading                        lines of the same caller
//!   (nothing) ────────────▶ open report ──────────────────────────────────▶ (itself)
//!                               │  end of trace · next heading · quiet · too long · reboot · finish
//!                               ▼
//!                            finding ──▶ ready, one is returned per push
//! ```
//!
//! # Lines of several CPUs
//! The kernel writes its log record by record, so a line of one CPU is not cut by a line of another, but the lines of
//! two reports can alternate. The only thing that connects a line to its report is the caller in its prefix (`T123` for
//! a task, `C0` for an interrupt), and only some kernels print it. So a report holds the callers that may write to it,
//! and a line belongs to the latest open report that holds its caller. One report has several callers: if an RCU stall
//! or a lockup makes other CPUs print their stacks, each of them writes under its own caller, and its first line (`NMI
//! backtrace for cpu`) adds that caller to the report.
//!
//! Without callers every line has the caller `None`, so one report is open at a time, and the heading of a second CPU
//! closes the first CPU's report. The first report is then cut, and the second can contain lines of the first. The
//! kernel limits the damage: it prints most stacks under a lock, so frames of two CPUs seldom mix. A report whose stack
//! is in the part that was cut is marked as corrupted. Frames of the first report that end up in the second can't be
//! noticed.
//!
//! # The end of a report
//! Most reports have no last line that is always printed, so a report is closed by the first of these events:
//!
//! - a line that ends every report of its kind (`---[ end trace`, see [`signatures::ENDS`]);
//! - a heading of the same caller that begins a report of its own; a panic that follows from the report is not one;
//! - [`REPORT_QUIET`] without a line of its own. There is no clock here: the next line of the kernel shows that the
//!   time has passed. Until a line comes, [`Scanner::pending`] returns the finding;
//! - [`REPORT_LINES_MAX`] lines, or more than [`OPEN_REPORTS_MAX`] open reports. Only these two bounds hold against a
//!   guest that prints reports without end;
//! - a second boot, or [`Scanner::finish`].
//!
//! Each event closes a report by removing it from the list of open ones and queueing its finding, so a report becomes
//! exactly one finding. Only a full queue drops findings, and it drops the least severe first.

use std::collections::VecDeque;
use std::time::Duration;

use crate::boot::{Boot, Step};
use crate::console::{ConsoleLine, KernelLine};
use crate::finding::{Finding, Kind, Severity};
use crate::headings;
use crate::pattern::Text;
pub use crate::report::REPORT_LINES_MAX;
use crate::report::{Begin, Report};
use crate::signatures::{self, Role, Signature};

/// Reports that may be open at once. If there is one more, the oldest is closed.
pub const OPEN_REPORTS_MAX: usize = 8;

/// A report is complete if none of its callers has printed a line for this long. The kernel itself waits up to 10 s for a
/// CPU that is to print its stack.
pub const REPORT_QUIET: Duration = Duration::from_secs(15);

/// Findings that wait to be returned. A row can complete several reports, but only a hostile guest completes more than
/// a few.
const READY_MAX: usize = 32;

/// Finds the reports in the lines of one console.
///
/// Each time the kernel prints a report, there is a finding: a task that hangs is a finding every two minutes. Findings
/// with equal titles have the same cause, so a caller can group them by title.
#[derive(Debug, Default)]
pub struct Scanner {
    open: Vec<Report>,
    ready: VecDeque<Finding>,
    /// Rows so far.
    rows: u64,
    boot: Boot,
    /// The kernel's lines are marked (on a console by their stamps), so lines without a mark are not the kernel's.
    marked: bool,
    /// See [`forgive_reboots`](Self::forgive_reboots).
    reboots_forgiven: bool,
}

impl Scanner {
    /// A scanner that has not read a line yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a row of the console. Returns a finding if a report is complete, at most one per push.
    pub fn push(&mut self, row: &ConsoleLine) -> Option<Finding> {
        self.begin_row();
        for line in KernelLine::split(&row.text) {
            self.push_line(&line, row.at, line.stamp.is_some());
        }
        self.next_finding()
    }

    /// Counts a row, of which lines may follow.
    pub(crate) fn begin_row(&mut self) {
        self.rows += 1;
    }

    /// Takes a line. A line without a mark counts as the kernel's until the first line with a mark.
    pub(crate) fn push_line(&mut self, line: &KernelLine<'_>, at: Duration, is_marked: bool) {
        self.close_if(|report| report.last + REPORT_QUIET < at);
        self.marked |= is_marked;
        if is_marked || !self.marked {
            self.take(line, at, is_marked);
        }
    }

    /// Whether no report is open and no finding waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_empty() && self.ready.is_empty()
    }

    /// Takes the stamp of a line that does not [matter](headings::may_matter) and is marked. Returns false if the whole
    /// line is needed: a report is open, or the start of a boot is compared.
    pub(crate) fn skip_line(&mut self, stamp: Duration) -> bool {
        let is_skipped = self.is_idle() && self.boot.skip(stamp);
        self.marked |= is_skipped;
        is_skipped
    }

    /// The next finding of a complete report.
    pub(crate) fn next_finding(&mut self) -> Option<Finding> {
        self.ready.pop_front()
    }

    /// Whether a line was marked as the kernel's. From then on, lines without a mark don't count.
    pub(crate) fn has_marked_lines(&self) -> bool {
        self.marked
    }

    /// Makes no restart unexpected. For a log that a daemon saves: the daemon is stopped before the kernel prints that
    /// it restarts, so an orderly restart looks like an unexpected one.
    pub(crate) fn forgive_reboots(&mut self, forgiven: bool) {
        self.reboots_forgiven = forgiven;
    }

    /// The most severe finding that was not returned yet, from complete and open reports. For use when the machine is
    /// gone.
    #[must_use]
    pub fn pending(&self) -> Option<Finding> {
        let open = self.open.iter().map(Report::finding);
        let mut all: Vec<Finding> = self.ready.iter().cloned().chain(open).collect();
        all.sort_by_key(|finding| (std::cmp::Reverse(finding.severity), finding.row));
        all.into_iter().next()
    }

    /// Call this when the console has closed. Returns all findings that were not returned yet, in the order in which
    /// their reports began.
    pub fn finish(&mut self) -> Vec<Finding> {
        self.close_if(|_| true);
        let mut rest: Vec<Finding> = std::mem::take(self).ready.into();
        rest.sort_by_key(|finding| finding.row);
        rest
    }

    fn take(&mut self, line: &KernelLine<'_>, at: Duration, is_marked: bool) {
        let matters = headings::may_matter(line.text);
        let text = matters.then(|| Text::new(line.text));
        let (orderly, fatal) = (self.boot.orderly, self.boot.fatal);
        match self.boot.follow(line, text.as_ref()) {
            Step::SameBoot => {}
            Step::Repeated => return,
            Step::NewBoot => self.reboot(line.text, at, orderly, fatal),
        }
        if text.is_none() && self.open.is_empty() {
            return;
        }
        let heading =
            text.as_ref().and_then(headings::heading).filter(|(it, _)| headings::is_trusted(it, line.text, is_marked));
        let mine = self.report_of(line, heading.as_ref().map(|(signature, _)| *signature));
        let index = match (mine, heading) {
            (Some(index), None) => index,
            (None, None) => return,
            (Some(index), Some((signature, holes))) if self.open[index].continues_with(signature) => {
                self.open[index].deepen(signature, &holes);
                index
            }
            (_, Some((signature, _))) if signature.role == Role::Consequence && self.boot.fatal => return,
            (mine, Some((signature, holes))) => {
                if let Some(index) = mine.filter(|_| !matches!(signature.role, Role::Line | Role::MarkedLine)) {
                    self.close(index);
                }
                if self.open.len() == OPEN_REPORTS_MAX {
                    self.close(0);
                }
                self.open.push(Report::new(signature, &holes, Begin { caller: line.caller, row: self.rows, at }));
                self.open.len() - 1
            }
        };
        if self.open[index].push(line.text, at) {
            self.close(index);
        }
    }

    /// The open report that a line belongs to.
    fn report_of(&mut self, line: &KernelLine<'_>, heading: Option<&Signature>) -> Option<usize> {
        if let Some(index) = self.open.iter().rposition(|report| report.written_by(line.caller)) {
            return Some(index);
        }
        let is_other_cpu = heading.is_none() && line.text.contains(signatures::OTHER_CPU);
        let index = self.open.iter().rposition(|report| is_other_cpu && report.includes_other_cpus())?;
        self.open[index].add_caller(line.caller);
        Some(index)
    }

    /// Closes the reports of the boot before. Adds a finding if nothing explains why that boot ended.
    fn reboot(&mut self, first_line: &str, at: Duration, orderly: bool, mut fatal: bool) {
        while !self.open.is_empty() {
            fatal |= self.close(0);
        }
        self.boot.fatal = false;
        if !orderly && !fatal && !self.reboots_forgiven {
            let (title, extract) = ("unexpected reboot".to_owned(), vec![first_line.to_owned()]);
            let finding = Finding::new(title, Kind::Reboot, Severity::Fatal, extract, at);
            self.queue(Finding { row: self.rows, ..finding });
        }
    }

    fn close_if(&mut self, is_over: impl Fn(&Report) -> bool) {
        while let Some(index) = self.open.iter().position(&is_over) {
            self.close(index);
        }
    }

    /// Makes a finding of an open report. Returns whether it explains why the machine stops.
    fn close(&mut self, index: usize) -> bool {
        let report = self.open.remove(index);
        let fatal = report.severity() == Severity::Fatal;
        self.boot.fatal |= fatal;
        self.queue(report.finding());
        fatal
    }

    /// Queues a finding. If the queue is full, the latest of the least severe findings is dropped.
    fn queue(&mut self, finding: Finding) {
        self.ready.push_back(finding);
        if self.ready.len() > READY_MAX {
            let least = (0..self.ready.len()).rev().min_by_key(|&index| self.ready[index].severity);
            self.ready.remove(least.expect("the queue is longer than its bound"));
        }
    }
}
