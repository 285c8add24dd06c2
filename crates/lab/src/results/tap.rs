//! The Test Anything Protocol, versions 12 to 14, and the kernel's variant.
//!
//! ```text
//!   1..2                            the plan: how many results come at this depth
//!   # Subtest: mount                (optional) the name of the results below
//!       ok 1 - ext4                 results of a subtest come before the result of the whole
//!       not ok 2 - xfs # SKIP no mkfs.xfs
//!   ok 1 - mount
//!   not ok 2 - umount               a failure
//!     ---                           its diagnostic
//!     got: busy
//!     ...
//! ```
//! The kernel's variant has the diagnostic of a result before it. A result with results below it is not a case of its own, unless it failed and none of them did. The variants differ
//! in how deep a subtest is indented, so only the order of depths counts. Lines of KTAP can come from the kernel's log,
//! and then have its time stamps.

use super::case_result::{CASES_MAX, CaseResult, Outcome, TEXT_BYTES_MAX, cut};

/// Depth of nested results. Deeper lines are text.
const DEPTH_MAX: usize = 16;
/// Bytes of a reason that are shown.
const REASON_BYTES_MAX: usize = 200;

/// A variant of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Tap,
    Ktap,
}

/// The reader's state.
#[derive(Debug)]
pub(super) struct Tap {
    dialect: Dialect,
    /// From the outermost to the depth of the last result.
    levels: Vec<Level>,
    /// The last result, which lines of text belong to, and how deep it is.
    last: Option<(usize, CaseResult)>,
    /// The kernel prints what a test found before the result of the test.
    before: CaseResult,
    is_in_yaml: bool,
    bailed_out: Option<String>,
    problem: Option<String>,
    /// Results of subtests that wait, and the bytes of their messages.
    held: usize,
    held_bytes: usize,
}

/// Results of one depth.
#[derive(Debug, Default)]
struct Level {
    indent: usize,
    planned: Option<u64>,
    /// The reason for which the whole was skipped.
    skipped: Option<String>,
    seen: u64,
    /// Results that wait for the name of the whole.
    cases: Vec<CaseResult>,
}

impl Tap {
    pub(super) fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            levels: vec![Level::default()],
            last: None,
            before: CaseResult::new("", Outcome::Pass),
            is_in_yaml: false,
            bailed_out: None,
            problem: None,
            held: 0,
            held_bytes: 0,
        }
    }

    pub(super) fn line(&mut self, line: &str, done: &mut Vec<CaseResult>) {
        if self.bailed_out.is_some() {
            return;
        }
        let line = match self.dialect {
            Dialect::Ktap => without_stamp(line),
            Dialect::Tap => line,
        };
        let text = line.trim_start_matches([' ', '\t']);
        let indent = line.len() - text.len();
        if self.is_in_yaml {
            match text {
                "..." => self.is_in_yaml = false,
                _ => self.add_message(text),
            }
            return;
        }
        if let Some(reason) = text.strip_prefix("Bail out!") {
            self.bailed_out = Some(cut(reason.trim(), REASON_BYTES_MAX).to_owned());
        } else if let Some((planned, skipped)) = plan(text) {
            self.settle(done);
            let level = self.level(indent);
            level.planned = Some(planned);
            level.skipped = skipped;
        } else if let Some(result) = result(text) {
            self.result(indent, result, done);
        } else if text == "---" && self.last.is_some() {
            self.is_in_yaml = true;
        } else if let Some(comment) = text.strip_prefix('#') {
            let comment = comment.trim();
            if !comment.starts_with("Subtest:") {
                self.add_message(comment);
            }
        }
    }

    /// Returns the problem of the whole.
    pub(super) fn finish(&mut self, done: &mut Vec<CaseResult>) -> Option<String> {
        self.settle(done);
        while self.levels.len() > 1 {
            // A subtest whose end did not come. Its results count.
            let level = self.levels.pop().expect("has more than one");
            self.problem.get_or_insert_with(|| "the result of a subtest did not come".to_owned());
            done.extend(level.cases);
        }
        if let Some(reason) = &self.bailed_out {
            return Some(format!("bailed out: {reason}"));
        }
        let top = &self.levels[0];
        match (top.planned, top.skipped.clone(), top.seen) {
            (Some(0), Some(reason), 0) => {
                let mut all = CaseResult::new("all", Outcome::Skip);
                all.add_message(&reason);
                done.push(all);
                None
            }
            (Some(planned), _, seen) if planned != seen => Some(format!("results: {planned} planned, {seen} came")),
            _ => self.problem.take(),
        }
    }

    fn result(&mut self, indent: usize, line: ResultLine<'_>, done: &mut Vec<CaseResult>) {
        self.settle(done);
        // Results that are deeper are those of this one.
        let mut below = Vec::new();
        while self.levels.last().is_some_and(|level| level.indent > indent) && self.levels.len() > 1 {
            let level = self.levels.pop().expect("has more than one");
            if let Some(planned) = level.planned.filter(|planned| *planned != level.seen) {
                let name = cut(line.name, REASON_BYTES_MAX);
                let seen = level.seen;
                self.problem.get_or_insert_with(|| format!("results of `{name}`: {planned} planned, {seen} came"));
            }
            below.extend(level.cases);
        }
        let number = self.level(indent);
        number.seen += 1;
        let name = if line.name.is_empty() { number.seen.to_string() } else { line.name.replace("\\#", "#") };
        let (outcome, note) = line.outcome();
        let mut whole = CaseResult::new(&name, outcome);
        for message in [note, &std::mem::take(&mut self.before.message)] {
            if !message.is_empty() {
                whole.add_message(message);
            }
        }
        let explains = outcome == Outcome::Fail && below.iter().all(|case| case.outcome != Outcome::Fail);
        let is_leaf = below.is_empty();
        self.held = self.held.saturating_sub(below.len());
        let bytes: usize = below.iter().map(|case| case.message.len()).sum();
        self.held_bytes = self.held_bytes.saturating_sub(bytes);
        for case in below {
            self.emit(indent, case.below(&name), done);
        }
        if is_leaf || explains {
            self.last = Some((indent, whole));
        }
    }

    /// The level of this depth. A level that is missing is made, unless the nesting is too deep.
    fn level(&mut self, indent: usize) -> &mut Level {
        let last = self.levels.last().expect("there is always one");
        if last.indent < indent && self.levels.len() < DEPTH_MAX {
            self.levels.push(Level { indent, ..Level::default() });
        }
        let at = self.levels.iter().rposition(|level| level.indent <= indent).unwrap_or(0);
        &mut self.levels[at]
    }

    /// The last result is complete.
    fn settle(&mut self, done: &mut Vec<CaseResult>) {
        self.is_in_yaml = false;
        if let Some((indent, case)) = self.last.take() {
            self.emit(indent, case, done);
        }
    }

    fn emit(&mut self, indent: usize, mut case: CaseResult, done: &mut Vec<CaseResult>) {
        let is_top = self.levels.len() == 1 || indent <= self.levels[0].indent;
        if is_top {
            done.push(case);
        } else if self.held < CASES_MAX {
            if self.held_bytes + case.message.len() > TEXT_BYTES_MAX {
                case.message.clear();
                self.problem.get_or_insert_with(|| "a subtest has too long messages".to_owned());
            }
            self.held += 1;
            self.held_bytes += case.message.len();
            self.level(indent).cases.push(case);
        } else {
            self.problem.get_or_insert_with(|| format!("a subtest has more than {CASES_MAX} results"));
        }
    }

    fn add_message(&mut self, line: &str) {
        match (&mut self.last, self.dialect) {
            (_, Dialect::Ktap) => self.before.add_message(line),
            (Some((_, case)), Dialect::Tap) => case.add_message(line),
            (None, Dialect::Tap) => {}
        }
    }
}

