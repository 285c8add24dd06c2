//! Requests that observe the guest or connect into it: forward, metrics, watch, logs, code, trace.

use serde::{Deserialize, Serialize};

use crate::text::Text;

/// Payload of `Forward`: connects inside the guest. `Reply::Connected`, then data both ways with an `Eof` each, `Done`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "to", rename_all = "snake_case", deny_unknown_fields)]
pub enum ForwardRequest {
    /// A TCP socket.
    Tcp {
        /// Name or address; `localhost` is the guest.
        host: String,
        /// Its port.
        port: u16,
    },
    /// A Unix stream socket.
    Unix {
        /// Its path.
        path: Text,
    },
}

/// Payload of `Metrics`: one sample, or one each interval until `Cancel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsRequest {
    /// Time between samples, 10 ms or more; a single sample if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
}

/// What the guest uses now.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MetricsSample {
    /// Time since boot, in milliseconds.
    pub uptime_ms: u64,
    /// CPU time not idle, all CPUs together, in milliseconds since boot.
    pub cpu_busy_ms: u64,
    /// CPUs online.
    pub cpus: u32,
    /// Memory of the guest, in bytes.
    pub memory_total_bytes: u64,
    /// Memory that is available to a new program, in bytes.
    pub memory_available_bytes: u64,
    /// Size of the root file system, in bytes.
    pub disk_total_bytes: u64,
    /// Free space there, in bytes.
    pub disk_free_bytes: u64,
    /// Load of the last minute, times 100.
    pub load_1m_percent: u64,
    /// Resident memory of the agent, in bytes.
    pub agent_rss_bytes: u64,
    /// One entry for each exec that runs.
    #[serde(default)]
    pub execs: Vec<CgroupUsage>,
}

/// What one exec's control group uses now.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CgroupUsage {
    /// Pid of the command.
    pub pid: u32,
    /// Name of its session, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// CPU time so far, in microseconds.
    pub cpu_us: u64,
    /// Memory now, in bytes.
    pub memory_bytes: u64,
    /// Processes and threads now.
    pub pids: u64,
}

/// Payload of `Watch`: `Reply::Changed` for each change until `Cancel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchRequest {
    /// File or directory.
    pub path: Text,
    /// Also watches the directories below it, at most 4,096.
    #[serde(default)]
    pub recursive: bool,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// What happened.
    pub change: WatchEventKind,
    /// The path that changed.
    pub path: Text,
}

/// What happened to a watched path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WatchEventKind {
    /// It was created or renamed here.
    Created,
    /// Its content changed.
    Modified,
    /// It was removed or renamed away.
    Removed,
    /// Its permissions, owner or times changed.
    Attributes,
    /// Events were lost because they were not read in time: read the whole tree again.
    Overflow,
}

/// Payload of `Logs`: `DataOut` until the log ends (`Done`) or `Cancel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogsRequest {
    /// Which log.
    pub source: LogSource,
    /// Continues with later messages.
    #[serde(default)]
    pub follow: bool,
}

/// A log of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogSource {
    /// The kernel's ring, one record a line.
    Kernel,
    /// The agent's own last lines.
    Agent,
}
