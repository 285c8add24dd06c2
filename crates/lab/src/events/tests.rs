//! Events written, damaged, read and folded.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use camino::Utf8Path;
use kiln_detect::{Finding, Kind, Severity};

use super::*;
use crate::plan::{Plan, SuiteKind};
use crate::{Cell, Verdict, exit_code};

fn cells() -> Vec<Cell> {
    let plan = "[plan]\nname = 'x'\n[matrix]\nfs = ['ext4', 'xfs']\n[[suite]]\nkind = 'tap'\nname = 'x'\nrun = 'x'\n";
    Plan::parse(plan).expect("is right").cells()
}

fn finding(title: &str, severity: Severity) -> Finding {
    let extract = vec!["kernel BUG at x.c:1!".into()];
    Finding::new(title.into(), Kind::Bug, severity, extract, Duration::from_secs(3))
}

fn attempt(cell: &Cell, suite: &str, number: u32, verdicts: &[(&str, Verdict)]) -> Attempt {
    let verdict = |(case, verdict): &(&str, Verdict)| CaseVerdict {
        case: (*case).into(),
        verdict: *verdict,
        message: if verdict.is_failure() { format!("attempt {number}") } else { String::new() },
        duration: None,
    };
    Attempt {
        cell: cell.clone(),
        suite: suite.into(),
        number,
        verdicts: verdicts.iter().map(verdict).collect(),
        findings: Vec::new(),
        duration: Duration::from_millis(1500),
        fork: Duration::from_millis(90),
        artifacts: None,
        quarantined: None,
    }
}

