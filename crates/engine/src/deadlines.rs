//! How long each step between a host and a guest may take, all in one place.
//!
//! ```text
//!   boot timeout   VMM ─ marker ─ hello ─ token ─ sync ─▶│
//!   run timeout                                          │─ files in ─ started ─ command ─ files out ─▶│
//!   if the command reaches it                            │─ files in ─ started ─ command ──────────────│─ SIGTERM ─ grace ─ SIGKILL ─ files out ─▶ OVERTIME
//! ```
//! A bound is a point in time and never "so long since something moved": a guest that sends a byte a second is as late as
//! one that sends nothing. A step that the user did not bound has a bound here, but for the command itself. A guest that
//! is no longer there ends that, see [`Guest::gone`](crate::Guest::gone).

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// From the request for a VM to its agent's answer, and in a fork to its own clock and names, if no other is requested
/// bound.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(60);
/// From the moment in which the CPUs of a guest go on that stood still, to its having the time.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(30);
/// From the request for a command to the report that it has started. An agent needs milliseconds.
pub const START_DEADLINE: Duration = Duration::from_secs(60);
/// From a signal or a cancel to the agent's word that it has arrived.
pub const SIGNAL_DEADLINE: Duration = Duration::from_secs(2);
/// What is left to a run whose command was ended, for the files that it left. Its VM ends with it.
pub const OVERTIME: Duration = Duration::from_secs(5);
/// How long a guest may move nothing of a copy, and how long too little.
pub const COPY_CREDIT: Duration = Duration::from_secs(30);
/// Less than this is too little. Under TCG on a busy host a guest moves a thousand times as much.
const COPY_BYTES_PER_SECOND: u64 = 64 << 10;

/// The time of one run, from when its VM is there.
#[derive(Debug, Clone, Copy)]
pub struct RunClock {
    began: Instant,
    timeout: Option<Duration>,
    grace: Duration,
}

impl RunClock {
    /// Starts now. `grace` is what a command gets between SIGTERM and SIGKILL.
    pub fn start(timeout: Option<Duration>, grace: Duration) -> Self {
        Self { began: Instant::now(), timeout, grace }
    }

    /// What is left; `None` if there is no bound.
    pub fn left(&self) -> Option<Duration> {
        self.until(Duration::ZERO)
    }

    /// Whether the time is up.
    pub fn is_up(&self) -> bool {
        self.left().is_some_and(|left| left.is_zero())
    }

    /// Waits until the time is up.
    pub async fn up(&self) {
        self.after(Duration::ZERO).await;
    }

    /// Waits until a command that was asked to end has been killed, and the files that it left have had their time.
    pub async fn overdue(&self) {
        self.after(self.grace.saturating_add(OVERTIME)).await;
    }

    async fn after(&self, more: Duration) {
        match self.until(more) {
            Some(left) => sleep(left).await,
            None => std::future::pending().await,
        }
    }

    fn until(&self, more: Duration) -> Option<Duration> {
        self.timeout.map(|timeout| timeout.saturating_add(more).saturating_sub(self.began.elapsed()))
    }
}

/// A guest moved too little of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest moved less than {COPY_BYTES_PER_SECOND} bytes a second for {COPY_CREDIT:?}")]
pub struct TooSlow;

/// How fast a guest takes or gives the bytes of one copy: waiting uses credit up, and bytes earn it. Only time in which the
/// guest is waited for counts, because a slow disk of the host is not its fault.
#[derive(Debug)]
pub struct Pace {
    credit: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { credit: COPY_CREDIT }
    }
}

impl Pace {
    /// Waits for the guest, for as long as its pace so far allows. Safe to cancel if `guest` is.
    ///
    /// # Errors
    /// It is too slow.
    pub async fn wait<T>(&mut self, guest: impl Future<Output = T>) -> Result<T, TooSlow> {
        let from = Instant::now();
        let outcome = timeout(self.credit, guest).await;
        self.spend(from.elapsed());
        outcome.map_err(|_| TooSlow)
    }

    fn spend(&mut self, waited: Duration) {
        self.credit = self.credit.saturating_sub(waited);
    }

    /// The guest took or gave so many bytes.
    pub fn moved(&mut self, bytes: usize) {
        let earned = Duration::from_secs_f64(bytes as f64 / COPY_BYTES_PER_SECOND as f64);
        self.credit = self.credit.saturating_add(earned).min(COPY_CREDIT);
    }

    /// All bytes have moved, and the guest has to say so: it may have to write them first.
    pub fn finish(&mut self) {
        self.credit = COPY_CREDIT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Seconds until a guest that moves so many bytes each second has no credit left, at most a day.
    fn lasts(pace: &mut Pace, bytes: usize) -> u64 {
        let over = (1..24 * 3600).find(|_| {
            pace.spend(SECOND);
            let is_over = pace.credit.is_zero();
            pace.moved(bytes);
            is_over
        });
        over.unwrap_or(u64::MAX)
    }

    #[test]
    fn a_guest_that_moves_a_byte_a_second_is_as_late_as_one_that_stalls() {
        for first in [0, 1 << 40] {
            for dribble in [0, 1] {
                let mut pace = Pace::default();
                pace.moved(first);
                let lasted = lasts(&mut pace, dribble);
                assert!(lasted >= COPY_CREDIT.as_secs() && lasted <= COPY_CREDIT.as_secs() + 1, "{lasted}");
            }
        }
    }

    #[test]
    fn a_guest_that_keeps_the_rate_may_take_as_long_as_it_needs() {
        assert_eq!(lasts(&mut Pace::default(), 64 << 10), u64::MAX);
        assert!(lasts(&mut Pace::default(), 60 << 10) < 1000, "one that is a little slower may not");
    }

    #[test]
    fn the_end_of_a_copy_has_its_own_time() {
        let mut pace = Pace::default();
        pace.spend(COPY_CREDIT - SECOND);
        pace.finish();
        assert_eq!(pace.credit, COPY_CREDIT);
    }

    #[tokio::test]
    async fn a_wait_ends_when_the_credit_does() {
        let mut pace = Pace { credit: Duration::from_millis(50) };
        pace.wait(std::future::ready(())).await.expect("it was there at once");
        assert_eq!(pace.wait(std::future::pending::<()>()).await, Err(TooSlow));
    }

    #[tokio::test]
    async fn a_run_has_two_ends_and_one_without_a_bound_has_none() {
        let grace = Duration::from_secs(2);
        let clock = RunClock::start(Some(Duration::from_millis(20)), grace);
        let from = Instant::now();
        clock.up().await;
        assert!(clock.is_up() && from.elapsed() < SECOND);
        let left = clock.until(grace + OVERTIME).expect("it has a bound");
        assert!(left > grace + OVERTIME - SECOND && left <= grace + OVERTIME, "{left:?}");
        let endless = RunClock::start(None, grace);
        assert_eq!((endless.left(), endless.until(grace), endless.is_up()), (None, None, false));
        let longest = RunClock::start(Some(Duration::MAX), Duration::MAX);
        timeout(Duration::from_millis(20), longest.overdue()).await.expect_err("nor does this come to an end");
    }
}
