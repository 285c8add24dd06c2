//! Runs of plans over the fake engine with the real agent: verdicts, retries, stops and resumption, without a VM.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use camino::Utf8Path;
use kiln_engine::link::GuestLink;
use kiln_engine::{BoxFuture, FakeEngine, VmSpec};
use kiln_lab::events::{Event, RunHead, RunId, RunRecord, read_events};
use kiln_lab::plan::{Day, Plan, VmPlan};
use kiln_lab::run::{CellVm, Host, HostError, Observer, Options, RunError, run};
use kiln_lab::{Verdict, exit_code};
use tokio::sync::watch;

/// No run of these tests takes this long, unless it hangs.
const DEADLINE: Duration = Duration::from_secs(60);

struct Lab(tempfile::TempDir);

impl Lab {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self) -> &Utf8Path {
        Utf8Path::from_path(self.0.path()).expect("UTF-8")
    }

    fn run_directory(&self) -> camino::Utf8PathBuf {
        let directory = self.path().join("run");
        std::fs::create_dir_all(&directory).expect("is made");
        directory
    }

    /// Guests that are left.
    fn vms(&self) -> usize {
        self.path().join("home/vms").read_dir_utf8().map_or(0, Iterator::count)
    }
}

/// A host whose images all boot these files, which the fake engine only compares.
struct FakeHost {
    kernel: camino::Utf8PathBuf,
}

impl Host for FakeHost {
    fn vm<'a>(&'a self, vm: &'a VmPlan) -> BoxFuture<'a, Result<CellVm, HostError>> {
        Box::pin(async move {
            if vm.image == "absent" {
                return Err("the image `absent` was not found".into());
            }
            let spec = VmSpec { forkable: true, ..VmSpec::new(&self.kernel, &self.kernel) };
            Ok(CellVm { spec, env: vec![("FROM_HOST".into(), "yes".into())] })
        })
    }

    fn copy<'a>(&'a self, link: &'a GuestLink, _: &'a str, to: &'a str) -> BoxFuture<'a, Result<(), HostError>> {
        Box::pin(async move { Ok(link.write_file(to.trim_start_matches('/'), b"copied", None).await.map(|_| ())?) })
    }
}

#[derive(Default)]
struct Seen(Vec<Event>);

impl Observer for Seen {
    fn event(&mut self, event: &Event) {
        self.0.push(event.clone());
    }
}

fn options() -> Options {
    Options {
        jobs: 2,
        level: 1,
        filter: Vec::new(),
        shard: None,
        attempts: None,
        fail_fast: false,
        keep_all: false,
        today: Day(2026, 11, 30),
    }
}

fn agent() -> String {
    std::env::var("KILN_AGENT_BIN").expect("KILN_AGENT_BIN names the agent")
}

async fn run_plan(
    lab: &Lab,
    plan: &str,
    options: Options,
    stop: watch::Receiver<Option<String>>,
) -> Result<(RunRecord, Vec<Event>), RunError> {
    let plan = Plan::parse(plan).unwrap_or_else(|problems| panic!("{problems:?}"));
    let head = RunHead {
        run: RunId::new(1_796_078_100, 1),
        plan: plan.name.clone(),
        plan_digest: String::new(),
        level: options.level,
        started_unix: 1_796_078_100,
        kiln: "test".into(),
        host: BTreeMap::new(),
        host_class: "fake".into(),
        cells: plan.cells(),
        suites: plan.suites.iter().map(|suite| (suite.name.clone(), suite.kind)).collect(),
        attempts_planned: plan.suites.len() as u64,
        flaky_fails: false,
    };
    let directory = lab.run_directory();
    let record = match read_events(&directory) {
        Ok((events, _)) => RunRecord::of(&events),
        Err(_) => RunRecord::default(),
    };
    let kernel = lab.path().join("kernel");
    std::fs::write(&kernel, b"kernel").expect("is written");
    let host = Arc::new(FakeHost { kernel });
    let engine = Arc::new(FakeEngine::new(lab.path().join("home"), agent()));
    let mut seen = Seen::default();
    let running = run(Arc::new(plan), options, head, record, engine, host, &directory, &mut seen, stop);
    let record = tokio::time::timeout(DEADLINE, running).await.expect("the run hangs")?;
    Ok((record, seen.0))
}

