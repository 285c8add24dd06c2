//! What was done to a backend and what came of it, as data.

use serde::{Deserialize, Serialize};

use super::cycle::CycleKind;
use super::process::ProcessFacts;
use crate::bench::Latency;

/// Failures that a report lists one by one; the others are counted.
pub(super) const FAILURES_TOLD: usize = 32;

/// What was done to a backend and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StressReport {
    /// The socket.
    pub socket: String,
    /// What chose the cycles.
    pub seed: u64,
    /// Clients at the same time.
    pub clients: u32,
    /// Cycles that each was to do.
    pub cycles: u32,
    /// How long it took.
    pub seconds: f64,
    /// How the backend serves several clients.
    pub concurrency: Concurrency,
    /// What was done, by kind.
    pub kinds: Vec<KindReport>,
    /// From connecting until the device is ready, waiting for a turn included.
    pub handshake: Latency,
    /// The first failures.
    pub failures: Vec<Failure>,
    /// The backend's process, if it could be inspected.
    pub process: Option<ProcessReport>,
    /// Why the backend does not serve a new client any more; nothing if it does.
    pub dead: Option<String>,
    /// Whether it was stopped, or ran out of time, before it was done.
    pub stopped: bool,
}

impl StressReport {
    /// How many cycles failed.
    pub fn failed(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.failed).sum()
    }
}

/// How a backend serves several clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Concurrency {
    /// All at the same time.
    Many,
    /// One at a time; others wait.
    OneOthersWait,
    /// One at a time; others are turned away.
    OneOthersRefused,
}

/// Cycles of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindReport {
    /// Which.
    pub kind: CycleKind,
    /// How many were done.
    pub cycles: u64,
    /// Of them, those whose turn did not come in time, or that were turned away.
    pub not_served: u64,
    /// Of them, those that failed.
    pub failed: u64,
}

/// A cycle that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which client.
    pub client: u32,
    /// Which of its cycles.
    pub cycle: u32,
    /// What it did.
    pub kind: CycleKind,
    /// What came of it.
    pub error: String,
}

/// The backend's process before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessReport {
    /// Which.
    pub pid: u32,
    /// What it held before.
    pub before: ProcessFacts,
    /// What it holds after all clients have disconnected; `None` if it has ended.
    pub after: Option<ProcessFacts>,
}
