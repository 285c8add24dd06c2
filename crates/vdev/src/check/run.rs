//! Runs the cases: a fresh backend for each where there is a command, one connection after the other else.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::case::{Allowed, Case};
use super::cases;
use super::context::Context;
use super::expected::ExpectedFailures;
use super::facts::Facts;
use super::outcome::{Outcome, Stop};
use super::process::{SpawnCommand, resources};
use super::report::Report;
use super::target::Target;
use super::trace::Trace;
use super::verdict::{CaseReport, Level, Verdict};
use crate::virtio::DeviceKind;

/// What to check, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the backend listens. With a command it may be left out: each start has a new folder then.
    pub socket: Option<PathBuf>,
    /// Starts the backend; `{socket}` is where it shall listen, `{dir}` a folder for whatever else it makes.
    pub spawn: Option<SpawnCommand>,
    /// What kind of device it is; guessed from what it says where it is left out.
    pub device: Option<DeviceKind>,
    /// Rules that bind less are left out.
    pub level: Level,
    /// Ids of the cases to run, with `*` for anything, and with `!` before it of those to leave out; all where there is
    /// none.
    pub only: Vec<String>,
    /// Failures that are known.
    pub expected: ExpectedFailures,
    /// The longest that anything is waited for; a backend that takes longer hangs.
    pub timeout: Duration,
    /// Whether the disk's contents may be changed. What was there is put back.
    pub writes: bool,
    /// Whether the backend is spared what may harm it.
    pub gentle: bool,
    /// Set by whoever wants the run to end after the case that runs.
    pub stop: Option<Arc<AtomicBool>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            socket: None,
            spawn: None,
            device: None,
            level: Level::Should,
            only: Vec::new(),
            expected: ExpectedFailures::default(),
            timeout: Duration::from_secs(5),
            writes: true,
            gentle: false,
            stop: None,
        }
    }
}

/// Why no case could be run.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// There is neither a socket nor a command.
    #[error("there is no backend to check: neither a socket nor a command that starts one")]
    NoTarget,
    /// The backend does not get as far as saying what it is.
    #[error("`{target}` can't be checked: it {because}")]
    NoFacts {
        /// The socket or the command.
        target: String,
        /// What happened.
        because: String,
        /// The last that it wrote.
        last_words: Vec<String>,
    },
}

/// Runs the cases. `on_case` hears of each as it is done.
///
/// # Errors
/// Where the backend does not even say what it is.
pub fn run(options: &Options, on_case: &mut dyn FnMut(&CaseReport)) -> Result<Report, CheckError> {
    let started = Instant::now();
    let name = target_name(options)?;
    let mut target = Target::new(options.spawn.clone(), options.socket.clone(), options.timeout);
    let facts = match Facts::ask(&mut target, options.device) {
        Ok(facts) => facts,
        Err(stop) => {
            let because = match (target.crash(true), stop) {
                (Some(crash), _) => format!("ended at the first questions: {crash}"),
                (None, Stop::Fail(because) | Stop::Skip(because) | Stop::Closed(because) | Stop::Hang(because)) => {
                    because
                }
            };
            let last_words = target.process().map_or_else(Vec::new, |process| process.last_words());
            return Err(CheckError::NoFacts { target: name, because, last_words });
        }
    };
    let device = options.device.or_else(|| facts.likely_device());
    let mut reports = Vec::new();
    for case in selected(options) {
        if options.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            break;
        }
        let allowed = Allowed { writes: options.writes, harm: !options.gentle };
        let mut report = run_case(case, &mut target, &facts, device, allowed);
        report.expectation = options.expected.judge(case.id, &report.verdict);
        on_case(&report);
        reports.push(report);
    }
    target.stop();
    Ok(Report { target: name, backend: Some(facts), cases: reports, duration: started.elapsed() })
}

/// The cases that these options ask for.
pub fn selected(options: &Options) -> impl Iterator<Item = &'static Case> + '_ {
    let (left_out, wanted): (Vec<&str>, Vec<&str>) =
        options.only.iter().map(String::as_str).partition(|pattern| pattern.starts_with('!'));
    let matches_any =
        |patterns: &[&str], id: &str| patterns.iter().any(|pattern| matches_glob(pattern.trim_start_matches('!'), id));
    let is_asked_for = move |case: &&Case| {
        case.level <= options.level
            && (wanted.is_empty() || matches_any(&wanted, case.id))
            && !matches_any(&left_out, case.id)
    };
    cases::all().filter(is_asked_for)
}

