//! How fast one guest may ask.

use std::time::Instant;

/// Queries of one guest that wait for an answer at the same time. More get SERVFAIL.
pub const IN_FLIGHT_MAX: usize = 64;

/// Queries of one guest that are answered in a second, on average. More are dropped, and the guest asks again.
pub const QUERIES_PER_SECOND: u32 = 200;

/// Queries that may come at once.
pub const QUERIES_BURST: u32 = 400;

/// A bucket of tokens that fills with time. Each query takes one.
#[derive(Debug)]
pub(super) struct Rate {
    tokens: f64,
    filled: Instant,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { tokens: f64::from(QUERIES_BURST), filled: now }
    }

    /// Whether one more query is within the rate.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let grown = now.saturating_duration_since(self.filled).as_secs_f64() * f64::from(QUERIES_PER_SECOND);
        self.tokens = (self.tokens + grown).min(f64::from(QUERIES_BURST));
        self.filled = now;
        let is_within = self.tokens >= 1.0;
        if is_within {
            self.tokens -= 1.0;
        }
        is_within
    }
}
