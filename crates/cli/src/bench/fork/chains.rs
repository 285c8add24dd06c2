//! Restores of chains: diffs on diffs on the full snapshot. Each diff has one MiB and the pages that an idle guest
//! writes.

use std::time::Instant;

use kiln_engine::snapshot::{AfterSave, SnapshotRequest};

use super::lab::{Lab, dirty};
use super::scratch::Scratch;
use crate::bench::guests::{TRUE, ms_since, run};
use crate::bench::results::Results;
use crate::bench::samples::{Series, Unit};

/// Lengths of the chains, and the names of their series.
const CHAINS: [(usize, &str, &str); 3] = [
    (1, "chain of 1 diff, agent answers", "chain of 1 diff, first exec done"),
    (4, "chain of 4 diffs, agent answers", "chain of 4 diffs, first exec done"),
    (16, "chain of 16 diffs, agent answers", "chain of 16 diffs, first exec done"),
];
const DIRTY_MIB: u64 = 1;

/// Measures chains, one of each in turn.
pub async fn measure(lab: &Lab<'_>, results: &mut Results) -> anyhow::Result<()> {
    let scratch = Scratch::new(&lab.store);
    let mut chains = Vec::new();
    let mut top = lab.base.clone();
    for length in 1..=CHAINS[CHAINS.len() - 1].0 {
        let fork = lab.fork(&top).await?;
        dirty(&fork.link, &format!("/tmp/link-{length}"), DIRTY_MIB).await?;
        let request = SnapshotRequest { link: Some(&fork.link), then: AfterSave::End, label: "bench".into() };
        top = fork.vm.snapshot(request).await?;
        scratch.keep(&top).await?;
        if let Some((_, answers, execs)) = CHAINS.iter().find(|chain| chain.0 == length) {
            chains.push((top.clone(), Series::new(answers, Unit::Ms), Series::new(execs, Unit::Ms)));
        }
    }
    for _ in 0..lab.bench.samples.div_ceil(4) {
        for (snapshot, answers, execs) in &mut chains {
            let start = Instant::now();
            let fork = lab.fork(snapshot).await?;
            answers.samples.push(ms_since(start));
            run(&fork.link, &[TRUE]).await?;
            execs.samples.push(ms_since(start));
            fork.vm.kill().await;
        }
    }
    results.series.extend(chains.into_iter().flat_map(|(_, answers, execs)| [answers, execs]));
    Ok(())
}
