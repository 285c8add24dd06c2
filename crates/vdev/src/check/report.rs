//! What came of all cases: counts, and the text that people read. JSON is the same by serde.

use std::fmt::{self, Write as _};
use std::time::Duration;

use serde::Serialize;

use super::facts::{CheckedDevice, Facts};
use super::verdict::{CaseReport, Expectation, Level, Verdict, seconds};

/// What came of all cases.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// What was checked: a socket, or a command.
    pub target: String,
    /// The kind of device, and how it is known; missing if a frontend was checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<CheckedDevice>,
    /// What the backend reports about itself; missing if a frontend was checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<Facts>,
    /// Every case that was looked at, in order.
    pub cases: Vec<CaseReport>,
    /// How long it took.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub duration: Duration,
    /// How often each case was run.
    pub runs: u32,
    /// Backends that were used at the same time.
    pub jobs: usize,
    /// What else is to be known about the run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// How many cases came out how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// All of them.
    pub cases: usize,
    /// The rule holds.
    pub passed: usize,
    /// The rule is broken, crashes and hangs included.
    pub failed: usize,
    /// The rule does not apply.
    pub skipped: usize,
    /// Failures that are crashes.
    pub crashed: usize,
    /// Failures that are hangs.
    pub hung: usize,
    /// Failures that the file of expected failures names.
    pub expected: usize,
    /// Failures that it does not name.
    pub unexpected: usize,
    /// Cases that it names and that pass now.
    pub passing_now: usize,
}

impl Report {
    /// How many cases came out how.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts { cases: self.cases.len(), ..Counts::default() };
        for case in &self.cases {
            match case.verdict {
                Verdict::Pass => counts.passed += 1,
                Verdict::Skip(_) => counts.skipped += 1,
                Verdict::Fail(_) => counts.failed += 1,
                Verdict::Crash(_) => (counts.failed, counts.crashed) = (counts.failed + 1, counts.crashed + 1),
                Verdict::Hang(_) => (counts.failed, counts.hung) = (counts.failed + 1, counts.hung + 1),
            }
            match case.expectation {
                Expectation::Failure(_) => counts.expected += 1,
                Expectation::PassesNow(_) => counts.passing_now += 1,
                Expectation::None if case.verdict.is_failure() => counts.unexpected += 1,
                Expectation::None | Expectation::MayFail(_) | Expectation::NotRun(_) => {}
            }
        }
        counts
    }

    /// Whether nothing failed that was not expected to; with `strict` also nothing passes that was expected to fail.
    pub fn is_as_expected(&self, strict: bool) -> bool {
        let counts = self.counts();
        counts.unexpected == 0 && !(strict && counts.passing_now > 0)
    }

    /// The cases that failed and were not expected to.
    pub fn unexpected(&self) -> impl Iterator<Item = &CaseReport> {
        self.cases.iter().filter(|case| case.is_unexpected_failure())
    }

    /// The cases that came out in more than one way.
    fn flaky(&self) -> impl Iterator<Item = &CaseReport> {
        self.cases.iter().filter(|case| case.flaky.is_some())
    }

    /// All of it as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        let mut json = serde_json::to_value(self).expect("strings, numbers and lists have a form in JSON");
        json["counts"] = serde_json::to_value(self.counts()).expect("numbers have a form in JSON");
        if self.runs > 1 {
            json["flaky"] = self.flaky().map(|case| case.id).collect();
        }
        json
    }

    /// The device, the failures whole, then the counts.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        if let Some(device) = &self.device {
            let _ = writeln!(text, "device: {device}\n");
        }
        for case in self.cases.iter().filter(|case| case.verdict.is_failure()) {
            let _ = writeln!(text, "{}", Failure(case));
        }
        let _ = writeln!(text, "{}", self.summary());
        text
    }

    /// The counts in a line or two.
    pub fn summary(&self) -> String {
        let counts = self.counts();
        let mut text = format!(
            "{} cases in {:.1} s: {} passed, {} failed",
            counts.cases,
            self.duration.as_secs_f64(),
            counts.passed,
            counts.failed
        );
        let failures = |level| {
            let failed = self.cases.iter().filter(|case| case.level == level && case.verdict.is_failure());
            failed.count()
        };
        let parts = [
            (failures(Level::Must), "must"),
            (failures(Level::Should), "should"),
            (counts.crashed, "crashed"),
            (counts.hung, "hung"),
            (counts.expected, "expected"),
        ];
        let parts: Vec<_> =
            parts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
        if !parts.is_empty() {
            let _ = write!(text, " ({})", parts.join(", "));
        }
        let _ = write!(text, ", {} skipped", counts.skipped);
        if self.runs > 1 {
            let flaky = self.flaky().count();
            let _ = write!(text, "\n{} runs of each: {flaky} flaky", self.runs);
        }
        for case in self.flaky() {
            let _ = write!(text, "\n`{}` is flaky: {}", case.id, Ways(case));
        }
        for note in &self.notes {
            let _ = write!(text, "\n{note}");
        }
        for case in &self.cases {
            if let (None, Some(note)) = (case.verdict.because(), &case.note) {
                let _ = write!(text, "\n`{}` passes on a fresh backend, but failed {note}", case.id);
            }
            if let Expectation::PassesNow(_) = case.expectation {
                let _ = write!(text, "\n`{}` was expected to fail, but passes now", case.id);
            }
        }
        text
    }
}