fn never() -> watch::Receiver<Option<String>> {
    watch::channel(None).1
}

fn verdicts(record: &RunRecord) -> Vec<String> {
    record
        .cases
        .iter()
        .map(|(key, case)| format!("{key}: {} {}", case.verdict, case.message).trim_end().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_case_has_a_fork_of_its_own_and_a_verdict() {
    let lab = Lab::new();
    let plan = "[plan]\nname = 'all kinds'\n[vm]\nenv = { PLAN = '1' }\n[matrix]\nmode = ['a', 'b']\n\
        [prepare]\ncopy = [{ from = 'x', to = '/copied' }]\nrun = ['echo $mode >prepared']\n\
        [[suite]]\nkind = 'command'\nname = 'clean'\nrun = 'test ! -e mark && touch mark && grep -q $mode prepared && test $PLAN$FROM_HOST = 1yes'\n\
        [[suite]]\nkind = 'command'\nname = 'clean too'\nrun = 'test ! -e mark && touch mark'\n\
        [[suite]]\nkind = 'command'\nname = 'wrong'\nrun = 'echo a reason >&2; exit 9'\nonly = { mode = ['b'] }\n\
        [[suite]]\nkind = 'command'\nname = 'slow'\nrun = 'sleep 600'\ntimeout = '300ms'\nonly = { mode = ['b'] }\n\
        [[suite]]\nkind = 'tap'\nname = 'tap'\nrun = 'echo 1..2; echo ok 1 - first; echo not ok 2 - second'\nonly = { mode = ['a'] }\n\
        [[suite]]\nkind = 'command'\nname = 'says'\nrun = 'echo it says hello'\nexpect = { stdout = 'hello' }\nonly = { mode = ['a'] }\n";
    let (record, events) = run_plan(&lab, plan, options(), never()).await.expect("runs");
    assert_eq!(
        verdicts(&record),
        [
            "clean [mode=a]: pass",
            "clean too [mode=a]: pass",
            "says [mode=a]: pass",
            "tap: first [mode=a]: pass",
            "tap: second [mode=a]: fail",
            "clean [mode=b]: pass",
            "clean too [mode=b]: pass",
            "slow [mode=b]: timeout did not end within 300ms",
            "wrong [mode=b]: fail exit code 9: a reason",
        ]
    );
    assert_eq!(exit_code(record.deciding()), 100);
    assert_eq!(lab.vms(), 0, "no guest is left");
    // What was seen is what was written.
    let (written, bad) = read_events(&lab.run_directory()).expect("reads");
    let json = |events: &[Event]| serde_json::to_string(events).expect("is JSON");
    assert_eq!((json(&written), bad), (json(&events), vec![]));
    let wrong = record.cases.values().find(|case| case.message.contains("a reason")).expect("is there");
    let artifacts = lab.run_directory().join(wrong.artifacts.as_ref().expect("files are kept"));
    assert_eq!(std::fs::read_to_string(artifacts.join("stderr")).expect("is kept"), "a reason\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_case_that_passes_later_is_flaky_and_one_that_is_quarantined_does_not_count() {
    let lab = Lab::new();
    let mark = lab.path().join("mark");
    let plan = format!(
        "[plan]\nname = 'x'\n[retry]\nattempts = 3\n\
         [[suite]]\nkind = 'command'\nname = 'flaky'\nrun = 'test -e {mark} || {{ touch {mark}; exit 1; }}'\n\
         [[suite]]\nkind = 'command'\nname = 'known'\nrun = 'exit 1'\nquarantine = {{ reason = 'a known defect', until = 2026-11-30 }}\n"
    );
    let (record, _) = run_plan(&lab, &plan, options(), never()).await.expect("runs");
    assert_eq!(verdicts(&record), ["flaky: flaky exit code 1", "known: fail exit code 1"]);
    assert_eq!(record.cases.values().map(|case| case.attempts.len()).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(exit_code(record.deciding()), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_that_cannot_be_prepared_is_an_error_and_the_others_run() {
    let lab = Lab::new();
    let plan = "[plan]\nname = 'x'\n[matrix]\nimage = ['absent', 'good', 'here']\n[prepare]\nrun = ['test $image != good || { echo broken >&2; exit 3; }']\n\
                [[suite]]\nkind = 'command'\nname = 'one'\nrun = 'true'\n";
    let (record, _) = run_plan(&lab, plan, options(), never()).await.expect("runs");
    let failed: Vec<_> = record.cells.iter().map(|(cell, record)| format!("{cell}: {:?}", record.state)).collect();
    assert!(failed[0].contains("the image `absent` was not found"), "{failed:?}");
    assert!(failed[1].contains("exit code 3: broken"), "{failed:?}");
    assert_eq!(verdicts(&record), ["one [image=here]: pass"]);
    assert_eq!(exit_code(record.deciding()), 69);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_stopped_leaves_no_guest_and_can_be_resumed() {
    let lab = Lab::new();
    let gate = lab.path().join("gate");
    let plan = format!(
        "[plan]\nname = 'x'\n[[suite]]\nkind = 'command'\nname = 'first'\nrun = 'true'\n\
         [[suite]]\nkind = 'command'\nname = 'waits'\nrun = 'test -e {gate} || {{ touch {gate}; sleep 600; }}'\n\
         [[suite]]\nkind = 'command'\nname = 'last'\nrun = 'true'\n"
    );
    let (sender, stop) = watch::channel(None);
    let begun = gate.clone();
    let stopper = tokio::spawn(async move {
        while !begun.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sender.send_replace(Some("interrupted".into()));
        sender
    });
    let one_at_a_time = Options { jobs: 1, ..options() };
    let (record, _) = run_plan(&lab, &plan, one_at_a_time.clone(), stop).await.expect("is stopped");
    stopper.await.expect("no panic");
    assert_eq!((verdicts(&record), record.stopped.as_deref()), (vec!["first: pass".to_owned()], Some("interrupted")));
    assert_eq!(lab.vms(), 0);

    let (record, events) = run_plan(&lab, &plan, one_at_a_time, never()).await.expect("is resumed");
    assert_eq!(verdicts(&record), ["first: pass", "last: pass", "waits: pass"]);
    assert!(matches!(events[0], Event::RunResumed { .. }));
    let attempts = events.iter().filter(|event| matches!(event, Event::AttemptEnded(_))).count();
    assert_eq!((attempts, record.stopped), (2, None), "the first case keeps its verdict");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_levels_shards_and_the_first_failure_decide_what_runs() {
    let suites: String = (0..6)
        .map(|number| {
            format!(
                "[[suite]]\nkind = 'command'\nname = 'case {number}'\nrun = 'test {number} != 1'\nlevel = {}\n",
                if number == 5 { 2 } else { 1 }
            )
        })
        .collect();
    let plan = format!("[plan]\nname = 'x'\n{suites}");
    let names = |record: &RunRecord| record.cases.keys().map(|key| key.suite.replace("case ", "")).collect::<String>();
    for (options, expected) in [
        (options(), "01234"),
        (Options { level: 2, ..options() }, "012345"),
        (Options { filter: vec!["case 3".into(), "*4*".into()], ..options() }, "34"),
        (Options { shard: Some((1, 2)), ..options() }, "024"),
        (Options { shard: Some((2, 2)), ..options() }, "13"),
        (Options { jobs: 1, fail_fast: true, ..options() }, "01"),
    ] {
        let lab = Lab::new();
        let (record, _) = run_plan(&lab, &plan, options, never()).await.expect("runs");
        assert_eq!(names(&record), expected);
        let fails = record.cases.values().any(|case| case.verdict == Verdict::Fail);
        assert_eq!(exit_code(record.deciding()) == 100, fails);
    }
    let lab = Lab::new();
    let none = Options { filter: vec!["nothing".into()], ..options() };
    assert!(matches!(run_plan(&lab, &plan, none, never()).await, Err(RunError::Nothing)));
}
