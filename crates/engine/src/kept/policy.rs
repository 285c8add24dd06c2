//! When a kept VM cools down.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often a VM is checked: a part of the shortest time in its policy, within these bounds.
const LOOK_MIN: Duration = Duration::from_millis(100);
const LOOK_MAX: Duration = Duration::from_secs(5);
/// Checks within the shortest time.
const LOOKS: u32 = 4;
/// The share of one CPU above which a guest is busy. An idle guest whose agent is asked now and then takes 1 or 2 %.
const BUSY_CPU_PERCENT: u32 = 10;

/// How far a VM is from running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Temperature {
    /// A snapshot on disk, no process.
    Cold,
    /// A process whose CPUs are paused.
    Warm,
    /// It runs.
    Hot,
}

/// When an idle VM cools down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepPolicy {
    /// After being idle for this long, its CPUs are paused. Never if absent.
    pub idle_to_warm: Option<Duration>,
    /// After being idle for this long, it is saved and its process ends. Never if absent.
    pub idle_to_cold: Option<Duration>,
    /// It stays hot, even if it is idle.
    pub keep_hot: bool,
    /// The share of one CPU above which the guest is busy.
    pub busy_cpu_percent: u32,
}

impl Default for KeepPolicy {
    fn default() -> Self {
        Self { idle_to_warm: None, idle_to_cold: None, keep_hot: false, busy_cpu_percent: BUSY_CPU_PERCENT }
    }
}

impl KeepPolicy {
    /// The temperature for a VM that was idle for this long.
    pub(super) fn wanted(&self, idle: Duration) -> Temperature {
        let over = |wait: Option<Duration>| !self.keep_hot && wait.is_some_and(|wait| idle >= wait);
        match (over(self.idle_to_warm), over(self.idle_to_cold)) {
            (_, true) => Temperature::Cold,
            (true, false) => Temperature::Warm,
            (false, false) => Temperature::Hot,
        }
    }

    /// Pause between two checks of the VM. `None` if it never cools.
    pub(super) fn look_every(&self) -> Option<Duration> {
        let shortest = self.idle_to_warm.into_iter().chain(self.idle_to_cold).min().filter(|_| !self.keep_hot)?;
        Some((shortest / LOOKS).clamp(LOOK_MIN, LOOK_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_vm_cools_in_steps() {
        let policy =
            KeepPolicy { idle_to_warm: Some(SECOND), idle_to_cold: Some(10 * SECOND), ..KeepPolicy::default() };
        assert_eq!(policy.wanted(SECOND / 2), Temperature::Hot);
        assert_eq!(policy.wanted(SECOND), Temperature::Warm);
        assert_eq!(policy.wanted(11 * SECOND), Temperature::Cold);
        assert_eq!(policy.look_every(), Some(SECOND / 4));
    }

    #[test]
    fn a_vm_that_is_kept_hot_or_has_no_policy_never_cools() {
        let hot = KeepPolicy { idle_to_warm: Some(SECOND), keep_hot: true, ..KeepPolicy::default() };
        assert_eq!((hot.wanted(1000 * SECOND), hot.look_every()), (Temperature::Hot, None));
        let none = KeepPolicy::default();
        assert_eq!((none.wanted(1000 * SECOND), none.look_every()), (Temperature::Hot, None));
    }

    #[test]
    fn a_vm_can_go_cold_at_once_and_is_checked_within_bounds() {
        let policy = KeepPolicy { idle_to_cold: Some(Duration::from_millis(1)), ..KeepPolicy::default() };
        assert_eq!(policy.wanted(SECOND), Temperature::Cold);
        assert_eq!(policy.look_every(), Some(LOOK_MIN));
        let slow = KeepPolicy { idle_to_cold: Some(3600 * SECOND), ..KeepPolicy::default() };
        assert_eq!(slow.look_every(), Some(LOOK_MAX));
    }
}
