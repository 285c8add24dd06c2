//! The task that owns a kept VM.
//!
//! It does one thing after the other, and publishes a [`Status`] before and after each. So two requests never wake or
//! cool the VM at the same time, and a thousand requests to wake it wait for one resume.
//!
//! A request to destroy the VM overtakes the requests that wait. The current step is not cancelled for it, because the
//! step holds the guest by value: dropping its future half-way would drop the VM without a record. Instead the VMM is
//! killed from outside the step. The step then fails soon, with an error or with a guest that has ended, and puts the
//! result in its place. After that the VM is destroyed.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_wire::Activity as Report;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use super::activity::{self, Activity};
use super::handle::{Ask, Uses};
use super::policy::{KeepPolicy, Temperature};
use super::state::{DestroyError, Ended, KeptError, KeptState, Status, WakeError, WarmError};
use crate::blocking;
use crate::deadlines::RENEW_DEADLINE;
use crate::engine::{Engine, discard_with_stops};
use crate::guest::{Gone, Guest, Watch};
use crate::home::Home;
use crate::link::Renewal;
use crate::snapshot::{AfterSave, Snapshot, SnapshotRequest};
use crate::vm::{ControlError, SaveError, Shared};
use crate::vm_dir::VmId;

/// For a new link to a running VM.
const LINK_DEADLINE: Duration = Duration::from_secs(30);
/// For the agent's report of its activity. Requests wait meanwhile, so it is short: a guest that needs longer is busy.
const ACTIVITY_DEADLINE: Duration = Duration::from_secs(1);
/// A guest counts its CPU time in steps of 10 ms, so a shorter period would be too coarse.
const CPU_WINDOW_MS: u64 = 400;
/// The pause after a VM could not be cooled.
const COOL_RETRY: Duration = Duration::from_secs(30);

type Destroys = mpsc::Receiver<oneshot::Sender<Result<(), DestroyError>>>;

/// Whether a guest's CPU time counts as activity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CpuTime {
    Count,
    Skip,
}

/// The next step of the keeper.
enum Step {
    Answer(Ask),
    Look,
    End(Gone),
    Destroy(oneshot::Sender<Result<(), DestroyError>>),
}

/// What holds the VM.
enum Place {
    Hot(Guest),
    Warm(Guest),
    Cold,
    Ended(Ended),
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.state(), f)
    }
}

impl Place {
    fn state(&self) -> KeptState {
        match self {
            Self::Hot(_) => KeptState::Hot,
            Self::Warm(_) => KeptState::Warm,
            Self::Cold => KeptState::Cold,
            Self::Ended(ended) => KeptState::Ended(ended.clone()),
        }
    }
}

/// Kills the running VMM from outside the keeper's current step.
#[derive(Debug, Clone, Default)]
struct Axe(Arc<Mutex<Option<Arc<Shared>>>>);

impl Axe {
    fn aim(&self, guest: &Guest) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&guest.vm.shared));
    }

    fn fall(&self) {
        if let Some(vmm) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            vmm.kill();
        }
    }
}

pub(super) struct Keeper {
    engine: Arc<dyn Engine>,
    id: VmId,
    place: Place,
    watch: Watch,
    axe: Axe,
    policy: KeepPolicy,
    uses: Uses,
    /// When it was last needed.
    needed: Instant,
    /// The agent's last report, to compute the CPU time since.
    report: Option<Report>,
    activity: Vec<Activity>,
    problem: Option<String>,
    status: watch::Sender<Status>,
}

impl Keeper {
    pub(super) fn new(
        engine: Arc<dyn Engine>,
        id: VmId,
        guest: Option<Guest>,
        watch: Watch,
        policy: KeepPolicy,
    ) -> (Self, watch::Receiver<Status>) {
        let axe = Axe::default();
        if let Some(guest) = &guest {
            axe.aim(guest);
        }
        let place = guest.map_or(Place::Cold, Place::Hot);
        let temperature = if matches!(place, Place::Hot(_)) { Temperature::Hot } else { Temperature::Cold };
        let needed = Instant::now();
        let status = Status { state: place.state(), temperature, needed, activity: Vec::new(), problem: None };
        let (status, receiver) = watch::channel(status);
        let (uses, report, activity, problem) = (Uses::default(), None, Vec::new(), None);
        (Self { engine, id, place, watch, axe, policy, uses, needed, report, activity, problem, status }, receiver)
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Ask>, mut destroys: Destroys) {
        let axe = self.axe.clone();
        let mut look_at = self.look_next();
        loop {
            let step = tokio::select! {
                biased;
                Some(reply) = destroys.recv() => Step::Destroy(reply),
                gone = gone(&self.place) => Step::End(gone),
                ask = inbox.recv() => match ask {
                    Some(ask) => Step::Answer(ask),
                    None => return,
                },
                () = until(look_at) => Step::Look,
            };
            let looks = matches!(step, Step::Look);
            let overtaken = {
                // Never dropped half-way, because it holds the guest.
                let mut work = std::pin::pin!(self.act(step));
                tokio::select! {
                    biased;
                    () = &mut work => None,
                    Some(reply) = destroys.recv() => {
                        axe.fall();
                        work.await;
                        Some(reply)
                    }
                }
            };
            if let Some(reply) = overtaken {
                self.act(Step::Destroy(reply)).await;
            }
            if looks {
                look_at = self.look_next();
            }
        }
    }

