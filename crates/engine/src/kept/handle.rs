//! The handle to a kept VM.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::keeper::Keeper;
use super::policy::{KeepPolicy, Temperature};
use super::state::{DestroyError, Ended, Inspection, KeptError, KeptState, Status, WakeError};
use crate::engine::{Engine, Fork, ForkSpec};
use crate::guest::{Guest, Watch};
use crate::link::{Command, GuestLink};
use crate::snapshot::Snapshot;
use crate::vm::{ControlError, SaveError};
use crate::vm_dir::VmId;

/// Requests that may wait for the task.
const QUEUE: usize = 64;

/// A handle to a kept VM. The VM ends when the last handle and the last [`HotVm`] are dropped. A cold VM stays.
///
/// ```no_run
/// # async fn example(
/// #     engine: std::sync::Arc<dyn kiln_engine::Engine>,
/// #     fork: kiln_engine::Fork,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// use kiln_engine::ForkSpec;
/// use kiln_engine::kept::{KeepPolicy, KeptVm};
/// use std::time::Duration;
///
/// let minute = Duration::from_secs(60);
/// let policy = KeepPolicy { idle_to_warm: Some(minute), idle_to_cold: Some(10 * minute), ..KeepPolicy::default() };
/// let kept = KeptVm::keep(engine, fork, policy);
///
/// let hot = kept.ensure_hot().await?; // at once, or after a wake
/// hot.command("make").current_dir("/work").status().await?;
/// drop(hot); // from here on it may cool
///
/// let before = kept.snapshot("before the tests").await?;
/// let (_, twins) = kept.fork(ForkSpec { count: 4, ..ForkSpec::default() }).await?;
///
/// tokio::select! {
///     ended = kept.ended() => println!("{} is over: {ended}", kept.id()),
///     destroyed = kept.destroy() => destroyed?,
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct KeptVm {
    id: VmId,
    asks: mpsc::Sender<Ask>,
    /// Overtakes all earlier requests.
    ends: mpsc::Sender<oneshot::Sender<Result<(), DestroyError>>>,
    status: watch::Receiver<Status>,
    watch: Watch,
    engine: EngineRef,
}

/// A kept VM that runs as long as this is held.
#[derive(Debug)]
pub struct HotVm {
    link: GuestLink,
    held: Arc<Held>,
}

/// Keeps a VM hot, and its keeper running.
#[derive(Debug)]
struct Held {
    _use: Use,
    _asks: mpsc::Sender<Ask>,
}

#[derive(Clone)]
struct EngineRef(Arc<dyn Engine>);

impl std::fmt::Debug for EngineRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.capabilities().driver)
    }
}

#[derive(Debug)]
pub(super) enum Ask {
    Hot(oneshot::Sender<Result<(GuestLink, Use), WakeError>>),
    Cool(Temperature, oneshot::Sender<Result<(), SaveError>>),
    Save(String, oneshot::Sender<Result<Snapshot, KeptError>>),
    Inspect(oneshot::Sender<Inspection>),
}

/// Counts the users of the VM.
#[derive(Debug, Default)]
pub(super) struct Uses(Arc<AtomicUsize>);

/// One user of the VM, until it is dropped. That includes a reply that its caller did not take.
#[derive(Debug)]
pub(super) struct Use(Arc<AtomicUsize>);

impl KeptVm {
    /// Keeps a running VM.
    ///
    /// # Panics
    /// If its events were taken before.
    pub fn keep(engine: Arc<dyn Engine>, fork: Fork, policy: KeepPolicy) -> Self {
        Self::keep_guest(engine, Guest::of(fork, Duration::ZERO, Watch::default()), policy)
    }

    /// Keeps a guest, with its events and findings so far.
    pub fn keep_guest(engine: Arc<dyn Engine>, guest: Guest, policy: KeepPolicy) -> Self {
        let (id, watch) = (guest.vm.id().clone(), guest.watch().clone());
        Self::start(engine, id, Some(guest), watch, policy)
    }

    /// Keeps a stopped VM.
    pub fn keep_stopped(engine: Arc<dyn Engine>, id: VmId, policy: KeepPolicy) -> Self {
        Self::start(engine, id, None, Watch::default(), policy)
    }

    fn start(engine: Arc<dyn Engine>, id: VmId, guest: Option<Guest>, watch: Watch, policy: KeepPolicy) -> Self {
        let (asks, inbox) = mpsc::channel(QUEUE);
        let (ends, destroys) = mpsc::channel(1);
        let (keeper, status) = Keeper::new(Arc::clone(&engine), id.clone(), guest, watch.clone(), policy);
        tokio::spawn(keeper.run(inbox, destroys));
        Self { id, asks, ends, status, watch, engine: EngineRef(engine) }
    }

    /// The VM's id.
    pub fn id(&self) -> &VmId {
        &self.id
    }

