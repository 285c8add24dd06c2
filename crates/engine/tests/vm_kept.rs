//! Forks that are held ready, and VMs that cool while they are idle, with real VMs of the image `mini`.

mod support;

use std::sync::Arc;
use std::time::Duration;

use camino::Utf8Path;
use kiln_detect::{Kind, Severity};
use kiln_engine::failpoint::FAIL_POINT_VARIABLE;
use kiln_engine::guest::{Events, GuestEvent};
use kiln_engine::home::Home;
use kiln_engine::image::{ImageStore, MINI};
use kiln_engine::kept::{Activity, Ended, KeepPolicy, KeptState, KeptVm, Temperature, WakeError};
use kiln_engine::link::GuestLink;
use kiln_engine::snapshot::{Snapshot, SnapshotStore};
use kiln_engine::{
    AccelerationRequest, Engine, Fork, ForkPool, ForkSpec, PoolSpec, QemuEngine, ReadyRequest, RestoreError, SaveError,
    VmSpec, discard,
};
use kiln_wire::{ExecRequest, SessionSpec, Stdin, Text};
use support::{STEP_DEADLINE, is_alive};
use tokio::time::{sleep, timeout};

const BOOT_DEADLINE: Duration = Duration::from_secs(120);

/// The home that all tests share, which has the image.
fn engine() -> Arc<QemuEngine> {
    let home = Home::from_env().expect("KILN_HOME is set");
    Arc::new(QemuEngine::find(home.path()).expect("QEMU is installed"))
}

async fn ready(engine: &QemuEngine) -> Snapshot {
    let image = ImageStore::new(&Home::at(engine.home())).find_boot(MINI).expect("the image is built");
    let spec = VmSpec {
        cmdline: image.cmdline,
        acceleration: AccelerationRequest::Tcg,
        ..VmSpec::new(image.kernel, image.initramfs)
    };
    let request = ReadyRequest::new(&spec, "mini", BOOT_DEADLINE);
    engine.ready(request).await.expect("a ready-made snapshot")
}

async fn fork(engine: &QemuEngine) -> Fork {
    let snapshot = ready(engine).await;
    engine.restore(&snapshot, ForkSpec::default()).await.expect("restored").pop().expect("one")
}

