//! Forks that are held ready, and VMs that cool while nobody uses them, with real VMs of the image `mini`.

mod support;

use std::sync::Arc;
use std::time::Duration;

use camino::Utf8Path;
use kiln_engine::home::Home;
use kiln_engine::image::{ImageStore, MINI};
use kiln_engine::kept::{Activity, KeepPolicy, KeptVm, Temperature, WakeError};
use kiln_engine::link::GuestLink;
use kiln_engine::snapshot::{Snapshot, SnapshotError, SnapshotStore};
use kiln_engine::{
    AccelerationRequest, Engine, Fork, ForkPool, ForkSpec, PoolSpec, QemuEngine, ReadyRequest, VmSpec, discard,
};
use kiln_wire::{ExecRequest, SessionSpec, Stdin, Text};
use support::STEP_DEADLINE;
use tokio::time::{sleep, timeout};

const BOOT_DEADLINE: Duration = Duration::from_secs(120);

/// The home that all tests share, which has the image.
fn engine() -> Arc<QemuEngine> {
    let home = Home::from_env().expect("KILN_HOME is set");
    Arc::new(QemuEngine::find(home.path()).expect("QEMU is installed"))
}

async fn ready(engine: &QemuEngine) -> Snapshot {
    let image = ImageStore::new(&Home::at(engine.home())).find(MINI).expect("the image is built");
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
async fn vm_a_pool_hands_out_machines_of_their_own_and_refills() {
    let engine = engine();
    let snapshot = ready(&engine).await;
    let spec = PoolSpec { ready: 2, bytes_max: 1 << 30 };
    let pool = ForkPool::start(&*engine, &snapshot, ForkSpec::default(), spec).await.expect("starts");
    let filled = timeout(STEP_DEADLINE, pool.filled()).await.expect("in time");
    assert_eq!((filled.ready, filled.problem), (2, None));
    assert!(filled.bytes > 0);

    let mut names = Vec::new();
    let mut forks = Vec::new();
    // One more than it holds: the last one is made there and then, or was refilled.
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
    timeout(STEP_DEADLINE, gone).await.expect("those that nobody took end with it");
    assert_eq!(sh(&forks[0].link, "echo on").await, "on");
}

#[tokio::test]
async fn vm_a_pool_keeps_to_its_bounds() {
    let engine = engine();
    let snapshot = ready(&engine).await;
    for count in [0, kiln_engine::POOL_MAX + 1] {
        let spec = PoolSpec { ready: count, bytes_max: 1 << 30 };
        let refused = ForkPool::start(&*engine, &snapshot, ForkSpec::default(), spec).await;
        assert!(matches!(refused, Err(SnapshotError::Budget { .. })), "{count}");
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
        // Warm for long enough to be seen so, whatever else this host does.
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

    // A VM that stopped more than once leaves no more behind than where it is.
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
    assert!(matches!(kept.cool(Temperature::Warm).await, Err(SnapshotError::Busy)));
    assert_eq!(sh(boots[0].link(), "echo once").await, "once");
    drop(boots);
    drop(kept);
    remove_stopped(&engine, id.as_str()).await;
}

#[tokio::test]
async fn vm_what_runs_in_a_guest_keeps_it_hot() {
    let engine = engine();
    let fork = fork(&engine).await;
    let policy = KeepPolicy { idle_to_warm: Some(Duration::from_millis(400)), ..KeepPolicy::default() };
    let kept = KeptVm::keep(Arc::clone(&engine) as Arc<dyn Engine>, fork, policy);

    // A session goes on when nobody is attached.
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

    // A lease does too, until it ends.
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
async fn vm_one_that_ended_is_not_woken() {
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

fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_secs()).expect("of this century")
}

/// Removes where a VM of these tests stopped, once it is sealed.
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
                // One that others lie on goes in the next round.
                drop(store.remove(&one.id));
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(STEP_DEADLINE, removed).await.expect("nothing holds them");
}
