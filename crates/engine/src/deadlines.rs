//! The deadlines of all steps between host and guest.
//!
//! ```text
//!   boot timeout    VMM ─ marker ─ hello ─ token ─ sync ─▶│
//!   run timeout     │─ files in ─ started ─ command ─ files out ─▶│
//!   if the command  │─ files in ─ started ─ command ──────────────│─ SIGTERM ─ grace ─ SIGKILL ─ files out ─▶ OVERTIME
//!   reaches it
//! ```
//! A deadline is a point in time, never a time since the last progress: with the latter, a guest that sends one byte
//! each second would never be late. Every step has a deadline, from the user or from here. The only exception is the
//! command itself. If the guest crashes, halts or becomes silent, [`Guest::gone`](crate::Guest::gone) ends it.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// From the request for a VM to the answer of its agent, and for a fork until it has its own clock and names. The
/// default if the user gives no boot timeout.
pub const BOOT_DEADLINE: Duration = Duration::from_secs(60);
/// From the resume of a paused guest until its clock is set.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(30);
/// From the request for a command to the report that it has started. An agent needs milliseconds.
pub const START_DEADLINE: Duration = Duration::from_secs(60);
/// From a signal or a cancel to the agent's reply.
pub const SIGNAL_DEADLINE: Duration = Duration::from_secs(2);
/// The time for copying files out of the guest after the run timeout has ended the command.
pub const OVERTIME: Duration = Duration::from_secs(5);
/// How long a guest may copy nothing, or less than the rate below.
pub const COPY_CREDIT: Duration = Duration::from_secs(30);
/// The least rate of a copy. Under TCG on a busy host a guest is a thousand times as fast.
const COPY_BYTES_PER_SECOND: u64 = 64 << 10;

/// The clock of one run. It starts when the VM is ready.
#[derive(Debug, Clone, Copy)]
pub struct RunClock {
    began: Instant,
    timeout: Option<Duration>,
    grace: Duration,
}

impl RunClock {
    /// Starts now. `grace` is the time between SIGTERM and SIGKILL.
    pub fn start(timeout: Option<Duration>, grace: Duration) -> Self {
        Self { began: Instant::now(), timeout, grace }
    }

    /// The time that is left. `None` if the run has no timeout.
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

    /// Waits until the timeout, the grace and the overtime have passed.
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

/// A guest copied too slowly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the guest copied less than {COPY_BYTES_PER_SECOND} bytes a second for {COPY_CREDIT:?}")]
pub struct TooSlow;

/// The pace of one copy to or from a guest.
///
/// A fixed deadline does not fit a copy, whose length is unknown, and a deadline for each read would accept one byte
/// each time. So a copy has a credit of time. Waiting for the guest spends it, and bytes earn it back at the least
/// rate, up to the full credit. A guest that keeps the rate never runs out, however long the copy is. One that is
/// slower runs out after [`COPY_CREDIT`] at the latest if it sends next to nothing, whatever it sent before. Only time
/// in which the host waits for the guest is spent, because a slow disk of the host is not the guest's fault.
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
    /// Waits for the guest, at most as long as the credit. Safe to cancel if `guest` is.
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

    /// Adds the credit for bytes that the guest copied.
    pub fn moved(&mut self, bytes: usize) {
        let earned = Duration::from_secs_f64(bytes as f64 / COPY_BYTES_PER_SECOND as f64);
        self.credit = self.credit.saturating_add(earned).min(COPY_CREDIT);
    }

    /// Restores the full credit for the end of the copy: the guest reports the end only after it has written all bytes.
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
    fn a_guest_that_copies_a_byte_a_second_is_as_late_as_a_stalled_one() {
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
    fn a_guest_that_keeps_the_rate_is_never_late() {
        assert_eq!(lasts(&mut Pace::default(), 64 << 10), u64::MAX);
        assert!(lasts(&mut Pace::default(), 60 << 10) < 1000, "one that is a little slower may not");
    }

    #[test]
    fn the_end_of_a_copy_has_the_full_credit() {
        let mut pace = Pace::default();
        pace.spend(COPY_CREDIT - SECOND);
        pace.finish();
        assert_eq!(pace.credit, COPY_CREDIT);
    }

    #[tokio::test]
    async fn a_wait_ends_when_the_credit_is_spent() {
        let mut pace = Pace { credit: Duration::from_millis(50) };
        pace.wait(std::future::ready(())).await.expect("it is ready at once");
        assert_eq!(pace.wait(std::future::pending::<()>()).await, Err(TooSlow));
    }

    #[tokio::test]
    async fn a_run_has_a_timeout_and_an_overtime_and_one_without_a_timeout_has_neither() {
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
