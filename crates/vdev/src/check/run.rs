//! A run: finds out what the backend is, distributes the cases to lanes, and collects their verdicts.
//!
//! ```text
//!   Options ──▶ Facts ──▶ may two run beside each other? ──▶ lanes, a thread and a backend each ──▶ Report
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::case::{Allowed, Case};
use super::context::Context;
use super::expected::ExpectedFailures;
use super::facts::{CheckedDevice, DeviceKnown, Facts};
use super::lane::{Lane, Said, Shared, Task};
use super::outcome::Stop;
use super::process::SpawnCommand;
use super::report::Report;
use super::target::Target;
use super::verdict::{CaseReport, Level, Verdict};
use super::{beside, cases, works};
use crate::socket::SocketError;
use crate::virtio::{Candidate, DeviceKind};

/// What to check, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// The backend's socket. With a command it may be left out: each start has a new folder then.
    pub socket: Option<PathBuf>,
    /// Starts the backend; `{socket}` is the path to listen on, `{dir}` a folder for anything else it makes.
    pub spawn: Option<SpawnCommand>,
    /// The kind of device. If it is left out, it is guessed from the backend's replies.
    pub device: Option<DeviceKind>,
    /// Rules that bind less are left out.
    pub level: Level,
    /// Ids of the cases to run. `*` stands for any text, and `!` before an id leaves its cases out. All cases if empty.
    pub only: Vec<String>,
    /// Failures that are known.
    pub expected: ExpectedFailures,
    /// The longest that anything is waited for; a backend that takes longer hangs.
    pub timeout: Duration,
    /// Whether the disk's contents may be changed. What was there is put back.
    pub writes: bool,
    /// Whether the backend is spared what may harm it.
    pub gentle: bool,
    /// Set by the caller to end the run after the current case.
    pub stop: Option<Arc<AtomicBool>>,
    /// Backends that are used at the same time, at most; as many as there are processors, if it is left out.
    pub jobs: Option<usize>,
    /// How often each case is run. What comes out in more than one way is named.
    pub repeat: u32,
}

/// Backends that are used at the same time if the caller gives no number.
const JOBS_DEFAULT_MAX: usize = 8;
/// Backends that are used at the same time at most.
pub const JOBS_MAX: usize = 64;

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
            jobs: None,
            repeat: 1,
        }
    }
}

/// Why no case could be run.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// There is neither a socket nor a command.
    #[error("no backend to check: there is neither a socket nor a command that starts one")]
    NoTarget,
    /// The socket can't be connected to, and waiting changes nothing.
    #[error(transparent)]
    Unreachable {
        /// Why.
        source: SocketError,
    },
    /// The backend's facts fit no kind of device, or more than one.
    #[error("the kind of device behind `{target}` is not known{}", may_be(candidates))]
    UnknownDevice {
        /// The socket or the command.
        target: String,
        /// What it may be.
        candidates: Vec<Candidate>,
    },
    /// The backend does not get as far as saying what it is.
    #[error("failed to check `{target}`: it {because}")]
    NoFacts {
        /// The socket or the command.
        target: String,
        /// What happened.
        because: String,
        /// The last that it wrote.
        last_words: Vec<String>,
    },
}

fn may_be(candidates: &[Candidate]) -> String {
    let words = candidates.iter().map(|Candidate { kind, reason, .. }| format!("; it may be {kind}: {reason}"));
    words.collect()
}

/// Runs the cases. `on_case` gets each as it is done. Its verdict is not final then: a backend that dies a little later is a
/// crash of the case that it died of.
///
/// # Errors
/// If the backend's facts cannot be read, or do not show what kind of device it is.
pub fn run(options: &Options, on_case: &mut dyn FnMut(&CaseReport)) -> Result<Report, CheckError> {
    let started = Instant::now();
    let name = target_name(options)?;
    let mut target = Target::new(options.spawn.clone(), options.socket.clone(), options.timeout);
    if let Some(source) = target.unreachable() {
        return Err(CheckError::Unreachable { source });
    }
    let mut facts = Facts::ask(&mut target, options.device).map_err(|stop| no_facts(&name, &mut target, stop))?;
    let device = match options.device {
        Some(kind) => CheckedDevice { kind, known: DeviceKnown::Given, evidence: None },
        None => facts.device().map_err(|candidates| CheckError::UnknownDevice { target: name.clone(), candidates })?,
    };
    let allowed = Allowed { writes: options.writes, harm: !options.gentle };
    facts.rings = works::before_harm(&mut Context::new(&mut target, &facts, Some(device.kind)), allowed);
    let lanes = lanes(options, &mut target, &facts, device.kind);
    // The first case that needs a backend of its own gets one that has had no client.
    target.stop();
    let rounds = options.repeat.max(1) as usize;
    let cases: Vec<_> = selected(options).collect();
    let tasks =
        (0..rounds).flat_map(|round| cases.iter().enumerate().map(move |(place, case)| Task { round, place, case }));
    let shared = Shared {
        options,
        facts: &facts,
        device: Some(device.kind),
        tasks: Mutex::new(tasks.collect()),
        overlap: lanes.overlap,
    };
    let mut found = vec![vec![None; cases.len()]; rounds];
    let mut blamed = Vec::new();
    std::thread::scope(|scope| {
        let (said, heard) = std::sync::mpsc::channel();
        let sockets: Vec<_> = (0..lanes.jobs).map(|lane| lane_socket(options, lane)).collect();
        for socket in sockets {
            let lane = Lane::new(&shared, target.another(socket), said.clone());
            scope.spawn(move || lane.run());
        }
        drop(said);
        for said in heard {
            match said {
                Said::Done(task, mut report) => {
                    report.expectation = options.expected.judge(report.id, &report.verdict);
                    let found = &mut found[task.round][task.place];
                    // One that is run again was reported before.
                    if found.is_none() {
                        on_case(&report);
                    }
                    *found = Some(*report);
                }
                Said::Blamed(task, how) => blamed.push((task, how)),
            }
        }
    });
    for (task, how) in blamed {
        if let Some(report) = &mut found[task.round][task.place]
            && !report.verdict.is_failure()
        {
            report.verdict = Verdict::Crash(how);
            report.expectation = options.expected.judge(report.id, &report.verdict);
        }
    }
    Ok(Report {
        target: name,
        device: Some(device),
        backend: Some(facts),
        cases: merged(found),
        duration: started.elapsed(),
        runs: options.repeat.max(1),
        jobs: lanes.jobs,
        notes: lanes.note.into_iter().collect(),
    })
}

