//! The file of expected failures: what a backend is known to do otherwise, and what that means.
//!
//! ```toml
//! [features]
//! never-offered-bit = "accepts any bit; a VMM must set only what was offered"
//! wildest-bit = { may-fail = "fails in one run of ten" }
//! ```
//!
//! A case with a text must fail: `--strict` reports one that passes. A case with `may-fail` is right either way, which is
//! for verdicts that change from run to run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::report::Report;
use super::verdict::{CaseReport, Expectation, Verdict};

/// Failures that are known, by case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExpectedFailures(BTreeMap<String, Known>);

/// What is known of one case.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(untagged)]
enum Known {
    /// It fails, and what that means.
    Fails(String),
    /// It fails in some runs, and what that means.
    MayFail(MayFail),
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct MayFail {
    may_fail: String,
}

impl Known {
    fn meaning(&self) -> &str {
        match self {
            Self::Fails(meaning) | Self::MayFail(MayFail { may_fail: meaning }) => meaning,
        }
    }
}

/// Why a file of expected failures can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ExpectedError {
    /// It can't be read.
    #[error("failed to read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML of this form.
    #[error("`{path}` is not a list of expected failures")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<toml::de::Error>,
    },
    /// It names a case that there is not.
    #[error("`{path}` expects `{id}` to fail, but there is no such case")]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The case.
        id: String,
    },
}

impl ExpectedFailures {
    /// Reads a file. Every case that it names must be one of `known`.
    ///
    /// # Errors
    /// If it can't be read or understood.
    pub fn read(path: &Path, known: &mut dyn FnMut(&str) -> bool) -> Result<Self, ExpectedError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ExpectedError::Read { path: path.to_owned(), source })?;
        let expected = Self::parse(&text)
            .map_err(|source| ExpectedError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        match expected.0.keys().find(|id| !known(id)) {
            Some(id) => Err(ExpectedError::Unknown { path: path.to_owned(), id: id.clone() }),
            None => Ok(expected),
        }
    }

    /// Reads a file about the cases for backends.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_for_backends(path: &Path) -> Result<Self, ExpectedError> {
        Self::read(path, &mut |id| super::cases::all().any(|case| case.id == id))
    }

    /// The content of a file of this text: a table for each group, or ids in quotes.
    ///
    /// # Errors
    /// If it is no TOML of this form.
    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        // No case is called `may-fail`, so a table with that key alone is never a group.
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Entry {
            Case(Known),
            Group(BTreeMap<String, Known>),
        }
        let entries: BTreeMap<String, Entry> = toml::from_str(text)?;
        let cases = entries.into_iter().flat_map(|(name, entry)| match entry {
            Entry::Case(known) => vec![(name, known)],
            Entry::Group(cases) => cases.into_iter().map(|(case, known)| (format!("{name}.{case}"), known)).collect(),
        });
        Ok(Self(cases.collect()))
    }

    /// What the failure of this case means, if it is expected.
    fn meaning(&self, id: &str) -> Option<&str> {
        self.0.get(id).map(Known::meaning)
    }

    /// Whether no case is.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How what came of a case stands against this.
    pub fn judge(&self, id: &str, verdict: &Verdict) -> Expectation {
        let Some(known) = self.0.get(id) else { return Expectation::None };
        let meaning = known.meaning().to_owned();
        match verdict {
            Verdict::Pass if matches!(known, Known::MayFail(_)) => Expectation::MayFail(meaning),
            Verdict::Pass => Expectation::PassesNow(meaning),
            Verdict::Skip(_) => Expectation::NotRun(meaning),
            Verdict::Fail(_) | Verdict::Crash(_) | Verdict::Hang(_) => Expectation::Failure(meaning),
        }
    }

    /// A file that expects exactly what failed in this report. What is flaky may fail. Meanings that are known are kept, and
    /// so is what may fail; the others are what the suite saw, for a person to replace.
    pub fn write(&self, report: &Report) -> String {
        let may_fail =
            |case: &&CaseReport| case.flaky.is_some() || matches!(self.0.get(case.id), Some(Known::MayFail(_)));
        let failed = report.cases.iter().filter(|case| case.verdict.is_failure() || may_fail(case));
        let mut text = String::from("# Cases that fail on this backend, and what each failure means for its users.\n");
        let mut group = "";
        for case in failed {
            if case.group() != group {
                group = case.group();
                let _ = writeln!(text, "\n[{group}]");
            }
            let name = case.id.split_once('.').map_or(case.id, |(_, name)| name);
            let meaning = toml_string(&self.meaning(case.id).map_or_else(|| seen(case), str::to_owned));
            let _ = match may_fail(&case) {
                true => writeln!(text, "{name} = {{ may-fail = {meaning} }}"),
                false => writeln!(text, "{name} = {meaning}"),
            };
        }
        text
    }
}