async fn sh(link: &GuestLink, script: &str) -> String {
    let argv = ["sh", "-c", script].map(Text::from).to_vec();
    let run = link.run(ExecRequest { argv, ..ExecRequest::default() }, b"", 1 << 20);
    let output = timeout(STEP_DEADLINE, run).await.expect("in time").expect("runs");
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

async fn temperature(kept: &KeptVm) -> Temperature {
    kept.inspect().await.expect("is kept").temperature
}

async fn until_it_is(kept: &KeptVm, wanted: Temperature) {
    let reached = async {
        while temperature(kept).await != wanted {
            sleep(Duration::from_millis(100)).await;
        }
    };
    if timeout(STEP_DEADLINE, reached).await.is_err() {
        panic!("never {wanted:?}: {:?}", kept.inspect().await);
    }
}

fn exists(pid: u32) -> bool {
    Utf8Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn vm_a_pool_gives_out_forks_with_their_own_identity_and_refills() {
    let engine = engine();
    let snapshot = ready(&engine).await;
    let spec = PoolSpec { ready: 2, bytes_max: 1 << 30 };
    let pool = ForkPool::start(&*engine, &snapshot, ForkSpec::default(), spec).await.expect("starts");
    let filled = timeout(STEP_DEADLINE, pool.filled()).await.expect("in time");
    assert_eq!((filled.ready, filled.problem), (2, None));
    assert!(filled.bytes > 0);

    let mut names = Vec::new();
    let mut forks = Vec::new();
    // One more than it holds. The last one is made now, or was refilled already.
    for _ in 0..3 {
        let fork = timeout(STEP_DEADLINE, pool.take()).await.expect("in time").expect("taken");
        names.push(sh(&fork.link, "hostname; cat /etc/machine-id; head -c 16 /dev/urandom | md5sum").await);
        forks.push(fork);
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3, "{names:?}");

    timeout(STEP_DEADLINE, pool.filled()).await.expect("in time");
    let held = pool.pids();
    assert_eq!(held.len(), 2);
    drop(pool);
    let gone = async {
        while held.iter().any(|pid| exists(*pid)) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(STEP_DEADLINE, gone).await.expect("forks that were not taken end with it");
    assert_eq!(sh(&forks[0].link, "echo on").await, "on");
}

#[tokio::test]
async fn vm_a_pool_keeps_to_its_bounds() {
    let engine = engine();
    let snapshot = ready(&engine).await;
    for count in [0, kiln_engine::POOL_MAX + 1] {
        let spec = PoolSpec { ready: count, bytes_max: 1 << 30 };
        let refused = ForkPool::start(&*engine, &snapshot, ForkSpec::default(), spec).await;
        assert!(matches!(refused, Err(RestoreError::Budget { .. })), "{count}");
    }
    let spec = PoolSpec { ready: 4, bytes_max: 1 };
    let pool = ForkPool::start(&*engine, &snapshot, ForkSpec::default(), spec).await.expect("starts");
    assert_eq!(timeout(STEP_DEADLINE, pool.filled()).await.expect("in time").ready, 1);
}

#[tokio::test]
async fn vm_an_idle_vm_cools_in_steps_and_wakes_as_the_same_machine() {
    let engine = engine();
    let fork = fork(&engine).await;
    let before = sh(&fork.link, "hostname; cat /etc/machine-id; echo kept > /root/file").await;
    let id = fork.vm.id().clone();
    let policy = KeepPolicy {
        idle_to_warm: Some(Duration::from_millis(400)),
        // Warm for long enough to be seen, whatever else this host does.
        idle_to_cold: Some(Duration::from_secs(10)),
        ..KeepPolicy::default()
    };
    let kept = KeptVm::keep(Arc::clone(&engine) as Arc<dyn Engine>, fork, policy);
    assert_eq!(kept.id(), &id);

    let hot = kept.ensure_hot().await.expect("hot");
    sleep(Duration::from_secs(1)).await;
    let inspection = kept.inspect().await.expect("kept");
    assert_eq!(inspection.temperature, Temperature::Hot);
    assert!(inspection.activity.contains(&Activity::InUse(1)), "{inspection:?}");
    drop(hot);

    until_it_is(&kept, Temperature::Warm).await;
    let hot = kept.ensure_hot().await.expect("wakes from warm");
    assert_eq!(sh(hot.link(), "cat /root/file").await, "kept");
    drop(hot);

    until_it_is(&kept, Temperature::Cold).await;
    let hot = kept.ensure_hot().await.expect("wakes from cold");
    assert_eq!(sh(hot.link(), "hostname; cat /etc/machine-id").await, before);
    assert_eq!(sh(hot.link(), "cat /root/file").await, "kept");
    let before_asking = now();
    let seconds = sh(hot.link(), "date +%s").await.parse::<i64>().expect("seconds");
    assert!((before_asking - 2..=now() + 2).contains(&seconds), "{seconds}, not {before_asking}");
    drop(hot);

    // A VM that stopped more than once leaves only its last snapshot.
    kept.cool(Temperature::Cold).await.expect("cools");
    drop(kept);
    discard(&Home::at(engine.home()), &id).expect("discarded");
    remove_stopped(&engine, id.as_str()).await;
}

#[tokio::test]
async fn vm_a_thousand_requests_wake_a_cold_vm_once() {
    let engine = engine();
    let fork = fork(&engine).await;
    let id = fork.vm.id().clone();
    let kept = KeptVm::keep(Arc::clone(&engine) as Arc<dyn Engine>, fork, KeepPolicy::default());
    kept.cool(Temperature::Cold).await.expect("cools");
    assert_eq!(temperature(&kept).await, Temperature::Cold);

    let requests: Vec<_> = (0..1000)
        .map(|_| {
            let kept = kept.clone();
            tokio::spawn(async move { kept.ensure_hot().await })
        })
        .collect();
    let mut boots = Vec::new();
    for request in requests {
        let hot = timeout(STEP_DEADLINE, request).await.expect("in time").expect("no panic").expect("hot");
        boots.push(hot);
    }
    let inspection = kept.inspect().await.expect("kept");
    assert!(inspection.activity.contains(&Activity::InUse(1000)), "{inspection:?}");
    assert!(matches!(kept.cool(Temperature::Warm).await, Err(SaveError::Busy)));
    assert_eq!(sh(boots[0].link(), "echo once").await, "once");
    drop(boots);
    drop(kept);
    remove_stopped(&engine, id.as_str()).await;
}

#[tokio::test]
async fn vm_a_running_command_keeps_a_guest_hot() {
    let engine = engine();
    let fork = fork(&engine).await;
    let policy = KeepPolicy { idle_to_warm: Some(Duration::from_millis(400)), ..KeepPolicy::default() };
    let kept = KeptVm::keep(Arc::clone(&engine) as Arc<dyn Engine>, fork, policy);

    // A session keeps it hot without an attached client.
    let hot = kept.ensure_hot().await.expect("hot");
    let session = SessionSpec { name: Some("work".into()), ..SessionSpec::default() };
    let argv = ["sleep", "1000"].map(Text::from).to_vec();
    let request = ExecRequest { argv, stdin: Stdin::None, session: Some(session), ..ExecRequest::default() };
    let exec = hot.link().exec(request).await.expect("starts");
    let pid = exec.started.pid;
    drop(exec);
    drop(hot);
    sleep(Duration::from_millis(1500)).await;
    let inspection = kept.inspect().await.expect("kept");
    assert_eq!(inspection.temperature, Temperature::Hot, "{inspection:?}");
    assert!(inspection.activity.contains(&Activity::Sessions(vec!["work".into()])), "{inspection:?}");
    let hot = kept.ensure_hot().await.expect("hot");
    sh(hot.link(), &format!("kill {pid}")).await;
    drop(hot);
    until_it_is(&kept, Temperature::Warm).await;

    // A lease keeps it hot too, until it ends.
    let hot = kept.ensure_hot().await.expect("hot");
    sh(hot.link(), "echo 600 > /run/kiln/leases/build").await;
    drop(hot);
    sleep(Duration::from_millis(1000)).await;
    let inspection = kept.inspect().await.expect("kept");
    assert!(inspection.activity.contains(&Activity::Leases(vec!["build".into()])), "{inspection:?}");
    let hot = kept.ensure_hot().await.expect("hot");
    sh(hot.link(), "echo 1 > /run/kiln/leases/build").await;
    drop(hot);
    until_it_is(&kept, Temperature::Warm).await;
}

#[tokio::test]
async fn vm_that_has_ended_is_not_woken() {
    let engine = engine();
    let fork = fork(&engine).await;
    let pid = fork.vm.pid();
    let kept = KeptVm::keep(Arc::clone(&engine) as Arc<dyn Engine>, fork, KeepPolicy::default());
    let hot = kept.ensure_hot().await.expect("hot");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid.cast_signed()).expect("a pid"),
        rustix::process::Signal::KILL,
    )
    .expect("killed");
    hot.link().closed().await;
    drop(hot);
    let noticed = async {
        while kept.inspect().await.expect("kept").problem.is_none() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(STEP_DEADLINE, noticed).await.expect("its end is noticed");
    assert!(matches!(kept.ensure_hot().await, Err(WakeError::Ended(_))));
}

/// The entries in a log now. Their numbers have no gaps.
fn all(mut events: Events) -> Vec<GuestEvent> {
    let entries: Vec<_> =
        std::iter::from_fn(|| events.read()).map(|entry| entry.expect("nothing was missed")).collect();
    for (index, entry) in entries.iter().enumerate() {
        assert_eq!(entry.number, entries[0].number + index as u64);
    }
    entries.into_iter().map(|entry| entry.event).collect()
}

#[tokio::test]
async fn vm_a_crash_after_a_wake_is_found_and_is_the_reason_of_its_end() {
    let engine = engine();
    let kept = KeptVm::keep(Arc::clone(&engine) as Arc<dyn Engine>, fork(&engine).await, KeepPolicy::default());
    let mut told = kept.watch().events_kept();
    let hot = kept.ensure_hot().await.expect("hot");
    hot.command("sh").args(["-c", "echo before > /dev/kmsg"]).status().await.expect("runs");
    drop(hot);
    kept.cool(Temperature::Cold).await.expect("cools");
    let hot = kept.ensure_hot().await.expect("wakes");
    let pid = hot.command("cat").arg("/proc/sys/kernel/random/boot_id").output().await.expect("runs");
    assert!(pid.success());
    let crash = hot.command("sh").args(["-c", "echo c > /proc/sysrq-trigger"]).status().await;
    assert!(crash.is_err(), "{crash:?}");
    drop(hot);

    let ended = timeout(STEP_DEADLINE, kept.ended()).await.expect("is noticed");
    let Ended::Crashed(finding) = &ended else { panic!("{ended:?}") };
    assert_eq!(kept.state(), KeptState::Ended(ended.clone()));
    assert!(kept.watch().findings().contains(finding), "{finding:?}");
    let Err(WakeError::Ended(reason)) = kept.ensure_hot().await else { panic!("it is over") };
    assert_eq!(reason, ended);
    let problem = kept.inspect().await.expect("kept").problem;
    assert!(problem.is_some_and(|problem| problem.contains(&finding.title)));

    // One log for both lives, in order.
    let events = all(kept.watch().events_kept());
    let at = |wanted: &dyn Fn(&GuestEvent) -> bool| events.iter().position(wanted).expect("is in the log");
    let starts = events.iter().filter(|event| matches!(event, GuestEvent::Started { .. })).count();
    assert_eq!(starts, 2, "{events:?}");
    let stopped = at(&|event| *event == GuestEvent::Stopped);
    let found = at(&|event| matches!(event, GuestEvent::Finding(found) if **found == **finding));
    let exited = at(&|event| matches!(event, GuestEvent::Exited(_)));
    assert!(stopped < found && found < exited, "{events:?}");
    assert_eq!(
        told.read().map(|first| first.map(|first| first.number)),
        Some(Ok(0)),
        "a reader from the start has all"
    );

    // Its end is not forgotten by a destroy.
    kept.destroy().await.expect("nothing is left to remove");
    assert_eq!(kept.state(), KeptState::Ended(ended));
}

#[tokio::test]
async fn vm_a_halt_after_a_wake_is_a_finding_and_the_reason_of_its_end() {
    let engine = engine();
    let kept = KeptVm::keep(Arc::clone(&engine) as Arc<dyn Engine>, fork(&engine).await, KeepPolicy::default());
    kept.cool(Temperature::Cold).await.expect("cools");
    let hot = kept.ensure_hot().await.expect("wakes");
    // A halt does not lose the link, so no error reports it.
    let halt =
        hot.command("sh").args(["-c", "echo 0 > /proc/sys/kernel/panic; halt -f"]).spawn().await.expect("starts");
    let ended = timeout(STEP_DEADLINE, kept.ended()).await.expect("is noticed");
    assert_eq!(ended, Ended::Halted);
    drop((halt, hot));

    let [finding] = &kept.watch().findings()[..] else { panic!("one finding: {:?}", kept.watch().findings()) };
    assert_eq!((finding.kind, finding.severity), (Kind::Halted, Severity::Fatal));
    let events = all(kept.watch().events_kept());
    let found = events.iter().position(|event| matches!(event, GuestEvent::Finding(found) if **found == *finding));
    let exited = events.iter().position(|event| matches!(event, GuestEvent::Exited(_)));
    assert!(found.is_some() && found < exited, "{events:?}");
}

#[tokio::test]
async fn vm_that_is_destroyed_leaves_nothing() {
    let engine = engine();
    for cold in [false, true] {
        let fork = fork(&engine).await;
        let (id, pid, directory) = (fork.vm.id().clone(), fork.vm.pid(), fork.vm.dir().to_owned());
        let kept = KeptVm::keep(Arc::clone(&engine) as Arc<dyn Engine>, fork, KeepPolicy::default());
        let used = if cold {
            kept.cool(Temperature::Cold).await.expect("cools");
            None
        } else {
            Some(kept.ensure_hot().await.expect("hot"))
        };
        timeout(STEP_DEADLINE, kept.destroy()).await.expect("in time").expect("destroyed");
        assert!(!exists(pid) && !directory.exists());
        assert_eq!(kept.state(), KeptState::Ended(Ended::Destroyed));
        assert!(matches!(kept.ensure_hot().await, Err(WakeError::Ended(Ended::Destroyed))));
        kept.destroy().await.expect("twice is no error");
        drop(used);
        let store = SnapshotStore::new(&Home::at(engine.home()));
        let left = store.list().expect("lists").into_iter().filter_map(|one| one.manifest);
        assert!(
            !left.into_iter().any(|manifest| manifest.label.contains(id.as_str())),
            "the snapshot of its stop is gone too"
        );
    }
}

#[tokio::test]
async fn vm_that_is_kept_can_be_forked_and_continues() {
    let engine = engine();
    let kept = KeptVm::keep(Arc::clone(&engine) as Arc<dyn Engine>, fork(&engine).await, KeepPolicy::default());
    let hot = kept.ensure_hot().await.expect("hot");
    sh(hot.link(), "echo parent > /root/file").await;
    let (snapshot, forks) = kept.fork(ForkSpec { count: 2, ..ForkSpec::default() }).await.expect("forks");
    assert_eq!(kept.state(), KeptState::Hot);
    let mut names = vec![sh(hot.link(), "hostname; cat /root/file").await];
    for fork in &forks {
        names.push(sh(&fork.link, "hostname; cat /root/file").await);
    }
    assert!(names.iter().all(|name| name.ends_with("\nparent")), "{names:?}");
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3, "{names:?}");
    let events = all(kept.watch().events_kept());
    let paused = events.iter().filter(|event| **event == GuestEvent::Paused).count();
    assert_eq!((paused, events.contains(&GuestEvent::Stopped)), (1, false), "{events:?}");

    let id = snapshot.id().clone();
    drop((forks, snapshot, hot));
    kept.destroy().await.expect("destroyed");
    let store = SnapshotStore::new(&Home::at(engine.home()));
    let removed = async {
        while store.remove(&id).is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(STEP_DEADLINE, removed).await.expect("nothing holds it");
}

/// Runs a test of this file in a process of its own, with a fail point armed.
async fn act(name: &str, point: &str) {
    let mut helper = tokio::process::Command::new(std::env::current_exe().expect("this binary"));
    helper.args(["--exact", name, "--nocapture", "--ignored"]).env(FAIL_POINT_VARIABLE, point).kill_on_drop(true);
    let output = timeout(3 * STEP_DEADLINE, helper.output()).await.expect("in time").expect("runs");
    let words = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && words.contains("1 passed"), "{words}\n{errors}");
}

/// The file by which a fail point shows that it waits.
fn waiting() -> camino::Utf8PathBuf {
    let point = std::env::var(FAIL_POINT_VARIABLE).expect("it is armed");
    point.split_once(":wait-").expect("it waits").1.into()
}

async fn until_it_waits() -> camino::Utf8PathBuf {
    let path = waiting();
    let reached = async {
        while !path.exists() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(STEP_DEADLINE, reached).await.expect("it comes there");
    path
}

fn wait_point(point: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let point = format!("{point}:wait-{}", directory.path().join("here").display());
    (directory, point)
}

#[tokio::test]
async fn vm_a_question_never_waits_behind_a_save() {
    let (_directory, point) = wait_point("save.memory");
    act("ask_while_it_is_saved", &point).await;
}

#[tokio::test]
#[ignore = "the other half of the test above, started by it in a process of its own"]
async fn ask_while_it_is_saved() {
    const AT_ONCE: Duration = Duration::from_secs(5);
    let engine = engine();
    let kept = KeptVm::keep(Arc::clone(&engine) as Arc<dyn Engine>, fork(&engine).await, KeepPolicy::default());
    let cooling = tokio::spawn({
        let kept = kept.clone();
        async move { kept.cool(Temperature::Cold).await }
    });
    let file = until_it_waits().await;
    // A save that does not end, and requests that wait for it.
    let requests: Vec<_> = (0..200)
        .map(|_| {
            let kept = kept.clone();
            tokio::spawn(async move { kept.ensure_hot().await })
        })
        .collect();
    for _ in 0..50 {
        let inspection = timeout(AT_ONCE, kept.inspect()).await.expect("at once").expect("kept");
        assert_eq!((inspection.state, inspection.temperature), (KeptState::Cooling, Temperature::Hot));
        assert_eq!(kept.state(), KeptState::Cooling);
        sleep(Duration::from_millis(1)).await;
    }
    assert!(!cooling.is_finished() && requests.iter().all(|request| !request.is_finished()));
    std::fs::remove_file(file).expect("it waits");
    timeout(STEP_DEADLINE, cooling).await.expect("in time").expect("no panic").expect("cools");
    for request in requests {
        let hot = timeout(STEP_DEADLINE, request).await.expect("in time").expect("no panic").expect("hot");
        drop(hot);
    }
    timeout(STEP_DEADLINE, kept.destroy()).await.expect("in time").expect("destroyed");
}

#[tokio::test]
async fn vm_a_request_to_destroy_overtakes_a_save() {
    let (_directory, point) = wait_point("save.device");
    act("destroy_while_it_is_saved", &point).await;
}

#[tokio::test]
#[ignore = "the other half of the test above, started by it in a process of its own"]
async fn destroy_while_it_is_saved() {
    let engine = engine();
    let fork = fork(&engine).await;
    let (pid, directory) = (fork.vm.pid(), fork.vm.dir().to_owned());
    let kept = KeptVm::keep(Arc::clone(&engine) as Arc<dyn Engine>, fork, KeepPolicy::default());
    let saving = tokio::spawn({
        let kept = kept.clone();
        async move { kept.snapshot("never").await }
    });
    let file = until_it_waits().await;
    let destroying = tokio::spawn({
        let kept = kept.clone();
        async move { kept.destroy().await }
    });
    // The save still waits, and its VMM is killed under it.
    let killed = async {
        while is_alive(pid) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(STEP_DEADLINE, killed).await.expect("the order overtakes the save");
    std::fs::remove_file(file).expect("it waits");
    timeout(STEP_DEADLINE, destroying).await.expect("in time").expect("no panic").expect("destroyed");
    assert!(!exists(pid) && !directory.exists());
    assert_eq!(kept.state(), KeptState::Ended(Ended::Destroyed));
    drop(timeout(STEP_DEADLINE, saving).await.expect("in time").expect("no panic"));
}

#[tokio::test]
async fn vm_that_could_not_be_cooled_has_the_current_time() {
    act("fail_to_cool", "save.memory:error").await;
}

#[tokio::test]
#[ignore = "the other half of the test above, started by it in a process of its own"]
async fn fail_to_cool() {
    let engine = engine();
    let kept = KeptVm::keep(Arc::clone(&engine) as Arc<dyn Engine>, fork(&engine).await, KeepPolicy::default());
    // Notes the time ten times a second.
    let session = SessionSpec { name: Some("clock".into()), ..SessionSpec::default() };
    let script = "while sleep 0.1; do date +%s; done > /root/times";
    let argv = ["sh", "-c", script].map(Text::from).to_vec();
    let hot = kept.ensure_hot().await.expect("hot");
    drop(
        hot.link().exec(ExecRequest { argv, session: Some(session), ..ExecRequest::default() }).await.expect("starts"),
    );
    sleep(Duration::from_secs(1)).await;
    drop(hot);
    kept.cool(Temperature::Warm).await.expect("cools");
    let warm = now();
    sleep(Duration::from_secs(6)).await;
    kept.cool(Temperature::Cold).await.expect_err("it is made to fail");
    assert_eq!(kept.state(), KeptState::Hot);
    let hot = kept.ensure_hot().await.expect("goes on");
    sleep(Duration::from_secs(1)).await;
    let times = sh(hot.link(), "cat /root/times; date +%s").await;
    let times: Vec<i64> = times.lines().map(|line| line.parse().expect("seconds")).collect();
    assert!((now() - 2..=now() + 1).contains(times.last().expect("one at least")), "{times:?}, now {}", now());
    // No process in it saw a second after the pause by the old clock.
    let old: Vec<_> = times.iter().filter(|time| (warm + 2..warm + 5).contains(*time)).collect();
    assert!(old.is_empty(), "{old:?} of {times:?}, warm at {warm}");
    drop(hot);
    timeout(STEP_DEADLINE, kept.destroy()).await.expect("in time").expect("destroyed");
}

fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_secs()).expect("of this century")
}

/// Removes the snapshots at which a VM of these tests stopped, once they are sealed.
async fn remove_stopped(engine: &QemuEngine, id: &str) {
    let store = SnapshotStore::new(&Home::at(engine.home()));
    let of_it = |label: &str| label.contains(id);
    let removed = async {
        loop {
            let all = store.list().expect("lists");
            let left: Vec<_> =
                all.iter().filter(|one| one.manifest.as_ref().is_some_and(|it| of_it(&it.label))).collect();
            if left.is_empty() {
                return;
            }
            for one in left {
                // A snapshot with children is removed in the next round.
                drop(store.remove(&one.id));
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(STEP_DEADLINE, removed).await.expect("nothing holds them");
}