/// A case as one line: `pass  must    features.version-1`.
impl fmt::Display for CaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match (&self.verdict, &self.expectation) {
            (Verdict::Fail(_), Expectation::Failure(_)) => "xfail",
            (Verdict::Fail(_), _) => "FAIL",
            (Verdict::Crash(_), _) => "CRASH",
            (Verdict::Hang(_), _) => "HANG",
            (Verdict::Pass | Verdict::Skip(_), _) => self.verdict.name(),
        };
        write!(f, "{word:<5} {:<6} {:<42} {:>8.1} ms", self.level, self.id, self.duration.as_secs_f64() * 1e3)?;
        if let Some(because) = self.verdict.because() {
            write!(f, "  {because}")?;
        }
        match &self.expectation {
            Expectation::Failure(_) => f.write_str(" [expected]"),
            Expectation::PassesNow(_) => f.write_str("  expected to fail, but passes now"),
            Expectation::None | Expectation::MayFail(_) | Expectation::NotRun(_) => Ok(()),
        }
    }
}

/// How often a case came out in which way: `3 pass, 2 fail`.
struct Ways<'a>(&'a CaseReport);

impl fmt::Display for Ways<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ways: Vec<_> = self.0.flaky.iter().flatten().map(|(verdict, count)| format!("{count} {verdict}")).collect();
        f.write_str(&ways.join(", "))
    }
}

/// A failure with all that is known about it.
struct Failure<'a>(&'a CaseReport);

impl fmt::Display for Failure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let case = self.0;
        writeln!(f, "{} {} ({})", case.verdict.name().to_uppercase(), case.id, case.level)?;
        if let Some(because) = case.verdict.because() {
            writeln!(f, "  what:    {because}")?;
        }
        if let Some(note) = &case.note {
            writeln!(f, "  note:    {note}")?;
        }
        if case.flaky.is_some() {
            writeln!(f, "  flaky:   {}", Ways(case))?;
        }
        writeln!(f, "  rule:    {}", case.reason)?;
        writeln!(f, "  section: {}", case.section)?;
        if let Expectation::Failure(meaning) = &case.expectation {
            writeln!(f, "  known:   {meaning}")?;
        }
        if let Some([before, after]) = case.resources.filter(|[before, after]| before.descriptors != after.descriptors)
        {
            writeln!(f, "  fds:     {} before, {} after", before.descriptors, after.descriptors)?;
        }
        for line in case.trace.lines() {
            writeln!(f, "  | {line}")?;
        }
        for line in &case.stderr {
            writeln!(f, "  stderr | {line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::facts::DeviceKnown;
    use crate::check::trace::Trace;
    use crate::check::verdict::Resources;
    use crate::virtio::DeviceKind;

    fn case(id: &'static str, level: Level, verdict: Verdict) -> CaseReport {
        CaseReport {
            id,
            level,
            section: "Ring states",
            reason: "a ring goes on after its last entry",
            verdict,
            expectation: Expectation::None,
            trace: Trace::default(),
            duration: Duration::from_millis(12),
            resources: None,
            stderr: Vec::new(),
            note: None,
            flaky: None,
        }
    }

    fn report() -> Report {
        let descriptors = |descriptors| Resources { descriptors, ..Resources::default() };
        let crash = CaseReport {
            stderr: vec!["thread 'main' panicked".into()],
            resources: Some([descriptors(9), descriptors(12)]),
            note: Some("it passes on a fresh backend".into()),
            ..case("hostile.size-huge", Level::Must, Verdict::Crash("SIGABRT (signal 6)".into()))
        };
        let expected = CaseReport {
            expectation: Expectation::Failure("the guest can't use this size".into()),
            ..case("rings.size-1", Level::May, Verdict::Fail("a ring of 1 entries: the backend closed".into()))
        };
        let flaky = CaseReport {
            flaky: Some([("hang", 1), ("pass", 2)].into()),
            ..case("data.read", Level::Must, Verdict::Hang("no reply within 5s".into()))
        };
        let passes_now = CaseReport {
            expectation: Expectation::PassesNow("known".into()),
            note: Some("on a backend that had served 3 other cases: closed the connection".into()),
            ..case("rings.size-2", Level::Should, Verdict::Pass)
        };
        let skipped = case("data.discard", Level::Must, Verdict::Skip("DISCARD is not offered".into()));
        Report {
            target: "disk.sock".into(),
            device: Some(CheckedDevice {
                kind: DeviceKind::Blk,
                known: DeviceKnown::Guessed,
                evidence: Some("its features are a disk's".into()),
            }),
            cases: vec![crash, expected, flaky, passes_now, skipped],
            duration: Duration::from_millis(1500),
            runs: 3,
            jobs: 1,
            notes: vec!["only one backend at a time: the backend was not started with `--spawn`".into()],
            ..Report::default()
        }
    }

    #[test]
    fn a_report_names_the_device_then_failures_then_counts() {
        insta::assert_snapshot!(report().to_text());
    }

    #[test]
    fn each_case_has_a_line_with_its_verdict() {
        let lines: Vec<_> = report().cases.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(lines.join("\n"));
    }
}
