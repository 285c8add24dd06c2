//! Concurrent forks: the time until all of them answer, and the memory of each.

use std::time::Instant;

use anyhow::Context as _;
use kiln_engine::snapshot::Snapshot;
use kiln_engine::{Engine as _, ForkSpec};
use tokio::task::JoinSet;

use super::footprint::Footprint;
use super::lab::Lab;
use crate::bench::guests::{TRUE, ms_since, run};
use crate::bench::results::Results;
use crate::bench::samples::{Promise, Sense, Series, Unit};
use crate::bench::suite::Bench;

/// A number of forks, and the names of its series.
struct Crowd {
    count: usize,
    answers: &'static str,
    execs: &'static str,
    pss: &'static str,
    own: &'static str,
    dirty: &'static str,
    image: &'static str,
}

macro_rules! crowd {
    ($count:literal) => {
        Crowd {
            count: $count,
            answers: concat!($count, " at once, all agents answer"),
            execs: concat!($count, " at once, all first execs done"),
            pss: concat!($count, " at once, PSS of each"),
            own: concat!($count, " at once, PSS of each beyond the image"),
            dirty: concat!($count, " at once, private dirty of each"),
            image: concat!($count, " at once, pages of the image that each maps"),
        }
    };
}

const CROWDS: [Crowd; 3] = [crowd!(1), crowd!(8), crowd!(20)];
/// 45 MB.
pub(in crate::bench) const OWN_MIB_MAX: f64 = 45e6 / 1048576.0;

/// Measures each crowd.
pub async fn measure(lab: &Lab<'_>, results: &mut Results) -> anyhow::Result<()> {
    for crowd in &CROWDS {
        let [mut answers, mut execs] = [crowd.answers, crowd.execs].map(|name| Series::new(name, Unit::Ms));
        let memory = [crowd.pss, crowd.own, crowd.dirty, crowd.image];
        let mut memory = memory.map(|name| Series::new(name, Unit::Mib));
        for _ in 0..lab.bench.samples.div_ceil(8) {
            let (answered, done, footprints) = together(lab.bench, &lab.base, crowd.count).await?;
            answers.samples.push(answered);
            execs.samples.push(done);
            for Footprint { pss_mib, own_mib, private_dirty_mib, image_mib } in footprints {
                let values = [pss_mib, own_mib, private_dirty_mib, image_mib];
                memory.iter_mut().zip(values).for_each(|(series, value)| series.samples.push(value));
            }
        }
        if crowd.count == CROWDS[CROWDS.len() - 1].count {
            results.promises.push(Promise {
                claim: "20 forks at once: each of them ≤ 45 MB (42.9 MiB) PSS beyond the shared image (max)",
                seen: memory[1].percentile(100.0),
                bound: OWN_MIB_MAX,
                sense: Sense::AtMost,
            });
        }
        results.series.extend([answers, execs].into_iter().chain(memory));
    }
    Ok(())
}

/// Forks a snapshot so many times at once, and runs a command in each. Returns the milliseconds until all agents answer
/// and until all commands are done, and the memory of each fork then.
pub(in crate::bench) async fn together(
    bench: &Bench,
    base: &Snapshot,
    count: usize,
) -> anyhow::Result<(f64, f64, Vec<Footprint>)> {
    let start = Instant::now();
    let forks = bench.engine.restore(base, ForkSpec { count, ..ForkSpec::default() }).await?;
    let answered = ms_since(start);
    let mut execs = JoinSet::new();
    for fork in &forks {
        let link = fork.link.clone();
        execs.spawn(async move { run(&link, &[TRUE]).await });
    }
    while let Some(exec) = execs.join_next().await {
        exec.context("a task ended early")??;
    }
    let done = ms_since(start);
    let image = base.memory_root();
    let footprints = forks.iter().map(|fork| Footprint::of(fork.vm.pid(), &image)).collect::<Result<_, _>>()?;
    for fork in forks {
        fork.vm.kill().await;
    }
    Ok((answered, done, footprints))
}
