//! What a run shows on stderr while it runs.
//!
//! ```text
//!   terminal:  lines of what is wrong, above one line that changes: how much is done, what runs, time left
//!   else:      lines of what is wrong, and one line of progress now and then
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use kiln_lab::events::{Attempt, CaseKey, Event};
use kiln_lab::run::Observer;
use kiln_lab::{Cell, Verdict};
use owo_colors::OwoColorize as _;

use crate::output::{plain, say};

/// Time between two lines of progress if stderr is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);
/// Names of running suites that the line has room for.
const NAMES_SHOWN: usize = 3;
/// Characters of a message that a line has room for.
const MESSAGE_CHARS_MAX: usize = 120;

/// The view of one run.
pub(super) struct View {
    state: State,
    /// The line that changes, on a terminal.
    bar: Option<ProgressBar>,
    last_line: Instant,
    /// Nothing is shown.
    silent: bool,
}

/// What is known of a run.
#[derive(Debug)]
struct State {
    planned: usize,
    ended: usize,
    counts: BTreeMap<&'static str, usize>,
    running: BTreeSet<(String, Cell)>,
    titles: BTreeSet<String>,
    began: Instant,
    /// When the first attempt began: time before that says nothing about the time left.
    first: Option<Instant>,
}

impl View {
    /// A view of a run in which this many attempts are planned. A silent one is for programs that read both streams.
    pub(super) fn start(planned: usize, silent: bool) -> Self {
        let began = Instant::now();
        let (counts, running, titles) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let state = State { planned, ended: 0, counts, running, titles, began, first: None };
        let bar = (!silent && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:.dim} {wide_msg}") {
                bar.set_style(style);
            }
            bar.set_message(state.progress(began));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { state, bar, last_line: began, silent }
    }

    fn lines(&self, lines: &[String]) {
        let print = || lines.iter().for_each(say);
        match &self.bar {
            _ if self.silent => {}
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Observer for View {
    fn event(&mut self, event: &Event) {
        let lines = self.state.apply(event, Instant::now());
        if !lines.is_empty() {
            self.lines(&lines);
        }
        let progress = self.state.progress(Instant::now());
        match &self.bar {
            Some(bar) => bar.set_message(progress),
            None if self.last_line.elapsed() < LINE_EVERY => {}
            None => {
                self.last_line = Instant::now();
                self.lines(&[format!("{progress} · {} s", self.state.began.elapsed().as_secs())]);
            }
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl State {
    /// Takes an event. Returns what a user needs to know now.
    fn apply(&mut self, event: &Event, now: Instant) -> Vec<String> {
        match event {
            Event::AttemptStarted { cell, suite, .. } => {
                self.first.get_or_insert(now);
                self.running.insert((suite.clone(), cell.clone()));
                Vec::new()
            }
            Event::AttemptEnded(attempt) => self.ended(attempt),
            Event::CellFailed { cell, message, .. } => {
                vec![format!("{} {}: {}", "ERROR".red().bold(), plain(&cell.to_string()), brief(message))]
            }
            Event::CellReady { cell, duration, .. } if !cell.values().is_empty() => {
                vec![format!("{} {} in {duration:.1?}", "ready".dimmed(), plain(&cell.to_string()))]
            }
            _ => Vec::new(),
        }
    }

    fn ended(&mut self, attempt: &Attempt) -> Vec<String> {
        self.ended += 1;
        // Further attempts were not planned.
        self.planned = self.planned.max(self.ended);
        self.running.remove(&(attempt.suite.clone(), attempt.cell.clone()));
        let mut lines = Vec::new();
        for finding in &attempt.findings {
            if self.titles.insert(finding.title.clone()) {
                lines.push(format!("{} {}", "FOUND".magenta().bold(), brief(&finding.title)));
            }
        }
        for one in &attempt.verdicts {
            *self.counts.entry(one.verdict.as_str()).or_default() += 1;
            if matches!(one.verdict, Verdict::Pass | Verdict::Skip) {
                continue;
            }
            let key = CaseKey { cell: attempt.cell.clone(), suite: attempt.suite.clone(), case: one.case.clone() };
            let verdict = format!("{:<7}", one.verdict.as_str().to_uppercase());
            let seconds = one.duration.unwrap_or(attempt.duration).as_secs_f64();
            let again = if attempt.number > 1 { format!(" (attempt {})", attempt.number) } else { String::new() };
            let quarantine = if attempt.quarantined.is_some() { " (in quarantine)" } else { "" };
            let message = if one.message.is_empty() { String::new() } else { format!(": {}", brief(&one.message)) };
            lines.push(format!(
                "{} {seconds:8.3} s  {}{again}{quarantine}{message}",
                verdict.red().bold(),
                brief(&key.to_string())
            ));
        }
        lines
    }

    /// One line about the run.
    fn progress(&self, now: Instant) -> String {
        let mut line = format!("{} of {}", self.ended, self.planned);
        for (verdict, count) in &self.counts {
            line.push_str(&format!(", {count} {verdict}"));
        }
        if let Some(left) = self.left(now) {
            line.push_str(&format!(" · some {} s left", left.as_secs().max(1)));
        }
        if self.running.is_empty() {
            if self.ended < self.planned {
                line.push_str(" · preparing");
            }
            return line;
        }
        let names: Vec<_> = self.running.iter().take(NAMES_SHOWN).map(|(suite, _)| brief(suite)).collect();
        line.push_str(&format!(" · {}", names.join(", ")));
        if self.running.len() > NAMES_SHOWN {
            line.push_str(&format!(" and {} more", self.running.len() - NAMES_SHOWN));
        }
        line
    }

    /// The time left, if the attempts that are due take as long as those that have ended.
    fn left(&self, now: Instant) -> Option<Duration> {
        let spent = now.duration_since(self.first?);
        let due = self.planned.checked_sub(self.ended).filter(|due| *due > 0 && self.ended > 0)?;
        Some(spent.mul_f64(due as f64 / self.ended as f64))
    }
}

/// The start of a text that may come from a guest, on one line.
fn brief(text: &str) -> String {
    let text = text.trim();
    let start: String = text.chars().take(MESSAGE_CHARS_MAX).collect();
    let more = if text.chars().nth(MESSAGE_CHARS_MAX).is_some() { " …" } else { "" };
    plain(&start.replace('\n', " ")) + more
}

#[cfg(test)]
mod tests {
    use kiln_detect::{Finding, Kind, Severity};
    use kiln_lab::events::CaseVerdict;

    use super::*;

    fn attempt(suite: &str, number: u32, verdict: Verdict) -> Event {
        let findings = match verdict {
            Verdict::Crash => {
                vec![Finding::new("a\n\u{202e}title".into(), Kind::Bug, Severity::Fatal, vec![], Duration::ZERO)]
            }
            _ => Vec::new(),
        };
        Event::AttemptEnded(Box::new(Attempt {
            cell: Cell::default(),
            suite: suite.into(),
            number,
            verdicts: vec![CaseVerdict { case: String::new(), verdict, message: "why\nso".into(), duration: None }],
            findings,
            duration: Duration::from_millis(1500),
            fork: Duration::ZERO,
            artifacts: None,
            quarantined: None,
        }))
    }

    fn started(suite: &str) -> Event {
        Event::AttemptStarted { cell: Cell::default(), suite: suite.into(), number: 1 }
    }

    #[test]
    fn what_is_wrong_is_shown_at_once_and_a_title_only_once() {
        let began = Instant::now();
        let (counts, running, titles) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let mut state = State { planned: 4, ended: 0, counts, running, titles, began, first: None };
        let mut shown = vec![state.progress(began)];
        for (second, event) in [
            started("one"),
            started("two"),
            attempt("one", 1, Verdict::Pass),
            attempt("two", 1, Verdict::Crash),
            started("two"),
            attempt("two", 2, Verdict::Crash),
            Event::CellFailed { cell: Cell::default(), message: "no image".into(), findings: vec![] },
        ]
        .into_iter()
        .enumerate()
        {
            let now = began + Duration::from_secs(second as u64);
            shown.extend(state.apply(&event, now));
            shown.push(state.progress(now));
        }
        insta::assert_snapshot!(anstream::adapter::strip_str(&shown.join("\n")));
    }
}