    /// When to check whether it is idle.
    fn look_next(&self) -> Option<Instant> {
        let pause = if self.problem.is_some() { Some(COOL_RETRY) } else { self.policy.look_every() };
        pause.map(|pause| Instant::now() + pause)
    }

    async fn act(&mut self, step: Step) {
        match step {
            Step::Answer(ask) => self.answer(ask).await,
            Step::Look => self.look().await,
            Step::End(gone) => self.end(gone).await,
            Step::Destroy(reply) => {
                let destroyed = self.destroy().await;
                self.publish(self.place.state());
                drop(reply.send(destroyed));
            }
        }
        self.publish(self.place.state());
    }

    async fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Hot(reply) => {
                // Counted before the reply is sent, so the VM can't be cooled in between.
                let in_use = self.uses.one();
                self.needed = Instant::now();
                let woken = self.wake().await.map(|guest| (guest.link.clone(), in_use));
                self.publish(self.place.state());
                // This fails if the caller has given up.
                drop(reply.send(woken));
            }
            Ask::Cool(to, reply) => {
                let cooled = if self.uses.count() > 0 { Err(SaveError::Busy) } else { self.cool(to).await };
                self.publish(self.place.state());
                drop(reply.send(cooled));
            }
            Ask::Save(label, reply) => {
                self.needed = Instant::now();
                let saved = self.save(label).await;
                self.publish(self.place.state());
                drop(reply.send(saved));
            }
            Ask::Inspect(reply) => {
                // Answering costs CPU time too, which is not a reason to keep the guest hot.
                self.take_stock(CpuTime::Skip).await;
                self.publish(self.place.state());
                drop(reply.send(self.status.borrow().inspection()));
            }
        }
    }

    fn publish(&self, state: KeptState) {
        self.status.send_modify(|status| {
            status.temperature = match state {
                KeptState::Hot => Temperature::Hot,
                KeptState::Warm => Temperature::Warm,
                KeptState::Cold | KeptState::Ended(_) => Temperature::Cold,
                KeptState::Waking | KeptState::Cooling | KeptState::Saving => status.temperature,
            };
            status.state = state;
            status.needed = self.needed;
            status.activity.clone_from(&self.activity);
            status.problem.clone_from(&self.problem);
        });
    }

    /// Makes it run.
    async fn wake(&mut self) -> Result<&Guest, WakeError> {
        let guest = match std::mem::replace(&mut self.place, Place::Cold) {
            Place::Ended(ended) => {
                self.place = Place::Ended(ended.clone());
                return Err(WakeError::Ended(ended));
            }
            Place::Cold => {
                self.publish(KeptState::Waking);
                let from = Instant::now();
                let resumed = self.engine.resume(&self.id).await;
                let fork = resumed.map_err(|error| WakeError::Cold(Arc::new(error)))?;
                let guest = Guest::of(fork, from.elapsed(), self.watch.clone());
                self.axe.aim(&guest);
                guest
            }
            Place::Warm(mut guest) => {
                self.publish(KeptState::Waking);
                match go_on(&mut guest).await {
                    Ok(()) => guest,
                    Err(error) => {
                        self.place = Place::Warm(guest);
                        return Err(WakeError::Warm(Arc::new(error)));
                    }
                }
            }
            Place::Hot(mut guest) => match mend_link(&mut guest).await {
                Ok(()) => guest,
                Err(error) => {
                    self.place = Place::Hot(guest);
                    return Err(WakeError::Warm(Arc::new(error)));
                }
            },
        };
        self.report = None;
        self.place = Place::Hot(guest);
        match &self.place {
            Place::Hot(guest) => Ok(guest),
            _ => unreachable!("it was made hot"),
        }
    }

    /// Saves it and lets it continue.
    async fn save(&mut self, label: String) -> Result<Snapshot, KeptError> {
        self.wake().await?;
        let Place::Hot(guest) = &self.place else { return Err(SaveError::from(ControlError::Ended).into()) };
        self.publish(KeptState::Saving);
        Ok(guest.vm.snapshot(SnapshotRequest { link: Some(&guest.link), then: AfterSave::GoOn, label }).await?)
    }

    /// Checks whether it is idle, and cools it if it was idle for long enough.
    async fn look(&mut self) {
        self.take_stock(CpuTime::Count).await;
        let wanted = self.policy.wanted(self.needed.elapsed());
        if self.uses.count() == 0
            && let Err(error) = self.cool(wanted).await
        {
            tracing::warn!(vm = %self.id, %error, "failed to cool an idle vm");
            self.problem = Some(error.to_string());
        }
    }

    /// Finds out why it is in use, if it runs.
    async fn take_stock(&mut self, cpu_time: CpuTime) {
        let Place::Hot(guest) = &self.place else {
            self.activity.clear();
            return;
        };
        // Counted before the agent is asked, because that is a stream too.
        self.activity = activity::of_host(self.uses.count(), guest.link.streams_open());
        match timeout(ACTIVITY_DEADLINE, guest.link.activity()).await {
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
            // If a guest is too busy to answer, it is not idle. If its agent is gone, it can't be saved.
            Ok(Err(error)) => {
                tracing::debug!(vm = %self.id, %error, "a kept vm does not report its activity");
                self.activity.push(Activity::Silent);
            }
            Err(_) => self.activity.push(Activity::Silent),
        }
        if !self.activity.is_empty() {
            self.needed = Instant::now();
        }
    }

    async fn cool(&mut self, to: Temperature) -> Result<(), SaveError> {
        let mut guest = match std::mem::replace(&mut self.place, Place::Cold) {
            Place::Hot(guest) if to == Temperature::Warm => {
                self.publish(KeptState::Cooling);
                let paused = pause(&guest).await;
                self.place = if paused.is_ok() { Place::Warm(guest) } else { Place::Hot(guest) };
                return Ok(paused?);
            }
            Place::Warm(guest) if to == Temperature::Cold => {
                self.publish(KeptState::Cooling);
                // The agent has to run to answer. Everything else in the guest stays frozen.
                if let Err(error) = guest.vm.resume().await {
                    self.place = Place::Warm(guest);
                    return Err(error.into());
                }
                guest
            }
            Place::Hot(guest) if to == Temperature::Cold => {
                self.publish(KeptState::Cooling);
                guest
            }
            other => {
                self.place = other;
                return Ok(());
            }
        };
        let label = format!("vm {}, stopped", self.id);
        let request = SnapshotRequest { link: Some(&guest.link), then: AfterSave::Stop, label };
        self.watch.expect_return(true);
        let saved = guest.vm.snapshot(request).await;
        if let Err(error) = saved {
            self.watch.expect_return(false);
            // It continues, but was paused: for the save, or for the hours in which it was warm.
            if let Err(error) = set_right(&mut guest).await {
                tracing::warn!(vm = %self.id, %error, "failed to set the clock of a vm that could not be cooled");
            }
            self.place = Place::Hot(guest);
            return Err(error);
        }
        self.problem = None;
        Ok(())
    }

    /// It has ended.
    async fn end(&mut self, gone: Gone) {
        if let Place::Hot(guest) | Place::Warm(guest) = &self.place {
            // After a crash, its VMM may still run.
            guest.vm.kill().await;
        }
        let ended = Ended::from(gone);
        tracing::info!(vm = %self.id, %ended, "a kept vm ended");
        self.activity.clear();
        self.place = Place::Ended(ended);
    }

    async fn destroy(&mut self) -> Result<(), DestroyError> {
        match &self.place {
            Place::Hot(guest) | Place::Warm(guest) => drop(guest.vm.kill().await),
            Place::Cold => {
                let (home, id) = (Home::at(self.engine.home()), self.id.clone());
                blocking(move || discard_with_stops(&home, &id)).await?;
            }
            Place::Ended(_) => return Ok(()),
        }
        tracing::info!(vm = %self.id, "destroyed a kept vm");
        self.activity.clear();
        self.place = Place::Ended(Ended::Destroyed);
        Ok(())
    }
}