/// `not ok 2 - name # SKIP reason`
#[derive(Debug, Clone, Copy)]
struct ResultLine<'a> {
    is_ok: bool,
    name: &'a str,
    directive: &'a str,
}

impl<'a> ResultLine<'a> {
    /// The outcome and a note.
    fn outcome(&self) -> (Outcome, &'a str) {
        let word_end = self.directive.find(|next: char| !next.is_ascii_alphabetic()).unwrap_or(self.directive.len());
        let (word, rest) = self.directive.split_at(word_end);
        let rest = rest.trim_start_matches([':', ' ']);
        match () {
            () if word.eq_ignore_ascii_case("skip") || word.eq_ignore_ascii_case("skipped") => (Outcome::Skip, rest),
            // A failure that is expected until the work is done.
            () if word.eq_ignore_ascii_case("todo") || word.eq_ignore_ascii_case("xfail") => {
                (Outcome::Pass, self.directive)
            }
            () if self.is_ok => (Outcome::Pass, self.directive),
            () => (Outcome::Fail, self.directive),
        }
    }
}

fn result(text: &str) -> Option<ResultLine<'_>> {
    let (is_ok, rest) = match text.strip_prefix("ok") {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix("not ok")?),
    };
    if !rest.is_empty() && !rest.starts_with(' ') {
        return None;
    }
    let rest = rest.trim_start();
    let after_number = rest.trim_start_matches(|next: char| next.is_ascii_digit());
    let rest = if after_number.is_empty() || after_number.starts_with(' ') { after_number } else { rest };
    let rest = rest.trim_start();
    let rest = rest.strip_prefix("- ").unwrap_or(if rest == "-" { "" } else { rest });
    // A `#` that is part of the name is escaped.
    let hash = rest.match_indices('#').find(|(at, _)| !rest[..*at].ends_with('\\')).map(|(at, _)| at);
    let (name, directive) = hash.map_or((rest, ""), |at| (&rest[..at], &rest[at + 1..]));
    Some(ResultLine { is_ok, name: name.trim(), directive: directive.trim() })
}

/// `1..4`, and why none runs.
fn plan(text: &str) -> Option<(u64, Option<String>)> {
    let (count, rest) = text
        .strip_prefix("1..")?
        .split_at_checked(text[3..].find(|next: char| !next.is_ascii_digit()).unwrap_or(text.len() - 3))?;
    let count = count.parse().ok()?;
    let reason = rest.trim_start().strip_prefix('#').map(str::trim);
    let skipped = reason
        .and_then(|reason| reason.get(..4).filter(|word| word.eq_ignore_ascii_case("skip")).map(|_| &reason[4..]));
    Some((count, skipped.map(|reason| cut(reason.trim(), REASON_BYTES_MAX).to_owned())))
}

/// A line of the kernel's log without its prefix.
fn without_stamp(line: &str) -> &str {
    let rest = line.strip_prefix('<').and_then(|rest| rest.split_once('>')).map_or(line, |(_, rest)| rest);
    let Some((stamp, after)) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) else { return rest };
    let is_stamp = stamp.contains('.') && stamp.trim_start().bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if is_stamp { after.strip_prefix(' ').unwrap_or(after) } else { rest }
}
