//! The report as Markdown: for a comment or a job's summary, so it is bounded.

use std::fmt::Write as _;

use kiln_wire::shown;

use super::text::counts;
use crate::Verdict;
use crate::events::{CellState, RunRecord};

/// GitHub refuses comments of more than 65,536 characters.
pub const MARKDOWN_BYTES_MAX: usize = 65_000;
/// Bytes of the last line, which says what was left out.
const REST_BYTES: usize = 200;
/// Rows of a report of the kernel.
const LOG_ROWS_MAX: usize = 40;
/// Characters of one text.
const TEXT_CHARS_MAX: usize = 300;

/// The report as Markdown, at most [`MARKDOWN_BYTES_MAX`].
pub fn markdown(record: &RunRecord) -> String {
    let mut out = Bounded { text: String::new(), left_out: 0 };
    let name = record.head.as_ref().map_or("a run", |head| head.plan.as_str());
    out.add(&format!("# {}\n\n{}\n\n", escaped(name), counts(record)));
    if let Some(head) = &record.head {
        let class = escaped(&head.host_class);
        out.add(&format!("Run `{}`, level {}, Kiln {}, {class}\n\n", head.run, head.level, escaped(&head.kiln)));
    }
    if let Some(why) = &record.stopped {
        out.add(&format!("**Stopped:** {}\n\n", escaped(why)));
    }
    findings(&mut out, record);
    cells(&mut out, record);
    cases(&mut out, record);
    if out.left_out > 0 {
        let _ = write!(out.text, "\n{} more parts did not fit. The JSON report has all.\n", out.left_out);
    }
    out.text
}

fn findings(out: &mut Bounded, record: &RunRecord) {
    if record.findings.is_empty() {
        return;
    }
    out.add("## Findings\n\n");
    for (title, finding) in record.findings_by_severity() {
        let severity = format!("{:?}", finding.first.severity).to_lowercase();
        let times = if finding.count == 1 { "once".to_owned() } else { format!("{} times", finding.count) };
        let cases: Vec<_> = finding.cases.iter().take(5).map(|case| escaped(&case.to_string())).collect();
        let mut part = format!("### {}\n\n{severity}, {times}, in {}\n\n", escaped(title), cases.join(", "));
        for row in finding.first.extract.iter().take(LOG_ROWS_MAX) {
            // An indented block has no end that a row could write.
            let row: String = row.chars().take(TEXT_CHARS_MAX).collect();
            let _ = writeln!(part, "    {}", shown(&row.replace('\n', " ")));
        }
        part.push('\n');
        out.add(&part);
    }
}

fn cells(out: &mut Bounded, record: &RunRecord) {
    let mut is_first = true;
    for (cell, state) in &record.cells {
        let CellState::Failed(why) = &state.state else { continue };
        if std::mem::take(&mut is_first) {
            out.add("## Cells that could not be prepared\n\n");
        }
        out.add(&format!("- {}: {}\n", escaped(&cell.to_string()), escaped(why)));
    }
    if !is_first {
        out.add("\n");
    }
}

fn cases(out: &mut Bounded, record: &RunRecord) {
    let is_shown = |verdict: Verdict| !matches!(verdict, Verdict::Pass | Verdict::Skip);
    let mut shown_cases = record.cases.iter().filter(|(_, case)| is_shown(case.verdict)).peekable();
    if shown_cases.peek().is_none() {
        return;
    }
    out.add("## Cases\n\n| verdict | case | why | files |\n|---|---|---|---|\n");
    for (key, case) in shown_cases {
        let quarantine = if case.quarantined.is_some() { " (in quarantine)" } else { "" };
        out.add(&format!(
            "| {}{quarantine} | {} | {} | {} |\n",
            case.verdict,
            escaped(&key.to_string()),
            escaped(&case.message),
            escaped(case.artifacts.as_deref().unwrap_or_default())
        ));
    }
}

/// A text of which parts are left out once it is full.
struct Bounded {
    text: String,
    left_out: usize,
}

impl Bounded {
    fn add(&mut self, part: &str) {
        if self.left_out > 0 || self.text.len() + part.len() > MARKDOWN_BYTES_MAX - REST_BYTES {
            self.left_out += 1;
        } else {
            self.text.push_str(part);
        }
    }
}

/// A text that may come from a guest, on one line and without a meaning in Markdown or HTML.
fn escaped(text: &str) -> String {
    let start: String = text.trim().chars().take(TEXT_CHARS_MAX).collect();
    let more = if text.trim().chars().nth(TEXT_CHARS_MAX).is_some() { " …" } else { "" };
    let mut safe = String::with_capacity(start.len());
    for character in shown(&start.replace(['\n', '\t'], " ")).to_string().chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            // `@name` and `#1` would notify people and link other issues.
            '@' => safe.push_str("&#64;"),
            '#' => safe.push_str("&#35;"),
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '(' | ')' | '!' | '|' | '~' => {
                safe.push('\\');
                safe.push(character);
            }
            other => safe.push(other),
        }
    }
    safe + more
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{CaseKey, CaseRecord};
    use crate::report::tests::{hostile, run};

    #[test]
    fn a_comment_has_findings_cells_and_cases() {
        insta::assert_snapshot!(markdown(&run()));
    }

    #[test]
    fn text_of_a_guest_has_no_meaning_in_markdown() {
        let text = markdown(&hostile());
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
        // In a block that is indented, nothing has a meaning.
        let mut outside = text.lines().filter(|line| !line.starts_with("    "));
        assert!(!outside.any(|line| line.contains("<script>")), "{text:?}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_report_of_many_failures_is_bounded_and_says_what_it_lacks() {
        let mut record = run();
        let (key, case) = record.cases.iter().next().map(|(key, case)| (key.clone(), case.clone())).expect("some");
        record.cases.extend((0..10_000).map(|number| {
            let case = CaseRecord { message: "|".repeat(200), ..case.clone() };
            (CaseKey { case: format!("case {number}"), ..key.clone() }, case)
        }));
        let text = markdown(&record);
        assert!(text.len() <= MARKDOWN_BYTES_MAX, "{}", text.len());
        assert!(text.ends_with("more parts did not fit. The JSON report has all.\n"), "{}", &text[text.len() - 200..]);
    }
}
