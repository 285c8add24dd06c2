//! The agent's size: its binary on disk and its memory in the guest.

use anyhow::bail;
use kiln_engine::link::GuestLink;
use kiln_wire::{ExecRequest, Message, MetricsRequest, Reply, Text};

use super::results::Results;
use super::samples::{Promise, Sense, Series, Unit};
use super::suite::Bench;

const BINARY_MIB_MAX: f64 = 3.0;
const MEMORY_MIB_MAX: f64 = 8.0;
const MIB: f64 = 1048576.0;
/// Number of concurrent streams before the second sample.
const BUSY_STREAMS: usize = 10;

/// Measures the agent, new and after some work.
pub async fn measure(bench: &Bench, results: &mut Results) -> anyhow::Result<()> {
    let mut binary = Series::new("agent binary", Unit::Mib);
    binary.samples.push(fs_err::metadata(&bench.agent)?.len() as f64 / MIB);
    let guest = bench.start(&[]).await?;
    let mut fresh = Series::new("agent memory, fresh", Unit::Mib);
    let mut worked = Series::new("agent memory, after 10 streams of 1 MB", Unit::Mib);
    fresh.samples.push(resident_mib(&guest.link).await?);
    let streams: Vec<_> = (0..BUSY_STREAMS)
        .map(|_| {
            let link = guest.link.clone();
            let argv = ["head", "-c", "1000000", "/dev/zero"].map(Text::from).into();
            tokio::spawn(async move { link.run(ExecRequest { argv, ..ExecRequest::default() }, b"", 2 << 20).await })
        })
        .collect();
    for stream in streams {
        stream.await??;
    }
    worked.samples.push(resident_mib(&guest.link).await?);
    for (claim, series, bound) in [
        ("agent binary ≤ 3 MiB", &binary, BINARY_MIB_MAX),
        ("agent memory in the guest ≤ 8 MiB", &worked, MEMORY_MIB_MAX),
    ] {
        results.promises.push(Promise { claim, seen: series.p50(), bound, sense: Sense::AtMost });
    }
    results.series.extend([binary, fresh, worked]);
    guest.vm.kill().await;
    Ok(())
}

async fn resident_mib(link: &GuestLink) -> anyhow::Result<f64> {
    let (_sender, receiver) = link.open(&Message::Metrics(MetricsRequest::default()))?;
    match receiver.reply().await? {
        Reply::Sample(sample) => Ok(sample.agent_rss_bytes as f64 / MIB),
        other => bail!("no sample of the agent's memory: {other:?}"),
    }
}
