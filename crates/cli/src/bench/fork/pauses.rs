//! Pause and resume of one fork, and a command in a VM that was paused.

use std::time::Instant;

use super::lab::Lab;
use crate::bench::guests::{TRUE, ms_since, run};
use crate::bench::results::Results;
use crate::bench::samples::{Promise, Sense, Series, Unit};

/// A 99th percentile needs this many.
const SAMPLES_MIN: usize = 100;
const PAUSE_MS_MAX: f64 = 5.0;

/// Measures pauses.
pub async fn measure(lab: &Lab<'_>, results: &mut Results) -> anyhow::Result<()> {
    let mut pause = Series::new("pause", Unit::Ms);
    let mut resume = Series::new("resume", Unit::Ms);
    let mut warm = Series::new("warm: resume and exec true", Unit::Ms);
    let mut hot = Series::new("hot: exec true in the same fork", Unit::Ms);
    let fork = lab.fork(&lab.base).await?;
    for _ in 0..lab.bench.warm_up {
        run(&fork.link, &[TRUE]).await?;
    }
    for _ in 0..lab.bench.samples.max(SAMPLES_MIN) {
        let start = Instant::now();
        fork.vm.pause().await?;
        pause.samples.push(ms_since(start));
        let start = Instant::now();
        fork.vm.resume().await?;
        resume.samples.push(ms_since(start));
        let start = Instant::now();
        run(&fork.link, &[TRUE]).await?;
        hot.samples.push(ms_since(start));
        fork.vm.pause().await?;
        let start = Instant::now();
        fork.vm.resume().await?;
        run(&fork.link, &[TRUE]).await?;
        warm.samples.push(ms_since(start));
    }
    for (claim, series) in [("pause p99 ≤ 5 ms", &pause), ("resume p99 ≤ 5 ms", &resume)] {
        let seen = series.percentile(99.0);
        results.promises.push(Promise { claim, seen, bound: PAUSE_MS_MAX, sense: Sense::AtMost });
    }
    results.series.extend([pause, resume, warm, hot]);
    fork.vm.kill().await;
    Ok(())
}
