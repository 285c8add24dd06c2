//! A pool of forks that are made before they are requested.
//!
//! ```text
//!   filler ──▶ fork: own identity, warm-up, frozen, paused ──▶ [ held forks, bounded in number and bytes ]
//!                  take ──▶ cont, Sync, thaw ──▶ Fork      pool empty ──▶ a new fork
//! ```
//! A held fork uses memory but no CPU. It got its own identity when it was made. It has run the commands of its
//! [warm-up](ForkSpec::warm_up), because a command is slower in a guest that has not run it yet. Since then its commands
//! are frozen and it is paused.
//! So commands that the snapshot holds have run only for that moment.
//!
//! If a snapshot was taken without freezing, its commands would continue before the fork has its own identity. So a
//! held fork of such a snapshot waits before its first instruction, with its VMM started.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
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
use crate::vm::BoxFuture;

/// Most forks of one pool.
pub const POOL_MAX: usize = 64;
/// Pause from a take to the start of the next fork.
const REFILL_PAUSE: Duration = Duration::from_millis(100);
/// Pause after a fork that failed.
const RETRY: Duration = Duration::from_secs(1);

/// The size of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSpec {
    /// The number of forks that are kept ready, 1 to [`POOL_MAX`].
    pub ready: usize,
    /// The memory that the forks may use, in bytes, with shared memory counted in proportion. When it is used up, no
    /// more forks are made.
    pub bytes_max: u64,
}

/// The contents of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PoolStatus {
    /// The number of forks that are ready.
    pub ready: usize,
    /// The memory that they use, in bytes, with shared memory counted in proportion.
    pub bytes: u64,
    /// Why the last attempt to make a fork failed. `None` if it succeeded.
    pub problem: Option<String>,
}

/// Keeps forks of one snapshot ready. Dropping the pool ends the forks that were not taken.
///
/// ```no_run
/// # async fn example(
/// #     engine: &dyn kiln_engine::Engine,
/// #     snapshot: &kiln_engine::snapshot::Snapshot,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// use kiln_engine::{ForkPool, ForkSpec, PoolSpec};
///
/// let spec = PoolSpec { ready: 4, bytes_max: 256 << 20 };
/// let pool = ForkPool::start(engine, snapshot, ForkSpec::default(), spec).await?;
/// let fork = pool.take().await?;
/// println!("{} is ready, {} more are", fork.vm.id(), pool.status().ready);
/// # Ok(())
/// # }
/// ```
///
/// The forks of a pool can have parts of their own, such as a network: see [`ForkPool::start_with`].
#[derive(Debug)]
pub struct ForkPool<K: Send + 'static = ()> {
    shared: Arc<Shared<K>>,
    filler: JoinHandle<()>,
}

/// Makes the part of one fork, and what belongs to the fork beside its VM. That is kept as long as the fork is held, and
/// given out with it.
pub type MakePart<K> = dyn Fn() -> BoxFuture<'static, Result<(ForkPart, K), RestoreError>> + Send + Sync;

struct Shared<K> {
    template: Template,
    spec: PoolSpec,
    part: Arc<MakePart<K>>,
    state: Mutex<State<K>>,
    /// A fork was taken.
    taken: Notify,
    /// A fork was added, or an attempt to make one failed.
    changed: Notify,
    /// No more forks are made.
    closing: AtomicBool,
}

#[derive(Debug)]
struct State<K> {
    held: VecDeque<Ready<K>>,
    problem: Option<String>,
}

/// The fork comes first, because its VMM ends before what it uses.
#[derive(Debug)]
struct Ready<K> {
    held: Held,
    kept: K,
    bytes: u64,
}

impl ForkPool {
    /// Starts to fill a pool. Ignores `forks.count` and `forks.parts`. Refuses a snapshot whose forks need parts of
    /// their own: one with volumes, or with a network card that was saved on a TAP device.
    ///
    /// # Errors
    /// [`RestoreError::Budget`]; or the snapshot can't be restored on this host.
    pub async fn start(
        engine: &dyn Engine,
        snapshot: &Snapshot,
        forks: ForkSpec,
        spec: PoolSpec,
    ) -> Result<Self, RestoreError> {
        let template = template(engine, snapshot, forks, spec).await?;
        // The forks are made before a caller could give them parts of their own.
        template.check(vec![ForkPart::default()]).await?;
        Ok(Self::fill(template, spec, Arc::new(|| Box::pin(async { Ok((ForkPart::default(), ())) }))))
    }

    /// Takes a ready fork. If the pool is empty, makes a new one.
    ///
    /// # Errors
    /// See [`Engine::restore`](crate::Engine::restore).
    pub async fn take(&self) -> Result<Fork, RestoreError> {
        self.take_with(async |()| Ok(())).await.map(|(fork, ())| fork)
    }
}

