//! A report while its lines arrive: what was read from them so far, and the finding that results.

use std::time::Duration;

use crate::console::Caller;
use crate::finding::{EXTRACT_LINES_MAX, Finding, Severity};
use crate::frames::{self, Blame, Place};
use crate::pattern::{Holes, Text};
use crate::signatures::{self, Role, Signature};

/// Frames kept of a report's stack. The frame to blame is near the top.
const FRAMES_MAX: usize = 64;

/// Callers of one report: its own, and the CPUs that print their stacks for it.
const CALLERS_MAX: usize = 8;

/// Functions kept of those that took the locks that a report describes. The first ones are those of the conflict.
const LOCK_SITES_MAX: usize = 8;

/// Characters that one hole may add to a title.
const TITLE_HOLE_CHARS_MAX: usize = 100;

/// An open report.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    signature: &'static Signature,
    holes: Vec<String>,
    /// The function that the heading names.
    named: Option<String>,
    severity: Severity,
    callers: Vec<Option<Caller>>,
    started: Duration,
    /// When its last line arrived.
    pub(crate) last: Duration,
    /// The number of its lines, kept or not.
    pub(crate) lines: usize,
    extract: Vec<String>,
    frames: Vec<String>,
    /// A frame other than the program counter was read, so the stack was printed.
    traced: bool,
    lock_sites: Vec<String>,
    /// The line before ended in `at:`, so this line names the place where a lock was taken and is not a frame.
    place_follows: bool,
    access: Option<&'static str>,
    trace: Trace,
    /// An out-of-memory kill was within a memory cgroup, which only a later line shows.
    cgroup: bool,
    /// The kernel dropped lines.
    dropped: bool,
}

/// Whether the next frames belong to the stack that the report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trace {
    /// They do.
    Open,
    /// They belong to another stack: of the task that allocated the memory, or of another CPU.
    Over,
}

impl Report {
    pub(crate) fn new(signature: &'static Signature, holes: &Holes<'_>, caller: Option<Caller>, at: Duration) -> Self {
        Self {
            signature,
            holes: holes.texts.iter().map(|text| generalise(text)).collect(),
            named: holes.function.and_then(frames::named),
            severity: signature.severity,
            callers: vec![caller],
            started: at,
            last: at,
            lines: 0,
            extract: Vec::new(),
            frames: Vec::new(),
            traced: false,
            lock_sites: Vec::new(),
            place_follows: false,
            access: None,
            trace: Trace::Open,
            cgroup: false,
            dropped: false,
        }
    }

    pub(crate) fn severity(&self) -> Severity {
        self.severity
    }

    pub(crate) fn written_by(&self, caller: Option<Caller>) -> bool {
        self.callers.contains(&caller)
    }

