//! The dispatcher: cells in their order, jobs of each, workers, the journal.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use kiln_engine::guest::Watch;
use kiln_engine::snapshot::SnapshotId;
use kiln_engine::{Engine, Fork, ForkPool, ForkSpec, Guest, PoolSpec, RestoreError, Template};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::attempt::{Traces, attempt};
use super::cell::{Host, PrepareError, Prepared, prepare};
use super::decide::{self, Ended, Seen};
use super::pattern::matches;
use crate::events::{Attempt, Event, Journal, JournalError, RunHead, RunRecord};
use crate::plan::{Day, Isolate, Plan};
use crate::{Cell, Verdict};

/// For the end of a save that had begun when the run was stopped. It writes and reads some 100 MiB.
const SAVE_DEADLINE: Duration = Duration::from_secs(30);
/// Memory that the forks which are held ready may use.
const POOL_BYTES_MAX: u64 = 1 << 30;

/// Why a run is stopped, once it is. The sender is the caller's.
pub type Stop = watch::Receiver<Option<String>>;

/// What is to be run, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Attempts at a time.
    pub jobs: usize,
    /// Suites of higher levels are left out.
    pub level: u8,
    /// Patterns of `suite [cell]`, of which one must match. Empty means all.
    pub filter: Vec<String>,
    /// Which part of the jobs: number, from 1, and count.
    pub shard: Option<(u32, u32)>,
    /// Attempts of a case that fails, instead of those of the plan.
    pub attempts: Option<u32>,
    /// Stop at the first failure.
    pub fail_fast: bool,
    /// Keep files also of attempts that passed.
    pub keep_all: bool,
    /// Until when quarantines are compared.
    pub today: Day,
}

/// Sees each event, after it was written.
pub trait Observer: Send {
    /// An event.
    fn event(&mut self, event: &Event);
}

/// Why a run ended without a record.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Its events can't be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// No suite is left after the level, the filter and the shard.
    #[error("nothing to run: no suite matches the level, the filter and the shard")]
    Nothing,
}

/// Runs a plan. `record` is empty, or that of an earlier part of the same run: what has ended there is left out.
///
/// # Errors
/// [`RunError`]. VMs have ended then.
#[expect(clippy::too_many_arguments, reason = "each is another thing, and there is one caller")]
pub async fn run(
    plan: Arc<Plan>,
    options: Options,
    head: RunHead,
    mut record: RunRecord,
    engine: Arc<dyn Engine>,
    host: Arc<dyn Host>,
    directory: &Utf8Path,
    observer: &mut dyn Observer,
    stop: Stop,
) -> Result<RunRecord, RunError> {
    let jobs = due(&plan, &options, &record);
    if jobs.iter().all(|(_, suites)| suites.is_empty()) && record.head.is_none() {
        return Err(RunError::Nothing);
    }
    let journal = Journal::open(directory)?;
    let (fail_fast, failed) = watch::channel(None);
    let mut run = Running {
        plan,
        options,
        engine,
        host,
        directory: directory.to_owned(),
        journal,
        observer,
        record: &mut record,
        stop,
        fail_fast,
        failed,
        begun: Instant::now(),
    };
    let first = match run.record.head {
        None => Event::RunStarted(Box::new(head)),
        Some(_) => Event::RunResumed { at_unix: unix_now() },
    };
    run.emit(&first)?;
    run.cells(jobs).await?;
    let stopped = run.why_stopped();
    run.emit(&Event::RunEnded { at_unix: unix_now(), stopped })?;
    drop(run);
    Ok(record)
}

/// The suites of each cell that are to be run, by their number in the plan: those of the level, the filter and the shard
/// that have not ended in an earlier part of the run.
pub fn due(plan: &Plan, options: &Options, record: &RunRecord) -> Vec<(Cell, VecDeque<usize>)> {
    let mut number = 0_u32;
    let mut in_shard = || {
        number += 1;
        options.shard.is_none_or(|(shard, count)| (number - 1) % count == shard - 1)
    };
    let is_wanted = |cell: &Cell, suite: &crate::plan::Suite| {
        let name = format!("{} [{cell}]", suite.name);
        let filtered = options.filter.is_empty()
            || options.filter.iter().any(|pattern| matches(pattern, &name) || matches(pattern, &suite.name));
        suite.level <= options.level && cell.has(suite) && filtered
    };
    let cells = plan.cells().into_iter().map(|cell| {
        let suites = plan.suites.iter().enumerate();
        let wanted = suites.filter(|(_, suite)| is_wanted(&cell, suite) && in_shard());
        let due = wanted.filter(|(_, suite)| !record.has_ended(&cell, &suite.name)).map(|(index, _)| index);
        let due = due.collect();
        (cell, due)
    });
    cells.collect()
}