fn seen(case: &CaseReport) -> String {
    format!("{}: {}", case.verdict.name(), case.verdict.because().unwrap_or_default())
}

fn toml_string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            control if control.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", control as u32);
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::check::{Level, Trace};

    fn failed(id: &'static str, because: &str) -> CaseReport {
        CaseReport {
            id,
            level: Level::Should,
            section: "s",
            reason: "r",
            verdict: Verdict::Fail(because.to_owned()),
            expectation: Expectation::None,
            trace: Trace::default(),
            duration: Duration::ZERO,
            resources: None,
            stderr: Vec::new(),
            note: None,
            flaky: None,
        }
    }

    #[test]
    fn a_file_that_was_written_expects_what_failed_and_keeps_what_was_known() {
        let known = ExpectedFailures::parse("[rings]\nsize-zero = \"known\"\n").expect("is one");
        let cases = vec![failed("features.bits", "a \"b\" \\ \u{1}"), failed("rings.size-zero", "other")];
        let report = Report { cases, ..Report::default() };
        let again = ExpectedFailures::parse(&known.write(&report)).expect("is one");
        assert_eq!(again.meaning("rings.size-zero"), Some("known"));
        assert_eq!(again.meaning("features.bits"), Some("fail: a \"b\" \\ \u{1}"));
        assert_eq!(again.0.len(), 2);
    }

    #[test]
    fn ids_may_stand_in_quotes_or_in_their_group() {
        let quoted = ExpectedFailures::parse("\"rings.size-zero\" = \"why\"").expect("is one");
        assert_eq!(quoted, ExpectedFailures::parse("rings.size-zero = \"why\"").expect("is one"));
        assert!(ExpectedFailures::parse("rings = 3").is_err());
    }

    #[test]
    fn passes_failures_and_skips_are_judged_apart() {
        let known = ExpectedFailures::parse("a.b = \"why\"").expect("is one");
        let why = || "why".to_owned();
        assert_eq!(known.judge("a.b", &Verdict::Pass), Expectation::PassesNow(why()));
        assert_eq!(known.judge("a.b", &Verdict::Crash(String::new())), Expectation::Failure(why()));
        assert_eq!(known.judge("a.b", &Verdict::Skip(String::new())), Expectation::NotRun(why()));
        assert_eq!(known.judge("a.c", &Verdict::Fail(String::new())), Expectation::None);
    }

    #[test]
    fn a_case_that_may_fail_is_as_expected_either_way_and_stays_in_the_file() {
        let known = ExpectedFailures::parse("[rings]\nsize-zero = { may-fail = \"why\" }\n").expect("a list");
        let why = || "why".to_owned();
        assert_eq!(known.judge("rings.size-zero", &Verdict::Pass), Expectation::MayFail(why()));
        assert_eq!(known.judge("rings.size-zero", &Verdict::Hang(String::new())), Expectation::Failure(why()));
        let quoted = ExpectedFailures::parse("\"rings.size-zero\" = { may-fail = \"why\" }").expect("a list");
        assert_eq!(quoted, known);
        let mut passed = failed("rings.size-zero", "");
        passed.verdict = Verdict::Pass;
        passed.expectation = known.judge(passed.id, &passed.verdict);
        let report = Report { cases: vec![passed], ..Report::default() };
        assert!(report.is_as_expected(true), "also with `--strict`");
        assert_eq!(ExpectedFailures::parse(&known.write(&report)).expect("a list"), known);
        assert!(ExpectedFailures::parse("[rings]\nsize-zero = { may-fall = \"why\" }\n").is_err());
    }
}
