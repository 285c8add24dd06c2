//! The second use of an image: it is found, its ready-made snapshot is found, and a fork answers. The same with `mini`.

use std::time::Instant;

use anyhow::Context as _;
use kiln_engine::home::Home;
use kiln_engine::image::{AnyImage, ImageStore, MINI};
use kiln_engine::snapshot::Snapshot;
use kiln_engine::{Engine as _, ForkSpec, ReadyRequest, VmSpec, blocking};

use super::debian::NAME;
use crate::bench::guests::{TRUE, kiln_run, ms_since, run};
use crate::bench::results::Results;
use crate::bench::samples::{Promise, Sense, Series, Unit};
use crate::bench::suite::{BOOT_TIMEOUT, Bench, CPUS, MEMORY_MIB};

/// The series of one image.
struct Uses {
    image: &'static str,
    answers: Series,
    execs: Series,
    runs: Series,
}

/// Measures both images. The snapshot of the first use must exist.
pub async fn measure(bench: &Bench, _first_use: &Snapshot, results: &mut Results) -> anyhow::Result<()> {
    let accel = results.machine.accel.clone();
    let series = |answers, execs, runs| [answers, execs, runs].map(|name| Series::new(name, Unit::Ms));
    let [answers, execs, runs] = series(
        "Debian, second use: a fork's agent answers",
        "Debian, second use: first exec done",
        "kiln run --image DEBIAN -- true, the whole process",
    );
    let mut debian = Uses { image: NAME, answers, execs, runs };
    let [answers, execs, runs] = series(
        "mini, second use: a fork's agent answers",
        "mini, second use: first exec done",
        "kiln run -- true, in turn with that of Debian",
    );
    let mut mini = Uses { image: MINI, answers, execs, runs };
    // The first of each is not counted: it makes the snapshot of mini, and reads files into the page cache.
    for sample in 0..=bench.samples {
        // The order alternates, so that a busy moment of the host affects both of a pair equally.
        let order = if sample % 2 == 0 { [&mut debian, &mut mini] } else { [&mut mini, &mut debian] };
        for uses in order {
            let (answered, done) = use_once(bench, uses.image).await?;
            let whole = kiln_run(&accel, &["--image", uses.image, "--", "true"]).await?;
            if sample > 0 {
                uses.answers.samples.push(answered);
                uses.execs.samples.push(done);
                uses.runs.samples.push(whole);
            }
        }
    }
    results.promises.push(Promise {
        claim: "second use of an image of Debian, found to a fork's answer ≤ 1.1 × that of mini (p50)",
        seen: debian.answers.p50() / mini.answers.p50(),
        bound: 1.1,
        sense: Sense::AtMost,
    });
    for Uses { answers, execs, runs, .. } in [debian, mini] {
        results.series.extend([answers, execs, runs]);
    }
    Ok(())
}

/// The time until a fork of the image answers, and until the end of its first command.
async fn use_once(bench: &Bench, name: &'static str) -> anyhow::Result<(f64, f64)> {
    let start = Instant::now();
    let (home, boot) = (Home::at(bench.engine.home()), bench.image.clone());
    let spec = blocking(move || match ImageStore::new(&home).find(name)? {
        AnyImage::Boot(image) => Ok::<_, anyhow::Error>(image.vm_spec()),
        AnyImage::Root(image) => Ok(image.vm_spec(&boot)),
    })
    .await?;
    let spec = VmSpec { memory_mib: MEMORY_MIB, cpus: CPUS, acceleration: bench.acceleration, ..spec };
    let ready = bench.engine.ready(ReadyRequest::new(&spec, name, BOOT_TIMEOUT)).await?;
    let forks = bench.engine.restore(&ready, ForkSpec::default()).await?;
    let fork = forks.into_iter().next().context("a restore of one VM gives one VM")?;
    let answered = ms_since(start);
    run(&fork.link, &[TRUE]).await?;
    let done = ms_since(start);
    fork.vm.kill().await;
    Ok((answered, done))
}
