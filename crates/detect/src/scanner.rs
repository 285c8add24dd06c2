//! The scanner: kernel lines to findings, as they come.
//!
//! ```text
//!                heading                        lines of the same caller
//!   (nothing) ────────────▶ open report ──────────────────────────────────▶ (itself)
//!                               │  end of trace · next heading · quiet · too long · reboot · finish
//!                               ▼
//!                            finding ──▶ ready, handed out one a push
//! ```
//! Each caller that the kernel names (`T123`, `C0`) has its own open report, which is how interleaved CPUs are kept
//! apart; without caller tags there is one.

use std::collections::VecDeque;
use std::time::Duration;

use crate::boot::{Boot, Step};
use crate::console::{ConsoleLine, KernelLine};
use crate::finding::{Finding, Kind, Severity};
use crate::pattern::Text;
use crate::report::Report;
use crate::signatures::{self, Role, Signature};

/// Reports that may be open at once; the oldest is closed for a new one.
pub const OPEN_REPORTS_MAX: usize = 8;

/// A report is complete after this many lines, whatever they say.
pub const REPORT_LINES_MAX: usize = 400;

/// A report is complete when its caller has said nothing for so long.
pub const REPORT_QUIET: Duration = Duration::from_secs(10);

/// Findings that wait to be handed out. A row can complete several reports, but only a hostile guest more than a few.
const READY_MAX: usize = 32;

/// Finds the reports in the lines of one console.
///
/// The same report comes up as often as the kernel prints it: a task that hangs is a finding every two minutes. Who
/// keeps findings tells them apart by title.
#[derive(Debug, Default)]
pub struct Scanner {
    open: Vec<Report>,
    ready: VecDeque<Finding>,
    boot: Boot,
    /// The kernel's lines are marked (on a console by their stamps), so what has no mark is not the kernel's.
    marked: bool,
    /// See [`forgive_reboots`](Self::forgive_reboots).
    reboots_forgiven: bool,
}

impl Scanner {
    /// Starts without having seen a line.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a row of the console. Returns a finding if a report is complete, one for each push at most.
    pub fn push(&mut self, row: &ConsoleLine) -> Option<Finding> {
        for line in KernelLine::split(&row.text) {
            self.push_line(&line, row.at, line.stamp.is_some());
        }
        self.next_finding()
    }

    /// Takes a line; one that nothing marks as the kernel's counts until one comes that is marked.
    pub(crate) fn push_line(&mut self, line: &KernelLine<'_>, at: Duration, is_marked: bool) {
        self.close_if(|report| report.last + REPORT_QUIET < at);
        self.marked |= is_marked;
        if is_marked || !self.marked {
            self.take(line, at);
        }
    }

    /// A report that is complete.
    pub(crate) fn next_finding(&mut self) -> Option<Finding> {
        self.ready.pop_front()
    }

    /// Whether a line was marked as the kernel's, so that others are not.
    pub(crate) fn knows_the_kernel(&self) -> bool {
        self.marked
    }

    /// For a log whose keeper ends before the kernel says that it restarts: no restart is then unexpected.
    pub(crate) fn forgive_reboots(&mut self, forgiven: bool) {
        self.reboots_forgiven = forgiven;
    }

    /// The worst of what is known and not handed out, complete or not: for when the machine is gone.
    #[must_use]
    pub fn pending(&self) -> Option<Finding> {
        let open = self.open.iter().map(Report::finding);
        let mut all: Vec<Finding> = self.ready.iter().cloned().chain(open).collect();
        all.sort_by_key(|finding| (std::cmp::Reverse(finding.severity), finding.at));
        all.into_iter().next()
    }

    /// The console is closed: returns all that was not handed out, in the order in which it began.
    pub fn finish(&mut self) -> Vec<Finding> {
        self.close_if(|_| true);
        let mut rest: Vec<Finding> = std::mem::take(self).ready.into();
        rest.sort_by_key(|finding| finding.at);
        rest
    }

    fn take(&mut self, line: &KernelLine<'_>, at: Duration) {
        let text = Text::new(line.text);
        let (orderly, fatal) = (self.boot.orderly, self.boot.fatal);
        match self.boot.follow(line, &text) {
            Step::Onward => {}
            Step::Retold => return,
            Step::Another => self.reboot(line.text, at, orderly, fatal),
        }
        let heading = signatures::heading(&text);
        let mine = self.report_of(line, heading.as_ref().map(|(signature, _)| *signature));
        let index = match (mine, heading) {
            (Some(index), None) => index,
            (None, None) => return,
            (Some(index), Some((signature, _))) if self.open[index].continues_with(signature) => {
                self.open[index].deepen(signature);
                index
            }
            (_, Some((signature, _))) if signature.role == Role::Consequence && self.boot.fatal => return,
            (mine, Some((signature, holes))) => {
                if let Some(index) = mine.filter(|_| signature.role != Role::Line) {
                    self.close(index);
                }
                if self.open.len() == OPEN_REPORTS_MAX {
                    self.close(0);
                }
                self.open.push(Report::new(signature, &holes, line.caller, at));
                self.open.len() - 1
            }
        };
        let complete = self.open[index].push(line.text, at);
        if complete || self.open[index].lines >= REPORT_LINES_MAX {
            self.close(index);
        }
    }

    /// The open report that a line belongs to.
    fn report_of(&mut self, line: &KernelLine<'_>, heading: Option<&Signature>) -> Option<usize> {
        if let Some(index) = self.open.iter().rposition(|report| report.written_by(line.caller)) {
            return Some(index);
        }
        let answers = heading.is_none() && line.text.contains(signatures::OTHER_CPU);
        let index = self.open.iter().rposition(|report| answers && report.asks_other_cpus())?;
        self.open[index].admit(line.caller);
        Some(index)
    }

    /// Closes what the boot before has left open; says so if it had no reason to end.
    fn reboot(&mut self, first_line: &str, at: Duration, orderly: bool, mut fatal: bool) {
        while !self.open.is_empty() {
            fatal |= self.close(0);
        }
        self.boot.fatal = false;
        if !orderly && !fatal && !self.reboots_forgiven {
            self.hand_out(Finding {
                title: "unexpected reboot".to_owned(),
                kind: Kind::Reboot,
                severity: Severity::Fatal,
                function: None,
                corrupted: false,
                extract: vec![first_line.to_owned()],
                at,
            });
        }
    }

    fn close_if(&mut self, is_over: impl Fn(&Report) -> bool) {
        while let Some(index) = self.open.iter().position(&is_over) {
            self.close(index);
        }
    }

    /// Makes a finding of an open report, and says whether it explains why the machine will stop.
    fn close(&mut self, index: usize) -> bool {
        let report = self.open.remove(index);
        let fatal = report.severity() == Severity::Fatal;
        self.boot.fatal |= fatal;
        self.hand_out(report.finding());
        fatal
    }

    /// Queues a finding; when there is no room, one of the least severe has to go.
    fn hand_out(&mut self, finding: Finding) {
        self.ready.push_back(finding);
        if self.ready.len() > READY_MAX {
            let least = (0..self.ready.len()).rev().min_by_key(|&index| self.ready[index].severity);
            self.ready.remove(least.expect("the queue is longer than its bound"));
        }
    }
}
