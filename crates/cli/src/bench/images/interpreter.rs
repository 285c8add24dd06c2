//! A short script of an interpreter, in a fork of a snapshot whose VM has run it before, against a fork and the same
//! script in a VM that is hot: one that has just run it.

use std::time::Instant;

use anyhow::Context as _;
use kiln_engine::snapshot::Snapshot;
use kiln_engine::{Engine as _, Fork, ForkSpec};

use super::debian::{Debian, NAME};
use crate::bench::guests::{kiln_run, ms_since, run};
use crate::bench::results::Results;
use crate::bench::samples::{Promise, Sense, Series, Unit};
use crate::bench::suite::Bench;

const LINE: &str = "python3 -c pass";
const SCRIPT: [&str; 3] = ["/usr/bin/python3", "-c", "pass"];

/// Measures the script.
pub async fn measure(bench: &Bench, debian: &mut Debian, results: &mut Results) -> anyhow::Result<()> {
    let mut runs = Series::new("kiln run --image DEBIAN -- python3 -c pass, warmed, the whole process", Unit::Ms);
    let mut firsts = Series::new("python3 -c pass in a fork, warmed, its first command", Unit::Ms);
    let mut forks = Series::new("fork of Debian, warmed, agent answers", Unit::Ms);
    let mut hots = Series::new("python3 -c pass in a hot VM", Unit::Ms);
    let mut ratios = Series::new("kiln run -- python3 -c pass, against fork and hot VM of the same round", Unit::Ratio);
    let warmed = debian.warmed(bench, LINE).await?;
    let hot = fork(bench, &warmed).await?;
    for _ in 0..bench.warm_up {
        run(&hot.link, &SCRIPT).await?;
    }
    let accel = results.machine.accel.clone();
    let run_args = ["--image", NAME, "--", "python3", "-c", "pass"];
    kiln_run(&accel, &run_args).await?;
    for sample in 0..bench.samples {
        // The order alternates, so that a busy moment of the host affects all of a round equally.
        let early = if sample % 2 == 0 { Some(kiln_run(&accel, &run_args).await?) } else { None };
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
    }
    hot.vm.kill().await;
    results.promises.push(Promise {
        claim: "kiln run -- python3 -c pass, warmed ≤ 1.3 × a fork and the same in a hot VM (p50 of the ratios)",
        seen: ratios.p50(),
        bound: 1.3,
        sense: Sense::AtMost,
    });
    results.series.extend([runs, firsts, forks, hots, ratios]);
    Ok(())
}

async fn fork(bench: &Bench, snapshot: &Snapshot) -> anyhow::Result<Fork> {
    let forks = bench.engine.restore(snapshot, ForkSpec::default()).await?;
    forks.into_iter().next().context("a restore of one VM gives one VM")
}
