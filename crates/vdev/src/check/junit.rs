//! The report as JUnit XML, the form that CI systems read. Groups are suites; what a peer wrote is escaped, and what XML
//! can't hold is replaced.

use std::fmt::Write as _;

use super::report::Report;
use super::verdict::{CaseReport, Expectation, Verdict};

impl Report {
    /// The report as JUnit XML. Failures that were expected are skipped tests with what they mean.
    pub fn to_junit(&self) -> String {
        let counts = self.counts();
        let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let _ = writeln!(
            xml,
            "<testsuites name=\"kiln vhost check\" tests=\"{}\" failures=\"{}\" errors=\"0\" time=\"{:.3}\">",
            counts.cases,
            counts.unexpected,
            self.duration.as_secs_f64()
        );
        let mut groups: Vec<&str> = Vec::new();
        for case in &self.cases {
            if !groups.contains(&case.group()) {
                groups.push(case.group());
            }
        }
        for group in groups {
            let cases: Vec<_> = self.cases.iter().filter(|case| case.group() == group).collect();
            write_suite(&mut xml, group, self, &cases);
        }
        xml.push_str("</testsuites>\n");
        xml
    }
}

fn write_suite(xml: &mut String, group: &str, report: &Report, cases: &[&CaseReport]) {
    let failures = cases.iter().filter(|case| case.is_unexpected_failure()).count();
    let skipped = cases.iter().filter(|case| skip_message(case).is_some()).count();
    let seconds: f64 = cases.iter().map(|case| case.duration.as_secs_f64()).sum();
    let _ = writeln!(
        xml,
        "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{failures}\" errors=\"0\" skipped=\"{skipped}\" \
         time=\"{seconds:.3}\">",
        escaped(group),
        cases.len()
    );
    let device = report.device.as_ref().map(ToString::to_string);
    let properties = [("target", Some(report.target.clone())), ("device", device)];
    let properties = properties.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let properties =
        properties.map(|(name, value)| format!("<property name=\"{name}\" value=\"{}\"/>", escaped(&value)));
    let _ = writeln!(xml, "    <properties>{}</properties>", properties.collect::<String>());
    for case in cases {
        write_case(xml, case);
    }
    xml.push_str("  </testsuite>\n");
}

fn write_case(xml: &mut String, case: &CaseReport) {
    let name = case.id.split_once('.').map_or(case.id, |(_, name)| name);
    let _ = write!(
        xml,
        "    <testcase name=\"{}\" classname=\"{}\" time=\"{:.6}\">",
        escaped(name),
        escaped(case.group()),
        case.duration.as_secs_f64()
    );
    let _ = write!(
        xml,
        "<properties><property name=\"level\" value=\"{}\"/><property name=\"section\" value=\"{}\"/></properties>",
        case.level,
        escaped(case.section)
    );
    if let Some(message) = skip_message(case) {
        let _ = write!(xml, "<skipped message=\"{}\"/>", escaped(&message));
    } else if case.verdict.is_failure() {
        let because = case.verdict.because().unwrap_or_default();
        let kind = case.verdict.name();
        let mut body = format!("rule: {}\nsection: {}\n", case.reason, case.section);
        if let Some(note) = &case.note {
            let _ = writeln!(body, "note: {note}");
        }
        for line in case.trace.lines() {
            let _ = writeln!(body, "{line}");
        }
        let _ = write!(
            xml,
            "<failure type=\"{kind}\" message=\"{}\">{}</failure>",
            escaped(&format!("{kind}: {because}")),
            escaped(&body)
        );
    }
    if !case.stderr.is_empty() {
        let _ = write!(xml, "<system-err>{}</system-err>", escaped(&case.stderr.join("\n")));
    }
    xml.push_str("</testcase>\n");
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

/// Text for an attribute or an element.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            '\t' => escaped.push_str("&#9;"),
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        assert!(xml.contains("&lt;/failure&gt;\u{fffd}") && xml.contains("failures=\"1\""), "{xml}");
    }
}
