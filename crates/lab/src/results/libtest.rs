//! JSON lines of libtest (`--format json`) and of nextest (`libtest-json`).

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;

use super::case_result::{CASES_MAX, CaseResult, Outcome};

/// The reader's state.
#[derive(Debug, Default)]
pub(super) struct Libtest {
    /// Tests that have begun and not ended.
    running: BTreeSet<String>,
    planned: u64,
    seen: u64,
    is_over: bool,
}

#[derive(Debug, Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    event: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    test_count: u64,
    #[serde(default)]
    exec_time: Option<f64>,
    #[serde(default)]
    stdout: Option<String>,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    reason: Option<String>,
}

impl Libtest {
    pub(super) fn line(&mut self, text: &str, done: &mut Vec<CaseResult>) {
        // Other text is what the tests print.
        let Ok(line) = serde_json::from_str::<Line>(text.trim()) else { return };
        match (line.kind.as_str(), line.event.as_str()) {
            ("suite", "started") => {
                self.planned = self.planned.saturating_add(line.test_count);
                self.is_over = false;
            }
            ("suite", _) => self.is_over = true,
            ("test", "started") if self.running.len() < CASES_MAX => {
                self.running.insert(line.name);
            }
            ("test", event) => {
                let outcome = match event {
                    "ok" => Outcome::Pass,
                    "ignored" => Outcome::Skip,
                    "failed" => Outcome::Fail,
                    // `started` of more tests than are kept. `timeout` is a warning: the test continues.
                    _ => return,
                };
                self.running.remove(&line.name);
                self.seen += 1;
                let mut case = CaseResult::new(&line.name, outcome);
                case.duration = line.exec_time.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                for text in [line.reason, line.message, line.stdout].into_iter().flatten() {
                    case.add_message(text.trim_end());
                }
                done.push(case);
            }
            _ => {}
        }
    }

    /// Returns the problem of the whole.
    pub(super) fn finish(self, done: &mut Vec<CaseResult>) -> Option<String> {
        let lost = self.running.len();
        for name in self.running {
            let mut case = CaseResult::new(&name, Outcome::Fail);
            case.add_message("it began, and its end did not come");
            done.push(case);
        }
        match (self.planned, self.seen) {
            (0, 0) => None,
            (planned, seen) if planned > seen + lost as u64 => Some(format!("results: {planned} planned, {seen} came")),
            _ if !self.is_over => Some("the suite did not end".to_owned()),
            _ => None,
        }
    }
}
