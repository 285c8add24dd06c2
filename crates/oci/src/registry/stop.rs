//! Ends a pull from outside: by the caller, at its deadline, or when a part of it failed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Why a pull ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The caller ended it.
    Cancelled,
    /// It took too long.
    Deadline,
    /// Another part of it failed.
    Failed,
}

/// Shared by all threads of a pull.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    is_stopped: AtomicBool,
    reason: Mutex<Option<Reason>>,
    changed: Condvar,
}

impl Stop {
    /// Ends the pull. Only the first reason counts.
    pub(crate) fn stop(&self, reason: Reason) {
        let mut first = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(reason);
        self.is_stopped.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    pub(crate) fn reason(&self) -> Option<Reason> {
        if !self.is_stopped.load(Ordering::Acquire) {
            return None;
        }
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits. Returns the reason if the pull ends meanwhile.
    pub(crate) fn wait(&self, time: Duration) -> Option<Reason> {
        let end = Instant::now() + time;
        let mut reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        while reason.is_none() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            reason = self.changed.wait_timeout(reason, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *reason
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_when_the_pull_is_stopped() {
        let stop = Stop::default();
        assert_eq!(stop.wait(Duration::from_millis(1)), None);
        let reason = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| stop.wait(Duration::from_secs(3600)));
            stop.stop(Reason::Deadline);
            stop.stop(Reason::Failed);
            waiting.join().expect("does not panic")
        });
        assert_eq!((reason, stop.reason()), (Some(Reason::Deadline), Some(Reason::Deadline)));
    }
}
