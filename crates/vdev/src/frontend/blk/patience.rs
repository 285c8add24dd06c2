//! Whether to look for an answer or to sleep until one is announced.
//!
//! Looking saves the time it takes to be woken, which is most of a short request. On a processor that other threads
//! need as well it does harm: a thread that never sleeps is taken off it for milliseconds. So a thread that was away
//! while it looked sleeps for a while instead, each time longer.

use std::time::{Duration, Instant};

/// Looks at the ring between two looks at the clock.
pub(super) const LOOKS_PER_CLOCK: u32 = 64;
/// With more requests in flight than this, the thread does not look: their ends come in batches anyway, and each look delays one.
const LOOKING_MAX: u16 = 8;
/// Between two looks at the clock passes far less, unless the thread was taken off its processor.
const AWAY: Duration = Duration::from_micros(200);
/// How long a thread that was away does not look, the first time and at most.
const REST_MIN: Duration = Duration::from_millis(20);
const REST_MAX: Duration = Duration::from_millis(160);

/// When to look and when to sleep.
#[derive(Debug)]
pub(super) struct Patience {
    spin: Duration,
    rest: Duration,
    /// No looking before this.
    rested: Option<Instant>,
}

impl Patience {
    pub(super) const fn new(spin: Duration) -> Self {
        Self { spin, rest: REST_MIN, rested: None }
    }

    /// How long to look, with so many requests in flight: the more there are, the more complete at once, and a thread
    /// that sleeps leaves the processor to the backend.
    pub(super) fn looking_time(&self, now: Instant, outstanding: u16) -> Duration {
        match self.rested {
            Some(rested) if now < rested => Duration::ZERO,
            _ if outstanding > LOOKING_MAX => Duration::ZERO,
            _ => self.spin / u32::from(outstanding.max(1)),
        }
    }

    /// After some looks: was the thread away meanwhile?
    pub(super) fn looked(&mut self, before: Instant, now: Instant) {
        if now.duration_since(before) < AWAY {
            return;
        }
        // Soon after the last time it is the rule, long after it an exception.
        let often = self.rested.is_some_and(|rested| now.duration_since(rested) < self.rest);
        self.rest = if often { (self.rest * 2).min(REST_MAX) } else { REST_MIN };
        self.rested = Some(now + self.rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_was_away_rests_longer_each_time_and_forgets() {
        let spin = Duration::from_micros(100);
        let mut patience = Patience::new(spin);
        let mut now = Instant::now();
        let away = |patience: &mut Patience, now: &mut Instant| {
            let before = *now;
            *now += AWAY;
            patience.looked(before, *now);
        };
        assert_eq!(patience.looking_time(now, 1), spin);
        away(&mut patience, &mut now);
        assert_eq!(patience.looking_time(now, 1), Duration::ZERO);
        now += REST_MIN;
        assert_eq!(patience.looking_time(now, 4), spin / 4);
        away(&mut patience, &mut now);
        now += REST_MIN;
        assert_eq!(patience.looking_time(now, 1), Duration::ZERO);
        now += REST_MAX * 3;
        away(&mut patience, &mut now);
        now += REST_MIN;
        assert_eq!(patience.looking_time(now, 1), spin);
    }
}
