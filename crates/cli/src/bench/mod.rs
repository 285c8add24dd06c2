//! `kiln bench`: measures the promises of SPECIFICATION.md on this host, each beside its floor in the same run. A floor is
//! the best possible number: QEMU without Kiln, a port without a protocol, a round trip.

mod agent;
mod boot;
mod exec;
mod files;
mod fork;
mod machine;
mod samples;
mod scan;
mod terminal;
mod vhost;

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use camino::Utf8PathBuf;
use comfy_table::{CellAlignment, Table, presets};
use kiln_engine::doctor::HostFacts;
use kiln_engine::guest::Watch;
use kiln_engine::image::{Image, MINI};
use kiln_engine::{Guest, QemuEngine, VmSpec};
use owo_colors::OwoColorize as _;
use serde::Serialize;

use crate::args::{BenchArgs, BenchGroup};
use crate::failure::Failure;
use crate::image;
use crate::output::{Progress, print, print_json, say};
use machine::Machine;
use samples::{Promise, Series};

/// Exit code: a promise was not kept in this run.
const BROKEN: u8 = 100;
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// Deadline of the whole bench.
const DEADLINE: Duration = Duration::from_secs(3600);
const MEMORY_MIB: u64 = 256;
const CPUS: u32 = 1;

/// What all measurements share.
struct Bench {
    engine: QemuEngine,
    image: Image,
    agent: Utf8PathBuf,
    samples: usize,
    warm_up: usize,
    acceleration: kiln_engine::AccelerationRequest,
}

/// The results of a whole run.
#[derive(Debug, Serialize)]
struct Results {
    machine: Machine,
    series: Vec<Series>,
    promises: Vec<Promise>,
}

