//! Whether a guest is in use, from facts.

use std::fmt;

use kiln_wire::Activity as Report;
use serde::Serialize;

/// Why a VM is not idle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// Callers hold it hot with [`KeptVm::ensure_hot`](super::KeptVm::ensure_hot).
    InUse(usize),
    /// Streams of the host's link are open: commands, files, proxies, watches.
    Streams(usize),
    /// Commands run in it.
    Execs(u32),
    /// Sessions that run more than a waiting shell.
    Sessions(Vec<String>),
    /// Watches are open.
    Watches(u32),
    /// Connections are forwarded.
    Forwards(u32),
    /// Its CPUs are busy: percent of one CPU.
    Cpu(u64),
    /// Its programs requested that it stays up.
    Leases(Vec<String>),
    /// Its agent did not report its activity in time: it is too busy, or gone.
    Silent,
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse(count) => write!(f, "{count} requests use it"),
            Self::Streams(count) => write!(f, "{count} streams are open"),
            Self::Execs(count) => write!(f, "{count} commands run"),
            Self::Sessions(names) => write!(f, "busy sessions: {}", names.join(", ")),
            Self::Watches(count) => write!(f, "{count} watches are open"),
            Self::Forwards(count) => write!(f, "{count} connections are forwarded"),
            Self::Cpu(percent) => write!(f, "its CPUs are busy: {percent} % of one"),
            Self::Leases(names) => write!(f, "leases: {}", names.join(", ")),
            Self::Silent => f.write_str("its agent does not answer"),
        }
    }
}

/// The facts of the host.
pub(super) fn of_host(uses: usize, streams: usize) -> Vec<Activity> {
    let uses = (uses > 0).then_some(Activity::InUse(uses));
    let streams = (streams > 0).then_some(Activity::Streams(streams));
    uses.into_iter().chain(streams).collect()
}

/// The facts of the agent's report. The CPU share is that since the report `before`.
pub(super) fn of_guest(before: Option<&Report>, now: &Report, busy_cpu_percent: u32) -> Vec<Activity> {
    let mut found = Vec::new();
    if now.execs > 0 {
        found.push(Activity::Execs(now.execs));
    }
    if !now.sessions.is_empty() {
        found.push(Activity::Sessions(now.sessions.clone()));
    }
    if now.watches > 0 {
        found.push(Activity::Watches(now.watches));
    }
    if now.forwards > 0 {
        found.push(Activity::Forwards(now.forwards));
    }
    if let Some(percent) = before.and_then(|before| cpu_percent(before, now))
        && percent > u64::from(busy_cpu_percent)
    {
        found.push(Activity::Cpu(percent));
    }
    if !now.leases.is_empty() {
        found.push(Activity::Leases(now.leases.iter().map(|lease| lease.name.clone()).collect()));
    }
    found
}

/// A guest may report any numbers.
fn cpu_percent(before: &Report, now: &Report) -> Option<u64> {
    let elapsed = now.uptime_ms.checked_sub(before.uptime_ms).filter(|elapsed| *elapsed > 0)?;
    let busy = now.cpu_busy_ms.saturating_sub(before.cpu_busy_ms);
    Some(busy.saturating_mul(100) / elapsed)
}

#[cfg(test)]
mod tests {
    use kiln_wire::Lease;

    use super::*;

    fn report(uptime_ms: u64, cpu_busy_ms: u64) -> Report {
        Report { uptime_ms, cpu_busy_ms, ..Report::default() }
    }

    #[test]
    fn a_guest_that_does_nothing_is_idle() {
        assert_eq!(of_host(0, 0), []);
        assert_eq!(of_guest(Some(&report(1000, 500)), &report(2000, 520), 10), []);
        assert_eq!(of_guest(None, &report(2000, 2000), 10), []);
    }

    #[test]
    fn each_fact_counts() {
        assert_eq!(of_host(1, 2), [Activity::InUse(1), Activity::Streams(2)]);
        let busy = of_guest(Some(&report(1000, 500)), &report(2000, 1250), 10);
        assert_eq!(busy, [Activity::Cpu(75)]);
        let lease = Lease { name: "build".into(), expires_in_ms: 1 };
        let all = Report {
            execs: 1,
            sessions: vec!["make".into()],
            watches: 1,
            forwards: 2,
            leases: vec![lease],
            ..report(0, 0)
        };
        let words: Vec<String> = of_guest(None, &all, 10).iter().map(ToString::to_string).collect();
        assert_eq!(
            words,
            [
                "1 commands run",
                "busy sessions: make",
                "1 watches are open",
                "2 connections are forwarded",
                "leases: build"
            ]
        );
    }

    #[test]
    fn a_wrong_clock_of_a_guest_is_harmless() {
        assert_eq!(of_guest(Some(&report(u64::MAX, u64::MAX)), &report(0, 0), 10), []);
        assert_eq!(of_guest(Some(&report(0, 0)), &report(1, u64::MAX), 10).len(), 1);
    }
}
