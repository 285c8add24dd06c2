//! What was measured, as data.

use serde::{Deserialize, Serialize};

use super::histogram::Histogram;
use super::options::Pattern;

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The socket.
    pub socket: String,
    /// Where offsets came from.
    pub seed: u64,
    /// From connecting until the device is ready.
    pub handshake: HandshakeReport,
    /// `GET_FEATURES` and its answer.
    pub round_trip: Latency,
    /// The disk, if it is one.
    pub disk: Option<DiskReport>,
    /// The loads, in the order in which they ran.
    pub loads: Vec<LoadReport>,
    /// Whether it was stopped before it was done.
    pub stopped: bool,
    /// What else was seen.
    pub notes: Vec<String>,
}

/// How long a session takes to begin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HandshakeReport {
    /// What it ended with: `rings started` or `features acknowledged`.
    pub until: String,
    /// How long that was after connecting began.
    pub latency: Latency,
}

/// Durations, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// How many were measured.
    pub n: u64,
    /// The shortest.
    pub min_ns: u64,
    /// The mean.
    pub mean_ns: u64,
    /// What half of them do not pass.
    pub p50_ns: u64,
    /// What 95 of a hundred do not pass.
    pub p95_ns: u64,
    /// What 99 of a hundred do not pass.
    pub p99_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

impl From<&Histogram> for Latency {
    fn from(histogram: &Histogram) -> Self {
        let nanos = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self {
            n: histogram.count(),
            min_ns: nanos(histogram.min()),
            mean_ns: nanos(histogram.mean()),
            p50_ns: nanos(histogram.percentile(50.0)),
            p95_ns: nanos(histogram.percentile(95.0)),
            p99_ns: nanos(histogram.percentile(99.0)),
            max_ns: nanos(histogram.max()),
        }
    }
}

/// A disk and how it was driven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Its size.
    pub capacity_bytes: u64,
    /// Queues that were used.
    pub queues: u32,
    /// Descriptors of each.
    pub queue_size: u16,
    /// `split` or `packed`.
    pub ring: String,
    /// Indirect descriptors were used.
    pub indirect: bool,
    /// Notifications were requested by event index.
    pub event_idx: bool,
}

/// What a disk did under one load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// What was done.
    pub pattern: Pattern,
    /// Bytes of each request.
    pub block_bytes: u32,
    /// Requests under way in each queue.
    pub depth: u16,
    /// Queues.
    pub queues: u32,
    /// How long it took.
    pub seconds: f64,
    /// Requests that came back.
    pub requests: u64,
    /// Of them, those that wrote.
    pub writes: u64,
    /// Of them, those for which the device reports fewer written bytes than it must have written.
    pub short: u64,
    /// Requests each second.
    pub iops: f64,
    /// Bytes each second.
    pub bytes_per_second: f64,
    /// From submitting a request until it came back.
    pub latency: Latency,
}
