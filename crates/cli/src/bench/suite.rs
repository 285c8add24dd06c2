//! Runs the groups of the bench one after the other.

use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use camino::Utf8PathBuf;
use kiln_engine::doctor::HostFacts;
use kiln_engine::guest::Watch;
use kiln_engine::image::{Image, MINI};
use kiln_engine::{Guest, QemuEngine, VmSpec};

use super::machine::{self, Machine};
use super::results::{Results, text};
use super::{agent, boot, exec, files, fork, images, network, scan, terminal, vhost};
use crate::args::{BenchArgs, BenchGroup};
use crate::failure::Failure;
use crate::image;
use crate::output::{Progress, print, print_json, say};

/// Exit code: a promise was not kept in this run.
const BROKEN: u8 = 100;
pub(super) const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
/// Deadline of the whole bench.
const DEADLINE: Duration = Duration::from_secs(3600);
pub(super) const MEMORY_MIB: u64 = 256;
pub(super) const CPUS: u32 = 1;

/// What all measurements share.
pub(super) struct Bench {
    pub(super) engine: QemuEngine,
    pub(super) image: Image,
    pub(super) agent: Utf8PathBuf,
    pub(super) samples: usize,
    pub(super) warm_up: usize,
    pub(super) acceleration: kiln_engine::AccelerationRequest,
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
                BenchGroup::Images => images::measure(self, &mut results).await?,
                BenchGroup::Network => network::measure(self, &mut results).await?,
                BenchGroup::Scan => scan::measure(self, &mut results)?,
                BenchGroup::Vhost => vhost::measure(self, &mut results)?,
            }
        }
        Ok(results)
    }

    pub(super) fn spec(&self) -> VmSpec {
        let mut spec = self.image.vm_spec();
        spec.memory_mib = MEMORY_MIB;
        spec.cpus = CPUS;
        spec.acceleration = self.acceleration;
        spec
    }

    /// Boots a VM with these extra ports.
    pub(super) async fn start(&self, ports: &[&str]) -> anyhow::Result<Guest> {
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
