//! The report as CSV (RFC 4180): a row for each case, for spreadsheets.

use kiln_wire::shown;

use crate::events::RunRecord;

const COLUMNS: &str = "run,cell,suite,case,verdict,attempts,duration_ms,message,quarantined,findings,artifacts\r\n";

/// The report as CSV, with a header.
pub fn csv(record: &RunRecord) -> String {
    let run = record.head.as_ref().map_or("", |head| head.run.as_str());
    let mut text = COLUMNS.to_owned();
    for (key, case) in &record.cases {
        let attempts: Vec<_> = case.attempts.iter().map(|verdict| verdict.as_str()).collect();
        let fields = [
            run.to_owned(),
            key.cell.to_string(),
            key.suite.clone(),
            key.case.clone(),
            case.verdict.to_string(),
            attempts.join(" "),
            format!("{:.3}", case.duration.as_secs_f64() * 1e3),
            case.message.clone(),
            case.quarantined.clone().unwrap_or_default(),
            case.findings.join("; "),
            case.artifacts.clone().unwrap_or_default(),
        ];
        let fields: Vec<_> = fields.iter().map(|text| field(text)).collect();
        text.push_str(&fields.join(","));
        text.push_str("\r\n");
    }
    text
}

/// A field. A spreadsheet runs text that begins like a formula, so such text gets an apostrophe.
fn field(text: &str) -> String {
    let safe = shown(&text.replace('\n', " ")).to_string();
    let formula = if safe.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    let safe = format!("{formula}{safe}");
    if safe.contains([',', '"', '\n', '\r']) { format!("\"{}\"", safe.replace('"', "\"\"")) } else { safe }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{hostile, run};

    #[test]
    fn each_case_is_a_row() {
        insta::assert_snapshot!(csv(&run()).replace("\r\n", "\n"));
    }

    #[test]
    fn text_of_a_guest_is_one_field_and_no_formula() {
        let text = csv(&hostile());
        assert_eq!(text.lines().count(), 4, "{text}");
        insta::assert_snapshot!(text.replace("\r\n", "\n"));
    }
}
