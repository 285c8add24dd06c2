//! The report as JUnit XML, the form that CI systems read. Groups are suites. Text of a peer is escaped, and characters
//! that XML does not allow are left out.

use std::fmt::Write as _;
use std::time::Duration;

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use super::report::Report;
use super::verdict::{CaseReport, Expectation, Verdict};

impl Report {
    /// The report as JUnit XML. Expected failures are skipped tests, with what they mean.
    pub fn to_junit(&self) -> String {
        let mut groups: Vec<&str> = Vec::new();
        for case in &self.cases {
            if !groups.contains(&case.group()) {
                groups.push(case.group());
            }
        }
        let mut xml = quick_junit::Report::new("kiln vhost check");
        xml.set_time(self.duration);
        xml.add_test_suites(groups.into_iter().map(|group| suite(group, self)));
        xml.to_string().expect("a report has no text that XML can't hold, and memory takes all that is written to it")
    }
}

fn suite(group: &str, report: &Report) -> TestSuite {
    let cases = || report.cases.iter().filter(|case| case.group() == group);
    let mut suite = TestSuite::new(group);
    suite.set_time(cases().map(|case| case.duration).sum::<Duration>());
    suite.add_property(("target", report.target.as_str()));
    if let Some(device) = &report.device {
        suite.add_property(("device", device.to_string().as_str()));
    }
    suite.add_test_cases(cases().map(test_case));
    suite
}

fn test_case(case: &CaseReport) -> TestCase {
    let name = case.id.split_once('.').map_or(case.id, |(_, name)| name);
    let mut xml = TestCase::new(name, status(case));
    xml.set_classname(case.group()).set_time(case.duration);
    xml.add_property(("level", case.level.to_string().as_str())).add_property(("section", case.section));
    if !case.stderr.is_empty() {
        xml.set_system_err(case.stderr.join("\n"));
    }
    xml
}

fn status(case: &CaseReport) -> TestCaseStatus {
    if let Some(message) = skip_message(case) {
        let mut skipped = TestCaseStatus::skipped();
        skipped.set_message(message);
        return skipped;
    }
    if !case.verdict.is_failure() {
        return TestCaseStatus::success();
    }
    let kind = case.verdict.name();
    let mut body = format!("rule: {}\nsection: {}\n", case.reason, case.section);
    if let Some(note) = &case.note {
        let _ = writeln!(body, "note: {note}");
    }
    for line in case.trace.lines() {
        let _ = writeln!(body, "{line}");
    }
    let mut failure = TestCaseStatus::non_success(NonSuccessKind::Failure);
    let because = case.verdict.because().unwrap_or_default();
    failure.set_type(kind).set_message(format!("{kind}: {because}")).set_description(body);
    failure
}

fn skip_message(case: &CaseReport) -> Option<String> {
    match (&case.verdict, &case.expectation) {
        (Verdict::Skip(because), _) => Some(because.clone()),
        (verdict, Expectation::Failure(meaning)) => {
            Some(format!("expected {}: {} ({meaning})", verdict.name(), verdict.because().unwrap_or_default()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Level, Trace};

    #[test]
    fn what_a_backend_wrote_can_not_end_the_document() {
        let case = CaseReport {
            id: "hostile.words",
            level: Level::Must,
            section: "Message Specification",
            reason: "\"quoted\" & <tagged>",
            verdict: Verdict::Crash("</failure>\u{1b}".to_owned()),
            expectation: Expectation::None,
            trace: Trace::default(),
            duration: Duration::from_millis(5),
            resources: None,
            stderr: vec!["]]></system-err>".to_owned()],
            note: None,
            flaky: None,
        };
        let report = Report { target: "a <b>".to_owned(), cases: vec![case], ..Report::default() };
        let xml = report.to_junit();
        assert_eq!(xml.matches("<testcase").count(), 1);
        assert_eq!((xml.matches("</failure>").count(), xml.matches("</system-err>").count()), (1, 1));
        assert!(xml.contains("&lt;/failure&gt;") && xml.contains("failures=\"1\""), "{xml}");
    }
}
