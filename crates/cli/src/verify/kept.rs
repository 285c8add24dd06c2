//! The snapshots of a proof, which are removed when it ends.

use std::time::Duration;

use kiln_engine::home::Home;
use kiln_engine::snapshot::{Snapshot, SnapshotError, SnapshotId, SnapshotStore};
use tokio::time::{Instant, sleep};

use crate::output::say;

/// The label that distinguishes them from the user's snapshots.
pub const LABEL: &str = "kiln verify fork";
/// Deadline of the VMMs of killed forks: each holds its snapshot until its process has ended.
const IN_USE_DEADLINE: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The snapshots of one proof, a parent before its children.
#[derive(Debug)]
pub struct Kept {
    store: SnapshotStore,
    snapshots: Vec<Snapshot>,
}

impl Kept {
    /// An empty list. Removes what killed proofs left. A proof that still runs holds its own snapshots.
    pub fn new(home: &Home) -> Self {
        let store = SnapshotStore::new(home);
        let left = store.list().unwrap_or_default();
        let of_proof = |label: &str| label == LABEL;
        for one in left.iter().rev().filter(|one| one.manifest.as_ref().is_some_and(|of| of_proof(&of.label))) {
            if let Err(error) = store.remove(&one.id) {
                tracing::debug!(snapshot = %one.id, %error, "did not remove a snapshot of another proof");
            }
        }
        Self { store, snapshots: Vec::new() }
    }

    /// Adds a snapshot.
    pub fn add(&mut self, snapshot: Snapshot) {
        self.snapshots.push(snapshot);
    }

    /// Removes all of them. VMs that use them must have been killed.
    pub async fn remove(mut self) {
        while let Some(snapshot) = self.snapshots.pop() {
            let id = snapshot.id().clone();
            drop(snapshot);
            if let Err(error) = self.remove_unused(&id).await {
                say(format_args!("kiln: failed to remove snapshot `{id}`: {error}\nhint: kiln snapshot rm {id}"));
            }
        }
    }

    async fn remove_unused(&self, id: &SnapshotId) -> Result<(), SnapshotError> {
        let deadline = Instant::now() + IN_USE_DEADLINE;
        loop {
            match self.store.remove(id) {
                Err(SnapshotError::InUse { .. }) if Instant::now() < deadline => sleep(POLL_INTERVAL).await,
                other => return other,
            }
        }
    }
}