/// A run with every kind of event.
pub(crate) fn events() -> Vec<Event> {
    let cells = cells();
    let [ext4, xfs] = &cells[..] else { panic!("two cells") };
    let head = RunHead {
        run: RunId::new(1_796_078_100, 0x3f_a9c1),
        plan: "file systems".into(),
        plan_digest: "0123".into(),
        level: 1,
        started_unix: 1_796_078_100,
        kiln: "0.1.0".into(),
        host: BTreeMap::from([("cpu".into(), "2 × A CPU".into())]),
        host_class: "tcg".into(),
        cells: cells.clone(),
        suites: vec![("tap".into(), SuiteKind::Tap), ("boom".into(), SuiteKind::Command)],
        attempts_planned: 4,
        flaky_fails: false,
    };
    let crash = Attempt {
        findings: vec![finding("kernel BUG in f", Severity::Fatal), finding("kernel BUG in f", Severity::Fatal)],
        artifacts: Some("attempts/3".into()),
        ..attempt(ext4, "boom", 1, &[("", Verdict::Crash)])
    };
    let quarantined =
        Attempt { quarantined: Some("known".into()), ..attempt(ext4, "slow", 1, &[("", Verdict::Timeout)]) };
    vec![
        Event::RunStarted(Box::new(head)),
        Event::CellReady { cell: ext4.clone(), snapshot: "9a".into(), duration: Duration::from_secs(4) },
        Event::AttemptStarted { cell: ext4.clone(), suite: "tap".into(), number: 1 },
        Event::AttemptEnded(Box::new(attempt(ext4, "tap", 1, &[("a", Verdict::Pass), ("b", Verdict::Fail)]))),
        Event::AttemptEnded(Box::new(attempt(ext4, "tap", 2, &[("a", Verdict::Pass), ("b", Verdict::Pass)]))),
        Event::AttemptEnded(Box::new(crash)),
        Event::AttemptEnded(Box::new(quarantined)),
        Event::CellFailed {
            cell: xfs.clone(),
            message: "`mkfs.xfs` ended with exit code 1".into(),
            findings: vec![finding("WARNING in g", Severity::Warning)],
        },
        Event::Metric { cell: ext4.clone(), suite: "tap".into(), name: "rate".into(), value: 2.5, unit: "MB/s".into() },
        Event::RunResumed { at_unix: 1_796_078_150 },
        Event::RunEnded { at_unix: 1_796_078_200, stopped: Some("interrupted".into()) },
    ]
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn path(directory: &tempfile::TempDir) -> &Utf8Path {
    Utf8Path::from_path(directory.path()).expect("UTF-8")
}

#[test]
fn events_are_read_as_they_were_written() {
    let directory = directory();
    let mut journal = Journal::open(path(&directory)).expect("opens");
    for event in events() {
        journal.append(&event).expect("is written");
    }
    assert_eq!(read_events(path(&directory)).expect("reads"), (events(), vec![]));
    insta::assert_snapshot!(std::fs::read_to_string(path(&directory).join(EVENTS_FILE)).expect("text"));
}

#[test]
fn a_broken_line_is_named_and_the_rest_is_kept() {
    let directory = directory();
    let file = path(&directory).join(EVENTS_FILE);
    let mut journal = Journal::open(path(&directory)).expect("opens");
    journal.append(&events()[0]).expect("is written");
    std::fs::OpenOptions::new()
        .append(true)
        .open(&file)
        .and_then(|mut file| file.write_all(b"\xff\n{\"event\":\"x\"}\n\n{\"ev"))
        .expect("written");
    drop(journal);
    // A killed process left a line without an end. The next one begins a line of its own.
    let mut journal = Journal::open(path(&directory)).expect("opens again");
    journal.append(&events()[10]).expect("is written");
    let (read, bad) = read_events(path(&directory)).expect("reads");
    assert_eq!(read, [events()[0].clone(), events()[10].clone()]);
    assert_eq!(bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [2, 3, 5]);
}

#[test]
fn two_processes_do_not_write_to_one_run() {
    let directory = directory();
    let first = Journal::open(path(&directory)).expect("opens");
    assert!(matches!(Journal::open(path(&directory)), Err(JournalError::Busy { .. })));
    drop(first);
    Journal::open(path(&directory)).expect("is free again");
}

#[test]
fn a_record_has_verdicts_findings_and_what_decides() {
    let record = RunRecord::of(&events());
    let verdicts: Vec<_> = record.cases.iter().map(|(key, case)| format!("{key}: {}", case.verdict)).collect();
    let (flaky, crash) = ("tap: b [fs=ext4]: flaky", "boom [fs=ext4]: crash");
    assert_eq!(verdicts, [crash, "slow [fs=ext4]: timeout", "tap: a [fs=ext4]: pass", flaky]);
    assert_eq!(record.counts(), BTreeMap::from([("crash", 1), ("flaky", 1), ("pass", 1), ("timeout", 1)]));
    let findings: Vec<_> = record.findings_by_severity().iter().map(|(title, found)| (*title, found.count)).collect();
    assert_eq!(findings, [("kernel BUG in f", 2), ("WARNING in g", 1)]);
    // The timeout is in quarantine. The crash decides, and without it the cell that failed would.
    assert_eq!(exit_code(record.deciding()), 100);
    let without: Vec<_> = events()
        .into_iter()
        .filter(|event| !matches!(event, Event::AttemptEnded(one) if one.suite == "boom"))
        .collect();
    assert_eq!(exit_code(RunRecord::of(&without).deciding()), 69);
    assert_eq!(record.stopped.as_deref(), Some("interrupted"));
    assert!(record.has_ended(&cells()[0], "boom") && !record.has_ended(&cells()[1], "boom"));
    insta::assert_debug_snapshot!(record);
}

#[test]
fn ids_of_runs_sort_by_time_and_other_texts_are_refused() {
    let id = RunId::new(1_796_078_100, 0xff3f_a9c1);
    assert_eq!(id.as_str(), "20261130-223500-3fa9c1");
    assert!(RunId::new(1_796_078_101, 0) > id);
    assert_eq!(id.as_str().parse(), Ok(id));
    for text in
        ["", "..", "20261130-223500-3FA9C1", "20261130-223500", "2026113-223500-3fa9c1", "20261130-223500-3fa9c1/x"]
    {
        assert!(text.parse::<RunId>().is_err(), "{text}");
    }
}

#[test]
fn a_flaky_case_fails_a_run_only_if_its_plan_says_so() {
    let with = |flaky_fails| {
        let mut events = events();
        // The cases of the first suite alone: one of them is flaky.
        events.truncate(5);
        if let Event::RunStarted(head) = &mut events[0] {
            head.flaky_fails = flaky_fails;
        }
        RunRecord::of(&events).exit_code()
    };
    assert_eq!((with(false), with(true)), (0, 100));
}

#[test]
fn a_run_that_was_stopped_is_not_a_success() {
    let mut events = events();
    events.truncate(5);
    events.push(Event::RunEnded { at_unix: 1, stopped: Some("the budget is used up".into()) });
    assert_eq!(RunRecord::of(&events).exit_code(), 69);
    events.push(Event::RunResumed { at_unix: 2 });
    assert_eq!(RunRecord::of(&events).exit_code(), 0);
}

#[test]
fn a_suite_that_crashes_once_and_passes_then_is_flaky_as_a_whole() {
    let cells = cells();
    let mut record = RunRecord::default();
    for (number, verdicts) in
        [&[("", Verdict::Crash), ("a", Verdict::Pass)][..], &[("a", Verdict::Pass)]].iter().enumerate()
    {
        let number = u32::try_from(number).expect("two") + 1;
        record.apply(&Event::AttemptEnded(Box::new(attempt(&cells[0], "tap", number, verdicts))));
    }
    let verdicts: Vec<_> = record.cases.iter().map(|(key, case)| (key.case.as_str(), case.verdict)).collect();
    assert_eq!(verdicts, [("", Verdict::Flaky), ("a", Verdict::Pass)]);
}
