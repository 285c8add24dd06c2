//! The task that owns a kept VM, and the handle on it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kiln_wire::Activity as Report;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::activity::{self, Activity};
use super::policy::{KeepPolicy, Temperature};
use crate::engine::Engine;
use crate::fork::Fork;
use crate::link::{GuestLink, LinkError, Renewal};
use crate::snapshot::{AfterSave, SnapshotError, SnapshotRequest};
use crate::vm::{ControlError, Vm, VmExit};
use crate::vm_dir::VmId;

/// Requests that may wait for the task.
const QUEUE: usize = 64;
/// For a new link to a VM that runs.
const LINK_DEADLINE: Duration = Duration::from_secs(30);
/// For the answer whether it is idle. Requests wait meanwhile, so it is short: a guest that needs longer is at work.
const ACTIVITY_DEADLINE: Duration = Duration::from_secs(1);
/// A guest counts its CPU time in steps of 10 ms, which say nothing of a shorter while.
const CPU_WINDOW_MS: u64 = 400;
/// After a VM could not be cooled.
const COOL_RETRY: Duration = Duration::from_secs(30);

/// Why a kept VM does not run.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WakeError {
    /// It is over.
    #[error("the VM has ended: {0}")]
    Ended(VmExit),
    /// Its CPUs did not go on, or its agent does not answer.
    #[error("failed to let the VM go on")]
    Warm(#[source] Arc<WarmError>),
    /// It was not restored; it is still there.
    #[error("failed to restore the VM")]
    Cold(#[source] Arc<SnapshotError>),
    /// Its keeper was dropped.
    #[error("nobody keeps the VM any more")]
    Dropped,
}

/// Why a VM that stood still did not go on.
#[derive(Debug, thiserror::Error)]
pub enum WarmError {
    /// The VMM did not do it.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The agent does not answer, or could not set the clock.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// What a kept VM does, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// How far it is from running.
    pub temperature: Temperature,
    /// Since when nobody has needed it.
    pub idle: Duration,
    /// Why it is not idle; empty where it is.
    pub activity: Vec<Activity>,
    /// Why it could not be cooled, where that failed.
    pub problem: Option<String>,
}

/// A handle on a kept VM. The VM ends when the last one, and the last [`HotVm`], is dropped; one that is cold stays.
///
/// ```no_run
/// # async fn example(engine: std::sync::Arc<dyn kiln_engine::Engine>, fork: kiln_engine::Fork) -> Result<(), Box<dyn std::error::Error>> {
/// use kiln_engine::kept::{KeepPolicy, KeptVm};
/// use std::time::Duration;
///
/// let minute = Duration::from_secs(60);
/// let policy = KeepPolicy { idle_to_warm: Some(minute), idle_to_cold: Some(10 * minute), ..KeepPolicy::default() };
/// let kept = KeptVm::keep(engine, fork, policy);
/// let hot = kept.ensure_hot().await?; // at once, or after a wake
/// hot.link().ping().await?;
/// drop(hot); // from here on it may cool
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct KeptVm {
    id: VmId,
    asks: mpsc::Sender<Ask>,
}

/// A kept VM that runs, for as long as this is held.
#[derive(Debug)]
pub struct HotVm {
    link: GuestLink,
    // Held, never read.
    _use: Use,
    // Keeps the task, and so the VM, there.
    _asks: mpsc::Sender<Ask>,
}

#[derive(Debug)]
enum Ask {
    Hot(oneshot::Sender<Result<(GuestLink, Use), WakeError>>),
    Cool(Temperature, oneshot::Sender<Result<(), SnapshotError>>),
    Inspect(oneshot::Sender<Inspection>),
}

/// Counts who uses the VM.
#[derive(Debug, Default)]
struct Uses(Arc<AtomicUsize>);

/// One who uses it, until it is dropped: also as an answer that nobody took.
#[derive(Debug)]
struct Use(Arc<AtomicUsize>);

impl KeptVm {
    /// Keeps a VM that runs.
    pub fn keep(engine: Arc<dyn Engine>, fork: Fork, policy: KeepPolicy) -> Self {
        let id = fork.vm.id().clone();
        Self::start(engine, id, Place::Hot(fork), policy)
    }

    /// Keeps a VM that is stopped.
    pub fn keep_stopped(engine: Arc<dyn Engine>, id: VmId, policy: KeepPolicy) -> Self {
        Self::start(engine, id, Place::Cold, policy)
    }

    fn start(engine: Arc<dyn Engine>, id: VmId, place: Place, policy: KeepPolicy) -> Self {
        let (asks, inbox) = mpsc::channel(QUEUE);
        let keeper = Keeper {
            engine,
            id: id.clone(),
            place,
            policy,
            uses: Uses::default(),
            needed: Instant::now(),
            report: None,
            activity: Vec::new(),
            problem: None,
        };
        tokio::spawn(keeper.run(inbox));
        Self { id, asks }
    }

    /// Names the VM.
    pub fn id(&self) -> &VmId {
        &self.id
    }

    /// The VM, running: at once where it is hot, after its CPUs went on where it is warm, restored where it is cold. It
    /// stays hot for as long as the answer is held.
    ///
    /// # Errors
    /// [`WakeError`]
    pub async fn ensure_hot(&self) -> Result<HotVm, WakeError> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Hot(reply)).await.map_err(|_| WakeError::Dropped)?;
        let (link, in_use) = answer.await.map_err(|_| WakeError::Dropped)??;
        Ok(HotVm { link, _use: in_use, _asks: self.asks.clone() })
    }

    /// Cools the VM now, whatever its policy says. A colder one stays as it is.
    ///
    /// # Errors
    /// [`SnapshotError::Busy`] while somebody holds it hot; or it can't be saved, and goes on.
    pub async fn cool(&self, to: Temperature) -> Result<(), SnapshotError> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Cool(to, reply)).await.map_err(|_| ControlError::Ended)?;
        answer.await.map_err(|_| ControlError::Ended)?
    }

    /// What it does, and why it is still hot.
    ///
    /// # Errors
    /// [`WakeError::Dropped`]
    pub async fn inspect(&self) -> Result<Inspection, WakeError> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Inspect(reply)).await.map_err(|_| WakeError::Dropped)?;
        answer.await.map_err(|_| WakeError::Dropped)
    }
}

