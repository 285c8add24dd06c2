//! A run as its events tell it.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_detect::{Finding, Severity};

use super::event::{Attempt, CaseKey, Event, RunHead};
use crate::{Cell, Verdict};

/// A run so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunRecord {
    /// What the run is of. Absent if the first event was lost.
    pub head: Option<RunHead>,
    /// Its cells.
    pub cells: BTreeMap<Cell, CellRecord>,
    /// Its cases, in the order of their keys.
    pub cases: BTreeMap<CaseKey, CaseRecord>,
    /// Findings by title.
    pub findings: BTreeMap<String, FindingRecord>,
    /// All attempts, in the order in which they ended.
    pub attempts: Vec<Attempt>,
    /// When it ended, in seconds since 1970. Absent if it runs or was killed.
    pub ended_unix: Option<u64>,
    /// Why not all cases were run.
    pub stopped: Option<String>,
}

/// A cell of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct CellRecord {
    /// Whether its cases can run.
    pub state: CellState,
    /// Time for its boot and preparation.
    pub duration: Duration,
}

/// Whether the cases of a cell can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CellState {
    /// They can, as forks of this snapshot.
    Ready(String),
    /// They can't, and why.
    Failed(String),
}

/// A case of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct CaseRecord {
    /// Of all attempts.
    pub verdict: Verdict,
    /// The verdict of each attempt.
    pub attempts: Vec<Verdict>,
    /// Why, from the last attempt that has a reason.
    pub message: String,
    /// Of the last attempt.
    pub duration: Duration,
    /// The reason for which its failures don't count.
    pub quarantined: Option<String>,
    /// Titles of what the kernel reported in its attempts.
    pub findings: Vec<String>,
    /// Files of its last attempt, relative to the directory of the run.
    pub artifacts: Option<String>,
}

/// Findings of one title.
#[derive(Debug, Clone, PartialEq)]
pub struct FindingRecord {
    /// The first of them.
    pub first: Finding,
    /// How many there are.
    pub count: u64,
    /// The cases in which they came.
    pub cases: Vec<CaseKey>,
}

impl RunRecord {
    /// The record of these events.
    pub fn of<'a>(events: impl IntoIterator<Item = &'a Event>) -> Self {
        let mut record = Self::default();
        events.into_iter().for_each(|event| record.apply(event));
        record
    }

    /// Adds an event.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::RunStarted(head) => self.head = Some((**head).clone()),
            Event::RunResumed { .. } => (self.ended_unix, self.stopped) = (None, None),
            Event::CellReady { cell, snapshot, duration } => {
                let state = CellState::Ready(snapshot.clone());
                self.cells.insert(cell.clone(), CellRecord { state, duration: *duration });
            }
            Event::CellFailed { cell, message, findings } => {
                let state = CellState::Failed(message.clone());
                self.cells.insert(cell.clone(), CellRecord { state, duration: Duration::ZERO });
                let key = CaseKey { cell: cell.clone(), suite: "prepare".into(), case: String::new() };
                self.findings_of(findings, &key);
            }
            Event::AttemptStarted { .. } | Event::Metric { .. } => {}
            Event::AttemptEnded(attempt) => self.attempt(attempt),
            Event::RunEnded { at_unix, stopped } => {
                (self.ended_unix, self.stopped) = (Some(*at_unix), stopped.clone());
            }
        }
    }

    /// Whether a suite has ended in a cell, so that a resumed run leaves it out.
    pub fn has_ended(&self, cell: &Cell, suite: &str) -> bool {
        self.attempts.iter().any(|attempt| attempt.cell == *cell && attempt.suite == suite)
    }

    /// How many cases have each verdict.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for case in self.cases.values() {
            *counts.entry(case.verdict.as_str()).or_default() += 1;
        }
        counts
    }

    /// The verdicts that decide the exit code of the run: those of quarantined cases do not, and a flaky case is a failed
    /// one if the plan says so.
    pub fn deciding(&self) -> impl Iterator<Item = Verdict> {
        let cells = self.cells.values().filter(|cell| matches!(cell.state, CellState::Failed(_)));
        let flaky_fails = self.head.as_ref().is_some_and(|head| head.flaky_fails);
        let cases = self.cases.values().map(move |case| match case.quarantined {
            Some(_) if case.verdict.is_failure() => Verdict::Skip,
            None if case.verdict == Verdict::Flaky && flaky_fails => Verdict::Fail,
            _ => case.verdict,
        });
        cells.map(|_| Verdict::Error).chain(cases)
    }

    /// The exit code of the run: see [`exit_code`](crate::exit_code). A run that was stopped has not run all cases, which is
    /// not a success.
    pub fn exit_code(&self) -> u8 {
        let unfinished = self.stopped.iter().map(|_| Verdict::Error);
        crate::exit_code(self.deciding().chain(unfinished))
    }

    fn attempt(&mut self, attempt: &Attempt) {
        for one in &attempt.verdicts {
            let key = CaseKey { cell: attempt.cell.clone(), suite: attempt.suite.clone(), case: one.case.clone() };
            let case = self.cases.entry(key).or_insert_with(|| CaseRecord {
                verdict: one.verdict,
                attempts: Vec::new(),
                message: String::new(),
                duration: Duration::ZERO,
                quarantined: None,
                findings: Vec::new(),
                artifacts: None,
            });
            case.attempts.push(one.verdict);
            case.verdict = of_attempts(&case.attempts);
            if !one.message.is_empty() {
                case.message.clone_from(&one.message);
            }
            case.duration = one.duration.unwrap_or(attempt.duration);
            case.quarantined.clone_from(&attempt.quarantined);
            case.artifacts.clone_from(&attempt.artifacts);
            for finding in &attempt.findings {
                if !case.findings.contains(&finding.title) {
                    case.findings.push(finding.title.clone());
                }
            }
        }
        let key = CaseKey { cell: attempt.cell.clone(), suite: attempt.suite.clone(), case: String::new() };
        // A suite that passes is its cases, so an attempt that passes after one that crashed says nothing of the whole.
        if !attempt.verdicts.iter().any(|one| one.case.is_empty())
            && let Some(whole) = self.cases.get_mut(&key)
        {
            whole.attempts.push(Verdict::Pass);
            whole.verdict = of_attempts(&whole.attempts);
        }
        self.findings_of(&attempt.findings, &key);
        self.attempts.push(attempt.clone());
    }

    fn findings_of(&mut self, findings: &[Finding], key: &CaseKey) {
        for finding in findings {
            let record = self.findings.entry(finding.title.clone()).or_insert_with(|| FindingRecord {
                first: finding.clone(),
                count: 0,
                cases: Vec::new(),
            });
            record.count += 1;
            if !record.cases.contains(key) {
                record.cases.push(key.clone());
            }
        }
    }

    /// Findings, the most severe first.
    pub fn findings_by_severity(&self) -> Vec<(&str, &FindingRecord)> {
        let mut all: Vec<_> = self.findings.iter().map(|(title, record)| (title.as_str(), record)).collect();
        let order = |severity: Severity| std::cmp::Reverse(severity);
        all.sort_by_key(|(title, record)| (order(record.first.severity), std::cmp::Reverse(record.count), *title));
        all
    }
}

/// The verdict of a case that was attempted several times.
fn of_attempts(attempts: &[Verdict]) -> Verdict {
    let last = *attempts.last().expect("an attempt was just added");
    let failed_before = attempts[..attempts.len() - 1].iter().any(|verdict| verdict.is_failure());
    if last == Verdict::Pass && failed_before { Verdict::Flaky } else { last }
}
