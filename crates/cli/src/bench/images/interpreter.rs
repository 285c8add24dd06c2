//! A short script of an interpreter, in a fork of a snapshot whose VM has run it before, against a fork and the same
//! script in a VM that is hot: one that has just run it.
//!
//! Under TCG, the code that a fork runs for the first time is translated again, however warm its snapshot is. A fork of
//! a pool has done that while it was held.

use std::time::Instant;

use anyhow::{Context as _, bail};
use kiln_engine::snapshot::Snapshot;
use kiln_engine::{Engine as _, Fork, ForkPool, ForkSpec, PoolSpec};
use kiln_wire::{ExecRequest, Text};

use super::debian::{Debian, NAME};
use crate::bench::guests::{kiln_run, ms_since, run};
use crate::bench::results::Results;
use crate::bench::samples::{Promise, Sense, Series, Unit};
use crate::bench::suite::Bench;

const POOL: PoolSpec = PoolSpec { ready: 1, bytes_max: 256 << 20 };
const LINE: &str = "python3 -c pass";
const SCRIPT: [&str; 3] = ["/usr/bin/python3", "-c", "pass"];

/// Measures the script.
pub async fn measure(bench: &Bench, debian: &mut Debian, results: &mut Results) -> anyhow::Result<()> {
    let mut runs = Series::new("kiln run --image DEBIAN -- python3 -c pass, warmed, the whole process", Unit::Ms);
    let mut firsts = Series::new("python3 -c pass in a fork, warmed, its first command", Unit::Ms);
    let mut forks = Series::new("fork of Debian, warmed, agent answers", Unit::Ms);
    let mut hots = Series::new("python3 -c pass in a hot VM", Unit::Ms);
    let mut pooled = Series::new("python3 -c pass in a fork from a pool, warmed, with the take", Unit::Ms);
    let mut pooled_ratios = Series::new("the same, against fork and hot VM of the same round", Unit::Ratio);
    let mut ratios = Series::new("kiln run -- python3 -c pass, against fork and hot VM of the same round", Unit::Ratio);
    let warmed = debian.warmed(bench, LINE).await?;
    let hot = fork(bench, &warmed).await?;
    for _ in 0..bench.warm_up {
        run(&hot.link, &SCRIPT).await?;
    }
    let warm_up = vec![ExecRequest { argv: SCRIPT.map(Text::from).to_vec(), ..ExecRequest::default() }];
    let forks_of_pool = ForkSpec { warm_up, ..ForkSpec::default() };
    let pool = ForkPool::start(&bench.engine, &warmed, forks_of_pool, POOL).await?;
    let accel = results.machine.accel.clone();
    let run_args = ["--image", NAME, "--", "python3", "-c", "pass"];
    kiln_run(&accel, &run_args).await?;
    for sample in 0..bench.samples {
        // The order alternates, so that a busy moment of the host affects all of a round equally.
        let early = if sample % 2 == 0 { Some(kiln_run(&accel, &run_args).await?) } else { None };
        if let Some(problem) = pool.filled().await.problem {
            bail!("the pool has no fork: {problem}");
        }
        let start = Instant::now();
        let taken = pool.take().await?;
        run(&taken.link, &SCRIPT).await?;
        let from_pool = ms_since(start);
        taken.vm.kill().await;
        // The pool makes the next one now, which would slow the others.
        pool.filled().await;
        let start = Instant::now();
        run(&hot.link, &SCRIPT).await?;
        let again = ms_since(start);
        let start = Instant::now();
        let fork = fork(bench, &warmed).await?;
        let answered = ms_since(start);
        run(&fork.link, &SCRIPT).await?;
        firsts.samples.push(ms_since(start) - answered);
        fork.vm.kill().await;
        let whole = match early {
            Some(whole) => whole,
            None => kiln_run(&accel, &run_args).await?,
        };
        runs.samples.push(whole);
        forks.samples.push(answered);
        hots.samples.push(again);
        ratios.samples.push(whole / (answered + again));
        pooled.samples.push(from_pool);
        pooled_ratios.samples.push(from_pool / (answered + again));
    }
    hot.vm.kill().await;
    pool.close().await;
    results.promises.push(Promise {
        claim: "kiln run -- python3 -c pass, warmed ≤ 1.3 × a fork and the same in a hot VM (p50 of the ratios)",
        seen: ratios.p50(),
        bound: 1.3,
        sense: Sense::AtMost,
    });
    results.promises.push(Promise {
        claim: "python3 -c pass in a fork from a pool, warmed ≤ 1.3 × a fork and the same in a hot VM (p50 of the ratios)",
        seen: pooled_ratios.p50(),
        bound: 1.3,
        sense: Sense::AtMost,
    });
    results.series.extend([runs, firsts, forks, hots, ratios, pooled, pooled_ratios]);
    Ok(())
}

async fn fork(bench: &Bench, snapshot: &Snapshot) -> anyhow::Result<Fork> {
    let forks = bench.engine.restore(snapshot, ForkSpec::default()).await?;
    forks.into_iter().next().context("a restore of one VM gives one VM")
}
