//! A lane: cases that run one after the other, on one backend at a time.
//!
//! ```text
//!   tasks ──▶ lane ──▶ needs a backend of its own? ──▶ a fresh one, which is given up after the case
//!                 └──▶ else ─────────────────────────▶ the one that runs: its next client, until a case fails
//! ```
//! Starting a backend takes longer than most cases, so cases share one if their rule allows it: a backend has to serve one
//! client after the other. Two things keep that from changing a verdict. A case that fails on a backend which has served
//! others is run again on a fresh one, and that verdict counts. And a backend that dies is a crash of the case that killed
//! it, which may be one long before: most cases take a millisecond, and an end can take longer. So the cases that it had
//! served are run again, by halves, on fresh backends that are given as long to die, until one case is left. What ran between
//! that case and the end ran on a backend that was already lost, and is run again too.

use std::collections::VecDeque;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::case::{Allowed, Case, Need};
use super::context::Context;
use super::facts::Facts;
use super::outcome::{Outcome, Stop};
use super::process::{Process, resources, wait_until};
use super::run::Options;
use super::target::{Target, crash_words};
use super::trace::Trace;
use super::verdict::{CaseReport, Expectation, Verdict};
use crate::virtio::DeviceKind;

/// Cases that one backend serves at most, so that the one that harmed it is among few.
const SERVED_MAX: usize = 40;
/// How much longer than the first time a backend is given to die when its cases are run again.
const DIES_WITHIN: Duration = Duration::from_millis(200);
/// How long a backend that runs already is watched for its end after a hostile case, since it can't be started again
/// to find out which case it died of; and how long one is watched that is given up, if nothing else can be done
/// meanwhile.
const WATCHED: Duration = Duration::from_millis(50);
/// The same for the last backends of a run, which costs that only once.
const WATCHED_LONG: Duration = Duration::from_millis(250);
/// Backends that were given up and are still watched, for each lane.
const RETIRED_MAX: usize = 2;
/// How often a case is tried at a backend that closes its first connection without a word.
const TRIES: u32 = 4;
/// The shortest pause between these.
const TRY_PAUSE: Duration = Duration::from_millis(5);

/// A case of a run, and in which round.
#[derive(Debug, Clone, Copy)]
pub(super) struct Task {
    pub round: usize,
    pub place: usize,
    pub case: &'static Case,
}

/// What a lane reports.
#[derive(Debug)]
pub(super) enum Said {
    /// A case is done.
    Done(Task, Box<CaseReport>),
    /// A case that was done has to answer for the end of the backend after it.
    Blamed(Task, String),
}

/// What all lanes share.
#[derive(Debug)]
pub(super) struct Shared<'a> {
    pub options: &'a Options,
    pub facts: &'a Facts,
    pub device: Option<DeviceKind>,
    pub tasks: Mutex<VecDeque<Task>>,
    /// Whether two backends may run at the same time.
    pub overlap: bool,
}

impl Shared<'_> {
    fn next(&self) -> Option<Task> {
        let is_stopped = self.options.stop.as_ref().is_some_and(|stop| stop.load(std::sync::atomic::Ordering::Relaxed));
        if is_stopped {
            return None;
        }
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// A case that the backend which runs has served.
#[derive(Debug, Clone, Copy)]
struct Served {
    task: Task,
    ended: Instant,
}

/// A backend that is not used any more, and is still watched: it may die of what the last case did.
struct Retired {
    process: Process,
    served: Vec<Served>,
}

/// Cases that run one after the other.
pub(super) struct Lane<'a> {
    shared: &'a Shared<'a>,
    target: Target,
    said: Sender<Said>,
    served: Vec<Served>,
    retired: VecDeque<Retired>,
}

impl<'a> Lane<'a> {
    pub(super) const fn new(shared: &'a Shared<'a>, target: Target, said: Sender<Said>) -> Self {
        Self { shared, target, said, served: Vec::new(), retired: VecDeque::new() }
    }

    /// Runs cases until no case is left.
    pub(super) fn run(mut self) {
        let mut next = self.shared.next();
        while let Some(task) = next {
            let report = self.run_task(task);
            self.say(Said::Done(task, Box::new(report)));
            next = self.shared.next().or_else(|| {
                // The last backends may die late, too. The cases that are run again for that are put back into the queue,
                // which can be empty for every other lane by now.
                self.retire();
                self.bury(0, WATCHED_LONG);
                self.shared.next()
            });
        }
    }

    fn say(&self, said: Said) {
        // The receiver lives as long as the lanes.
        let _ = self.said.send(said);
    }

