//! `kiln lab run` and `kiln lab resume`: a plan with this host's engine, to its report or an interrupt.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use kiln_engine::doctor::HostFacts;
use kiln_engine::{AccelerationRequest, Engine, QemuEngine};
use kiln_lab::events::{Journal, RunHead, RunId, RunRecord};
use kiln_lab::plan::{Day, Plan};
use kiln_lab::report;
use kiln_lab::run::{Options, RunError, due, run as run_plan};
use tokio::sync::watch;

use super::host::LabHost;
use super::place::{Place, Request};
use super::plan_file::{self, PlanFile};
use super::report::write_all;
use super::view::View;
use crate::args::lab::{LabResumeArgs, LabRunArgs, ReportFormat, SelectArgs};
use crate::failure::{Failure, HOST, USAGE};
use crate::image;
use crate::interrupt::Interrupts;
use crate::output::{plain, print, print_json, say};

/// For removing what killed VMs left.
const THREADS_DEADLINE: Duration = Duration::from_secs(2);
/// Threads that run the dispatcher, read consoles and serve links. Guests are processes.
const THREADS: usize = 2;

/// Runs `kiln lab run`.
pub(super) fn run(args: &LabRunArgs) -> Result<u8, Failure> {
    let file = plan_file::read(&args.plan)?;
    let options = Options {
        jobs: args.jobs,
        attempts: args.retry.map(|retries| retries + 1),
        fail_fast: args.fail_fast,
        keep_all: args.keep,
        ..options(&args.select, &file.plan)
    };
    let planned = due(&file.plan, &options, &RunRecord::default()).iter().map(|(_, suites)| suites.len()).sum();
    if planned == 0 {
        return Err(nothing());
    }
    let home = image::home()?;
    let engine = image::engine(&home)?;
    let mut random = [0; 4];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let id = RunId::new(unix_now().as_secs(), u32::from_ne_bytes(random));
    let request = Request {
        directory: file.directory.clone(),
        jobs: options.jobs,
        level: options.level,
        filter: options.filter.clone(),
        shard: options.shard,
        attempts: options.attempts,
        fail_fast: options.fail_fast,
        keep_all: options.keep_all,
        accel: args.accel.into(),
    };
    let place = Place::create(&home, id, &file.text, &request)?;
    let (accel, reports) = (request.accel, args.report.clone());
    let job = Job { file, options, planned, place, accel, reports, json: args.json };
    job.run(&home, engine, RunRecord::default())
}

/// Runs `kiln lab resume`.
pub(super) fn resume(args: &LabResumeArgs) -> Result<u8, Failure> {
    let home = image::home()?;
    let place = Place::find(&home, &args.run)?;
    if Journal::is_open_elsewhere(&place.directory) {
        let failure = Failure::words(1, format!("the run {} still runs in another process", place.id));
        return Err(failure.hint(format!("kiln lab report {} prints what has ended", place.id)));
    }
    let (text, request) = place.request()?;
    let record = place.record()?;
    if record.head.as_ref().is_some_and(|head| head.plan_digest != digest(&text)) {
        let failure = Failure::words(1, format!("the plan of the run {} was changed", place.id));
        return Err(failure.hint("run the plan as it is now: kiln lab run PLAN"));
    }
    let file = plan_file::parse(text, &place.directory.join("plan.toml"), request.directory)?;
    let options = Options {
        jobs: args.jobs.unwrap_or(request.jobs),
        level: request.level,
        filter: request.filter,
        shard: request.shard,
        attempts: request.attempts,
        fail_fast: request.fail_fast,
        keep_all: request.keep_all,
        today: today(),
    };
    let planned = due(&file.plan, &options, &record).iter().map(|(_, suites)| suites.len()).sum();
    let engine = image::engine(&home)?;
    let (accel, reports) = (request.accel, args.report.clone());
    Job { file, options, planned, place, accel, reports, json: args.json }.run(&home, engine, record)
}

/// Options of a part of a plan, with the defaults of the others.
pub(super) fn options(select: &SelectArgs, plan: &Plan) -> Options {
    Options {
        jobs: 1,
        level: select.level.unwrap_or(plan.level),
        filter: select.filter.clone(),
        shard: select.shard,
        attempts: None,
        fail_fast: false,
        keep_all: false,
        today: today(),
    }
}

/// A run that is to begin or to continue.
pub(super) struct Job {
    pub(super) file: PlanFile,
    pub(super) options: Options,
    /// Attempts that are due if no case fails.
    pub(super) planned: usize,
    pub(super) place: Place,
    pub(super) accel: AccelerationRequest,
    /// Reports that are written into its directory.
    pub(super) reports: Vec<ReportFormat>,
    pub(super) json: bool,
}

