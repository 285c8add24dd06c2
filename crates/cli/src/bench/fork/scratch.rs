//! Snapshots that a measurement makes, and that are gone after it, also where it fails.

use std::cell::RefCell;

use kiln_engine::snapshot::{Snapshot, SnapshotId, SnapshotStore};

use super::blocking;
use crate::output::say;

/// Removes what was noted, the newest first: a diff goes before what it lies on. Declared before the snapshots themselves,
/// it is dropped after them, when nothing holds them any more.
pub struct Scratch {
    store: SnapshotStore,
    made: RefCell<Vec<SnapshotId>>,
}

impl Scratch {
    /// Nothing yet.
    pub fn new(store: &SnapshotStore) -> Self {
        Self { store: store.clone(), made: RefCell::default() }
    }

    /// Notes a snapshot and waits for its seal, which would disturb what is measured next.
    pub async fn keep(&self, snapshot: &Snapshot) -> anyhow::Result<()> {
        self.made.borrow_mut().push(snapshot.id().clone());
        let snapshot = snapshot.clone();
        blocking(move || Ok(snapshot.seal()?)).await
    }

    /// Removes all of them now.
    pub fn clear(&self) {
        for id in self.made.take().iter().rev() {
            if let Err(error) = self.store.remove(id) {
                say(format_args!("a snapshot of the bench stays: {error}"));
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.clear();
    }
}