/// A cell that is being prepared. Dropping it stops that.
struct Preparing {
    task: JoinSet<(Result<Prepared, PrepareError>, Duration)>,
    /// It is saved, or was.
    saving: Arc<AtomicBool>,
}

/// One attempt that is due.
#[derive(Debug, Clone, Copy)]
struct Job {
    suite: usize,
    number: u32,
}

/// What an attempt gave.
struct Done {
    job: Job,
    seen: Seen,
    traces: Traces,
    fork: Duration,
    guest: Option<Guest>,
}

struct Running<'a> {
    plan: Arc<Plan>,
    options: Options,
    engine: Arc<dyn Engine>,
    host: Arc<dyn Host>,
    directory: Utf8PathBuf,
    journal: Journal,
    observer: &'a mut dyn Observer,
    record: &'a mut RunRecord,
    stop: Stop,
    fail_fast: watch::Sender<Option<String>>,
    failed: Stop,
    begun: Instant,
}

impl Running<'_> {
    async fn cells(&mut self, jobs: Vec<(Cell, VecDeque<usize>)>) -> Result<(), RunError> {
        let mut due: VecDeque<_> = jobs.into_iter().filter(|(_, suites)| !suites.is_empty()).collect();
        let mut next = due.front().map(|(cell, _)| self.prepare(cell));
        while let Some((cell, suites)) = due.pop_front() {
            let mut preparing = next.take().expect("the first cell is being prepared");
            if self.why_stopped().is_some() {
                self.abandon(preparing).await;
                break;
            }
            let mut stop = self.stop.clone();
            let prepared = tokio::select! {
                prepared = preparing.task.join_next() => prepared.expect("has one task"),
                _ = stopped(&mut stop) => {
                    self.abandon(preparing).await;
                    break;
                }
            };
            // The next cell boots while the cases of this one run.
            next = due.front().map(|(cell, _)| self.prepare(cell));
            match prepared {
                Ok((Ok(prepared), duration)) => {
                    let snapshot = prepared.snapshot.id().to_string();
                    self.emit(&Event::CellReady { cell: cell.clone(), snapshot, duration })?;
                    self.cell(&cell, suites, prepared).await?;
                }
                Ok((Err(error), _)) => {
                    let findings = match &error {
                        PrepareError::Crashed(finding) => vec![(**finding).clone()],
                        _ => Vec::new(),
                    };
                    let message = chain(&error);
                    self.emit(&Event::CellFailed { cell, message, findings })?;
                }
                Err(panic) => {
                    let message = format!("the lab failed: {panic}");
                    self.emit(&Event::CellFailed { cell, message, findings: Vec::new() })?;
                }
            }
        }
        Ok(())
    }

    /// Starts to prepare a cell.
    fn prepare(&self, cell: &Cell) -> Preparing {
        let (plan, cell) = (Arc::clone(&self.plan), cell.clone());
        let (engine, host) = (Arc::clone(&self.engine), Arc::clone(&self.host));
        let (mut task, saving) = (JoinSet::new(), Arc::new(AtomicBool::new(false)));
        let saves = Arc::clone(&saving);
        task.spawn(async move {
            let began = Instant::now();
            (prepare(&plan, &cell, &*engine, &*host, &saves).await, began.elapsed())
        });
        Preparing { task, saving }
    }

    /// Ends the preparation of a cell that is not needed any more. A save that has begun is finished, because its last
    /// step runs on a thread and could publish a snapshot that nothing would remove.
    async fn abandon(&self, mut preparing: Preparing) {
        if !preparing.saving.load(Ordering::Relaxed) {
            return;
        }
        if let Ok(Some(Ok((Ok(prepared), _)))) = timeout(SAVE_DEADLINE, preparing.task.join_next()).await
            && prepared.is_own
        {
            let id = prepared.snapshot.id().clone();
            drop(prepared);
            self.discard(id).await;
        }
    }

    /// Runs the suites of a cell.
    async fn cell(&mut self, cell: &Cell, suites: VecDeque<usize>, prepared: Prepared) -> Result<(), RunError> {
        let mut due: VecDeque<_> = suites.into_iter().map(|suite| Job { suite, number: 1 }).collect();
        let shares_guest = self.plan.isolate == Isolate::Cell;
        let at_once = if shares_guest { 1 } else { self.options.jobs.max(1) };
        let vm = cell.vm(&self.plan);
        let forks = ForkSpec { deadline: vm.boot_timeout, ..ForkSpec::default() };
        let source = match Source::new(&*self.engine, &prepared, forks, due.len(), at_once).await {
            Ok(source) => Arc::new(source),
            Err(error) => {
                let message = chain(&error);
                return self.emit(&Event::CellFailed { cell: cell.clone(), message, findings: Vec::new() });
            }
        };
        let env = Arc::new(prepared.env.clone());
        let mut kept: Option<Guest> = None;
        let mut running = JoinSet::new();
        loop {
            while running.len() < at_once && self.why_stopped().is_none() {
                let Some(job) = due.pop_front() else { break };
                let suite = self.plan.suites[job.suite].name.clone();
                self.emit(&Event::AttemptStarted { cell: cell.clone(), suite, number: job.number })?;
                let (plan, env, source) = (Arc::clone(&self.plan), Arc::clone(&env), Arc::clone(&source));
                let (stop, failed, guest) = (self.stop.clone(), self.failed.clone(), kept.take());
                running.spawn(one(plan, job, env, source, guest, shares_guest, merged(stop, failed)));
            }
            let Some(joined) = running.join_next().await else { break };
            let done = match joined {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            };
            if let Some(retry) = self.ended(cell, done, &mut kept)? {
                due.push_back(retry);
            }
        }
        if let Some(guest) = kept {
            guest.vm.kill().await;
        }
        // Its workers have ended, so this is the last handle.
        if let Ok(Source::Pool(pool)) = Arc::try_unwrap(source) {
            pool.close().await;
        }
        if prepared.is_own && !self.needs_snapshot(cell) {
            let id = prepared.snapshot.id().clone();
            drop(prepared);
            self.discard(id).await;
        }
        Ok(())
    }

    /// Writes down an attempt. Returns the next attempt of its suite, if there is one.
    fn ended(&mut self, cell: &Cell, done: Done, kept: &mut Option<Guest>) -> Result<Option<Job>, RunError> {
        let Done { job, seen, traces, fork, guest } = done;
        *kept = guest;
        let suite = &self.plan.suites[job.suite];
        if seen.ended == Ended::Stopped {
            // It has no verdict, so a resumed run does it again.
            return Ok(None);
        }
        let verdicts = decide::decide(suite, &self.plan.detect, self.options.today, &seen);
        let failed = decide::may_retry(&verdicts);
        let quarantined = decide::quarantine(suite.quarantine.as_ref(), self.options.today, &verdicts);
        let artifacts = if failed || self.options.keep_all {
            let name = format!("{}-{}", self.record.attempts.len() + 1, slug(&suite.name));
            match traces.save(&self.directory, &name, &seen.findings) {
                Ok(path) => Some(path.into_string()),
                Err(error) => {
                    tracing::warn!(%error, "the files of an attempt can't be kept");
                    None
                }
            }
        } else {
            None
        };
        let attempts = self.options.attempts.unwrap_or(self.plan.retry.attempts);
        let retry = failed && quarantined.is_none() && job.number < attempts;
        if self.options.fail_fast && failed && quarantined.is_none() && !retry {
            self.fail_fast.send_replace(Some("a case failed, and --fail-fast is set".into()));
        }
        let event = Attempt {
            cell: cell.clone(),
            suite: suite.name.clone(),
            number: job.number,
            verdicts,
            findings: seen.findings,
            duration: seen.duration,
            fork,
            artifacts,
            quarantined,
        };
        self.emit(&Event::AttemptEnded(Box::new(event)))?;
        Ok(retry.then_some(Job { number: job.number + 1, ..job }))
    }

    /// A case that failed can be run again from the snapshot of its cell.
    fn needs_snapshot(&self, cell: &Cell) -> bool {
        let mut cases = self.record.cases.iter().filter(|(key, _)| key.cell == *cell);
        cases.any(|(_, case)| case.verdict.is_failure() || case.verdict == Verdict::Flaky)
    }

    async fn discard(&self, id: SnapshotId) {
        let home = kiln_engine::home::Home::at(self.engine.home());
        let removed = kiln_engine::blocking(move || kiln_engine::snapshot::SnapshotStore::new(&home).remove(&id)).await;
        if let Err(error) = removed {
            tracing::warn!(%error, "the snapshot of a cell can't be removed");
        }
    }

    fn why_stopped(&self) -> Option<String> {
        let asked = self.stop.borrow().clone().or_else(|| self.failed.borrow().clone());
        let budget = self.plan.budget;
        asked.or_else(|| (self.begun.elapsed() > budget).then(|| format!("the budget of {budget:?} is used up")))
    }

    fn emit(&mut self, event: &Event) -> Result<(), RunError> {
        self.journal.append(event)?;
        self.record.apply(event);
        self.observer.event(event);
        Ok(())
    }
}

