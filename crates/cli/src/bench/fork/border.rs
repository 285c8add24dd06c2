//! The cost of confining a VMM: forks with all measures and without any, in turn.

use std::time::Instant;

use anyhow::Context as _;
use kiln_engine::{Engine as _, ForkSpec, Measure, Policy, QemuEngine};

use super::lab::Lab;
use crate::bench::guests::ms_since;
use crate::bench::results::Results;
use crate::bench::samples::{Promise, Sense, Series, Unit};

/// The most that all measures together may cost.
const CONFINED_MS_OVER: f64 = 3.0;

/// Measures forks until the agent's first reply, confined and not.
pub async fn measure(lab: &Lab<'_>, results: &mut Results) -> anyhow::Result<()> {
    let mut confined = Series::new("fork, agent answers, the VMM confined", Unit::Ms);
    let mut loose = Series::new("fork, agent answers, the VMM not confined", Unit::Ms);
    let engine = |policy| {
        let engine = &lab.bench.engine;
        QemuEngine::new(engine.home(), engine.binary()).with_policy(policy)
    };
    let engines = [engine(Policy::default()), engine(Policy::without(Measure::ALL))];
    // The first fork of each engine is not counted, because it also recovers VMs without an owner.
    fork(lab, &engines[0]).await?;
    fork(lab, &engines[1]).await?;
    // The difference is small compared with the spread of forks, so more samples are needed.
    for sample in 0..2 * lab.bench.samples {
        // The order alternates, so that a busy moment of the host affects both of a pair equally.
        let order = if sample % 2 == 0 { [0, 1] } else { [1, 0] };
        for which in order {
            let series = if which == 0 { &mut confined } else { &mut loose };
            series.samples.push(fork(lab, &engines[which]).await?);
        }
    }
    results.promises.push(Promise {
        claim: "fork with its VMM confined ≤ without + 3 ms (p50)",
        seen: confined.p50(),
        bound: loose.p50() + CONFINED_MS_OVER,
        sense: Sense::AtMost,
    });
    results.series.extend([confined, loose]);
    Ok(())
}

async fn fork(lab: &Lab<'_>, engine: &QemuEngine) -> anyhow::Result<f64> {
    let start = Instant::now();
    let forks = engine.restore(&lab.base, ForkSpec::default()).await?;
    let fork = forks.into_iter().next().context("a restore of one VM gives one VM")?;
    let answered = ms_since(start);
    fork.vm.kill().await;
    Ok(answered)
}
