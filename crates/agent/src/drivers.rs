//! Which drivers of the guest's devices are loaded, and waiting for them.
//!
//! ```text
//!   Few ───── load drivers for commands ─────▶ Enough ───── load the rest, later ─────▶ All
//!   (the link works)                           (commands start)                         (a snapshot may be made)
//! ```

use std::time::Duration;

use kiln_wire::{ErrorCode, Fault};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::log::note;

/// How long commands wait for the drivers of the guest's devices.
const ENOUGH_DEADLINE: Duration = Duration::from_secs(10);

/// How long a snapshot waits for all drivers.
const ALL_DEADLINE: Duration = Duration::from_secs(5);

/// The drivers that are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loaded {
    /// The link's drivers.
    Few,
    /// All that commands wait for.
    Enough,
    /// All drivers.
    All,
}

/// The drivers of the guest's devices. PID 1 loads them, and all others wait for them here.
#[derive(Debug)]
pub struct Drivers {
    loaded: watch::Sender<Loaded>,
    all_requested: Notify,
}

impl Drivers {
    /// Creates the state with the drivers that are loaded at the start.
    pub fn new(loaded: Loaded) -> Self {
        Self { loaded: watch::Sender::new(loaded), all_requested: Notify::new() }
    }

    /// Records that more drivers are loaded.
    pub fn set_loaded(&self, loaded: Loaded) {
        self.loaded.send_if_modified(|before| {
            let more = loaded > *before;
            *before = loaded.max(*before);
            more
        });
    }

    /// Waits until commands may start. If drivers take longer than their deadline, commands start without them.
    pub async fn ready(&self) {
        if !self.reach(Loaded::Enough, ENOUGH_DEADLINE).await {
            note("commands start before all drivers are loaded".into());
            self.set_loaded(Loaded::Enough);
        }
    }

    /// Requests that all drivers are loaded now, and waits for it.
    ///
    /// # Errors
    /// If they are not loaded within their deadline.
    pub async fn all(&self) -> Result<(), Fault> {
        self.all_requested.notify_one();
        if self.reach(Loaded::All, ALL_DEADLINE).await {
            return Ok(());
        }
        Err(Fault::new(ErrorCode::TimedOut, format!("not all drivers were loaded within {ALL_DEADLINE:?}")))
    }

    /// Waits until [`all`](Self::all) is called.
    pub async fn all_requested(&self) {
        self.all_requested.notified().await;
    }

    async fn reach(&self, level: Loaded, deadline: Duration) -> bool {
        if *self.loaded.borrow() >= level {
            return true;
        }
        let mut loaded = self.loaded.subscribe();
        timeout(deadline, loaded.wait_for(|loaded| *loaded >= level)).await.is_ok()
    }
}