/// Where forks come from.
enum Source {
    /// The next fork is made while a case runs.
    Pool(ForkPool),
    /// One fork for each case, when it is due: for cells with fewer cases than workers.
    Template(Box<Template>),
}

impl Source {
    async fn new(
        engine: &dyn Engine,
        prepared: &Prepared,
        forks: ForkSpec,
        cases: usize,
        at_once: usize,
    ) -> Result<Self, RestoreError> {
        if cases <= at_once {
            return Ok(Self::Template(Box::new(engine.template(&prepared.snapshot, forks).await?)));
        }
        let spec = PoolSpec { ready: at_once.min(kiln_engine::POOL_MAX), bytes_max: POOL_BYTES_MAX };
        Ok(Self::Pool(ForkPool::start(engine, &prepared.snapshot, forks, spec).await?))
    }

    async fn fork(&self) -> Result<Fork, RestoreError> {
        match self {
            Self::Pool(pool) => pool.take().await,
            Self::Template(template) => template.fork().await,
        }
    }
}

/// Runs one job.
async fn one(
    plan: Arc<Plan>,
    job: Job,
    env: Arc<Vec<(String, String)>>,
    source: Arc<Source>,
    guest: Option<Guest>,
    keeps_guest: bool,
    mut stop: Stop,
) -> Done {
    let suite = &plan.suites[job.suite];
    let began = Instant::now();
    let guest = match guest {
        Some(guest) => Ok(guest),
        None => tokio::select! {
            forked = source.fork() => forked.map(|fork| Guest::of(fork, began.elapsed(), Watch::default())).map_err(|error| Ended::Lab(chain(&error))),
            _ = stopped(&mut stop) => Err(Ended::Stopped),
        },
    };
    let fork = began.elapsed();
    match guest {
        Ok(guest) => {
            let (seen, traces, guest) = attempt(guest, suite, &env, keeps_guest, &mut stop).await;
            Done { job, seen, traces, fork, guest }
        }
        Err(ended) => {
            let seen = Seen {
                ended,
                results: Vec::new(),
                problem: None,
                findings: Vec::new(),
                taint: None,
                has_expected_output: false,
                last_words: String::new(),
                duration: fork,
            };
            let traces = Traces { stdout: Vec::new(), stderr: Vec::new(), console: Vec::new() };
            Done { job, seen, traces, fork, guest: None }
        }
    }
}

/// Why the run is stopped, once it is.
pub(super) async fn stopped(stop: &mut Stop) -> String {
    let why = stop.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
    match why {
        Some(why) => why,
        // The sender is gone, so nothing can stop it.
        None => std::future::pending().await,
    }
}

/// Either of two reasons.
fn merged(mut one: Stop, mut other: Stop) -> Stop {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let why = tokio::select! {
            why = stopped(&mut one) => why,
            why = stopped(&mut other) => why,
            () = sender.closed() => return,
        };
        sender.send_replace(Some(why));
    });
    receiver
}

/// A name as a part of a file's name.
fn slug(name: &str) -> String {
    let plain = |next: char| if next.is_ascii_alphanumeric() { next.to_ascii_lowercase() } else { '-' };
    name.chars().take(40).map(plain).collect()
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    let mut texts: Vec<String> = sources.map(ToString::to_string).collect();
    texts.dedup();
    texts.join(": ")
}

fn unix_now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}
