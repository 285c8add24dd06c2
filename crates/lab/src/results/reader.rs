//! Reads the output of a suite of any kind.

use kiln_detect::Lines;

use super::case_result::{CASES_MAX, CaseResult, Outcome, TEXT_BYTES_MAX};
use super::junit::Junit;
use super::libtest::Libtest;
use super::tap::{Dialect, Tap};
use crate::plan::SuiteKind;

/// Reads results while they arrive.
///
/// ```
/// use kiln_lab::plan::SuiteKind;
/// use kiln_lab::results::{Outcome, Reader};
///
/// let mut reader = Reader::new(SuiteKind::Tap);
/// let mut results = reader.push(b"1..2\nok 1 - opens\nnot ok 2 - clo");
/// results.extend(reader.push(b"ses\n"));
/// let (rest, problem) = reader.finish(1);
/// results.extend(rest);
/// assert_eq!(results[1].name, "closes");
/// assert_eq!(results[1].outcome, Outcome::Fail);
/// assert_eq!(problem, None);
/// ```
#[derive(Debug)]
pub struct Reader {
    form: Form,
    lines: Lines,
    cases: usize,
    /// Bytes that names and messages may still have.
    room: usize,
    /// More came than is kept.
    is_cut: bool,
    failed: bool,
}

#[derive(Debug)]
enum Form {
    /// Its exit code is all.
    Command,
    Tap(Tap),
    Junit(Junit),
    Libtest(Libtest),
}

impl Reader {
    /// For a suite of this kind.
    pub fn new(kind: SuiteKind) -> Self {
        let form = match kind {
            SuiteKind::Command => Form::Command,
            SuiteKind::Tap => Form::Tap(Tap::new(Dialect::Tap)),
            SuiteKind::Ktap => Form::Tap(Tap::new(Dialect::Ktap)),
            SuiteKind::Junit => Form::Junit(Junit::default()),
            SuiteKind::Libtest => Form::Libtest(Libtest::default()),
        };
        Self { form, lines: Lines::new(), cases: 0, room: TEXT_BYTES_MAX, is_cut: false, failed: false }
    }

    /// Takes output. Returns the cases that it completes.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<CaseResult> {
        match &mut self.form {
            Form::Command => return Vec::new(),
            // Its elements may span lines.
            Form::Junit(junit) => {
                junit.push(bytes);
                return Vec::new();
            }
            Form::Tap(_) | Form::Libtest(_) => {}
        }
        let lines = self.lines.push(bytes);
        let mut done = Vec::new();
        lines.iter().for_each(|line| self.line(line, &mut done));
        self.bounded(done)
    }

    /// Call this at the end of the output. Returns the other cases, and a problem of the suite as a whole, such as
    /// cases that did not come.
    pub fn finish(mut self, exit_code: i32) -> (Vec<CaseResult>, Option<String>) {
        let mut done = Vec::new();
        if let Some(line) = self.lines.finish() {
            self.line(&line, &mut done);
        }
        let problem = match std::mem::replace(&mut self.form, Form::Command) {
            Form::Command => return (Vec::new(), None),
            Form::Tap(mut tap) => tap.finish(&mut done),
            Form::Junit(junit) => junit.finish(&mut done),
            Form::Libtest(libtest) => libtest.finish(&mut done),
        };
        let done = self.bounded(done);
        let problem = problem.or_else(|| match self.cases {
            0 => Some("no result came".to_owned()),
            CASES_MAX.. => Some(format!("more than {CASES_MAX} results came")),
            _ if self.is_cut => Some(format!("its results have more than {} MiB of text", TEXT_BYTES_MAX >> 20)),
            _ if exit_code != 0 && !self.failed => {
                Some(format!("the command ended with exit code {exit_code}, and no case failed"))
            }
            _ => None,
        });
        (done, problem)
    }

    fn line(&mut self, line: &str, done: &mut Vec<CaseResult>) {
        match &mut self.form {
            Form::Tap(tap) => tap.line(line, done),
            Form::Libtest(libtest) => libtest.line(line, done),
            Form::Command | Form::Junit(_) => {}
        }
    }

    fn bounded(&mut self, mut done: Vec<CaseResult>) -> Vec<CaseResult> {
        done.truncate(CASES_MAX.saturating_sub(self.cases));
        done.retain_mut(|case| {
            if case.name.len() + case.message.len() > self.room {
                case.message.clear();
                self.is_cut = true;
            }
            let fits = case.name.len() <= self.room;
            self.room -= if fits { case.name.len() + case.message.len() } else { 0 };
            fits
        });
        self.cases += done.len();
        self.failed |= done.iter().any(|case| case.outcome == Outcome::Fail);
        done
    }
}
