//! The thread that serves some queues of one session. It owns their rings; the session sends it commands and waits
//! until each is done, so that a ring that was stopped is stopped.
//!
//! ```text
//!    session ── Command ──▶ ┌─ worker ──────────────────────────────┐
//!            ◀── answer ──  │ sleep ─▶ kick, wake, other descriptor │
//!                           │   ▲            │                      │
//!                           │   │         process … process         │
//!                           │   └─ enable kicks ◀─ look a while ────│
//!                           └───────────────────────────────────────┘
//! ```

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;

use super::device::{QueueHandler, Work};
use super::fault::RingEvent;
use super::interrupt::interrupt;
use super::notify::{Notify, Told};
use super::observe::{Observer, SessionEvent};
use super::polling::Polling;
use super::queues::{OWN_TOKENS, Queue, Queues, StoppedQueue};
use crate::memory::GuestMemory;
use crate::queue::{Chain, QueueError};
use crate::socket::{Event, wait_readable};

/// Tokens of the worker's own descriptors: the kick of a queue, and the session's wake.
const KICK: u64 = OWN_TOKENS;
const WAKE: u64 = u64::MAX;
/// Descriptors that are seen in one look.
const EVENTS_AT_ONCE: usize = 32;
/// The longest that a ring without kicks is left alone: what bounds the cost of polling it.
const POLL_PAUSE_MAX: Duration = Duration::from_millis(1);
/// Times that queues are served before other descriptors and deadlines have their turn, however much a driver has.
const ROUNDS_MAX: u32 = 64;
/// Kicks in a row for which there was nothing to do, after which they are looked at no more often than rings without kicks:
/// some descriptors are always ready, such as a semaphore that is full.
const IDLE_KICKS_MAX: u32 = 256;
/// How long a worker is waited for before it is interrupted for the first time; a peer may have it wait.
const INTERRUPT_AFTER: Duration = Duration::from_millis(100);

/// How a worker finds out that a ring has more.
#[derive(Debug)]
pub(super) enum Kick {
    /// By a message.
    Message,
    /// It looks now and then.
    Polled,
    /// By an eventfd.
    Event(Event),
}

/// The log of a ring: the dirty log with the guest address of the used ring in it, and how the frontend is notified of
/// it.
pub(super) type RingLog = (Option<(Arc<crate::memory::DirtyLog>, Option<u64>)>, Option<Arc<Event>>);

/// A command of a session to its worker.
pub(super) enum Command {
    /// Serve this queue.
    Start(Box<Queue>, Kick, Notify),
    /// Finish what is in flight, and release the ring.
    Stop(u16),
    /// It may have effects, or none.
    Enable(u16, bool),
    /// It is kicked another way.
    Kick(u16, Kick),
    /// It was kicked by a message.
    Kicked(u16),
    /// The driver is called another way.
    Call(u16, Notify),
    /// The frontend is notified of errors another way.
    Error(u16, Notify),
    /// Memory has changed.
    Memory(GuestMemory),
    /// Writes are logged, or no more.
    Log(u16, RingLog),
}

/// What a worker answers: the base of the queue that it stopped, else 0.
type Answer = Result<u32, QueueError>;

