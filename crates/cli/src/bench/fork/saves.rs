//! Saves: whole saves of guests with more and more memory, compared with QEMU's own save of its devices, and diffs.
//!
//! ```text
//!   freeze ──▶ CPUs stop, devices, memory linked ──▶ snapshot there ──▶ VMM gone
//!      │       └────────── "save whole" ───────────────┘                  │
//!      └────────────────── "save whole, with freeze and end" ─────────────┘
//! ```
//! A diff is the whole call for a fork that keeps running: freeze, save, thaw.

use std::time::Instant;

use kiln_engine::guest::Watch;
use kiln_engine::home::Home;
use kiln_engine::snapshot::{AfterSave, Snapshot, SnapshotRequest};
use kiln_engine::{Engine as _, Guest, VmSpec};

use super::arrivals::Arrivals;
use super::lab::{Lab, dirty};
use super::raw::{RawLine, RawVm};
use super::scratch::Scratch;
use crate::bench::guests::{TRUE, ms_since, run};
use crate::bench::results::Results;
use crate::bench::samples::{Promise, Sense, Series, Unit};
use crate::bench::suite::BOOT_TIMEOUT;
use kiln_engine::blocking;

/// Memory of a guest that is saved whole, and the names of its series.
struct Size {
    memory_mib: u64,
    saved: &'static str,
    alone: &'static str,
    all: &'static str,
}

macro_rules! size {
    ($memory_mib:literal, $name:literal) => {
        Size {
            memory_mib: $memory_mib,
            saved: concat!("save whole, ", $name),
            alone: concat!("QEMU alone: stop and save devices, ", $name),
            all: concat!("save whole, with freeze and end, ", $name),
        }
    };
}

const SIZES: [Size; 5] =
    [size!(128, "128 MiB"), size!(256, "256 MiB"), size!(512, "512 MiB"), size!(1024, "1 GiB"), size!(2048, "2 GiB")];
/// The size for the other series.
const USUAL: usize = 1;
/// How much a fork writes before it is saved, and the names of the series.
const DIRTY: [(u64, &str, &str); 3] = [
    (1, "save diff, 1 MiB dirty", "pages of a diff, 1 MiB dirty"),
    (10, "save diff, 10 MiB dirty", "pages of a diff, 10 MiB dirty"),
    (100, "save diff, 100 MiB dirty", "pages of a diff, 100 MiB dirty"),
];
const MIB: f64 = 1048576.0;

/// Measures saves.
pub async fn measure(lab: &Lab<'_>, results: &mut Results) -> anyhow::Result<()> {
    whole(lab, results).await?;
    diffs(lab, results).await
}

/// Each sample needs a boot, so there are few. The sizes take turns.
async fn whole(lab: &Lab<'_>, results: &mut Results) -> anyhow::Result<()> {
    let mut series = SIZES.map(|size| [size.saved, size.alone, size.all].map(|name| Series::new(name, Unit::Ms)));
    for _ in 0..lab.bench.samples.div_ceil(5) {
        for (size, [saved, alone, all]) in SIZES.iter().zip(&mut series) {
            let scratch = Scratch::new(&lab.store);
            let spec = VmSpec { memory_mib: size.memory_mib, forkable: true, ..lab.bench.spec() };
            let guest = Guest::start(&lab.bench.engine, spec, BOOT_TIMEOUT, Watch::default()).await?;
            for _ in 0..lab.bench.warm_up {
                run(&guest.link, &[TRUE]).await?;
            }
            let arrivals = Arrivals::watch(&Home::at(lab.bench.engine.home()).snapshots())?;
            // A request with a link would freeze the guest first. Done here instead, so that both parts can be timed.
            let start = Instant::now();
            guest.link.freeze().await?;
            let frozen = Instant::now();
            let request = SnapshotRequest { link: None, then: AfterSave::End, label: "bench".into() };
            let (snapshot, there) = tokio::join!(guest.vm.snapshot(request), blocking(move || arrivals.next()));
            all.samples.push(ms_since(start));
            let snapshot = snapshot?;
            scratch.keep(&snapshot).await?;
            saved.samples.push(there?.duration_since(frozen).as_secs_f64() * 1e3);
            alone.samples.push(devices_alone(lab, &snapshot).await?);
        }
    }
    results.promises.push(Promise {
        claim: "save of a whole VM, frozen to snapshot there ≤ 3 × QEMU's own stop and save of devices (p50)",
        seen: series[USUAL][0].p50() / series[USUAL][1].p50(),
        bound: 3.0,
        sense: Sense::AtMost,
    });
    results.promises.push(Promise {
        claim: "save of 2 GiB ≤ 1.5 × save of 128 MiB (p50): it does not depend on the size of memory",
        seen: series[SIZES.len() - 1][0].p50() / series[0][0].p50(),
        bound: 1.5,
        sense: Sense::AtMost,
    });
    results.series.extend(series.into_iter().flatten());
    Ok(())
}

/// The first save of the devices of QEMU alone, which runs the same guest.
async fn devices_alone(lab: &Lab<'_>, snapshot: &Snapshot) -> anyhow::Result<f64> {
    let fork = lab.fork(snapshot).await?;
    let line = RawLine::of(&fork.vm, lab.bench.engine.binary(), snapshot)?;
    fork.vm.kill().await;
    blocking(move || {
        let directory = tempfile::tempdir()?;
        let mut alone = RawVm::restore(&line)?;
        alone.first_exec()?;
        alone.save_devices(&directory.path().join("device"))
    })
    .await
}

async fn diffs(lab: &Lab<'_>, results: &mut Results) -> anyhow::Result<()> {
    let mut series = DIRTY.map(|(_, name, pages)| [Series::new(name, Unit::Ms), Series::new(pages, Unit::Mib)]);
    for _ in 0..lab.bench.samples.div_ceil(4) {
        for ((mib, ..), [saved, pages]) in DIRTY.iter().zip(&mut series) {
            let scratch = Scratch::new(&lab.store);
            let fork = lab.fork(&lab.base).await?;
            dirty(&fork.link, "/tmp/dirty", *mib).await?;
            let request = SnapshotRequest { link: Some(&fork.link), then: AfterSave::GoOn, label: "bench".into() };
            let start = Instant::now();
            let snapshot = fork.vm.snapshot(request).await?;
            saved.samples.push(ms_since(start));
            fork.vm.kill().await;
            scratch.keep(&snapshot).await?;
            for file in snapshot.page_files() {
                pages.samples.push(fs_err::metadata(file)?.len() as f64 / MIB);
            }
        }
    }
    results.promises.push(Promise {
        claim: "save of a diff with 10 MiB dirty ≤ 100 ms (p50)",
        seen: series[1][0].p50(),
        bound: 100.0,
        sense: Sense::AtMost,
    });
    results.series.extend(series.into_iter().flatten());
    Ok(())
}
