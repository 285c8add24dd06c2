//! Snapshots that a proof takes on its way, and that are gone when it ends.

use std::time::Duration;

use kiln_engine::home::Home;
use kiln_engine::snapshot::{Snapshot, SnapshotError, SnapshotId, SnapshotStore};
use tokio::time::{Instant, sleep};

use crate::output::say;

/// By which they are told from snapshots that somebody wants.
pub const LABEL: &str = "kiln verify fork";
/// For VMMs of forks that were killed a moment ago: they hold the snapshot until their last instruction.
const IN_USE_DEADLINE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The snapshots of one proof, a parent before its children.
#[derive(Debug)]
pub struct Kept {
    store: SnapshotStore,
    snapshots: Vec<Snapshot>,
}

impl Kept {
    /// None yet. What a proof has left that was killed is removed; one that still runs holds its own.
    pub fn new(home: &Home) -> Self {
        let store = SnapshotStore::new(home);
        let left = store.list().unwrap_or_default();
        let of_proof = |label: &str| label == LABEL;
        for one in left.iter().rev().filter(|one| one.manifest.as_ref().is_some_and(|of| of_proof(&of.label))) {
            if let Err(error) = store.remove(&one.id) {
                tracing::debug!(snapshot = %one.id, %error, "a snapshot of another proof stays");
            }
        }
        Self { store, snapshots: Vec::new() }
    }

    /// Takes one more.
    pub fn add(&mut self, snapshot: Snapshot) {
        self.snapshots.push(snapshot);
    }

    /// Removes them all. VMs that use them must have been killed.
    pub async fn remove(mut self) {
        while let Some(snapshot) = self.snapshots.pop() {
            let id = snapshot.id().clone();
            drop(snapshot);
            if let Err(error) = self.remove_unused(&id).await {
                say(format_args!("kiln: the snapshot `{id}` stays: {error}; kiln snapshot rm {id}"));
            }
        }
    }

    async fn remove_unused(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        let deadline = Instant::now() + IN_USE_DEADLINE;
        loop {
            match self.store.remove(id) {
                Err(SnapshotError::InUse { .. }) if Instant::now() < deadline => sleep(LOOK_AGAIN).await,
                other => return other,
            }
        }
    }
}