/// Pauses a VM with its commands frozen. When its CPUs continue, only its agent runs until it has the time.
async fn pause(guest: &Guest) -> Result<(), ControlError> {
    if let Err(error) = guest.link.freeze().await {
        tracing::debug!(vm = %guest.vm.id(), %error, "a guest is paused without being frozen");
    }
    let paused = guest.vm.pause().await;
    if paused.is_err() {
        // The agent may have frozen the commands after its deadline.
        drop(guest.link.thaw().await);
    }
    paused
}

/// Lets a paused VM continue, with the current time.
async fn go_on(guest: &mut Guest) -> Result<(), WarmError> {
    guest.vm.resume().await?;
    set_right(guest).await
}

/// Gives a VM the current time and thaws its commands.
async fn set_right(guest: &mut Guest) -> Result<(), WarmError> {
    mend_link(guest).await?;
    guest.link.renew(Renewal::default(), RENEW_DEADLINE).await?;
    Ok(())
}

/// Links to the agent again if the link was lost.
async fn mend_link(guest: &mut Guest) -> Result<(), WarmError> {
    if guest.link.is_lost() {
        guest.relink(LINK_DEADLINE).await?;
    }
    Ok(())
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn gone(place: &Place) -> Gone {
    match place {
        Place::Hot(guest) | Place::Warm(guest) => guest.gone().await,
        Place::Cold | Place::Ended(_) => std::future::pending().await,
    }
}