    /// Whether the kernel makes other CPUs print their stacks as parts of this report.
    pub(crate) fn includes_other_cpus(&self) -> bool {
        self.signature.blame == Blame::Entry
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
            Role::Continues | Role::Consequence => true,
            Role::Report | Role::Preamble => self.signature.role == Role::Preamble && self.frames.is_empty(),
            Role::Line => false,
        }
    }

    /// Takes the heading of a part of this report.
    pub(crate) fn deepen(&mut self, heading: &Signature) {
        self.severity = self.severity.max(heading.severity);
        if heading.role == Role::Consequence && !self.frames.is_empty() {
            // The panic prints the stack of the CPU that panics. The report has printed the stack that matters.
            self.trace = Trace::Over;
        }
    }

    /// Takes a line. Returns whether the report is complete with it.
    pub(crate) fn push(&mut self, text: &str, at: Duration) -> bool {
        self.last = at;
        self.lines += 1;
        if self.extract.len() < EXTRACT_LINES_MAX {
            self.extract.push(text.to_owned());
        }
        self.read(text);
        self.signature.role == Role::Line || Text::new(text).is_any(signatures::ENDS)
    }

    /// Reads from a line what the finding needs.
    fn read(&mut self, text: &str) {
        let begins = |start: &str| text.trim_start().starts_with(start);
        self.dropped |= text.contains(signatures::DROPPED);
        self.cgroup |= begins("Memory cgroup out of memory") || text.contains("constraint=CONSTRAINT_MEMCG");
        if self.access.is_none() {
            self.access = begins("Read ").then_some("Read").or(begins("Write ").then_some("Write"));
        }
        let place = text.split_once(" at: ").map(|(_, place)| place).or(self.place_follows.then_some(text));
        self.place_follows = text.trim_end().ends_with(" at:");
        if let Some(place) = place {
            if self.lock_sites.len() < LOCK_SITES_MAX {
                self.lock_sites.extend(frames::named(place));
            }
            return;
        }
        if text.trim() == "stack backtrace:" {
            self.frames.clear();
        }
        let other_cpu = text.contains(signatures::OTHER_CPU) && !self.includes_other_cpus();
        if other_cpu || Text::new(text).is_any(signatures::FRAMES_END) {
            self.trace = Trace::Over;
        }
        if self.trace == Trace::Open && self.frames.len() < FRAMES_MAX {
            let Some(frame) = frames::frame(text) else { return };
            self.traced |= frame.place != Place::Counter;
            if frame.place != Place::Doubtful {
                self.frames.push(frames::canonical(frame.symbol));
            }
        }
    }

    /// The finding of the lines so far.
    pub(crate) fn finding(&self) -> Finding {
        let needs_function = self.signature.title.contains("{fn}");
        let function = self.function().filter(|_| needs_function);
        let lost_beginning = self.signature.role == Role::Consequence;
        let located = self.traced || self.signature.heading.ends_with(" is corrupted in: {fn}");
        let corrupted = lost_beginning || self.dropped || (needs_function && (function.is_none() || !located));
        Finding {
            title: self.title(function.as_deref()),
            kind: self.signature.kind,
            severity: self.severity,
            function,
            corrupted,
            extract: self.extract.clone(),
            at: self.started,
        }
    }

    fn function(&self) -> Option<String> {
        let blame = self.signature.blame;
        let places = if blame == Blame::LockSite { self.lock_sites.as_slice() } else { self.named.as_slice() };
        let stack: Vec<&str> = places.iter().chain(&self.frames).map(String::as_str).collect();
        frames::blamed(blame, &stack).or_else(|| places.first().cloned())
    }

    fn title(&self, function: Option<&str>) -> String {
        let mut title = self.signature.title.replace("{fn}", function.unwrap_or("corrupted"));
        for (index, hole) in self.holes.iter().enumerate() {
            title = title.replace(&format!("{{{index}}}"), hole);
        }
        if self.cgroup && !title.ends_with("memory cgroup") {
            title.push_str(": memory cgroup");
        }
        title.replace(" {access}", &self.access.map(|access| format!(" {access}")).unwrap_or_default())
    }
}

/// Replaces numbers and addresses by `NUM` and `ADDR`, so that the text is the same on every boot.
fn generalise(text: &str) -> String {
    let mut general = String::new();
    let mut rest = text.trim_end_matches([' ', '.']).trim();
    while let Some(next) = rest.chars().next() {
        let in_word = general.ends_with(|before: char| before.is_alphanumeric() || before == '_');
        let word_length = rest.find(|end: char| !end.is_ascii_alphanumeric()).unwrap_or(rest.len());
        let (kind, length) = if in_word { (None, 0) } else { number(&rest[..word_length]) };
        match kind {
            Some(kind) => {
                general.push_str(kind);
                rest = &rest[length..];
            }
            None => {
                general.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
    }
    general.chars().take(TITLE_HOLE_CHARS_MAX).collect()
}

/// The kind of number that a word begins with (it changes from boot to boot), and its length in bytes.
fn number(word: &str) -> (Option<&'static str>, usize) {
    let hex = |digits: &str| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let decimal_length = word.bytes().take_while(u8::is_ascii_digit).count();
    if word.strip_prefix("0x").is_some_and(hex) || (word.len() >= 8 && hex(word) && decimal_length < word.len()) {
        (Some("ADDR"), word.len())
    } else if decimal_length > 0 {
        (Some("NUM"), decimal_length)
    } else {
        (None, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_addresses_are_replaced_in_titles() {
        assert_eq!(generalise("unknown-block(0,12) "), "unknown-block(NUM,NUM)");
        assert_eq!(generalise("bad at 0xdeadbeef, ffff88003e1f7f40 ..."), "bad at ADDR, ADDR");
        assert_eq!(generalise("ext4 N_TTY 5s deadlock"), "ext4 N_TTY NUMs deadlock");
        assert_eq!(generalise("é 1€"), "é NUM€");
    }

    #[test]
    fn a_long_hole_is_cut_to_the_bound() {
        assert_eq!(generalise(&"é".repeat(5000)).chars().count(), TITLE_HOLE_CHARS_MAX);
    }
}
