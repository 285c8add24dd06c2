//! Commands: one `true`, a megabyte of output, ten `true` at once.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use kiln_engine::link::GuestLink;
use kiln_wire::{ExecRequest, ExitStatus, Text};

use super::results::Results;
use super::samples::{Promise, Sense, Series, Unit};
use super::suite::Bench;

const OUTPUT_BYTES: u64 = 1_000_000;
const AT_ONCE: usize = 10;
/// Number of round trips between two commands.
const PINGS: usize = 10;
/// The program that is measured, run without a shell and without output.
const TRUE: &str = "/bin/true";

/// Measures commands in one guest.
pub async fn measure(bench: &Bench, results: &mut Results) -> anyhow::Result<()> {
    let guest = bench.start(&[]).await?;
    let link = &guest.link;
    let mut rtt = Series::new("link round trip, 8 bytes", Unit::Ms);
    let mut spawn = Series::new("guest's own fork + exec + wait", Unit::Ms);
    let mut one = Series::new("exec true", Unit::Ms);
    let mut busy = Series::new("link round trip beside a 16 MiB stream", Unit::Ms);
    let mut output = Series::new("exec, 1 MB of output", Unit::Ms);
    let mut together = Series::new("10 × exec true at once", Unit::Ms);
    for _ in 0..bench.warm_up {
        run(link, &[TRUE]).await?;
    }
    for _ in 0..bench.samples {
        spawn.samples.push(spawn_in_guest(link).await?);
        // During the pings the agent cleans up after the last command, so that the next one runs in an idle guest.
        for _ in 0..PINGS {
            rtt.samples.push(link.ping().await?.as_secs_f64() * 1e3);
        }
        one.samples.push(timed(run(link, &[TRUE])).await?);
    }
    for _ in 0..bench.samples.div_ceil(4) {
        output.samples.push(timed(megabyte(link)).await?);
        together.samples.push(timed(all_at_once(link)).await?);
    }
    beside_a_stream(bench, link, &mut busy).await?;
    results.promises.push(Promise {
        claim: "exec `true` p50 ≤ link round trip p50 + 1.5 × the guest's own fork + exec + wait p50",
        seen: one.p50(),
        bound: rtt.p50() + 1.5 * spawn.p50(),
        sense: Sense::AtMost,
    });
    results.series.extend([one, rtt, spawn, output, together, busy]);
    guest.vm.kill().await;
    Ok(())
}

async fn timed<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<f64> {
    let start = Instant::now();
    work.await?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

fn request(argv: &[&str]) -> ExecRequest {
    ExecRequest { argv: argv.iter().copied().map(Text::from).collect(), ..ExecRequest::default() }
}

async fn run(link: &GuestLink, argv: &[&str]) -> anyhow::Result<Vec<u8>> {
    let output = link.run(request(argv), b"", 16 << 20).await?;
    ensure!(output.exited.status == ExitStatus::Code(0), "`{}` ended with {:?}", argv[0], output.exited.status);
    Ok(output.stdout)
}

/// The time of one fork, exec and wait of a program in the guest, measured by that program, in milliseconds.
async fn spawn_in_guest(link: &GuestLink) -> anyhow::Result<f64> {
    let json = run(link, &["/init", "--spawn-bench", "1", "--", TRUE]).await?;
    let samples: Vec<f64> = serde_json::from_slice(&json).context("the guest's timing is not JSON")?;
    Ok(samples.first().context("the guest timed nothing")? / 1e6)
}

async fn megabyte(link: &GuestLink) -> anyhow::Result<()> {
    let size = OUTPUT_BYTES.to_string();
    let output = run(link, &["head", "-c", &size, "/dev/zero"]).await?;
    ensure!(output.len() as u64 == OUTPUT_BYTES, "{} bytes came", output.len());
    Ok(())
}

async fn all_at_once(link: &GuestLink) -> anyhow::Result<()> {
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let link = link.clone();
            tokio::spawn(async move { run(&link, &[TRUE]).await })
        })
        .collect();
    for task in tasks {
        task.await.context("a task ended early")??;
    }
    Ok(())
}

/// Round trips while another stream has filled its window, because this side does not read it.
async fn beside_a_stream(bench: &Bench, link: &GuestLink, busy: &mut Series) -> anyhow::Result<()> {
    let stuck = link.exec(request(&["head", "-c", "16777216", "/dev/zero"])).await?;
    for _ in 0..bench.samples {
        busy.samples.push(link.ping().await?.as_secs_f64() * 1e3);
    }
    drop(stuck);
    Ok(())
}
