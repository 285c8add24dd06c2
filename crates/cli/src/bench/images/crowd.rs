//! The memory of many forks of one image.

use kiln_engine::snapshot::Snapshot;

use crate::bench::fork::{Footprint, OWN_MIB_MAX, together};
use crate::bench::results::Results;
use crate::bench::samples::{Promise, Sense, Series, Unit};
use crate::bench::suite::Bench;

const COUNT: usize = 20;

/// Measures forks of the image, each after its first command.
pub async fn measure(bench: &Bench, base: &Snapshot, results: &mut Results) -> anyhow::Result<()> {
    let mut answers = Series::new("20 of Debian at once, all agents answer", Unit::Ms);
    let mut execs = Series::new("20 of Debian at once, all first execs done", Unit::Ms);
    let mut pss = Series::new("20 of Debian at once, PSS of each", Unit::Mib);
    let mut own = Series::new("20 of Debian at once, PSS of each beyond the image", Unit::Mib);
    for _ in 0..bench.samples.div_ceil(8) {
        let (answered, done, footprints) = together(bench, base, COUNT).await?;
        answers.samples.push(answered);
        execs.samples.push(done);
        for Footprint { pss_mib, own_mib, .. } in footprints {
            pss.samples.push(pss_mib);
            own.samples.push(own_mib);
        }
    }
    results.promises.push(Promise {
        claim: "20 forks of Debian at once: each of them ≤ 45 MB (42.9 MiB) PSS beyond the shared image (max)",
        seen: own.percentile(100.0),
        bound: OWN_MIB_MAX,
        sense: Sense::AtMost,
    });
    results.series.extend([answers, execs, pss, own]);
    Ok(())
}
