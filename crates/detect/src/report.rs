//! A report while its lines arrive, and the finding that results.

use std::time::Duration;

use crate::console::Caller;
use crate::crash_type::CrashType;
use crate::finding::{EXTRACT_LINES_MAX, Finding, Kind, Severity};
use crate::frames;
use crate::judge;
use crate::pattern::{Holes, Text};
use crate::signatures::{self, Choice, Role, Signature};

/// A report is complete after this many lines.
pub const REPORT_LINES_MAX: usize = 1000;

/// A report is complete after this many bytes. The kernel's own lines are short, so this bounds only the memory that a
/// guest with long lines takes.
const REPORT_BYTES_MAX: usize = 256 << 10;

/// Callers of one report: its own, and the CPUs that print their stacks for it.
const CALLERS_MAX: usize = 8;

/// An open report.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    signature: &'static Signature,
    holes: Vec<String>,
    /// Lines before the heading: a sentence that the heading continued.
    heading_at: usize,
    severity: Severity,
    callers: Vec<Option<Caller>>,
    /// All CPUs print their stacks as parts of this report.
    all_cpus: bool,
    row: u64,
    started: Duration,
    /// When its last line arrived.
    pub(crate) last: Duration,
    lines: Vec<String>,
    bytes: usize,
    /// A frame was read, so the stack is being printed.
    traced: bool,
    /// The kernel dropped lines.
    dropped: bool,
}

/// Where and when a report begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begin {
    pub(crate) caller: Option<Caller>,
    pub(crate) row: u64,
    pub(crate) at: Duration,
}

fn own(holes: &Holes<'_>) -> Vec<String> {
    holes.texts.iter().map(|text| text.trim_end_matches([' ', '.']).to_owned()).collect()
}

impl Report {
    /// Begins a report with the line of its heading, which is then pushed.
    pub(crate) fn new(signature: &'static Signature, holes: &Holes<'_>, begin: Begin) -> Self {
        Self {
            signature,
            holes: own(holes),
            heading_at: 0,
            severity: signature.severity,
            callers: vec![begin.caller],
            all_cpus: false,
            row: begin.row,
            started: begin.at,
            last: begin.at,
            lines: Vec::new(),
            bytes: 0,
            traced: false,
            dropped: false,
        }
    }

    pub(crate) fn severity(&self) -> Severity {
        self.severity
    }

    pub(crate) fn written_by(&self, caller: Option<Caller>) -> bool {
        self.callers.contains(&caller) || (self.all_cpus && matches!(caller, Some(Caller::Cpu(_))))
    }

    /// Whether the kernel makes other CPUs print their stacks as parts of this report.
    pub(crate) fn includes_other_cpus(&self) -> bool {
        self.signature.choice == Choice::Operation
    }

    /// Adds a CPU that prints its stack as a part of this report.
    pub(crate) fn add_caller(&mut self, caller: Option<Caller>) {
        if self.callers.len() < CALLERS_MAX {
            self.callers.push(caller);
        }
    }

    /// Whether a line with this heading is a part of this report and not the start of the next.
    pub(crate) fn continues_with(&self, heading: &Signature) -> bool {
        match heading.role {
            Role::Continues | Role::Consequence | Role::MarkedLine => true,
            Role::Report | Role::Preamble | Role::Sentence => {
                matches!(self.signature.role, Role::Preamble | Role::Sentence) && !self.traced
            }
            Role::Minor => self.severity > heading.severity,
            Role::Line => false,
        }
    }

    /// Takes the heading of a part of this report.
    pub(crate) fn deepen(&mut self, heading: &'static Signature, holes: &Holes<'_>) {
        self.severity = self.severity.max(heading.severity);
        if self.signature.role == Role::Sentence && heading.role == Role::Report {
            self.signature = heading;
            self.holes = own(holes);
            self.heading_at = self.lines.len();
        }
    }

    /// Takes a line. Returns whether the report is complete with it.
    pub(crate) fn push(&mut self, text: &str, at: Duration) -> bool {
        self.last = at;
        self.bytes += text.len();
        self.traced = self.traced || frames::frame(text).is_some();
        let is_marked = signatures::marks_a_report(text);
        self.all_cpus |= is_marked && text.contains(signatures::ALL_CPUS);
        self.dropped |= is_marked && text.contains(signatures::DROPPED);
        self.lines.push(text.to_owned());
        self.lines.len() >= REPORT_LINES_MAX
            || self.bytes >= REPORT_BYTES_MAX
            || matches!(self.signature.role, Role::Line | Role::MarkedLine)
            || (is_marked && Text::new(text).is_any(signatures::ENDS))
    }

    /// The finding of the lines so far.
    pub(crate) fn finding(&self) -> Finding {
        let judgement = judge::judge(self.signature, &self.holes, &self.lines[self.heading_at..]);
        let mut title = judgement.title;
        if self.is_of_a_cgroup() && !title.ends_with("memory cgroup") {
            title.push_str(": memory cgroup");
        }
        Finding {
            crash_type: CrashType::of_title(&title),
            title,
            alternatives: judgement.alternatives,
            kind: self.signature.kind,
            severity: self.severity,
            function: judgement.function,
            corrupted: judgement.corrupted || self.dropped,
            extract: self.lines.iter().take(EXTRACT_LINES_MAX).cloned().collect(),
            row: self.row,
            at: self.started,
        }
    }

    /// Whether memory ran out within a memory cgroup, which only a later line shows.
    fn is_of_a_cgroup(&self) -> bool {
        let shows = |line: &String| {
            line.trim_start().starts_with("Memory cgroup out of memory") || line.contains("constraint=CONSTRAINT_MEMCG")
        };
        self.signature.kind == Kind::OutOfMemory && self.lines.iter().any(shows)
    }
}
