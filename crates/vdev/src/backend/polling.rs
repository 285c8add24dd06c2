//! How long a worker without requests polls its rings before it sleeps.
//!
//! Between two requests of a driver that waits for each, polling is much faster than sleeping: no kick, no wake-up. It is slower
//! if other threads need the processor. A thread that polls uses up its time slice, and the scheduler then lets it wait
//! behind the others, for milliseconds. A thread that slept has time left and runs as soon as it is woken. The worker cannot
//! see the load of the host, but it sees its own clock: if much more time passes between two looks than a look takes, it was
//! not running in between. Then it stops polling for a while, and for longer each time, so that a busy host gets the
//! processor and an idle host loses little.
//!
//! Polling never decides whether a request is found. A worker that stops polling enables kicks and looks at its rings once more
//! before it sleeps, see "Sleeping and waking" in [`crate::queue`].

use std::time::{Duration, Instant};

/// Between two looks of a worker that runs passes less than this.
const GAP_MAX: Duration = Duration::from_micros(40);
/// How long looking is given up for at first, and at most.
const REST: Duration = Duration::from_millis(50);
const REST_MAX: Duration = Duration::from_secs(2);
/// After so long without a gap, the next one counts as the first.
const FORGET: Duration = Duration::from_secs(5);

/// Decides whether to look once more.
#[derive(Debug)]
pub(super) struct Polling {
    time: Duration,
    began: Option<Instant>,
    last: Option<Instant>,
    rest: Duration,
    rests_until: Option<Instant>,
}

impl Polling {
    /// Polls for so long; never, if there is only one processor.
    pub(super) fn new(time: Duration) -> Self {
        let is_alone = std::thread::available_parallelism().is_ok_and(|processors| processors.get() == 1);
        let time = if is_alone { Duration::ZERO } else { time };
        Self { time, began: None, last: None, rest: REST, rests_until: None }
    }

    /// Something was done: polling begins again.
    pub(super) const fn begin(&mut self) {
        self.began = None;
        self.last = None;
    }

    /// Whether to look once more.
    pub(super) fn goes_on(&mut self) -> bool {
        !self.time.is_zero() && self.goes_on_at(Instant::now())
    }

    fn goes_on_at(&mut self, now: Instant) -> bool {
        if let Some(until) = self.rests_until {
            if now < until {
                return false;
            }
            if now > until + FORGET {
                self.rests_until = None;
                self.rest = REST;
            }
        }
        if self.last.replace(now).is_some_and(|last| now - last > GAP_MAX) {
            self.rests_until = Some(now + self.rest);
            self.rest = (self.rest * 2).min(REST_MAX);
            return false;
        }
        now - *self.began.get_or_insert(now) < self.time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_ends_when_its_time_is_over_and_begins_again_after_work() {
        let mut polling = Polling { time: Duration::from_micros(50), ..Polling::new(Duration::ZERO) };
        let start = Instant::now();
        let at = |micros| start + Duration::from_micros(micros);
        assert!(polling.goes_on_at(at(0)) && polling.goes_on_at(at(30)));
        assert!(!polling.goes_on_at(at(60)));
        polling.begin();
        assert!(polling.goes_on_at(at(200)));
    }

    #[test]
    fn a_worker_that_did_not_run_while_it_polled_rests_longer_each_time() {
        let mut polling = Polling { time: Duration::from_micros(50), ..Polling::new(Duration::ZERO) };
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert!(polling.goes_on_at(at(0)));
        assert!(!polling.goes_on_at(at(3)), "a gap");
        polling.begin();
        assert!(!polling.goes_on_at(at(52)), "it rests");
        assert!(polling.goes_on_at(at(54)));
        assert!(!polling.goes_on_at(at(60)), "another gap");
        polling.begin();
        assert!(!polling.goes_on_at(at(155)), "it rests for longer");
        assert!(polling.goes_on_at(at(165)));
    }

    #[test]
    fn without_a_time_there_is_no_polling() {
        assert!(!Polling::new(Duration::ZERO).goes_on());
    }
}
