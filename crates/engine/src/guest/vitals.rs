//! Finds out whether a silent guest is still alive.
//!
//! ```text
//!   ping every 5 s ── answered ──▶ it lives
//!        └─ not within 2 s ─▶ look: its CPUs and the host ─▶ ping …
//!                               │ twice: halted for good          ▶ Over::Halted
//!                               └ silent for 30 s that were its own ▶ Over::Silent
//! ```
//! A busy guest must not be taken for a dead one. When CPU time is scarce, its agent gets most of it, and no program
//! can take the agent's memory. So it answers in milliseconds even beside fork bombs. The agent can't help if the host
//! gives the VM no CPU. So time in which the VM's threads waited for a CPU does not count as silence, up to a bound.
//! Time in which Kiln itself did not run must not count either: after a suspend of the host, all clocks jump at once.
//! So the checks are counted, not the time between them.

use std::time::Duration;

use kiln_detect::Kind;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::watch::{Gone, Watch};
use crate::link::GuestLink;
use crate::vm::{Cpus, Pulse, Vm};

/// Pause between two pings of a guest that answers.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// After this long without an answer, the guest is checked.
const LOOK: Duration = Duration::from_secs(2);
/// Silence after which a guest is over, without time that the host took from it.
pub const SILENCE_DEADLINE: Duration = Duration::from_secs(30);
/// Silence after which it is over in any case.
pub const SILENCE_MAX: Duration = Duration::from_secs(300);
/// Checks in a row that have to find every CPU halted. One check alone could hit the moment in which a CPU goes
/// offline.
const HALTED_LOOKS: u32 = 2;

/// Why a guest is over although its VMM still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// All of its CPUs are halted with their interrupts off.
    Halted,
    /// Its agent has not answered for this long.
    Silent(Duration),
}

impl Over {
    /// Kind and title of the finding: the same for every guest that ends like this.
    fn finding(self) -> (Kind, &'static str) {
        match self {
            Self::Halted => (Kind::Halted, "guest halted: all its CPUs are halted with interrupts off"),
            Self::Silent(_) => (Kind::Silent, "guest silent: its agent does not answer"),
        }
    }
}

impl From<Over> for Gone {
    fn from(over: Over) -> Self {
        match over {
            Over::Halted => Self::Halted,
            Over::Silent(time) => Self::Silent(time),
        }
    }
}

/// The result of one check of a silent guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    cpus: Cpus,
    /// The part of the check in which the host had no CPU for it.
    starved: Duration,
}

/// The state of a silent guest.
#[derive(Debug, Default)]
struct Silence {
    total: Duration,
    starved: Duration,
    halted: u32,
}

impl Silence {
    /// Adds the result of a check that took [`LOOK`]. Returns a reason once the guest is over.
    fn add(&mut self, look: Look) -> Option<Over> {
        if look.cpus == Cpus::Paused {
            *self = Self::default();
            return None;
        }
        self.total += LOOK;
        self.starved += look.starved.min(LOOK);
        self.halted = if look.cpus == Cpus::Halted { self.halted + 1 } else { 0 };
        if self.halted >= HALTED_LOOKS {
            return Some(Over::Halted);
        }
        let over = self.total.saturating_sub(self.starved) >= SILENCE_DEADLINE || self.total >= SILENCE_MAX;
        over.then_some(Over::Silent(self.total))
    }
}

/// The watch on one guest. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Vitals {
    over: watch::Receiver<Option<Over>>,
    task: JoinHandle<()>,
}

impl Vitals {
    /// Starts to watch. If the guest is over, that is recorded in `noted` before [`over`](Self::over) returns.
    pub(super) fn watch(vm: &Vm, link: &GuestLink, noted: &Watch) -> Self {
        let (sender, over) = watch::channel(None);
        let (pulse, link, noted) = (vm.pulse(), link.clone(), noted.clone());
        let task = tokio::spawn(async move {
            let over = watched(&pulse, &link).await;
            let (kind, title) = over.finding();
            noted.note_over(kind, title);
            sender.send_replace(Some(over));
        });
        Self { over, task }
    }

    /// Waits until the guest is over. Safe to cancel.
    pub(super) async fn over(&self) -> Over {
        let mut over = self.over.clone();
        let seen = over.wait_for(Option::is_some).await.map(|over| *over);
        match seen {
            Ok(over) => over.expect("it was waited for"),
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Vitals {
    fn drop(&mut self) {
        // The task holds a handle to the link, so the link would not end on its own.
        self.task.abort();
    }
}

/// Never returns if the link is lost: the streams on it report that.
async fn watched(pulse: &Pulse, link: &GuestLink) -> Over {
    loop {
        sleep(PING_INTERVAL).await;
        let mut silence = Silence::default();
        let mut waited = pulse.waited_for_a_cpu().await;
        while link.ping_within(LOOK).await.is_err() {
            if link.is_lost() {
                return std::future::pending().await;
            }
            let now = pulse.waited_for_a_cpu().await;
            let cpus = pulse.cpus(LOOK).await;
            if let Some(over) = silence.add(Look { cpus, starved: now.saturating_sub(waited) }) {
                return over;
            }
            if cpus == Cpus::Paused {
                // Pings would only pile up for a guest that is paused.
                while pulse.cpus(LOOK).await == Cpus::Paused {
                    sleep(PING_INTERVAL).await;
                }
            }
            waited = pulse.waited_for_a_cpu().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Look = Look { cpus: Cpus::Running, starved: Duration::ZERO };

    fn looks(look: Look) -> (usize, Over) {
        let mut silence = Silence::default();
        let over = (1..1000).find_map(|count| silence.add(look).map(|over| (count, over)));
        over.expect("every silence has an end")
    }

    #[test]
    fn a_silent_guest_is_over_at_the_deadline() {
        let (count, over) = looks(BUSY);
        assert_eq!(
            (LOOK * u32::try_from(count).expect("few"), over),
            (SILENCE_DEADLINE, Over::Silent(SILENCE_DEADLINE))
        );
    }

    #[test]
    fn a_guest_that_the_host_starves_gets_more_time_but_not_forever() {
        let (_, over) = looks(Look { starved: LOOK / 2, ..BUSY });
        assert_eq!(over, Over::Silent(2 * SILENCE_DEADLINE));
        let (_, over) = looks(Look { starved: 8 * LOOK, ..BUSY });
        assert_eq!(over, Over::Silent(SILENCE_MAX), "threads of several CPUs wait for more than the time that passes");
    }

    #[test]
    fn a_halted_guest_is_over_at_the_second_look() {
        assert_eq!(looks(Look { cpus: Cpus::Halted, ..BUSY }), (2, Over::Halted));
    }

    #[test]
    fn a_guest_that_is_paused_is_not_silent() {
        let mut silence = Silence::default();
        for _ in 0..10 {
            assert_eq!(silence.add(BUSY), None);
        }
        assert_eq!(silence.add(Look { cpus: Cpus::Paused, ..BUSY }), None);
        assert_eq!((silence.total, silence.halted), (Duration::ZERO, 0));
    }
}
