//! Pools over the fake engine: what they hold, hand out and refill, and what happens to their snapshot.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use camino::Utf8Path;
use kiln_engine::home::Home;
use kiln_engine::snapshot::{SnapshotError, SnapshotStore};
use kiln_engine::{
    Engine, FakeEngine, ForkPart, ForkPool, ForkSpec, MakePart, PoolSpec, ReadyRequest, RestoreError, VmSpec,
};
use kiln_wire::{ExecRequest, Text};
use rustix::process::{Pid, Signal};

use super::saves::prepared;
use super::{DEADLINE, Lab, agent, shell, spec, until};

const TWO: PoolSpec = PoolSpec { ready: 2, bytes_max: 1 << 30 };

async fn fill(pool: &ForkPool) {
    let filled = tokio::time::timeout(DEADLINE, pool.filled()).await.expect("fills");
    assert_eq!((filled.ready, filled.problem), (2, None));
}

fn exists(pid: u32) -> bool {
    Utf8Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_gives_out_forks_that_were_ready() {
    let lab = Lab::new();
    let engine: Arc<dyn Engine> = Arc::new(lab.engine());
    let snapshot = prepared(&lab.engine()).await;
    let spec = PoolSpec { ready: 2, bytes_max: 1 << 30 };
    let pool = ForkPool::start(&*engine, &snapshot, ForkSpec::default(), spec).await.expect("starts");
    let filled = tokio::time::timeout(DEADLINE, pool.filled()).await.expect("fills");
    assert_eq!((filled.ready, filled.problem), (2, None));
    let pids = pool.pids();
    let fork = pool.take().await.expect("one was ready");
    assert!(pids.contains(&fork.vm.pid()));
    assert_eq!(shell(&fork.link, "cat file").await, "prepared");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_fork_has_run_the_commands_of_its_pool() {
    let lab = Lab::new();
    let engine: Arc<dyn Engine> = Arc::new(lab.engine());
    let snapshot = prepared(&lab.engine()).await;
    let line =
        |line: &str| ExecRequest { argv: ["/bin/sh", "-c", line].map(Text::from).to_vec(), ..Default::default() };
    // One command exits with 3, and one does not exist. Neither keeps the fork from its owner.
    let missing = ExecRequest { argv: vec![Text::from("/missing")], ..ExecRequest::default() };
    let warm_up = vec![line("echo one >> warmed"), line("exit 3"), missing, line("echo two >> warmed")];
    let forks = ForkSpec { warm_up, ..ForkSpec::default() };
    let pool = ForkPool::start(&*engine, &snapshot, forks, TWO).await.expect("starts");
    fill(&pool).await;
    let fork = pool.take().await.expect("one was ready");
    assert_eq!(shell(&fork.link, "cat file warmed").await, "prepared\none\ntwo");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_is_closed_has_ended_its_forks() {
    let lab = Lab::new();
    let engine: Arc<dyn Engine> = Arc::new(lab.engine());
    let snapshot = prepared(&lab.engine()).await;
    for is_full in [true, false] {
        let pool = ForkPool::start(&*engine, &snapshot, ForkSpec::default(), TWO).await.expect("starts");
        if is_full {
            fill(&pool).await;
        }
        tokio::time::timeout(DEADLINE, pool.close()).await.expect("ends");
        assert_eq!(lab.vms(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_refills_taken_forks_and_ends_the_others() {
    let lab = Lab::new();
    let engine: Arc<dyn Engine> = Arc::new(lab.engine());
    let snapshot = prepared(&lab.engine()).await;
    let pool = ForkPool::start(&*engine, &snapshot, ForkSpec::default(), TWO).await.expect("starts");
    fill(&pool).await;
    let first = pool.pids();
    let taken = [pool.take().await.expect("was ready"), pool.take().await.expect("was ready")];
    let pids = taken.each_ref().map(|fork| fork.vm.pid());
    assert!(pids.iter().all(|pid| first.contains(pid)), "{pids:?} of {first:?}");
    // The pool is empty, unless it has refilled by now. Both are fine here.
    let third = pool.take().await.expect("is made");
    let mut names = Vec::new();
    for fork in taken.iter().chain([&third]) {
        names.push(shell(&fork.link, "cat file etc/hostname").await);
        assert_eq!(names.last(), Some(&format!("prepared\nkiln-{}", fork.vm.id())));
    }

    fill(&pool).await;
    let held = pool.pids();
    assert!(held.iter().all(|pid| !first.contains(pid) && *pid != third.vm.pid()), "{held:?} after {first:?}");
    drop(pool);
    until(|| !held.iter().any(|pid| exists(*pid))).await;
    until(|| lab.agents() == 3).await;
    for fork in taken.iter().chain([&third]) {
        assert_eq!(shell(&fork.link, "cat file").await, "prepared");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_that_died_in_its_pool_is_not_given_out() {
    let lab = Lab::new();
    let engine: Arc<dyn Engine> = Arc::new(lab.engine());
    let snapshot = prepared(&lab.engine()).await;
    let pool = ForkPool::start(&*engine, &snapshot, ForkSpec::default(), TWO).await.expect("starts");
    fill(&pool).await;
    let held = pool.pids();
    for pid in &held {
        let pid = Pid::from_raw(pid.cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, Signal::KILL).expect("runs");
    }
    let fork = tokio::time::timeout(DEADLINE, pool.take()).await.expect("in time").expect("another one");
    assert!(!held.contains(&fork.vm.pid()));
    assert_eq!(shell(&fork.link, "cat file").await, "prepared");
    drop(fork);
    fill(&pool).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_cannot_refill_names_the_problem_and_recovers() {
    let lab = Lab::new();
    let own = lab.home().join("agent");
    fs_err::copy(agent(), &own).expect("copied");
    let fake = FakeEngine::new(lab.home(), &own);
    let (engine, snapshot) = (Arc::new(fake.clone()) as Arc<dyn Engine>, prepared(&fake).await);
    let pool = ForkPool::start(&*engine, &snapshot, ForkSpec::default(), TWO).await.expect("starts");
    fill(&pool).await;
    let away = lab.home().join("away");
    fs_err::rename(&own, &away).expect("moved");
    let fork = pool.take().await.expect("was ready");
    assert_eq!(shell(&fork.link, "cat file").await, "prepared");
    until(|| pool.status().problem.is_some()).await;
    assert_eq!(pool.status().ready, 1);

    fs_err::rename(&away, &own).expect("moved back");
    until(|| pool.status().ready == 2).await;
    assert_eq!(pool.status().problem, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_stays_for_its_pool_and_is_made_again_after_it() {
    let lab = Lab::new();
    let engine: Arc<dyn Engine> = Arc::new(lab.engine());
    let store = SnapshotStore::new(&Home::at(lab.home()));
    let spec = VmSpec { initramfs: None, ..spec() };
    let ready = async || engine.ready(ReadyRequest::new(&spec, "test", DEADLINE)).await.expect("is made");
    let snapshot = ready().await;
    let id = snapshot.id().clone();
    let pool = ForkPool::start(&*engine, &snapshot, ForkSpec::default(), TWO).await.expect("starts");
    drop(snapshot);
    fill(&pool).await;
    let error = store.remove(&id).expect_err("the pool has it");
    assert!(matches!(error, SnapshotError::InUse { .. }), "{error:?}");

    // A fork that was taken holds the snapshot too while it runs.
    let fork = pool.take().await.expect("was ready");
    drop(pool);
    until(|| lab.agents() == 1).await;
    assert!(matches!(store.remove(&id), Err(SnapshotError::InUse { .. })));
    fork.vm.kill().await;
    drop(fork);
    until(|| store.remove(&id).is_ok()).await;
    assert!(matches!(store.open(&id), Err(SnapshotError::Unknown(_))));

    let next = ready().await;
    assert_ne!(next.id(), &id);
    let pool = ForkPool::start(&*engine, &next, ForkSpec::default(), TWO).await.expect("starts");
    let fork = tokio::time::timeout(DEADLINE, pool.take()).await.expect("in time").expect("is made");
    assert_eq!(shell(&fork.link, "echo on").await, "on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fork_of_a_pool_has_its_own_part_which_is_made_ready_before_its_commands_run() {
    let lab = Lab::new();
    let engine: Arc<dyn Engine> = Arc::new(lab.engine());
    let snapshot = prepared(&lab.engine()).await;
    let made = Arc::new(AtomicUsize::new(0));
    let part: Arc<MakePart<usize>> = {
        let made = Arc::clone(&made);
        Arc::new(move || {
            let number = made.fetch_add(1, Ordering::Relaxed);
            let part = ForkPart { hostname: Some(format!("part-{number}")), ..ForkPart::default() };
            Box::pin(async move { Ok((part, number)) })
        })
    };
    let pool = ForkPool::start_with(&*engine, &snapshot, ForkSpec::default(), TWO, part).await.expect("starts");
    let filled = tokio::time::timeout(DEADLINE, pool.filled()).await.expect("fills");
    assert_eq!((filled.ready, filled.problem), (2, None));
    for expected in 0..2 {
        let (fork, number) = pool.take_with(async |_| Ok::<_, RestoreError>(())).await.expect("was ready");
        assert_eq!(number, expected);
        assert_eq!(shell(&fork.link, "cat etc/hostname").await, format!("part-{number}"));
    }

    tokio::time::timeout(DEADLINE, pool.filled()).await.expect("fills");
    let pids = pool.pids();
    let refuse = async |number: &usize| Err(RestoreError::Part { problem: format!("not {number}") });
    let error = pool.take_with(refuse).await.expect_err("its owner refuses it");
    assert_eq!(error.to_string(), "a fork can't be made as requested: not 2");
    assert!(!exists(pids[0]), "the fork is gone");
}