fn target_name(options: &Options) -> Result<String, CheckError> {
    match (&options.spawn, &options.socket) {
        (Some(command), _) => Ok(command.to_string()),
        (None, Some(socket)) => Ok(socket.display().to_string()),
        (None, None) => Err(CheckError::NoTarget),
    }
}

fn run_case(
    case: &'static Case,
    target: &mut Target,
    facts: &Facts,
    device: Option<DeviceKind>,
    allowed: Allowed,
) -> CaseReport {
    let started = Instant::now();
    let mut report = CaseReport {
        id: case.id,
        level: case.level,
        section: case.section,
        reason: case.reason,
        verdict: Verdict::Pass,
        expectation: super::verdict::Expectation::None,
        trace: Trace::default(),
        duration: Duration::ZERO,
        resources: None,
        stderr: Vec::new(),
    };
    if let Some(lack) = case.lacks(facts, device, target, allowed) {
        report.verdict = Verdict::Skip(lack);
        return report;
    }
    if let Err(because) = ready(target) {
        report.verdict = because;
        return report;
    }
    let mut context = Context::new(target, facts, device);
    let mut before = context.target.pid().and_then(resources);
    let mut outcome = (case.run)(&mut context);
    if outcome.is_err() && !context.target.is_spawned() && context.trace_is_one_sided() && !context.target.has_ended() {
        // The backend was still busy with the end of the connection before.
        before = context.target.pid().and_then(resources);
        outcome = context.target.connect_served().map(drop).and_then(|()| (case.run)(&mut context));
    }
    report.trace = context.take_trace();
    report.verdict = judge(outcome, target, &report.trace);
    let after = target.pid().and_then(resources);
    report.resources = before.zip(after).map(|(before, after)| [before, after]);
    if report.verdict.is_failure() {
        report.stderr = target.process().map_or_else(Vec::new, |process| process.last_words());
    }
    target.stop();
    report.duration = started.elapsed();
    report
}

/// A backend for the next case.
fn ready(target: &mut Target) -> Result<(), Verdict> {
    if target.is_spawned() {
        return target.start().map_err(|error| Verdict::Crash(format!("failed to start the backend: {error}")));
    }
    match (target.has_ended(), target.ends_with_client) {
        (false, _) => Ok(()),
        (true, false) => Err(Verdict::Skip("the backend is gone".to_owned())),
        (true, true) => {
            Err(Verdict::Skip("the backend is gone: it ends with its client, and needs `--spawn`".to_owned()))
        }
    }
}

fn judge(outcome: Outcome, target: &mut Target, trace: &Trace) -> Verdict {
    let soon = matches!(outcome, Err(Stop::Closed(_)));
    if let (Some(crash), false) = (target.crash(soon), matches!(outcome, Err(Stop::Skip(_)))) {
        return Verdict::Crash(match trace.last_words() {
            Some(words) => format!("{crash} after {words}"),
            None => crash,
        });
    }
    match outcome {
        Ok(()) => Verdict::Pass,
        Err(Stop::Fail(because) | Stop::Closed(because)) => Verdict::Fail(because),
        Err(Stop::Skip(because)) => Verdict::Skip(because),
        Err(Stop::Hang(because)) => Verdict::Hang(because),
    }
}

/// Whether a text has the form of a pattern, in which `*` stands for anything.
fn matches_glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_ids() {
        let matching = ["a.b-c", "*", "a.*", "*-c", "a*c", "*b*"];
        assert!(matching.iter().all(|pattern| matches_glob(pattern, "a.b-c")));
        assert!(["a", "b*", "*b", "", "a.b-c*d", "*x*"].iter().all(|pattern| !matches_glob(pattern, "a.b-c")));
    }

    #[test]
    fn cases_are_chosen_by_level_and_pattern() {
        let chosen = |level, only: &[&str]| {
            let only = only.iter().map(ToString::to_string).collect();
            selected(&Options { level, only, ..Options::default() }).map(|case| case.id).collect::<Vec<_>>()
        };
        let all = chosen(Level::May, &[]);
        assert!(chosen(Level::Must, &[]).len() < chosen(Level::Should, &[]).len());
        assert_eq!(chosen(Level::May, &["data.read"]), ["data.read"]);
        assert_eq!(chosen(Level::May, &["!data.*"]).len() + chosen(Level::May, &["data.*"]).len(), all.len());
    }

    #[test]
    fn without_a_socket_or_a_command_nothing_is_checked() {
        let error = run(&Options::default(), &mut |_| {}).expect_err("there is nothing");
        assert!(matches!(error, CheckError::NoTarget));
    }
}
