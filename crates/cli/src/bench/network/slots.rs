//! What a network slot adds to a fork from the pool, and to a whole run.
//!
//! Each fork that a pool holds has its slot already, under a policy that opens nothing. When the fork is taken, its
//! owner's policy is applied, and no command runs before that. `kiln run` has no pool: it makes a slot each time.

use std::sync::Arc;
use std::time::Instant;

use anyhow::ensure;
use kiln_engine::home::Home;
use kiln_engine::network::{NetworkError, NetworkKind, NetworkRequest, VmNetwork};
use kiln_engine::snapshot::Snapshot;
use kiln_engine::{
    Engine as _, ForkPart, ForkPool, ForkSpec, MakePart, PoolSpec, PoolStatus, ReadyRequest, RestoreError, VmSpec,
};
use kiln_net::policy::{Change, Policy};

use crate::bench::guests::{kiln_run, ms_since};
use crate::bench::results::Results;
use crate::bench::samples::{Promise, Sense, Series, Unit};
use crate::bench::suite::{BOOT_TIMEOUT, Bench};

/// The most that a slot may add.
const SLOT_MS_OVER: f64 = 15.0;
const POOL: PoolSpec = PoolSpec { ready: 1, bytes_max: 256 << 20 };
const RUN: [&str; 2] = ["--", "true"];
const RUN_NAT: [&str; 6] = ["--net", "nat", "--allow", "example.org:443", "--", "true"];

/// Measures forks with a slot and without a network, in turn.
pub async fn measure(bench: &Bench, results: &mut Results) -> anyhow::Result<()> {
    pooled(bench, results).await?;
    whole(bench, results).await
}

async fn pooled(bench: &Bench, results: &mut Results) -> anyhow::Result<()> {
    let mut bare = Series::new("from the pool without a network, agent answers", Unit::Ms);
    let mut connected = Series::new("from the pool on a slot under its policy, agent answers", Unit::Ms);
    let mut changed = Series::new("policy of a slot, applied", Unit::Ms);
    let plain = bench.engine.ready(ReadyRequest::new(&bench.spec(), "bench", BOOT_TIMEOUT)).await?;
    let plain = ForkPool::start(&bench.engine, &plain, ForkSpec::default(), POOL).await?;
    let snapshot = with_card(bench).await?;
    let home = Home::at(bench.engine.home());
    let part: Arc<MakePart<VmNetwork>> = Arc::new(move || {
        let home = home.clone();
        Box::pin(async move { on_a_slot(&home).await.map_err(refused) })
    });
    let slots = ForkPool::start_with(&bench.engine, &snapshot, ForkSpec::default(), POOL, part).await?;
    let change = Change { allow: rules()?, ..Change::default() };
    // The difference is small compared with the spread, so more samples are needed. The first round is not counted.
    for sample in 0..=2 * bench.samples {
        let (mut without, mut with) = (0.0, 0.0);
        // The order alternates, so that a busy moment of the host affects both of a pair equally.
        for has_slot in if sample % 2 == 0 { [false, true] } else { [true, false] } {
            ready(plain.filled().await)?;
            ready(slots.filled().await)?;
            let start = Instant::now();
            if has_slot {
                let apply = async |network: &VmNetwork| network.change(&change).await.map(drop).map_err(refused);
                let (fork, network) = slots.take_with(apply).await?;
                with = ms_since(start);
                fork.vm.kill().await;
                let start = Instant::now();
                network.change(&Change { remove: rules()?, ..Change::default() }).await?;
                if sample > 0 {
                    changed.samples.push(ms_since(start));
                }
                network.stop().await?;
            } else {
                let fork = plain.take().await?;
                without = ms_since(start);
                fork.vm.kill().await;
            }
        }
        if sample > 0 {
            bare.samples.push(without);
            connected.samples.push(with);
        }
    }
    results.promises.push(Promise {
        claim: "a network slot adds ≤ 15 ms to a fork from the pool, ms (p50)",
        seen: connected.p50() - bare.p50(),
        bound: SLOT_MS_OVER,
        sense: Sense::AtMost,
    });
    results.series.extend([bare, connected, changed]);
    Ok(())
}

/// Whole runs, and the parts of their network.
async fn whole(bench: &Bench, results: &mut Results) -> anyhow::Result<()> {
    let mut bare = Series::new("kiln run -- true, in turn with --net nat", Unit::Ms);
    let mut connected = Series::new("kiln run --net nat -- true, the whole process", Unit::Ms);
    let mut made = Series::new("network of --net nat, made", Unit::Ms);
    let mut removed = Series::new("network of --net nat, removed", Unit::Ms);
    let (home, accel) = (Home::at(bench.engine.home()), results.machine.accel.clone());
    for sample in 0..=bench.samples {
        let mut times = [0.0; 2];
        for which in if sample % 2 == 0 { [0, 1] } else { [1, 0] } {
            let arguments: &[&str] = if which == 0 { &RUN } else { &RUN_NAT };
            times[which] = kiln_run(&accel, arguments).await?;
        }
        let start = Instant::now();
        let (_, network) = on_a_slot(&home).await?;
        let made_ms = ms_since(start);
        let start = Instant::now();
        network.stop().await?;
        if sample > 0 {
            bare.samples.push(times[0]);
            connected.samples.push(times[1]);
            made.samples.push(made_ms);
            removed.samples.push(ms_since(start));
        }
    }
    results.series.extend([bare, connected, made, removed]);
    Ok(())
}

/// The snapshot that `kiln run --net nat` forks.
async fn with_card(bench: &Bench) -> anyhow::Result<Snapshot> {
    let spec = VmSpec { nics: vec![VmNetwork::card(NetworkKind::Nat)], ..bench.spec() };
    let request = ReadyRequest::new(&spec, "bench", BOOT_TIMEOUT);
    Ok(bench.engine.ready(ReadyRequest { network: VmNetwork::ready(NetworkKind::Nat), ..request }).await?)
}

/// A network that opens nothing, and the part of a fork on it.
async fn on_a_slot(home: &Home) -> Result<(ForkPart, VmNetwork), NetworkError> {
    let request = NetworkRequest { kind: NetworkKind::Nat, policy: Policy::default(), label: "bench".into() };
    let network = VmNetwork::start(home, request).await?;
    let part = ForkPart { nics: vec![network.nic()], network: Some(network.guest()), ..ForkPart::default() };
    Ok((part, network))
}

fn rules() -> anyhow::Result<Vec<kiln_net::policy::Rule>> {
    Ok(vec!["example.org:443".parse()?, "198.51.100.0/24:80".parse()?])
}

fn refused(error: NetworkError) -> RestoreError {
    RestoreError::Part { problem: format!("{:#}", anyhow::Error::new(error)) }
}

fn ready(status: PoolStatus) -> anyhow::Result<()> {
    ensure!(status.ready > 0, "the pool is empty: {}", status.problem.unwrap_or_default());
    Ok(())
}