/// Runs the requested groups.
pub fn run(args: &BenchArgs) -> Result<u8, Failure> {
    let home = image::home()?;
    let progress = Progress::start("finding the image");
    let image = image::find_or_build(&home, MINI, &progress)?;
    let bench = Bench {
        engine: image::engine(&home)?,
        image,
        agent: crate::agent_binary::find(None)?,
        samples: args.samples,
        warm_up: 10.min(args.samples),
        acceleration: args.accel.into(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let results = runtime.block_on(async {
        tokio::time::timeout(DEADLINE, bench.measure(&args.groups, &progress))
            .await
            .context("the bench did not end in time")?
    })?;
    drop(progress);
    if let Some(path) = &args.out {
        fs_err::write(path, serde_json::to_vec(&results)?)?;
        say(format_args!("raw samples: {path}"));
    }
    if args.json {
        print_json(&results)?;
    } else {
        print(text(&results))?;
    }
    let broken = results.promises.iter().any(|promise| !promise.kept());
    Ok(if args.check && broken { BROKEN } else { 0 })
}

impl Bench {
    async fn measure(&self, groups: &[BenchGroup], progress: &Progress) -> anyhow::Result<Results> {
        let machine = self.machine().await?;
        let mut results = Results { machine, series: Vec::new(), promises: Vec::new() };
        for group in BenchGroup::ALL {
            if !groups.is_empty() && !groups.contains(&group) {
                continue;
            }
            progress.say(format!("measuring {group:?}"));
            match group {
                BenchGroup::Boot => boot::measure(self, &mut results).await?,
                BenchGroup::Exec => exec::measure(self, &mut results).await?,
                BenchGroup::Terminal => terminal::measure(self, &mut results).await?,
                BenchGroup::Files => files::measure(self, &mut results).await?,
                BenchGroup::Agent => agent::measure(self, &mut results).await?,
                BenchGroup::Fork => fork::measure(self, &mut results).await?,
                BenchGroup::Scan => scan::measure(self, &mut results)?,
                BenchGroup::Vhost => vhost::measure(self, &mut results)?,
            }
        }
        Ok(results)
    }

    fn spec(&self) -> VmSpec {
        let mut spec = self.image.vm_spec();
        spec.memory_mib = MEMORY_MIB;
        spec.cpus = CPUS;
        spec.acceleration = self.acceleration;
        spec
    }

    /// Boots a VM with these extra ports.
    async fn start(&self, ports: &[&str]) -> anyhow::Result<Guest> {
        let mut spec = self.spec();
        spec.extra_ports = ports.iter().map(ToString::to_string).collect();
        Ok(Guest::start(&self.engine, spec, BOOT_TIMEOUT, Watch::default()).await?)
    }

    async fn machine(&self) -> anyhow::Result<Machine> {
        let load = machine::load();
        let version = self.engine.version().await;
        let host = HostFacts::collect(Some(self.engine.binary().to_owned()), version);
        let guest = self.start(&[]).await?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let machine = Machine {
            kiln: env!("CARGO_PKG_VERSION"),
            unix_time_s: now.as_secs(),
            cpu: host.cpu_model,
            cpus: host.cpus,
            memory_mib: host.memory_mib,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            load,
            vmm: version.map_or_else(|| "QEMU".into(), |version| format!("QEMU {version}")),
            accel: image::accel_name(guest.vm.acceleration()).into(),
            guest_kernel: self.image.kernel_version.clone(),
            guest_cpus: CPUS,
            guest_memory_mib: MEMORY_MIB,
        };
        guest.vm.kill().await;
        Ok(machine)
    }
}

/// A line about the machine, a table of the series, and a line for each promise.
fn text(results: &Results) -> String {
    let machine = &results.machine;
    let mut lines = vec![format!(
        "{} × {}, {} MiB, Linux {}, load {} · {} ({}) · guest: Linux {}, {} CPU, {} MiB",
        machine.cpus,
        machine.cpu,
        machine.memory_mib,
        machine.kernel,
        machine.load,
        machine.vmm,
        machine.accel,
        machine.guest_kernel,
        machine.guest_cpus,
        machine.guest_memory_mib
    )];
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["", "p50", "p95", "p99", "max", "unit", "n"]);
    for series in &results.series {
        let figures = [50.0, 95.0, 99.0, 100.0].map(|percent| format!("{:.2}", series.percentile(percent)));
        let [p50, p95, p99, max] = figures;
        let n = series.samples.len().to_string();
        table.add_row([series.name.into(), p50, p95, p99, max, series.unit.label().into(), n]);
    }
    for column in [1, 2, 3, 4, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    lines.push(table.to_string());
    for promise in &results.promises {
        let verdict = if promise.kept() { "kept".green().to_string() } else { "broken".red().to_string() };
        lines.push(format!("{verdict}: {}: {:.2} (bound {:.2})", promise.claim, promise.seen, promise.bound));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::samples::{Sense, Unit};
    use super::*;

    #[test]
    fn results_are_a_machine_a_table_and_promises() {
        let machine = Machine {
            kiln: "0.1.0",
            unix_time_s: 1_000_000,
            cpu: "A CPU".into(),
            cpus: 2,
            memory_mib: 8192,
            kernel: "6.1.0".into(),
            load: "0.10 0.20 0.30".into(),
            vmm: "QEMU 7.2.0".into(),
            accel: "tcg".into(),
            guest_kernel: "6.1.0-1-cloud-amd64".into(),
            guest_cpus: 1,
            guest_memory_mib: 256,
        };
        let series = |name, unit, samples: &[f64]| Series { name, unit, samples: samples.to_vec() };
        let series = vec![
            series("exec true", Unit::Ms, &[1.0, 2.0, 3.0, 40.0]),
            series("file write, 16 MiB", Unit::MibPerS, &[100.0]),
        ];
        let promise = |claim, seen, sense| Promise { claim, seen, bound: 2.0, sense };
        let promises =
            vec![promise("exec `true` p50 ≤ 2", 1.5, Sense::AtMost), promise("file write ≥ 2", 1.5, Sense::AtLeast)];
        let results = Results { machine, series, promises };
        insta::assert_snapshot!(anstream::adapter::strip_str(&text(&results)));
    }
}