    /// Its events and findings, across all its wakes.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Its current state, or the state that it moves to. Never waits.
    pub fn state(&self) -> KeptState {
        self.status.borrow().state.clone()
    }

    /// Waits until it has ended, and returns how. Safe to cancel.
    pub async fn ended(&self) -> Ended {
        let mut status = self.status.clone();
        let ended = |status: &Status| matches!(status.state, KeptState::Ended(_));
        let state = status.wait_for(ended).await.ok().map(|status| status.state.clone());
        match state {
            Some(KeptState::Ended(ended)) => ended,
            // The keeper lives as long as a handle, unless its runtime ends.
            _ => std::future::pending().await,
        }
    }

    /// The running VM: at once if it is hot, resumed if it is warm, restored if it is cold. It stays hot as long as the
    /// returned value is held.
    ///
    /// # Errors
    /// [`WakeError`]
    pub async fn ensure_hot(&self) -> Result<HotVm, WakeError> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Hot(reply)).await.map_err(|_| WakeError::Dropped)?;
        let (link, in_use) = answer.await.map_err(|_| WakeError::Dropped)??;
        Ok(HotVm { link, held: Arc::new(Held { _use: in_use, _asks: self.asks.clone() }) })
    }

    /// Cools the VM now, whatever its policy. A colder VM is not changed.
    ///
    /// # Errors
    /// [`SaveError::Busy`] while a caller holds it hot; or it can't be saved, and continues.
    pub async fn cool(&self, to: Temperature) -> Result<(), SaveError> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Cool(to, reply)).await.map_err(|_| ControlError::Ended)?;
        answer.await.map_err(|_| ControlError::Ended)?
    }

    /// Saves the VM as it is now. It continues, hot. A cold or warm VM is woken first.
    ///
    /// # Errors
    /// [`KeptError`]. The VM continues as before then.
    pub async fn snapshot(&self, label: impl Into<String>) -> Result<Snapshot, KeptError> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Save(label.into(), reply)).await.map_err(|_| WakeError::Dropped)?;
        answer.await.map_err(|_| WakeError::Dropped)?
    }

    /// Forks the VM as it is now. The snapshot of the forks stays until it is removed.
    ///
    /// # Errors
    /// [`KeptError`]. The VM continues as before then.
    pub async fn fork(&self, forks: ForkSpec) -> Result<(Snapshot, Vec<Fork>), KeptError> {
        let snapshot = self.snapshot(format!("vm {}, forked", self.id)).await?;
        let forks = self.engine.0.restore(&snapshot, forks).await?;
        Ok((snapshot, forks))
    }

    /// What it does, and why it is still hot. Never waits for a save or a restore: during these it returns what the
    /// keeper last found.
    ///
    /// # Errors
    /// [`WakeError::Dropped`]
    pub async fn inspect(&self) -> Result<Inspection, WakeError> {
        let (reply, answer) = oneshot::channel();
        let fresh = async {
            self.asks.send(Ask::Inspect(reply)).await.map_err(|_| WakeError::Dropped)?;
            answer.await.map_err(|_| WakeError::Dropped)
        };
        let mut status = self.status.clone();
        tokio::select! {
            biased;
            moving = status.wait_for(|status| status.state.is_moving()) => {
                moving.map(|status| status.inspection()).map_err(|_| WakeError::Dropped)
            }
            fresh = fresh => fresh,
        }
    }

    /// Ends the VM, whatever it does and however many callers use it, and removes its directory. Snapshots that
    /// [`snapshot`](Self::snapshot) took stay. Destroying it again does nothing.
    ///
    /// # Errors
    /// [`DestroyError`]
    pub async fn destroy(&self) -> Result<(), DestroyError> {
        let (reply, answer) = oneshot::channel();
        self.ends.send(reply).await.map_err(|_| DestroyError::Dropped)?;
        answer.await.map_err(|_| DestroyError::Dropped)?
    }
}

impl HotVm {
    /// The link to its agent.
    pub fn link(&self) -> &GuestLink {
        &self.link
    }

    /// A command to run in it. The VM stays hot until the command and its child are dropped.
    pub fn command(&self, program: impl Into<kiln_wire::Text>) -> Command {
        self.link.command(program).hold(Arc::clone(&self.held) as _)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Uses {
    pub(super) fn one(&self) -> Use {
        self.0.fetch_add(1, Ordering::AcqRel);
        Use(Arc::clone(&self.0))
    }

    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_that_was_not_taken_does_not_count_as_a_use() {
        let uses = Uses::default();
        let (reply, answer) = oneshot::channel();
        reply.send(uses.one()).expect("the receiver lives");
        assert_eq!(uses.count(), 1);
        drop(answer);
        assert_eq!(uses.count(), 0);
    }
}