impl<K: Send + 'static> ForkPool<K> {
    /// Starts to fill a pool whose forks have parts of their own. Ignores `forks.count` and `forks.parts`.
    ///
    /// # Errors
    /// See [`ForkPool::start`]. A part that can't be made is a [problem](PoolStatus::problem) of the pool.
    pub async fn start_with(
        engine: &dyn Engine,
        snapshot: &Snapshot,
        forks: ForkSpec,
        spec: PoolSpec,
        part: Arc<MakePart<K>>,
    ) -> Result<Self, RestoreError> {
        Ok(Self::fill(template(engine, snapshot, forks, spec).await?, spec, part))
    }

    fn fill(template: Template, spec: PoolSpec, part: Arc<MakePart<K>>) -> Self {
        let state = Mutex::new(State { held: VecDeque::new(), problem: None });
        let (taken, changed, closing) = (Notify::new(), Notify::new(), AtomicBool::new(false));
        let shared = Arc::new(Shared { template, spec, part, state, taken, changed, closing });
        let filler = tokio::spawn(fill(Arc::clone(&shared)));
        Self { shared, filler }
    }

    /// Takes a ready fork, and what belongs to it. If the pool is empty, makes a new one. No command of the fork runs
    /// before `ready` has changed what belongs to it as its new owner needs it.
    ///
    /// # Errors
    /// That of `ready`; the fork is gone then. Or see [`Engine::restore`](crate::Engine::restore).
    pub async fn take_with<E: From<RestoreError>>(
        &self,
        ready: impl AsyncFn(&K) -> Result<(), E>,
    ) -> Result<(Fork, K), E> {
        loop {
            let next = self.shared.state().held.pop_front();
            let Some(Ready { held, kept, .. }) = next else {
                let (part, kept) = (self.shared.part)().await?;
                ready(&kept).await?;
                return Ok((self.shared.template.fork_with(part).await?, kept));
            };
            let taken = held.take(&self.shared.template, ready(&kept)).await;
            self.shared.taken.notify_one();
            match taken? {
                Ok(fork) => return Ok((fork, kept)),
                // Its VMM may have ended while it was held. The next fork is equivalent.
                Err(error) => tracing::warn!(%error, "a fork that was held ready can't be used"),
            }
        }
    }

    /// The pool's contents now.
    pub fn status(&self) -> PoolStatus {
        let state = self.shared.state();
        let bytes = state.held.iter().map(|ready| ready.bytes).sum();
        PoolStatus { ready: state.held.len(), bytes, problem: state.problem.clone() }
    }

    /// Waits until the pool is full, or an attempt to make a fork has failed.
    pub async fn filled(&self) -> PoolStatus {
        loop {
            // Created before the look: `notify_waiters` wakes a `Notified` that exists, even if it was not polled yet.
            // So a change between the look and the await is not missed.
            let changed = self.shared.changed.notified();
            let status = self.status();
            if self.shared.is_full(&self.shared.state()) || status.problem.is_some() {
                return status;
            }
            changed.await;
        }
    }

    /// Ends the forks that were not taken. When this returns, their VMMs are gone. A drop only begins that.
    pub async fn close(mut self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.taken.notify_one();
        // It ends after the fork that it makes now, so that this fork is ended here and not by a drop. A filler that
        // panicked has left nothing to wait for.
        drop((&mut self.filler).await);
        let held = std::mem::take(&mut self.shared.state().held);
        for Ready { held, kept, .. } in held {
            held.end().await;
            drop(kept);
        }
    }

    /// The pids of the VMMs of the ready forks.
    pub fn pids(&self) -> Vec<u32> {
        self.shared.state().held.iter().map(|ready| ready.held.pid()).collect()
    }
}

impl<K: Send + 'static> Drop for ForkPool<K> {
    fn drop(&mut self) {
        self.filler.abort();
    }
}

impl<K: fmt::Debug> fmt::Debug for Shared<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("spec", &self.spec).field("state", &self.state).finish_non_exhaustive()
    }
}

impl<K> Shared<K> {
    fn state(&self) -> MutexGuard<'_, State<K>> {
        // No panic leaves the state half changed: forks are pushed and popped in one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn make(&self) -> Result<(Held, K), RestoreError> {
        let (part, kept) = (self.part)().await?;
        Ok((Held::new(&self.template, part).await?, kept))
    }

    fn is_full(&self, state: &State<K>) -> bool {
        let bytes: u64 = state.held.iter().map(|ready| ready.bytes).sum();
        state.held.len() >= self.spec.ready || bytes >= self.spec.bytes_max
    }
}

/// Checks the size of a pool, and whether the snapshot can be restored on this host.
async fn template(
    engine: &dyn Engine,
    snapshot: &Snapshot,
    forks: ForkSpec,
    spec: PoolSpec,
) -> Result<Template, RestoreError> {
    if !(1..=POOL_MAX).contains(&spec.ready) {
        let why = format!("a pool keeps 1 to {POOL_MAX} ready");
        return Err(RestoreError::Budget { count: spec.ready, why });
    }
    restore::check_budget(spec.ready)?;
    engine.template(snapshot, forks).await
}

async fn fill<K: Send + 'static>(shared: Arc<Shared<K>>) {
    while !shared.closing.load(Ordering::Acquire) {
        if shared.is_full(&shared.state()) {
            // `taken` is notified with `notify_one`, which stores a permit. So a take between the look above and this
            // await is not missed. Several takes store one permit, and the loop looks again after it anyway.
            shared.taken.notified().await;
            // The caller that took a fork needs the CPU now. Starting a VMM at once would slow its first command.
            tokio::time::sleep(REFILL_PAUSE).await;
            continue;
        }
        let made = shared.make().await;
        let failed = made.is_err();
        {
            let mut state = shared.state();
            match made {
                Ok((held, kept)) => {
                    let bytes = host::proportional_set_bytes(held.pid()).unwrap_or(0);
                    state.held.push_back(Ready { held, kept, bytes });
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
