//! One client: its cycles, one after the other, and what it counts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::cycle::{CycleKind, Outcome, Surroundings};
use super::report::{FAILURES_TOLD, Failure, KindReport};
use crate::bench::Histogram;
use crate::random::Random;

/// How long a backend may be away before a client gives up.
const GONE_MAX: Duration = Duration::from_secs(2);
/// How long a client waits before it looks for a backend again that was not there.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// What clients have counted.
#[derive(Debug)]
pub(super) struct Tally {
    pub kinds: [KindReport; CycleKind::ALL.len()],
    pub handshake: Histogram,
    pub failures: Vec<Failure>,
    /// Whether all cycles were done.
    pub finished: bool,
}

impl Default for Tally {
    fn default() -> Self {
        let kinds = CycleKind::ALL.map(|kind| KindReport { kind, cycles: 0, not_served: 0, failed: 0 });
        Self { kinds, handshake: Histogram::default(), failures: Vec::new(), finished: true }
    }
}

impl Tally {
    pub(super) fn add(&mut self, other: Self) {
        for (kind, more) in self.kinds.iter_mut().zip(other.kinds) {
            kind.cycles += more.cycles;
            kind.not_served += more.not_served;
            kind.failed += more.failed;
        }
        self.handshake.merge(&other.handshake);
        self.failures.extend(other.failures);
        self.failures.truncate(FAILURES_TOLD);
        self.finished &= other.finished;
    }

    fn failed(&mut self, failure: Failure) {
        self.kind(failure.kind).failed += 1;
        if self.failures.len() < FAILURES_TOLD {
            self.failures.push(failure);
        }
    }

    fn kind(&mut self, kind: CycleKind) -> &mut KindReport {
        self.kinds.iter_mut().find(|report| report.kind == kind).expect("all kinds are there")
    }
}

/// Does the cycles of one client, until it is done, the time is over, or the backend does not come back.
pub(super) fn run(
    surroundings: &Surroundings<'_>,
    (client, cycles): (u32, u32),
    seed: u64,
    deadline: Instant,
    stop: &AtomicBool,
) -> Tally {
    let mut tally = Tally::default();
    let mut random = Random::part(seed, client.into());
    let mut gone_since: Option<Instant> = None;
    for cycle in 0..cycles {
        if stop.load(Ordering::Relaxed) || Instant::now() >= deadline {
            tally.finished = false;
            break;
        }
        let kind = CycleKind::choose(&mut random, surroundings.kinds);
        let outcome = surroundings.run(kind, &mut random);
        tally.kind(kind).cycles += 1;
        if !matches!(outcome, Outcome::Gone) {
            gone_since = None;
        }
        match outcome {
            Outcome::Served(handshake) => {
                if let Some(handshake) = handshake {
                    tally.handshake.record(handshake);
                }
            }
            Outcome::NotServed => tally.kind(kind).not_served += 1,
            Outcome::Failed(error) => {
                tally.failed(Failure { client, cycle, kind, error: whole(&error) });
            }
            Outcome::Gone => {
                let since = *gone_since.get_or_insert_with(Instant::now);
                if since.elapsed() < GONE_MAX {
                    tally.kind(kind).not_served += 1;
                    std::thread::sleep(RETRY_INTERVAL);
                    continue;
                }
                let error = "the backend does not listen any more".to_owned();
                tally.failed(Failure { client, cycle, kind, error });
                tally.finished = false;
                break;
            }
        }
    }
    tally
}

/// An error with all that caused it.
pub(super) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}
