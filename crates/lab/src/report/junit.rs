//! The report as JUnit XML in the dialect of Jenkins: a suite for each cell, with flaky and repeated failures.

use std::time::Duration;

use kiln_wire::shown;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestRerun, TestSuite};

use crate::events::{CaseKey, CaseRecord, CellState, RunRecord};
use crate::{Cell, Verdict};

/// The report as JUnit XML. Cases in quarantine that failed are skipped tests with the reason, and a cell that could not be
/// prepared is a test `prepare` with an error.
pub fn junit(record: &RunRecord) -> String {
    let name = record.head.as_ref().map_or("kiln lab", |head| head.plan.as_str());
    let mut xml = Report::new(clean(name));
    xml.set_time(record.attempts.iter().map(|attempt| attempt.duration).sum::<Duration>());
    let mut cells: Vec<_> = record.cells.keys().chain(record.cases.keys().map(|key| &key.cell)).collect();
    cells.sort();
    cells.dedup();
    xml.add_test_suites(cells.into_iter().map(|cell| suite(cell, record)));
    xml.to_string().expect("a report has no text that XML can't hold, and memory takes all that is written to it")
}

fn suite(cell: &Cell, record: &RunRecord) -> TestSuite {
    let cases = || record.cases.iter().filter(|(key, _)| key.cell == *cell);
    let mut suite = TestSuite::new(clean(&cell.to_string()));
    suite.set_time(cases().map(|(_, case)| case.duration).sum::<Duration>());
    for (axis, value) in cell.values() {
        suite.add_property((clean(axis).as_str(), clean(value).as_str()));
    }
    if let Some(CellState::Failed(why)) = record.cells.get(cell).map(|state| &state.state) {
        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
        status.set_type("error").set_message(clean(why));
        suite.add_test_case(TestCase::new("prepare", status));
    }
    suite.add_test_cases(cases().map(|(key, case)| test_case(key, case)));
    suite
}

fn test_case(key: &CaseKey, case: &CaseRecord) -> TestCase {
    let name = if key.case.is_empty() { &key.suite } else { &key.case };
    let mut xml = TestCase::new(clean(name), status(case));
    xml.set_classname(clean(&key.suite)).set_time(case.duration);
    for title in &case.findings {
        xml.add_property(("finding", clean(title).as_str()));
    }
    if let Some(artifacts) = &case.artifacts {
        xml.add_property(("artifacts", artifacts.as_str()));
    }
    xml
}

fn status(case: &CaseRecord) -> TestCaseStatus {
    if let Some(reason) = case.quarantined.as_ref().filter(|_| case.verdict.is_failure()) {
        let mut skipped = TestCaseStatus::skipped();
        skipped.set_message(clean(&format!("in quarantine: {reason}; {}: {}", case.verdict, case.message)));
        return skipped;
    }
    let mut status = match case.verdict {
        Verdict::Pass | Verdict::Flaky => TestCaseStatus::success(),
        Verdict::Skip => TestCaseStatus::skipped(),
        verdict => TestCaseStatus::non_success(kind(verdict)),
    };
    if !matches!(case.verdict, Verdict::Pass | Verdict::Flaky) {
        status.set_type(case.verdict.as_str()).set_message(clean(&case.message));
    }
    // The last attempt is the test itself.
    let earlier = case.attempts.split_last().map_or(&[][..], |(_, earlier)| earlier);
    for verdict in earlier.iter().filter(|verdict| verdict.is_failure() || **verdict == Verdict::Error) {
        let mut rerun = TestRerun::new(kind(*verdict));
        rerun.set_type(verdict.as_str()).set_message(clean(&case.message));
        status.add_rerun(rerun);
    }
    status
}

fn kind(verdict: Verdict) -> NonSuccessKind {
    if verdict == Verdict::Error { NonSuccessKind::Error } else { NonSuccessKind::Failure }
}

/// A text that may come from a guest, without characters that hide or steer. `quick_junit` escapes what means something in
/// XML.
fn clean(text: &str) -> String {
    shown(&text.replace('\n', " ")).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{hostile, run};

    #[test]
    fn a_ci_system_finds_failures_flaky_cases_and_quarantines() {
        insta::assert_snapshot!(junit(&run()));
    }

    #[test]
    fn text_of_a_guest_can_not_end_the_document() {
        let text = junit(&hostile());
        assert!(!text.contains(['\u{1b}', '\u{202e}', '\u{0}']), "{text:?}");
        assert_eq!(text.matches("</testcase>").count(), text.matches("<testcase ").count());
        insta::assert_snapshot!(text);
    }
}
