//! Tries again after faults that may pass: each time later, at a time that differs between clients.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use super::error::PullError;
use super::options::RetryOptions;
use super::stop::Stop;

/// The longest wait between two attempts, unless the server requires a longer one.
const DELAY_MAX: Duration = Duration::from_secs(30);

/// Counts attempts, and waits between them.
#[derive(Debug)]
pub(crate) struct Retry<'a> {
    options: &'a RetryOptions,
    stop: &'a Stop,
    failed: u32,
}

impl<'a> Retry<'a> {
    pub(crate) fn new(options: &'a RetryOptions, stop: &'a Stop) -> Self {
        Self { options, stop, failed: 0 }
    }

    /// An attempt got further than the one before.
    pub(crate) fn progress(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt. Returns the error if there is none.
    pub(crate) fn after(&mut self, error: PullError) -> Result<(), PullError> {
        self.failed += 1;
        let required = match &error {
            PullError::RateLimited { after, .. } => *after,
            _ => None,
        };
        let is_too_long = required.is_some_and(|required| required > self.options.retry_after_max);
        if !error.is_transient() || self.failed >= self.options.attempts || is_too_long {
            return Err(error);
        }
        let doubled = self.options.first_delay.saturating_mul(1 << (self.failed - 1).min(16)).min(DELAY_MAX);
        let delay = vary(doubled, random()).max(required.unwrap_or_default());
        // The error of a pull that was stopped is made where the pull is watched.
        if self.stop.wait(delay).is_some() { Err(error) } else { Ok(()) }
    }

    /// Runs something until it succeeds or fails for good.
    pub(crate) fn run<T>(&mut self, mut attempt: impl FnMut() -> Result<T, PullError>) -> Result<T, PullError> {
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(error) => self.after(error)?,
            }
        }
    }
}

/// Between half and one and a half of a delay. Clients that failed at the same moment do not come back at the same one.
fn vary(delay: Duration, random: u32) -> Duration {
    delay.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX))
}

/// The standard library seeds its hash tables at random; that is random enough for a delay.
fn random() -> u32 {
    let number = RandomState::new().build_hasher().finish();
    u32::try_from(number >> 32).expect("has 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> RetryOptions {
        RetryOptions { attempts: 3, first_delay: Duration::from_millis(1), retry_after_max: Duration::from_secs(1) }
    }

    fn fault(status: u16) -> PullError {
        PullError::Status { server: "x".to_owned(), status, message: String::new() }
    }

    fn attempts(error: impl Fn() -> PullError) -> u32 {
        let (options, stop, mut count) = (options(), Stop::default(), 0);
        let outcome: Result<(), _> = Retry::new(&options, &stop).run(|| {
            count += 1;
            Err(error())
        });
        outcome.expect_err("never succeeds");
        count
    }

    #[test]
    fn only_faults_that_may_pass_are_tried_again() {
        assert_eq!(attempts(|| fault(503)), 3);
        assert_eq!(attempts(|| fault(404)), 1);
        let limited = |after| PullError::RateLimited { server: "x".to_owned(), after, message: String::new() };
        assert_eq!(attempts(|| limited(None)), 3);
        assert_eq!(attempts(|| limited(Some(Duration::from_secs(3600)))), 1, "the user decides");
    }

    #[test]
    fn progress_gives_new_attempts() {
        let (options, stop) = (options(), Stop::default());
        let mut retry = Retry::new(&options, &stop);
        for _ in 0..10 {
            retry.after(fault(503)).expect("there was progress");
            retry.progress();
        }
    }

    #[test]
    fn delays_vary_by_half() {
        let second = Duration::from_secs(1);
        assert_eq!(vary(second, 0), Duration::from_millis(500));
        assert_eq!(vary(second, u32::MAX), Duration::from_millis(1500));
    }
}
