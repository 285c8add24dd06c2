//! `kiln vhost check` of backends that are slow to start or to accept: our own mock, which a script delays.

use anyhow::{Context as _, ensure};
use kiln_vdev::check::{self, Options};
use kiln_vdev::virtio::DeviceKind;

use super::results::Results;
use super::samples::{Promise, Sense, Series, Unit};
use super::suite::Bench;

/// The longest check that authors of backends accept in their CI.
const CHECK_MS_MAX: f64 = 30_000.0;
const STARTS_LATE: &str = "[serve]\nstart_delay_ms = 100\n";
const ACCEPTS_LATE: &str = "[serve]\naccept_delay_ms = 20\n";

/// Measures whole checks, which need no VM.
pub fn measure(bench: &Bench, results: &mut Results) -> anyhow::Result<()> {
    let mut starts = Series::new("check of a backend that starts in 100 ms", Unit::Ms);
    let mut accepts = Series::new("check of a backend that accepts in 20 ms", Unit::Ms);
    for _ in 0..bench.samples.div_ceil(10) {
        starts.samples.push(check_ms(STARTS_LATE)?);
        accepts.samples.push(check_ms(ACCEPTS_LATE)?);
    }
    results.promises.push(Promise {
        claim: "a check of a backend that starts in 100 ms ends within 30 s, ms",
        seen: starts.percentile(100.0),
        bound: CHECK_MS_MAX,
        sense: Sense::AtMost,
    });
    results.series.extend([starts, accepts]);
    Ok(())
}

/// The time of a check of a mock with this script, in milliseconds. The mock is slow, but breaks no rule.
fn check_ms(script: &str) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("script.toml");
    fs_err::write(&path, script)?;
    let kiln = std::env::current_exe().context("failed to find this program")?;
    let command =
        format!("'{}' vhost mock --size 16M --socket {{socket}} --script '{}'", kiln.display(), path.display());
    let options = Options { spawn: Some(command.parse()?), device: Some(DeviceKind::Blk), ..Options::default() };
    let report = check::run(&options, &mut |_| {})?;
    let failed: Vec<_> = report.unexpected().map(|case| case.id).collect();
    ensure!(failed.is_empty(), "our own backend breaks rules: {}", failed.join(", "));
    Ok(report.duration.as_secs_f64() * 1e3)
}
