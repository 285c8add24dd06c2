//! One fork at a time, until the end of its first command, and everything that it is compared with.

use std::fs::File;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use kiln_engine::snapshot::Snapshot;
use kiln_engine::{ForkPool, ForkSpec, PoolSpec};
use rustix::fs::Advice;

use super::lab::Lab;
use super::peer::{Peer, Restored};
use super::raw::{RawLine, RawVm};
use crate::bench::guests::{TRUE, kiln_run, ms_since, run};
use crate::bench::results::Results;
use crate::bench::samples::{Promise, Sense, Series, Unit};
use crate::output::say;
use kiln_engine::blocking;

/// The most that `kiln run` may take in addition to its fork.
const RUN_MS_OVER: f64 = 30.0;
const POOL: PoolSpec = PoolSpec { ready: 1, bytes_max: 256 << 20 };

/// The samples of one way to a first command.
struct Pair {
    answers: Series,
    execs: Series,
}

impl Pair {
    const fn new(answers: &'static str, execs: &'static str) -> Self {
        Self { answers: Series::new(answers, Unit::Ms), execs: Series::new(execs, Unit::Ms) }
    }

    fn push(&mut self, (answers, execs): (f64, f64)) {
        self.answers.samples.push(answers);
        self.execs.samples.push(execs);
    }

    fn series(self) -> [Series; 2] {
        [self.execs, self.answers]
    }
}

/// Measures forks one by one.
pub async fn measure(lab: &Lab<'_>, results: &mut Results) -> anyhow::Result<()> {
    let line = {
        let fork = lab.fork(&lab.base).await?;
        let line = RawLine::of(&fork.vm, lab.bench.engine.binary(), &lab.base)?;
        fork.vm.kill().await;
        line
    };
    cold(lab, &line, results).await?;
    warm(lab, &line, results).await
}

/// Forks while the snapshot's files are not in the page cache. Runs first, before anything maps those files.
async fn cold(lab: &Lab<'_>, line: &RawLine, results: &mut Results) -> anyhow::Result<()> {
    let mut kiln = Pair::new(
        "fork, cold page cache of the snapshot, agent answers",
        "fork, cold page cache of the snapshot, first exec done",
    );
    let mut raw = Pair::new(
        "QEMU alone restored, cold page cache of the snapshot, agent answers",
        "QEMU alone restored, cold page cache of the snapshot, first exec done",
    );
    for _ in 0..lab.bench.samples.div_ceil(2) {
        drop_from_page_cache(&lab.base)?;
        raw.push(alone(line).await?);
        drop_from_page_cache(&lab.base)?;
        kiln.push(fork(lab).await?);
    }
    results.series.extend(kiln.series().into_iter().chain(raw.series()));
    Ok(())
}

async fn warm(lab: &Lab<'_>, line: &RawLine, results: &mut Results) -> anyhow::Result<()> {
    let mut kiln = Pair::new("fork, agent answers", "fork, first exec done");
    let mut raw = Pair::new("QEMU alone restored, agent answers", "QEMU alone restored, first exec done");
    let mut pooled = Pair::new("from the pool, agent answers", "from the pool, first exec done");
    let mut whole = Series::new("kiln run -- true, the whole process", Unit::Ms);
    let mut runsc = Pair::new("runsc restore", "runsc restore, first exec done");
    let mut peer = Peer::prepare().await?;
    if peer.is_none() {
        say("runsc or busybox is not installed: no peer in this run");
    }
    let pool = ForkPool::start(&lab.bench.engine, &lab.base, ForkSpec::default(), POOL).await?;
    // The first of each is not counted: it makes the ready-made snapshot of `kiln run`, and reads files into the page
    // cache.
    kiln_run(&results.machine.accel, &["--", "true"]).await?;
    alone(line).await?;
    fork(lab).await?;
    for sample in 0..lab.bench.samples {
        // The order alternates, so that a busy moment of the host affects both of a pair equally.
        if sample % 2 == 0 {
            raw.push(alone(line).await?);
            kiln.push(fork(lab).await?);
        } else {
            kiln.push(fork(lab).await?);
            raw.push(alone(line).await?);
        }
        whole.samples.push(kiln_run(&results.machine.accel, &["--", "true"]).await?);
        if let Some(peer) = &mut peer {
            let Restored { restored_ms, exec_ms } = peer.restore().await?;
            runsc.push((restored_ms, exec_ms));
        }
        pooled.push(from_pool(&pool).await?);
    }
    let (first_exec, answers) = (kiln.execs.p50(), kiln.answers.p50());
    for (claim, seen, bound) in [
        ("fork to first exec ≤ 1.15 × QEMU alone (p50)", first_exec / raw.execs.p50(), 1.15),
        ("from the pool to first exec ≤ 0.5 × fork to first exec (p50)", pooled.execs.p50() / first_exec, 0.5),
        ("kiln run -- true ≤ fork to first exec + 30 ms (p50)", whole.p50(), first_exec + RUN_MS_OVER),
    ] {
        results.promises.push(Promise { claim, seen, bound, sense: Sense::AtMost });
    }
    results.series.extend(kiln.series().into_iter().chain(raw.series()).chain(pooled.series()));
    results.series.push(whole);
    if peer.is_some() {
        let (restored, executed) = (runsc.answers.p50(), runsc.execs.p50());
        for (claim, seen, bound) in [
            ("fork to the agent's answer ≤ runsc restore (p50)", answers, restored),
            ("fork to first exec ≤ runsc restore to first exec (p50)", first_exec, executed),
            ("fork to first exec ≤ runsc restore alone (p50)", first_exec, restored),
        ] {
            results.promises.push(Promise { claim, seen, bound, sense: Sense::AtMost });
        }
        results.series.extend(runsc.series());
    }
    Ok(())
}

/// The time until the agent's first reply, after which the fork has its own clock, randomness and names, and the time
/// until the end of its first command.
async fn fork(lab: &Lab<'_>) -> anyhow::Result<(f64, f64)> {
    let start = Instant::now();
    let fork = lab.fork(&lab.base).await?;
    let answered = ms_since(start);
    run(&fork.link, &[TRUE]).await?;
    let done = ms_since(start);
    fork.vm.kill().await;
    Ok((answered, done))
}

async fn alone(line: &RawLine) -> anyhow::Result<(f64, f64)> {
    let line = line.clone();
    blocking(move || {
        let mut vm = RawVm::restore(&line)?;
        Ok((vm.answered_ms, vm.first_exec()?))
    })
    .await
}

/// Takes a fork from the pool. The pool makes its next fork meanwhile, as it does in use; that fork is complete before
/// the next sample of anything.
async fn from_pool(pool: &ForkPool) -> anyhow::Result<(f64, f64)> {
    ready(pool).await?;
    let start = Instant::now();
    let fork = pool.take().await?;
    let answered = ms_since(start);
    run(&fork.link, &[TRUE]).await?;
    let done = ms_since(start);
    fork.vm.kill().await;
    ready(pool).await?;
    Ok((answered, done))
}

async fn ready(pool: &ForkPool) -> anyhow::Result<()> {
    let status = pool.filled().await;
    ensure!(status.ready > 0, "the pool is empty: {}", status.problem.unwrap_or_default());
    Ok(())
}

/// Drops a snapshot's files from the page cache. The kernel drops only pages that are clean and not mapped. That is
/// true of all of them: the snapshot is sealed, and no fork of it runs now.
fn drop_from_page_cache(snapshot: &Snapshot) -> anyhow::Result<()> {
    for path in [snapshot.memory_root(), snapshot.device()] {
        let file = File::open(&path).with_context(|| format!("failed to open `{path}`"))?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}