    fn run_task(&mut self, task: Task) -> CaseReport {
        let started = Instant::now();
        let case = task.case;
        let options = self.shared.options;
        let allowed = Allowed { writes: options.writes, harm: !options.gentle };
        let lack = case.lacks(self.shared.facts, self.shared.device, &self.target, allowed);
        if let Some(verdict) = lack.map(Verdict::Skip).or_else(|| self.make_ready(case).err()) {
            return blank(case, verdict);
        }
        let is_used = !self.served.is_empty();
        let mut report = self.attempt(case);
        if is_used && report.verdict.is_failure() {
            report = if self.target.is_spawned() { self.alone(task, report) } else { self.of_the_one_before(report) };
        }
        self.served.push(Served { task, ended: Instant::now() });
        if !self.target.is_spawned() {
            if is_harmful(case) && report.verdict == Verdict::Pass && self.target.pid().is_some() {
                wait_until(WATCHED, || self.target.has_ended());
                if let Some(how) = self.target.crash(false) {
                    report.verdict = Verdict::Crash(after_the_case(&how));
                }
            }
        } else if wants_its_own(case) || report.verdict.is_failure() || self.shared.facts.ends_with_client {
            self.retire();
        }
        report.duration = started.elapsed();
        report
    }

    /// A backend for the next case.
    fn make_ready(&mut self, case: &Case) -> Result<(), Verdict> {
        if !self.target.is_spawned() {
            let Some(last) = self.served.last().copied().filter(|_| self.target.has_ended()) else { return Ok(()) };
            let needs = if self.target.ends_with_client {
                ": it exits with its client; `--spawn` starts it again for each case"
            } else {
                ""
            };
            if let Some(how) = self.target.crash(false) {
                self.blame(last, &how);
            }
            return Err(Verdict::Skip(format!("the backend is gone{needs}")));
        }
        if let Some(how) = self.target.crash(false) {
            let served = std::mem::take(&mut self.served);
            self.target.stop();
            self.find_culprit(&served, &how, Instant::now());
        }
        let is_fresh = self.served.is_empty() && self.target.process().is_some();
        if !is_fresh && (wants_its_own(case) || self.served.len() >= SERVED_MAX || self.shared.facts.ends_with_client) {
            self.retire();
        }
        match self.target.process() {
            Some(_) => Ok(()),
            None => {
                self.served.clear();
                self.start()
            }
        }
    }

    fn start(&mut self) -> Result<(), Verdict> {
        self.target.start().map_err(|error| Verdict::Crash(format!("failed to start the backend: {error}")))
    }

    /// Runs a case on the backend that there is.
    fn attempt(&mut self, case: &'static Case) -> CaseReport {
        let started = Instant::now();
        let mut report = blank(case, Verdict::Pass);
        let mut context = Context::new(&mut self.target, self.shared.facts, self.shared.device);
        let mut before = context.target.pid().and_then(resources);
        let mut outcome = (case.run)(&mut context);
        for tried in 1..TRIES {
            // A backend that runs already may still be busy with the end of the connection before.
            let is_unheard = matches!(outcome, Err(Stop::Closed(_))) && context.trace_is_one_sided();
            if !is_unheard || context.target.is_spawned() || context.target.has_ended() {
                break;
            }
            std::thread::sleep(TRY_PAUSE * tried * tried);
            before = context.target.pid().and_then(resources);
            outcome = context.target.connect_served().map(drop);
            if outcome.is_ok() {
                std::thread::sleep(TRY_PAUSE * tried * tried);
                outcome = (case.run)(&mut context);
            }
        }
        report.trace = context.take_trace();
        report.verdict = judge(outcome, &mut self.target, &report.trace);
        let after = self.target.pid().and_then(resources);
        report.resources = before.zip(after).map(|(before, after)| [before, after]);
        if report.verdict.is_failure() {
            report.stderr = self.target.process().map_or_else(Vec::new, |process| process.last_words());
        }
        report.duration = started.elapsed();
        report
    }

    /// Runs a case again that failed on a backend which had served others, on a fresh one. That verdict counts.
    fn alone(&mut self, task: Task, shared: CaseReport) -> CaseReport {
        let (how, died) = (self.target.crash(true), Instant::now());
        let served = std::mem::take(&mut self.served);
        self.target.stop();
        if self.start().is_err() {
            return shared;
        }
        let mut alone = self.attempt(task.case);
        if alone.verdict.is_failure() {
            return alone;
        }
        let because = shared.verdict.because().unwrap_or_default().to_owned();
        match how {
            None => alone.note = Some(format!("on a backend that had served {} other cases: {because}", served.len())),
            Some(how) => {
                self.target.stop();
                if !self.find_culprit(&served, &how, died) && shared.trace.has_received() {
                    return CaseReport { note: Some("it passes on a fresh backend".to_owned()), ..shared };
                }
            }
        }
        alone
    }

