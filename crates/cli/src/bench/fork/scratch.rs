//! The snapshots that a measurement makes. They are removed after it, also if it fails.

use std::cell::RefCell;

use kiln_engine::snapshot::{Snapshot, SnapshotId, SnapshotStore};

use crate::output::say;
use kiln_engine::blocking;

/// Removes the noted snapshots when it is dropped, the newest first, so that a diff is removed before its parent.
/// Declare it before the snapshots: then it is dropped after them, when they are no longer in use.
pub struct Scratch {
    store: SnapshotStore,
    made: RefCell<Vec<SnapshotId>>,
}

impl Scratch {
    /// An empty list.
    pub fn new(store: &SnapshotStore) -> Self {
        Self { store: store.clone(), made: RefCell::default() }
    }

    /// Notes a snapshot and seals it, since sealing in the background would disturb the next measurement.
    pub async fn keep(&self, snapshot: &Snapshot) -> anyhow::Result<()> {
        self.made.borrow_mut().push(snapshot.id().clone());
        let snapshot = snapshot.clone();
        blocking(move || Ok(snapshot.seal()?)).await
    }

    /// Removes all of them now.
    pub fn clear(&self) {
        for id in self.made.take().iter().rev() {
            if let Err(error) = self.store.remove(id) {
                say(format_args!("failed to remove a snapshot of the bench: {error}"));
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.clear();
    }
}
