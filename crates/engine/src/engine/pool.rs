//! Forks that are ready before they are requested.
//!
//! ```text
//!   filler ──▶ fork: its own machine, one command, frozen, paused ──▶ [ held, bounded in number and bytes ]
//!                  take ──▶ cont, Sync, thaw ──▶ Fork      none left ──▶ a fork made there and then
//! ```
//! A held fork takes memory and no CPU. It became its own machine when it was made, ran one command of no effect, so that
//! the first one of its taker is not also the first one ever, and is paused since then with all commands frozen: what was
//! running when it was saved has gone on for that moment alone. A snapshot that was taken without freezing is held before
//! its first instruction.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::fork::{Fork, ForkPart, ForkSpec};
use super::interface::Engine;
use super::restore::{self, Held, Template};
use crate::driver::RestoreError;
use crate::host;
use crate::snapshot::Snapshot;

/// Forks of one pool; more would wait for a burst that no host of this kind can run.
pub const POOL_MAX: usize = 64;
/// From a take to the start of the next fork.
const REFILL_PAUSE: Duration = Duration::from_millis(100);
/// After a fork that could not be made.
const RETRY: Duration = Duration::from_secs(1);

/// How much a pool holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSpec {
    /// Forks that are kept ready, 1 to [`POOL_MAX`].
    pub ready: usize,
    /// Memory that they may take beside what they share, in bytes; fewer are kept where it is used up.
    pub bytes_max: u64,
}

/// What a pool holds now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PoolStatus {
    /// Forks that are ready.
    pub ready: usize,
    /// Memory that they take beside what they share, in bytes.
    pub bytes: u64,
    /// Why the last fork could not be made ready, where it could not.
    pub problem: Option<String>,
}

/// Keeps forks of one snapshot ready. Dropping it ends those that were not taken.
///
/// ```no_run
/// # async fn example(engine: &dyn kiln_engine::Engine, snapshot: &kiln_engine::snapshot::Snapshot) -> Result<(), Box<dyn std::error::Error>> {
/// use kiln_engine::{ForkPool, ForkSpec, PoolSpec};
///
/// let spec = PoolSpec { ready: 4, bytes_max: 256 << 20 };
/// let pool = ForkPool::start(engine, snapshot, ForkSpec::default(), spec).await?;
/// let fork = pool.take().await?;
/// println!("{} is ready, {} more are", fork.vm.id(), pool.status().ready);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ForkPool {
    shared: Arc<Shared>,
    filler: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    template: Template,
    spec: PoolSpec,
    state: Mutex<State>,
    /// One was taken.
    taken: Notify,
    /// One more is ready, or could not be made so.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    held: VecDeque<(Held, u64)>,
    problem: Option<String>,
}

impl ForkPool {
    /// Starts to fill a pool. `forks.count` and `forks.parts` are not looked at, so a snapshot with volumes, or of
    /// a VM with a card on a TAP device, has none.
    ///
    /// # Errors
    /// [`RestoreError::Budget`]; or the snapshot can't be restored on this host.
    pub async fn start(
        engine: &dyn Engine,
        snapshot: &Snapshot,
        forks: ForkSpec,
        spec: PoolSpec,
    ) -> Result<Self, RestoreError> {
        if !(1..=POOL_MAX).contains(&spec.ready) {
            let why = format!("a pool keeps 1 to {POOL_MAX} ready");
            return Err(RestoreError::Budget { count: spec.ready, why });
        }
        restore::check_budget(spec.ready)?;
        let template = engine.template(snapshot, forks).await?;
        // What a fork should have of its own is said when it is taken, and these are made before.
        template.check(vec![ForkPart::default()]).await?;
        let shared =
            Arc::new(Shared { template, spec, state: Mutex::default(), taken: Notify::new(), changed: Notify::new() });
        let filler = tokio::spawn(fill(Arc::clone(&shared)));
        Ok(Self { shared, filler })
    }

    /// A fork that was ready, or one made now where none was.
    ///
    /// # Errors
    /// As [`Engine::restore`](crate::Engine::restore).
    pub async fn take(&self) -> Result<Fork, RestoreError> {
        loop {
            let held = self.shared.state().held.pop_front();
            let Some((held, _)) = held else { return self.shared.template.fork().await };
            let taken = held.take(&self.shared.template).await;
            self.shared.taken.notify_one();
            match taken {
                Ok(fork) => return Ok(fork),
                // It may have died while it waited; the next one, or a new one, is as good.
                Err(error) => tracing::warn!(%error, "a fork that was held ready can't be used"),
            }
        }
    }

    /// What it holds now.
    pub fn status(&self) -> PoolStatus {
        let state = self.shared.state();
        let bytes = state.held.iter().map(|(_, bytes)| bytes).sum();
        PoolStatus { ready: state.held.len(), bytes, problem: state.problem.clone() }
    }

    /// Waits until it is as full as it may be, or a fork could not be made ready.
    pub async fn filled(&self) -> PoolStatus {
        loop {
            let changed = self.shared.changed.notified();
            let status = self.status();
            if self.shared.is_full(&self.shared.state()) || status.problem.is_some() {
                return status;
            }
            changed.await;
        }
    }

    /// Processes of the forks that are ready.
    pub fn pids(&self) -> Vec<u32> {
        self.shared.state().held.iter().map(|(held, _)| held.pid()).collect()
    }
}

impl Drop for ForkPool {
    fn drop(&mut self) {
        self.filler.abort();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Forks are pushed and popped whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_full(&self, state: &State) -> bool {
        let bytes: u64 = state.held.iter().map(|(_, bytes)| bytes).sum();
        state.held.len() >= self.spec.ready || bytes >= self.spec.bytes_max
    }
}

async fn fill(shared: Arc<Shared>) {
    loop {
        if shared.is_full(&shared.state()) {
            shared.taken.notified().await;
            // Who took one wants the CPU now.
            tokio::time::sleep(REFILL_PAUSE).await;
            continue;
        }
        let made = Held::new(&shared.template).await;
        let failed = made.is_err();
        {
            let mut state = shared.state();
            match made {
                Ok(held) => {
                    let bytes = host::proportional_set_bytes(held.pid()).unwrap_or(0);
                    state.held.push_back((held, bytes));
                    state.problem = None;
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to make a fork ready");
                    state.problem = Some(error.to_string());
                }
            }
        }
        shared.changed.notify_waiters();
        if failed {
            tokio::time::sleep(RETRY).await;
        }
    }
}
