//! Which drivers of the guest's devices are loaded, and who waits for them.
//!
//! ```text
//!   Few ── those of the link ──▶ Enough ── those that commands wait for ──▶ All ── the rest, in no hurry ──
//! ```

use std::time::Duration;

use kiln_wire::{ErrorCode, Fault};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::log::note;

/// How long commands wait for the drivers of the guest's devices.
const ENOUGH_DEADLINE: Duration = Duration::from_secs(10);

/// How long a snapshot waits for the drivers that commands do not wait for.
const ALL_DEADLINE: Duration = Duration::from_secs(5);

/// How many drivers are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loaded {
    /// Those of the link.
    Few,
    /// Those that commands wait for.
    Enough,
    /// All of them.
    All,
}

/// The drivers of the guest's devices. PID 1 loads them; everything else waits for them here.
#[derive(Debug)]
pub struct Drivers {
    loaded: watch::Sender<Loaded>,
    hurry: Notify,
}

impl Drivers {
    /// As many drivers as are loaded at the start.
    pub fn new(loaded: Loaded) -> Self {
        Self { loaded: watch::Sender::new(loaded), hurry: Notify::new() }
    }

    /// More drivers are loaded.
    pub fn are(&self, loaded: Loaded) {
        self.loaded.send_if_modified(|before| {
            let more = loaded > *before;
            *before = loaded.max(*before);
            more
        });
    }

    /// Waits until commands may start. Drivers that take longer than their deadline hold no command back.
    pub async fn ready(&self) {
        if !self.reach(Loaded::Enough, ENOUGH_DEADLINE).await {
            note("commands start before all drivers are loaded".into());
            self.are(Loaded::Enough);
        }
    }

    /// Has all drivers loaded now, those that could wait too.
    ///
    /// # Errors
    /// They are not loaded within their deadline.
    pub async fn all(&self) -> Result<(), Fault> {
        self.hurry.notify_one();
        if self.reach(Loaded::All, ALL_DEADLINE).await {
            return Ok(());
        }
        Err(Fault::new(ErrorCode::TimedOut, format!("not all drivers were loaded within {ALL_DEADLINE:?}")))
    }

    /// Waits until [`all`](Self::all) is called.
    pub async fn hurried(&self) {
        self.hurry.notified().await;
    }

    async fn reach(&self, wanted: Loaded, deadline: Duration) -> bool {
        if *self.loaded.borrow() >= wanted {
            return true;
        }
        let mut loaded = self.loaded.subscribe();
        timeout(deadline, loaded.wait_for(|loaded| *loaded >= wanted)).await.is_ok()
    }
}