/// Why a worker did not obey a command.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It could not be started.
    #[error("failed to start a queue worker")]
    Start(#[source] io::Error),
    /// It does not answer.
    #[error("a queue worker did not reply within {waited:?}")]
    Stuck {
        /// How long it was waited for.
        waited: Duration,
    },
    /// It has ended, which is our own bug.
    #[error("a queue worker has ended")]
    Gone,
    /// The ring refuses.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// A worker, as its session has it. It ends when this is dropped.
pub(super) struct Worker {
    commands: SyncSender<(Option<Command>, SyncSender<Answer>)>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
    patience: Duration,
}

struct Waker {
    event: Event,
    pending: AtomicBool,
}

impl Worker {
    /// Starts a worker. `patience` bounds the wait for its answers.
    pub(super) fn start(
        name: String,
        handler: Box<dyn QueueHandler>,
        poll_time: Duration,
        patience: Duration,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, WorkerError> {
        let waker = Waker { event: Event::new().map_err(WorkerError::Start)?, pending: AtomicBool::new(false) };
        let waker = Arc::new(waker);
        let queues = Queues::new().map_err(WorkerError::Start)?;
        queues.watch_any(&waker.event, WAKE, EventFlags::IN).map_err(WorkerError::Start)?;
        let (commands, received) = sync_channel(1);
        let mut run = Run {
            queues,
            handler,
            states: Vec::new(),
            commands: received,
            waker: Arc::clone(&waker),
            polling: Polling::new(poll_time),
            pause: Duration::ZERO,
            idle_kicks: 0,
            taken: 0,
            observer,
        };
        let thread = std::thread::Builder::new().name(name).spawn(move || run.run()).map_err(WorkerError::Start)?;
        Ok(Self { commands, waker, thread: Some(thread), patience })
    }

    /// Sends a command, and waits until it is done.
    pub(super) fn tell(&self, command: Command) -> Result<u32, WorkerError> {
        let answer = self.send(Some(command))?;
        match self.wait_for(&answer) {
            Ok(answer) => Ok(answer?),
            Err(RecvTimeoutError::Timeout) => Err(WorkerError::Stuck { waited: self.patience }),
            Err(RecvTimeoutError::Disconnected) => Err(WorkerError::Gone),
        }
    }

    /// Waits for an answer. A worker that takes long may be blocked in a system call by a peer, so it is interrupted. One
    /// signal is not enough: it may arrive just before the call, which then blocks all the same. Repeated signals cannot all
    /// arrive too early. The pauses double, so that a worker which is only slow is not disturbed.
    fn wait_for(&self, answer: &Receiver<Answer>) -> Result<Answer, RecvTimeoutError> {
        let deadline = Instant::now() + self.patience;
        let mut pause = INTERRUPT_AFTER;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match answer.recv_timeout(pause.min(left)) {
                Err(RecvTimeoutError::Timeout) if !left.is_zero() => {}
                other => return other,
            }
            if let Some(thread) = &self.thread {
                interrupt(thread);
            }
            pause *= 2;
        }
    }

    fn send(&self, command: Option<Command>) -> Result<Receiver<Answer>, WorkerError> {
        let (sender, answer) = sync_channel(1);
        self.commands.try_send((command, sender)).map_err(|error| match error {
            // It has not taken the one before, whose wait has ended.
            TrySendError::Full(_) => WorkerError::Stuck { waited: self.patience },
            TrySendError::Disconnected(_) => WorkerError::Gone,
        })?;
        self.waker.pending.store(true, Ordering::Release);
        self.waker.event.signal().map_err(WorkerError::Start)?;
        Ok(answer)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // One that is stuck in the operating system ends as soon as it comes back: its commands have ended.
        let ends =
            self.send(None).is_ok_and(|answer| !matches!(self.wait_for(&answer), Err(RecvTimeoutError::Timeout)));
        if let (true, Some(thread)) = (ends, self.thread.take()) {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// What a worker holds of a queue beyond its ring.
struct State {
    kick: Kick,
    error: Notify,
    /// There may be something in it.
    ready: bool,
    /// It is inconsistent, and is not served any more.
    broken: bool,
}

struct Run {
    queues: Queues,
    handler: Box<dyn QueueHandler>,
    /// By place, as the queues are.
    states: Vec<Option<State>>,
    commands: Receiver<(Option<Command>, SyncSender<Answer>)>,
    waker: Arc<Waker>,
    polling: Polling,
    /// How long rings without kicks were left alone last.
    pause: Duration,
    /// Kicks in a row after which no chain was taken, and how many had been taken before.
    idle_kicks: u32,
    taken: u64,
    observer: Arc<dyn Observer>,
}

impl Run {
    fn run(&mut self) {
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        loop {
            self.wait(&mut events);
            for event in &events {
                self.on_event(event.data.u64());
            }
            if self.handler.deadline().is_some_and(|deadline| deadline <= Instant::now())
                && let Err((queue, error)) = self.handler.expired(&mut self.queues)
            {
                self.broke(queue, &error);
            }
            // A session queues its command first and sets the flag second. The flag is cleared before commands are taken, so a
            // command that is queued after the last `try_recv` sets it again, and its wake event ends the next wait. Cleared
            // afterwards, the flag of that command could be erased, and its session would wait until its deadline.
            if self.waker.pending.swap(false, Ordering::AcqRel) {
                while let Ok((command, answer)) = self.commands.try_recv() {
                    let Some(command) = command else { return };
                    // A session that does not wait any more has given this worker up.
                    let _ = answer.try_send(self.obey(command));
                }
            }
            self.serve();
            if events.iter().any(|event| (KICK..WAKE).contains(&event.data.u64())) {
                self.after_kick();
            }
        }
    }

    /// Leaves rings alone for a moment that are kicked again and again for nothing.
    fn after_kick(&mut self) {
        let taken = self.queues.taken();
        self.idle_kicks = if taken == self.taken { self.idle_kicks.saturating_add(1) } else { 0 };
        self.taken = taken;
        if self.idle_kicks > IDLE_KICKS_MAX {
            std::thread::sleep(POLL_PAUSE_MAX);
        }
    }

    /// Sleeps until something happens.
    fn wait(&mut self, events: &mut Vec<epoll::Event>) {
        events.clear();
        let timeout = self.timeout().map(|left| Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        match epoll::wait(self.queues.epoll(), rustix::buffer::spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => unreachable!("an epoll of ours can be waited for: {error}"),
        }
        for state in self.states.iter_mut().flatten() {
            state.ready |= matches!(state.kick, Kick::Polled) && !state.broken;
        }
    }

    fn timeout(&mut self) -> Option<Duration> {
        let live = || self.states.iter().flatten().filter(|state| !state.broken);
        if live().any(|state| state.ready) {
            return Some(Duration::ZERO);
        }
        let polled = live().any(|state| matches!(state.kick, Kick::Polled)).then(|| {
            // Each look that finds nothing makes the next pause longer.
            self.pause = (self.pause * 2).clamp(Duration::from_micros(20), POLL_PAUSE_MAX);
            self.pause
        });
        let deadline = self.handler.deadline().map(|at| at.saturating_duration_since(Instant::now()));
        polled.into_iter().chain(deadline).min()
    }

    fn on_event(&mut self, token: u64) {
        if token == WAKE {
            // Only this thread reads it.
            let _ = self.waker.event.take();
        } else if token >= KICK {
            let queue = (token - KICK) as u16;
            self.on_kick(queue);
        } else if let Err((queue, error)) = self.handler.ready(&mut self.queues, token) {
            self.broke(queue, &error);
        }
    }

    fn on_kick(&mut self, queue: u16) {
        let Some(state) = self.states.get_mut(usize::from(queue)).and_then(Option::as_mut) else { return };
        let Kick::Event(event) = &state.kick else { return };
        match event.take() {
            Ok(_) => self.kicked(queue),
            // A pipe whose other end is closed, or not an eventfd: it would always be ready.
            Err(_) if self.queues.is_ignored(queue, RingEvent::KickEnds) => {}
            Err(source) => {
                self.queues.unwatch(event);
                state.kick = Kick::Message;
                self.observer.event(&SessionEvent::KickLost { queue, error: &source });
                self.tell_error(queue);
            }
        }
    }

    fn kicked(&mut self, queue: u16) {
        self.observer.event(&SessionEvent::Kicked { queue });
        if !self.queues.is_ignored(queue, RingEvent::Kick) {
            self.look_at(queue);
        }
    }

    fn look_at(&mut self, queue: u16) {
        if let Some(Some(state)) = self.states.get_mut(usize::from(queue)) {
            state.ready = !state.broken;
        }
    }

    fn obey(&mut self, command: Command) -> Answer {
        match command {
            Command::Start(queue, kick, error) => self.start(*queue, kick, error),
            Command::Stop(queue) => Ok(self.stop(queue)),
            Command::Enable(queue, enabled) => {
                if let Some(found) = self.queues.get(queue) {
                    found.enabled = enabled;
                    // What the driver has kicked for while the ring was disabled is done now.
                    if !self.queues.is_ignored(queue, RingEvent::Enable) {
                        self.look_at(queue);
                    }
                }
                Ok(0)
            }
            Command::Kick(queue, kick) => self.set_kick(queue, kick).map(|()| 0),
            Command::Kicked(queue) => {
                self.kicked(queue);
                Ok(0)
            }
            Command::Call(queue, call) => {
                if let Some(found) = self.queues.get(queue) {
                    found.call = call;
                    // A call through the old descriptor may be lost; one call too many is harmless.
                    found.notify();
                }
                Ok(0)
            }
            Command::Error(queue, error) => {
                if let Some(Some(state)) = self.states.get_mut(usize::from(queue)) {
                    state.error = error;
                }
                Ok(0)
            }
            Command::Memory(memory) => self.set_memory(&memory),
            Command::Log(queue, (log, changed)) => {
                if let Some(found) = self.queues.get(queue) {
                    found.ring.set_log(log);
                    found.log_changed = changed;
                }
                Ok(0)
            }
        }
    }

    fn start(&mut self, queue: Queue, kick: Kick, error: Notify) -> Answer {
        let index = queue.index();
        let place = usize::from(index);
        if self.states.len() <= place {
            self.states.resize_with(place + 1, || None);
        }
        self.queues.insert(queue);
        self.states[place] = Some(State { kick: Kick::Message, error, ready: true, broken: false });
        let started = self.handler.started(&mut self.queues, index);
        let started = started.and_then(|()| self.overlook_start(index)).and_then(|()| self.set_kick(index, kick));
        if let Err(error) = started {
            self.stop(index);
            return Err(error);
        }
        Ok(0)
    }

    /// Takes the requests that are in a ring when it starts, and never returns them, if a mock is to do so.
    fn overlook_start(&mut self, queue: u16) -> Result<(), QueueError> {
        if self.queues.is_ignored(queue, RingEvent::Start)
            && let Some(found) = self.queues.get(queue)
        {
            let mut chain = Chain::new();
            while found.pop(&mut chain)? {}
        }
        Ok(())
    }

    fn stop(&mut self, queue: u16) -> u32 {
        let Some(Some(state)) = self.states.get_mut(usize::from(queue)).map(Option::take) else { return 0 };
        if let Kick::Event(event) = &state.kick {
            self.queues.unwatch(event);
            // A kick that came just before is the frontend's all the same. It stays in the event, for the next start.
            if wait_readable([event.as_fd()], Some(Duration::ZERO)).is_ok_and(|[kicked]| kicked) {
                self.observer.event(&SessionEvent::Kicked { queue });
            }
        }
        if !state.broken {
            self.handler.stopping(&mut self.queues, queue);
            if let Some(running) = self.queues.get(queue) {
                running.flush();
            }
        }
        let Some(stopped) = self.queues.remove(queue) else { return 0 };
        let base = stopped.base();
        if let Some(faults) = stopped.faults.clone() {
            faults.stopped(StoppedQueue::new(stopped));
        }
        base
    }

    fn set_kick(&mut self, queue: u16, kick: Kick) -> Result<(), QueueError> {
        let Some(Some(state)) = self.states.get_mut(usize::from(queue)) else { return Ok(()) };
        if let Kick::Event(event) = &state.kick {
            self.queues.unwatch(event);
        }
        state.kick = kick;
        // A kick by the old one may have been lost.
        state.ready = !state.broken;
        if let Kick::Event(event) = &state.kick
            && let Err(source) = self.queues.watch_any(event, KICK + u64::from(queue), EventFlags::IN)
        {
            state.kick = Kick::Message;
            self.observer.event(&SessionEvent::KickLost { queue, error: &source });
            self.tell_error(queue);
        }
        Ok(())
    }

    fn set_memory(&mut self, memory: &GuestMemory) -> Answer {
        for place in 0..self.states.len() {
            let queue = place as u16;
            let Some(found) = self.queues.get(queue) else { continue };
            if let Err(error) = found.ring.set_memory(memory.clone()) {
                self.broke(queue, &error);
                return Err(error);
            }
        }
        Ok(0)
    }

    /// Serves all queues that may have something, until they have nothing and some time has passed, or there is
    /// something else to do.
    fn serve(&mut self) {
        self.polling.begin();
        let mut rounds = 0;
        loop {
            let (mut worked, mut more, mut waiting) = (false, false, false);
            for place in 0..self.states.len() {
                let Some(State { ready: true, broken: false, .. }) = self.states[place] else { continue };
                let (did, work) = self.process(place as u16);
                worked |= did;
                more |= work == Work::More;
                waiting |= work == Work::Drained;
            }
            if more || self.waker.pending.load(Ordering::Acquire) {
                return;
            }
            if worked {
                self.pause = Duration::ZERO;
                self.polling.begin();
                rounds += 1;
                if rounds == ROUNDS_MAX {
                    return;
                }
                continue;
            }
            if waiting && self.polling.goes_on() {
                std::hint::spin_loop();
                continue;
            }
            if !self.rest() {
                return;
            }
        }
    }

    /// Enables kicks on all queues that were served. Returns whether one of them has more already.
    fn rest(&mut self) -> bool {
        let mut again = false;
        for place in 0..self.states.len() {
            let Some(State { ready: ready @ true, broken: false, kick, .. }) = &mut self.states[place] else {
                continue;
            };
            let is_polled = matches!(kick, Kick::Polled);
            let Some(queue) = self.queues.get(place as u16) else { continue };
            *ready = !is_polled && queue.enable_kicks();
            again |= *ready;
        }
        again
    }

    /// Has a queue served once. Returns whether anything was taken from it.
    fn process(&mut self, index: u16) -> (bool, Work) {
        let Some(queue) = self.queues.get(index) else { return (false, Work::Left) };
        queue.disable_kicks();
        let before = queue.taken();
        let done = if queue.is_enabled() {
            self.handler.process(&mut self.queues, index)
        } else {
            self.handler.discard(&mut self.queues, index)
        };
        let worked = match self.queues.get(index) {
            None => false,
            Some(queue) => {
                queue.flush();
                queue.taken() != before
            }
        };
        match done {
            Ok(work) => {
                if work == Work::Left
                    && let Some(Some(state)) = self.states.get_mut(usize::from(index))
                {
                    state.ready = false;
                }
                (worked, work)
            }
            Err(error) => {
                self.broke(index, &error);
                (worked, Work::Left)
            }
        }
    }

    /// A ring is inconsistent: it is not served from now on, and the frontend is notified. The error names the ring,
    /// since a handler may have looked at another than it was called for.
    fn broke(&mut self, queue: u16, error: &QueueError) {
        let told = error.ring().and_then(|ring| u16::try_from(ring).ok());
        let queue =
            told.filter(|ring| self.states.get(usize::from(*ring)).is_some_and(Option::is_some)).unwrap_or(queue);
        let Some(running) = self.queues.get(queue) else { return };
        running.is_broken = true;
        self.observer.event(&SessionEvent::RingBroke { queue, error });
        let Some(Some(state)) = self.states.get_mut(usize::from(queue)) else { return };
        state.ready = false;
        state.broken = true;
        if let Kick::Event(event) = &state.kick {
            self.queues.unwatch(event);
        }
        self.tell_error(queue);
    }

    fn tell_error(&self, queue: u16) {
        if let Some(Some(state)) = self.states.get(usize::from(queue)) {
            // A frontend that cannot be notified is about to end.
            let _ = state.error.tell(queue, Told::Error);
        }
    }
}