impl HotVm {
    /// The link to its agent.
    pub fn link(&self) -> &GuestLink {
        &self.link
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Uses {
    fn one(&self) -> Use {
        self.0.fetch_add(1, Ordering::AcqRel);
        Use(Arc::clone(&self.0))
    }

    fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

/// Whether a guest's CPU time counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CpuTime {
    Count,
    Skip,
}

/// Where the VM is.
enum Place {
    Hot(Fork),
    Warm(Fork),
    Cold,
    Ended(VmExit),
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hot(_) => "hot",
            Self::Warm(_) => "warm",
            Self::Cold => "cold",
            Self::Ended(_) => "ended",
        })
    }
}

struct Keeper {
    engine: Arc<dyn Engine>,
    id: VmId,
    place: Place,
    policy: KeepPolicy,
    uses: Uses,
    /// When it was needed last.
    needed: Instant,
    /// The agent's last report, for the CPU time since.
    report: Option<Report>,
    activity: Vec<Activity>,
    problem: Option<String>,
}

impl Keeper {
    async fn run(mut self, mut inbox: mpsc::Receiver<Ask>) {
        let mut look_at = self.policy.look_every().map(|every| Instant::now() + every);
        loop {
            tokio::select! {
                ask = inbox.recv() => match ask {
                    Some(ask) => self.answer(ask).await,
                    None => return,
                },
                () = until(look_at) => {
                    self.look().await;
                    let pause = if self.problem.is_some() { Some(COOL_RETRY) } else { self.policy.look_every() };
                    look_at = pause.map(|pause| Instant::now() + pause);
                }
                exit = end(&self.place) => {
                    tracing::info!(vm = %self.id, %exit, "a kept vm ended");
                    self.place = Place::Ended(exit);
                }
            }
        }
    }