impl Job {
    /// Runs it, and prints its report.
    pub(super) fn run(
        self,
        home: &kiln_engine::home::Home,
        engine: QemuEngine,
        record: RunRecord,
    ) -> Result<u8, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
        let outcome = runtime.block_on(self.to_its_end(home, engine, record));
        // Threads of killed VMs remove their files in this time.
        runtime.shutdown_timeout(THREADS_DEADLINE);
        let (record, interrupted) = outcome?;
        let code = interrupted.unwrap_or_else(|| record.exit_code());
        write_all(&record, &self.reports, &self.place.directory, code)?;
        if self.json {
            print_json(&report::json(&record, code))?;
        } else {
            print(report::text(&record, &self.place.directory))?;
        }
        Ok(code)
    }

    /// The record of the run, and the exit code if a signal has ended it.
    async fn to_its_end(
        &self,
        home: &kiln_engine::home::Home,
        engine: QemuEngine,
        record: RunRecord,
    ) -> Result<(RunRecord, Option<u8>), Failure> {
        let mut interrupts = Interrupts::new()?;
        let head = self.head(&engine).await;
        let host = LabHost::new(home, &self.file.directory, self.accel);
        let engine: Arc<dyn Engine> = Arc::new(engine);
        if !self.json {
            let ended = record.attempts.len();
            let rest = if ended > 0 { format!(" after {ended} that have ended") } else { String::new() };
            say(format_args!(
                "run {} of `{}`: {} to run{rest}",
                self.place.id,
                plain(&self.file.plan.name),
                self.planned
            ));
        }
        let mut view = View::start(self.planned, self.json);
        let (stopper, stop) = watch::channel(None);
        let plan = Arc::new(self.file.plan.clone());
        let (options, directory) = (self.options.clone(), &self.place.directory);
        let running = run_plan(plan, options, head, record, engine, host, directory, &mut view, stop);
        tokio::pin!(running);
        let (done, code) = tokio::select! {
            done = &mut running => (done, None),
            code = interrupts.any() => {
                stopper.send_replace(Some("interrupted".into()));
                tokio::select! {
                    done = &mut running => (done, Some(code)),
                    // What has ended is written down. Dropping the run kills its VMs.
                    _ = interrupts.any() => return Err(Failure::words(code, "interrupted twice: the VMs were killed, and no report was made")
                        .hint(format!("kiln lab report {} prints what has ended", self.place.id))),
                }
            }
        };
        let record = done.map_err(|error| match error {
            RunError::Nothing => nothing(),
            error @ RunError::Journal(_) => Failure::new(HOST, error).hint_if_not_writable(),
        })?;
        Ok((record, code))
    }

    async fn head(&self, engine: &QemuEngine) -> RunHead {
        let facts = HostFacts::collect(Some(engine.binary().to_owned()), engine.version().await);
        let accel = format!("{:?}", self.accel).to_lowercase();
        let qemu = facts.qemu_version.map_or_else(|| "unknown".into(), |version| version.to_string());
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let plan = &self.file.plan;
        RunHead {
            run: self.place.id.clone(),
            plan: plan.name.clone(),
            plan_digest: digest(&self.file.text),
            level: self.options.level,
            started_unix: unix_now().as_secs(),
            kiln: env!("CARGO_PKG_VERSION").into(),
            host_class: format!("{} × {}, {accel}", facts.cpus, facts.cpu_model),
            host: BTreeMap::from([
                ("accel".into(), accel),
                ("cpu".into(), facts.cpu_model),
                ("cpus".into(), facts.cpus.to_string()),
                ("memory_mib".into(), facts.memory_mib.to_string()),
                ("kernel".into(), release),
                ("qemu".into(), qemu),
            ]),
            cells: plan.cells(),
            suites: plan.suites.iter().map(|suite| (suite.name.clone(), suite.kind)).collect(),
            attempts_planned: self.planned as u64,
            flaky_fails: plan.retry.flaky_fails,
        }
    }
}

/// The digest of a plan's text.
pub(super) fn digest(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

fn nothing() -> Failure {
    Failure::words(USAGE, "nothing to run: no suite matches the level, the filter and the shard")
        .hint("kiln lab list PLAN --level 3 lists all suites")
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Today in UTC.
fn today() -> Day {
    day(unix_now()).unwrap_or(Day(1970, 1, 1))
}

fn day(since_1970: Duration) -> anyhow::Result<Day> {
    let text = humantime::format_rfc3339_seconds(UNIX_EPOCH + since_1970).to_string();
    let mut parts = text.split(['-', 'T']);
    let mut next = || parts.next().context("has three parts");
    Ok(Day(next()?.parse()?, next()?.parse()?, next()?.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_that_of_utc() {
        assert_eq!(day(Duration::ZERO).expect("a day"), Day(1970, 1, 1));
        assert_eq!(day(Duration::from_secs(1_798_761_599)).expect("a day"), Day(2026, 12, 31));
    }
}