    /// Finds the case that a backend died of, among those that it had served. Returns whether one does it again.
    ///
    /// There must be no backend of this lane now.
    fn find_culprit(&mut self, served: &[Served], how: &str, died: Instant) -> bool {
        let Some(last) = served.last() else { return false };
        let (mut from, mut to) = (0, served.len());
        while to - from > 1 {
            let middle = from.midpoint(to);
            // The first half comes first: of two that kill, the earlier one did.
            match self.dies_of(&served[from..middle], died) {
                Some(_) => to = middle,
                None => from = middle,
            }
        }
        let culprit = served[from];
        if served.len() == 1 {
            self.blame(culprit, how);
            return true;
        }
        let Some(how_again) = self.dies_of(&[culprit], died) else {
            self.blame(*last, how);
            return false;
        };
        self.blame(culprit, &how_again);
        let mut tasks = self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        served[from + 1..].iter().rev().for_each(|served| tasks.push_front(served.task));
        true
    }

    /// How a fresh backend dies of these cases, if it does: within the time that the one that died had.
    fn dies_of(&mut self, suspects: &[Served], died: Instant) -> Option<String> {
        self.start().ok()?;
        for suspect in suspects {
            self.attempt(suspect.task.case);
        }
        let had = died.saturating_duration_since(suspects.first()?.ended);
        if let Some(process) = self.target.process() {
            process.wait((had * 2 + DIES_WITHIN).min(self.shared.options.timeout));
        }
        let how = self.target.crash(false);
        self.target.stop();
        how
    }

    /// A backend that runs already has ended. If this case has had no reply, it died of the one before.
    fn of_the_one_before(&mut self, mut report: CaseReport) -> CaseReport {
        let last = self.served.last().copied().filter(|_| !report.trace.has_received());
        if let Some((last, how)) = last.zip(self.target.crash(true)) {
            self.blame(last, &how);
            report.verdict = Verdict::Skip(format!("the backend is gone: it exited after {}", last.task.case.id));
        }
        report
    }

    fn blame(&self, served: Served, how: &str) {
        self.say(Said::Blamed(served.task, after_the_case(how)));
    }

    /// Gives up the backend that there is. If others may run beside it, it is watched a little longer.
    fn retire(&mut self) {
        let served = std::mem::take(&mut self.served);
        let crash = self.target.crash(false);
        let has_ended = self.target.has_ended();
        let Some(process) = self.target.take_process() else { return };
        match crash {
            Some(how) => {
                drop(process);
                self.find_culprit(&served, &how, Instant::now());
            }
            // Its end was requested.
            None if has_ended => {}
            None => {
                let is_shared = served.last().is_some_and(|last| !wants_its_own(last.task.case));
                self.retired.push_back(Retired { process, served });
                match self.shared.overlap {
                    true => self.bury(RETIRED_MAX, WATCHED),
                    // Nothing runs meanwhile. A backend that one case has had to itself costs that too often.
                    false => self.bury(0, if is_shared { WATCHED } else { Duration::ZERO }),
                }
            }
        }
    }

    /// Ends backends that were given up, but for so many. Each is watched for this long after its last case.
    fn bury(&mut self, kept: usize, watched: Duration) {
        while self.retired.len() > kept
            && let Some(Retired { mut process, served }) = self.retired.pop_front()
        {
            let since = served.last().map_or(watched, |last| last.ended.elapsed());
            process.wait(watched.saturating_sub(since));
            let crash = process.ended().and_then(|status| crash_words(status, self.target.ends_with_client));
            self.target.end(process);
            if let Some(how) = crash {
                // The cases that are run again need a backend of their own, and this lane may have one.
                let other = self.target.another(self.target.own_socket());
                let busy = std::mem::replace(&mut self.target, other);
                self.find_culprit(&served, &how, Instant::now());
                self.target = busy;
            }
        }
    }
}

fn after_the_case(how: &str) -> String {
    format!("{how}, after the end of the case")
}

/// Whether the rule can't be checked on a backend that others use, or leaves a backend behind that no other rule should use.
fn wants_its_own(case: &Case) -> bool {
    case.needs.iter().any(|need| matches!(need, Need::Spawned | Need::Process)) || is_harmful(case)
}

fn is_harmful(case: &Case) -> bool {
    case.needs.contains(&Need::Harm)
}

fn blank(case: &'static Case, verdict: Verdict) -> CaseReport {
    CaseReport {
        id: case.id,
        level: case.level,
        section: case.section,
        reason: case.reason,
        verdict,
        expectation: Expectation::None,
        trace: Trace::default(),
        duration: Duration::ZERO,
        resources: None,
        stderr: Vec::new(),
        note: None,
        flaky: None,
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
