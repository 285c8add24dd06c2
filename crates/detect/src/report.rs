//! A report while its lines come in: what it says so far, and the finding that it makes.

use std::time::Duration;

use crate::console::Caller;
use crate::finding::{EXTRACT_LINES_MAX, Finding, Severity};
use crate::frames::{self, Blame, Place};
use crate::pattern::{Holes, Text};
use crate::signatures::{self, Role, Signature};

/// Frames kept of a report's stack. The guilty one is near the top.
const FRAMES_MAX: usize = 64;

/// Writers of one report: its own, and the CPUs that were asked for their stacks.
const CALLERS_MAX: usize = 8;

/// Places kept of the locks that a report describes; the first ones are those in dispute.
const LOCK_SITES_MAX: usize = 8;

/// What a hole may add to a title.
const TITLE_HOLE_CHARS_MAX: usize = 100;

/// A report that has begun and may go on.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    signature: &'static Signature,
    holes: Vec<String>,
    /// The function that the heading names.
    named: Option<String>,
    severity: Severity,
    callers: Vec<Option<Caller>>,
    started: Duration,
    /// When the last of its lines came.
    pub(crate) last: Duration,
    /// All of its lines, kept or not.
    pub(crate) lines: usize,
    extract: Vec<String>,
    frames: Vec<String>,
    /// Some function that is not merely running is known, so the stack was printed.
    traced: bool,
    lock_sites: Vec<String>,
    /// The line before ended in `at:`, so this one names a place and is no frame.
    place_follows: bool,
    access: Option<&'static str>,
    trace: Trace,
    /// Memory cgroup of an out-of-memory kill, which only a later line tells.
    cgroup: bool,
    /// Lines are missing.
    dropped: bool,
}

/// Whether the frames that come next are the report's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trace {
    /// They are.
    Open,
    /// They are another's: who allocated the memory, what another CPU does.
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

    /// The kernel asks CPUs for their stacks on behalf of this report, and they answer for themselves.
    pub(crate) fn asks_other_cpus(&self) -> bool {
        self.signature.blame == Blame::Entry
    }

    /// Another CPU answers.
    pub(crate) fn admit(&mut self, caller: Option<Caller>) {
        if self.callers.len() < CALLERS_MAX {
            self.callers.push(caller);
        }
    }

    /// Whether a line with this heading is part of the report rather than the start of the next.
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
            // What the panic prints is the stack of who panics.
            self.trace = Trace::Over;
        }
    }

    /// Takes a line, and says whether the report is complete with it.
    pub(crate) fn push(&mut self, text: &str, at: Duration) -> bool {
        self.last = at;
        self.lines += 1;
        if self.extract.len() < EXTRACT_LINES_MAX {
            self.extract.push(text.to_owned());
        }
        self.read(text);
        self.signature.role == Role::Line || Text::new(text).is_any(signatures::ENDS)
    }

    /// Learns from a line what the finding needs.
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
        let other_cpu = text.contains(signatures::OTHER_CPU) && !self.asks_other_cpus();
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

    /// What the report comes to.
    pub(crate) fn finding(&self) -> Finding {
        let wants_function = self.signature.title.contains("{fn}");
        let function = self.function().filter(|_| wants_function);
        let lost_beginning = self.signature.role == Role::Consequence;
        let located = self.traced || self.signature.heading.ends_with(" is corrupted in: {fn}");
        let corrupted = lost_beginning || self.dropped || (wants_function && (function.is_none() || !located));
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
        frames::guilty(blame, &stack).or_else(|| places.first().cloned())
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

/// Text with numbers and addresses replaced by what they are, so that it is the same on every boot.
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

/// What a word begins with that changes from boot to boot, and its length.
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
    fn numbers_and_addresses_leave_the_title() {
        assert_eq!(generalise("unknown-block(0,12) "), "unknown-block(NUM,NUM)");
        assert_eq!(generalise("bad at 0xdeadbeef, ffff88003e1f7f40 ..."), "bad at ADDR, ADDR");
        assert_eq!(generalise("ext4 N_TTY 5s deadlock"), "ext4 N_TTY NUMs deadlock");
        assert_eq!(generalise("é 1€"), "é NUM€");
    }

    #[test]
    fn a_hole_cannot_make_a_title_endless() {
        assert_eq!(generalise(&"é".repeat(5000)).chars().count(), TITLE_HOLE_CHARS_MAX);
    }
}
