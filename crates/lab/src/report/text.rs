//! The report that `kiln lab run` ends with: what is wrong first, then the counts.

use std::fmt::Write as _;

use camino::Utf8Path;
use kiln_wire::shown;

use crate::Verdict;
use crate::events::{CaseRecord, CellState, RunRecord};

/// Characters of a message that a line has room for.
const MESSAGE_CHARS_MAX: usize = 160;
/// The order of verdicts, the worst first.
const ORDER: [Verdict; 7] =
    [Verdict::Crash, Verdict::Timeout, Verdict::Fail, Verdict::Error, Verdict::Flaky, Verdict::Skip, Verdict::Pass];

/// The report as text. `directory` is that of the run.
pub fn text(record: &RunRecord, directory: &Utf8Path) -> String {
    let mut text = String::new();
    findings(&mut text, record);
    cells(&mut text, record);
    cases(&mut text, record, directory);
    let _ = writeln!(text, "{}", counts(record));
    if let Some(why) = &record.stopped {
        let _ = writeln!(text, "stopped: {}", line(why));
    }
    if let Some(head) = &record.head {
        let _ = write!(text, "run {} of `{}`: {directory}", head.run, line(&head.plan));
    }
    text
}

/// How many cases have each verdict, the worst verdict first: `5 cases: 1 crash, 1 fail, 3 pass`.
pub fn counts(record: &RunRecord) -> String {
    let by_verdict = record.counts();
    let some = ORDER.iter().filter_map(|verdict| Some((*verdict, *by_verdict.get(verdict.as_str())?)));
    let some: Vec<_> = some.map(|(verdict, count)| format!("{count} {verdict}")).collect();
    let quarantined = record.cases.values().filter(|case| case.quarantined.is_some() && case.verdict.is_failure());
    let total = record.cases.len();
    let mut counts = format!("{total} case{}", if total == 1 { "" } else { "s" });
    if total > 0 {
        let _ = write!(counts, ": {}", some.join(", "));
    }
    match quarantined.count() {
        0 => {}
        count => {
            let _ = write!(counts, " ({count} of them in quarantine)");
        }
    }
    counts
}

fn findings(text: &mut String, record: &RunRecord) {
    if record.findings.is_empty() {
        return;
    }
    text.push_str("findings\n");
    for (title, finding) in record.findings_by_severity() {
        let severity = format!("{:?}", finding.first.severity).to_lowercase();
        let first = finding.cases.first().map(|case| line(&case.to_string())).unwrap_or_default();
        let more = match finding.cases.len() {
            0 | 1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        let times = if finding.count == 1 { String::new() } else { format!(", {} times", finding.count) };
        let _ = writeln!(text, "  {severity:<8} {}", line(title));
        let _ = writeln!(text, "           in {first}{more}{times}");
    }
    text.push('\n');
}

fn cells(text: &mut String, record: &RunRecord) {
    let failed = record.cells.iter().filter_map(|(cell, state)| match &state.state {
        CellState::Failed(why) => Some((cell, why)),
        CellState::Ready(_) => None,
    });
    let mut failed = failed.peekable();
    if failed.peek().is_none() {
        return;
    }
    text.push_str("cells that could not be prepared\n");
    for (cell, why) in failed {
        let _ = writeln!(text, "  {}", line(&cell.to_string()));
        let _ = writeln!(text, "           {}", line(why));
    }
    text.push('\n');
}

fn cases(text: &mut String, record: &RunRecord, directory: &Utf8Path) {
    let is_shown = |case: &CaseRecord| !matches!(case.verdict, Verdict::Pass | Verdict::Skip);
    let mut shown_cases: Vec<_> = record.cases.iter().filter(|(_, case)| is_shown(case)).collect();
    if shown_cases.is_empty() {
        return;
    }
    let rank = |verdict: Verdict| ORDER.iter().position(|one| *one == verdict);
    shown_cases.sort_by_key(|(key, case)| (rank(case.verdict), *key));
    text.push_str("cases\n");
    for (key, case) in shown_cases {
        let _ = writeln!(text, "  {:<8} {}", case.verdict, line(&key.to_string()));
        if !case.message.is_empty() {
            let _ = writeln!(text, "           {}", line(&case.message));
        }
        if let Some(reason) = &case.quarantined {
            let _ = writeln!(text, "           in quarantine: {}", line(reason));
        }
        if let Some(artifacts) = &case.artifacts {
            let _ = writeln!(text, "           {}", directory.join(artifacts));
        }
    }
    text.push('\n');
}

/// A text that may come from a guest, as a part of a line.
pub(super) fn line(text: &str) -> String {
    let first: String = text.trim().chars().take(MESSAGE_CHARS_MAX).collect();
    let more = if text.trim().chars().nth(MESSAGE_CHARS_MAX).is_some() { " …" } else { "" };
    format!("{}{more}", shown(&first.replace(['\n', '\t'], " ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Event;
    use crate::report::tests::{hostile, run};

    #[test]
    fn findings_come_first_then_cells_then_cases() {
        insta::assert_snapshot!(text(&run(), "/home/lab/1".into()));
    }

    #[test]
    fn text_of_a_guest_is_escaped_and_stays_on_its_line() {
        let text = text(&hostile(), "/home/lab/1".into());
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn an_empty_run_has_no_cases() {
        assert_eq!(text(&RunRecord::of(&[] as &[Event]), "/x".into()), "0 cases\n");
    }
}