fn no_facts(name: &str, target: &mut Target, stop: Stop) -> CheckError {
    let because = match (target.crash(true), stop) {
        (Some(crash), _) => format!("exited during the first requests: {crash}"),
        (None, Stop::Fail(because) | Stop::Skip(because) | Stop::Closed(because) | Stop::Hang(because)) => because,
    };
    let last_words = target.process().map_or_else(Vec::new, |process| process.last_words());
    CheckError::NoFacts { target: name.to_owned(), because, last_words }
}

/// How many backends are used at the same time, and why not more.
struct Lanes {
    jobs: usize,
    /// Whether one that is given up may live until the next has been started.
    overlap: bool,
    note: Option<String>,
}

fn lanes(options: &Options, target: &mut Target, facts: &Facts, device: DeviceKind) -> Lanes {
    let one = |note: Option<&str>| Lanes {
        jobs: 1,
        overlap: false,
        note: note.map(|because| format!("only one backend at a time: {because}")),
    };
    let Some(command) = &options.spawn else {
        return one(options.jobs.map(|_| "the backend was not started with `--spawn`"));
    };
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let jobs = options.jobs.unwrap_or_else(|| cpus.min(JOBS_DEFAULT_MAX)).clamp(1, JOBS_MAX);
    if options.socket.is_some() && !command.mentions("{socket}") {
        return one(Some("the command has no `{socket}`, so all backends would listen on the same socket"));
    }
    // With one case there is nothing to do side by side.
    if selected(options).nth(1).is_none() && options.repeat <= 1 {
        return one(None);
    }
    match beside::independent(target, options.writes, lane_socket(options, 1), facts, device) {
        Ok(()) => Lanes { jobs, overlap: options.socket.is_none(), note: None },
        Err(because) => one(Some(&because)),
    }
}

/// The socket of a lane's backend, if one was given: the first lane has it, the others have one beside it.
fn lane_socket(options: &Options, lane: usize) -> Option<PathBuf> {
    let socket = options.socket.clone()?;
    if lane == 0 {
        return Some(socket);
    }
    let mut path = socket.into_os_string();
    path.push(format!(".{lane}"));
    Some(path.into())
}

/// One report for each case of all rounds: the worst that came of it, with how often it came out otherwise.
fn merged(rounds: Vec<Vec<Option<CaseReport>>>) -> Vec<CaseReport> {
    let mut rounds = rounds.into_iter();
    let mut cases: Vec<Vec<CaseReport>> =
        rounds.next().unwrap_or_default().into_iter().map(|report| report.into_iter().collect()).collect();
    for round in rounds {
        for (reports, report) in cases.iter_mut().zip(round) {
            reports.extend(report);
        }
    }
    cases.into_iter().filter_map(merge).collect()
}

fn merge(mut reports: Vec<CaseReport>) -> Option<CaseReport> {
    let count = |name| reports.iter().filter(|report| report.verdict.name() == name).count();
    let verdicts: BTreeMap<_, _> =
        Verdict::NAMES.into_iter().map(|name| (name, count(name))).filter(|(_, count)| *count > 0).collect();
    let worst = reports.iter().position(|report| report.verdict.is_failure()).unwrap_or(0);
    let mut report = (!reports.is_empty()).then(|| reports.swap_remove(worst))?;
    report.flaky = (verdicts.len() > 1).then_some(verdicts);
    Some(report)
}

/// The cases that these options select.
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

/// Whether a text has the form of a pattern, in which `*` stands for anything.
fn matches_glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().expect("a split text has a part");
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
