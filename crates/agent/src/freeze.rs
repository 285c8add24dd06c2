//! Freezing: every command stands still while a snapshot is made, and in a fork of it until the fork has an identity of
//! its own.
//!
//! ```text
//!            Freeze                 all drivers loaded, no child between clone and execve, the kernel says `frozen`
//!   Thawed ─────────▶ Freezing ───────────────────────────────────────────────────────────────────────▶ Frozen
//!      ▲                 │ deadline, cancel, loss of the link                                               │
//!      └─────────────────┴─────────────────────────── Thaw, Sync ───────────────────────────────────────────┘
//! ```
//!
//! A link that ends changes nothing once the guest is frozen. Commands that are asked for meanwhile wait, in order: a
//! child born into a frozen control group would never come to its execve, and the agent's thread stands still until
//! then. Whoever is frozen can still be killed.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use kiln_wire::{Done, ErrorCode, Fault, Message};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::agent::Agent;
use crate::exec::cancelled;
use crate::link::{End, Stream};
use crate::log::note;
use crate::process::cgroup::Cgroups;
use crate::tally::{Counted, Tally};

/// How long commands may take to stand still. One that hangs inside the kernel keeps the guest from being frozen.
const FREEZE_DEADLINE: Duration = Duration::from_secs(2);
/// First wait between two looks. The kernel would tell, but no more often than each 10 ms, so looking is faster …
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// … and the wait is doubled up to this.
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(20);

/// Whether commands may run.
#[derive(Debug, Default)]
pub struct Freezer {
    state: Cell<State>,
    attempts: Cell<u64>,
    thawed: Notify,
    /// Children that were cloned and did not come to their execve yet.
    births: Tally,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Thawed,
    /// By the attempt of this number.
    Freezing(u64),
    Frozen,
}

/// Serves `Freeze` to its end.
pub async fn freeze(agent: Rc<Agent>, stream: Stream) {
    let outcome = tokio::select! {
        biased;
        end = stream.inbox.ended() => Err(if let End::Fault(fault) = end { fault } else { cancelled() }),
        outcome = agent.freezer().freeze(&agent) => outcome,
    };
    answer(&stream, outcome);
}

/// Serves `Thaw` to its end. A guest that is not frozen, or can't be, has nothing to thaw.
pub async fn thaw(agent: Rc<Agent>, stream: Stream) {
    answer(&stream, agent.freezer().thaw(agent.cgroups()));
}

fn answer(stream: &Stream, outcome: Result<(), Fault>) {
    match outcome {
        Ok(()) => stream.outlet.end(&Message::Done(Done::default())),
        Err(fault) => stream.outlet.fail(fault),
    }
}

impl Freezer {
    /// Whether commands stand still, or are about to.
    pub fn is_closed(&self) -> bool {
        self.state.get() != State::Thawed
    }

    /// Waits until commands may start. What it gives back is to be held until the child is past its execve.
    pub async fn pass(&self) -> Counted {
        while self.is_closed() {
            self.thawed.notified().await;
        }
        self.births.one()
    }

    /// Stops every command. A guest that is frozen already stays so.
    ///
    /// # Errors
    /// There are no control groups, a command does not stand still in time, or somebody thaws meanwhile. Commands go on
    /// then.
    pub async fn freeze(&self, agent: &Agent) -> Result<(), Fault> {
        let Some(cgroups) = agent.cgroups() else {
            return Err(Fault::new(ErrorCode::Unsupported, "nothing can be frozen without control groups"));
        };
        match self.state.get() {
            State::Frozen => return Ok(()),
            State::Freezing(_) => return Err(Fault::new(ErrorCode::Busy, "the guest is being frozen already")),
            State::Thawed => {}
        }
        let attempt = Attempt::new(self, cgroups);
        // What is loaded before the snapshot is there in each fork.
        agent.all_drivers().await?;
        let settled = timeout(FREEZE_DEADLINE, attempt.settle()).await;
        settled.map_err(|_| {
            let words = format!("a command did not stand still within {FREEZE_DEADLINE:?}");
            Fault::new(ErrorCode::TimedOut, words)
        })?
    }

    /// Lets commands go on, those that wait to start too.
    ///
    /// # Errors
    /// The kernel refuses; commands still stand then.
    pub fn thaw(&self, cgroups: Option<&Cgroups>) -> Result<(), Fault> {
        if let (true, Some(cgroups)) = (self.is_closed(), cgroups) {
            cgroups.thaw().map_err(|error| failed("thaw", &error))?;
            self.state.set(State::Thawed);
            self.thawed.notify_waiters();
        }
        Ok(())
    }
}

/// One try to freeze. Dropping it thaws, unless it came to its end.
struct Attempt<'a> {
    freezer: &'a Freezer,
    cgroups: &'a Cgroups,
    number: u64,
}

impl<'a> Attempt<'a> {
    fn new(freezer: &'a Freezer, cgroups: &'a Cgroups) -> Self {
        let number = freezer.attempts.get() + 1;
        freezer.attempts.set(number);
        freezer.state.set(State::Freezing(number));
        Self { freezer, cgroups, number }
    }

    async fn settle(&self) -> Result<(), Fault> {
        self.until(|| Ok(self.freezer.births.count() == 0)).await?;
        self.cgroups.freeze().map_err(|error| failed("freeze", &error))?;
        self.until(|| self.cgroups.is_frozen().map_err(|error| failed("freeze", &error))).await?;
        self.freezer.state.set(State::Frozen);
        Ok(())
    }

    async fn until(&self, reached: impl Fn() -> Result<bool, Fault>) -> Result<(), Fault> {
        let mut wait = LOOK_AGAIN;
        loop {
            if !self.goes_on() {
                return Err(Fault::new(ErrorCode::Cancelled, "the guest was thawed before it was frozen"));
            }
            if reached()? {
                return Ok(());
            }
            sleep(wait).await;
            wait = (wait * 2).min(LOOK_AGAIN_MAX);
        }
    }

    fn goes_on(&self) -> bool {
        self.freezer.state.get() == State::Freezing(self.number)
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.goes_on()
            && let Err(fault) = self.freezer.thaw(Some(self.cgroups))
        {
            note(fault.message);
        }
    }
}

fn failed(what: &str, error: &io::Error) -> Fault {
    Fault::new(ErrorCode::Io, format!("can't {what} the guest's commands: {error}"))
}
