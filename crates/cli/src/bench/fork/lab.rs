//! What the measurements of forks share: the snapshot that they fork, and commands in its forks.

use anyhow::Context as _;
use kiln_engine::home::Home;
use kiln_engine::link::GuestLink;
use kiln_engine::snapshot::{Snapshot, SnapshotStore};
use kiln_engine::{Engine as _, Fork, ForkSpec, ReadyRequest};

use super::{border, chains, crowd, pauses, saves, single};
use crate::bench::guests::run;
use crate::bench::results::Results;
use crate::bench::suite::{BOOT_TIMEOUT, Bench};

/// What all measurements of forks share.
pub(super) struct Lab<'a> {
    pub(super) bench: &'a Bench,
    pub(super) store: SnapshotStore,
    /// The snapshot that `kiln run` forks.
    pub(super) base: Snapshot,
}

/// Measures everything about snapshots and forks.
pub async fn measure(bench: &Bench, results: &mut Results) -> anyhow::Result<()> {
    let store = SnapshotStore::new(&Home::at(bench.engine.home()));
    let base = bench.engine.ready(ReadyRequest::new(&bench.spec(), "bench", BOOT_TIMEOUT)).await?;
    let lab = Lab { bench, store, base };
    single::measure(&lab, results).await?;
    border::measure(&lab, results).await?;
    crowd::measure(&lab, results).await?;
    pauses::measure(&lab, results).await?;
    chains::measure(&lab, results).await?;
    saves::measure(&lab, results).await
}

impl Lab<'_> {
    /// One fork of a snapshot.
    pub(super) async fn fork(&self, snapshot: &Snapshot) -> anyhow::Result<Fork> {
        let forks = self.bench.engine.restore(snapshot, ForkSpec::default()).await?;
        forks.into_iter().next().context("a restore of one VM gives one VM")
    }
}

/// Fills a file in the guest's memory with random bytes, so that its pages differ from those of the snapshot.
pub(super) async fn dirty(link: &GuestLink, file: &str, mib: u64) -> anyhow::Result<()> {
    run(link, &["dd", "if=/dev/urandom", &format!("of={file}"), "bs=1M", &format!("count={mib}")]).await
}