    async fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Hot(reply) => {
                // Counted before anybody is told: nothing cools it in between.
                let in_use = self.uses.one();
                self.needed = Instant::now();
                let woken = self.wake().await.map(|link| (link, in_use));
                // The asker may have given up.
                drop(reply.send(woken));
            }
            Ask::Cool(to, reply) => {
                let cooled = if self.uses.count() > 0 { Err(SnapshotError::Busy) } else { self.cool(to).await };
                drop(reply.send(cooled));
            }
            Ask::Inspect(reply) => {
                // Being asked is work too, and not what a guest is kept hot for.
                self.take_stock(CpuTime::Skip).await;
                drop(reply.send(self.inspection()));
            }
        }
    }

    fn inspection(&self) -> Inspection {
        let temperature = match self.place {
            Place::Hot(_) => Temperature::Hot,
            Place::Warm(_) => Temperature::Warm,
            Place::Cold | Place::Ended(_) => Temperature::Cold,
        };
        let problem = match &self.place {
            Place::Ended(exit) => Some(exit.to_string()),
            _ => self.problem.clone(),
        };
        Inspection { temperature, idle: self.needed.elapsed(), activity: self.activity.clone(), problem }
    }

    /// Makes it run.
    async fn wake(&mut self) -> Result<GuestLink, WakeError> {
        let fork = match std::mem::replace(&mut self.place, Place::Cold) {
            Place::Ended(exit) => {
                self.place = Place::Ended(exit.clone());
                return Err(WakeError::Ended(exit));
            }
            Place::Cold => self.engine.resume(&self.id).await.map_err(|error| WakeError::Cold(Arc::new(error)))?,
            Place::Warm(mut fork) => match go_on(&mut fork).await {
                Ok(()) => fork,
                Err(error) => {
                    self.place = Place::Warm(fork);
                    return Err(WakeError::Warm(Arc::new(error)));
                }
            },
            Place::Hot(mut fork) => match mend_link(&mut fork).await {
                Ok(()) => fork,
                Err(error) => {
                    self.place = Place::Hot(fork);
                    return Err(WakeError::Warm(Arc::new(error)));
                }
            },
        };
        let link = fork.link.clone();
        self.place = Place::Hot(fork);
        self.report = None;
        Ok(link)
    }

    /// Looks whether it is idle, and cools it where it has been for long enough.
    async fn look(&mut self) {
        self.take_stock(CpuTime::Count).await;
        let wanted = self.policy.wanted(self.needed.elapsed());
        if self.uses.count() == 0
            && let Err(error) = self.cool(wanted).await
        {
            tracing::warn!(vm = %self.id, %error, "failed to cool a vm that nobody uses");
            self.problem = Some(error.to_string());
        }
    }

    /// Asks who needs it, where it runs.
    async fn take_stock(&mut self, cpu_time: CpuTime) {
        let Place::Hot(fork) = &self.place else {
            self.activity.clear();
            return;
        };
        // Before the question, which is a stream too.
        self.activity = activity::of_host(self.uses.count(), fork.link.streams_open());
        match timeout(ACTIVITY_DEADLINE, fork.link.activity()).await {
            Ok(Ok(report)) => {
                let window = |before: &&Report| {
                    report.uptime_ms.saturating_sub(before.uptime_ms) >= CPU_WINDOW_MS && cpu_time == CpuTime::Count
                };
                let before = self.report.as_ref().filter(window);
                self.activity.extend(activity::of_guest(before, &report, self.policy.busy_cpu_percent));
                if self.report.is_none() || before.is_some() {
                    self.report = Some(report);
                }
            }
            // A guest too busy to answer is not idle; one whose agent is gone is nothing that can be saved.
            Ok(Err(error)) => {
                tracing::debug!(vm = %self.id, %error, "a kept vm does not say whether it is idle");
                self.activity.push(Activity::Silent);
            }
            Err(_) => self.activity.push(Activity::Silent),
        }
        if !self.activity.is_empty() {
            self.needed = Instant::now();
        }
    }

    async fn cool(&mut self, to: Temperature) -> Result<(), SnapshotError> {
        let fork = match std::mem::replace(&mut self.place, Place::Cold) {
            Place::Hot(fork) if to == Temperature::Warm => {
                let paused = fork.vm.pause().await;
                self.place = if paused.is_ok() { Place::Warm(fork) } else { Place::Hot(fork) };
                return Ok(paused?);
            }
            Place::Warm(fork) if to == Temperature::Cold => {
                // Its agent has to run to freeze what else runs.
                if let Err(error) = fork.vm.resume().await {
                    self.place = Place::Warm(fork);
                    return Err(error.into());
                }
                fork
            }
            Place::Hot(fork) if to == Temperature::Cold => fork,
            other => {
                self.place = other;
                return Ok(());
            }
        };
        let label = format!("vm {}, stopped", self.id);
        let request = SnapshotRequest { link: Some(&fork.link), then: AfterSave::Stop, label };
        match fork.vm.snapshot(request).await {
            Ok(_) => {
                self.problem = None;
                Ok(())
            }
            Err(error) => {
                self.place = Place::Hot(fork);
                Err(error)
            }
        }
    }
}

/// Lets a VM that stood still go on, with the time as it is now.
async fn go_on(fork: &mut Fork) -> Result<(), WarmError> {
    fork.vm.resume().await?;
    mend_link(fork).await?;
    fork.link.renew(Renewal::default()).await?;
    Ok(())
}

/// Links the agent anew where the link was lost.
async fn mend_link(fork: &mut Fork) -> Result<(), WarmError> {
    if fork.link.is_lost() {
        fork.link = fork.vm.connect(LINK_DEADLINE).await?;
    }
    Ok(())
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn end(place: &Place) -> VmExit {
    let vm: &Vm = match place {
        Place::Hot(fork) | Place::Warm(fork) => &fork.vm,
        Place::Cold | Place::Ended(_) => return std::future::pending().await,
    };
    vm.wait().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_nobody_took_is_no_use() {
        let uses = Uses::default();
        let (reply, answer) = oneshot::channel();
        reply.send(uses.one()).expect("somebody waits");
        assert_eq!(uses.count(), 1);
        drop(answer);
        assert_eq!(uses.count(), 0);
    }
}
