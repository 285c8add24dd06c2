//! Running a command in the guest.
//!
//! ```text
//!   Exec ─▶ Started ─▶ data both ways, Signal, Resize, Eof, Credit ─▶ Exited
//!      └──────────────────────── Error ◀──── (could not start; protocol fault; Cancel before the start)
//! ```

use serde::{Deserialize, Serialize};

use crate::session::SessionSpec;
use crate::text::Text;

/// Payload of `Exec`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Program and arguments. A program without a slash is searched for in the PATH of the command's own environment.
    pub argv: Vec<Text>,
    /// Variables that override the agent's defaults, in order; the last one of a name wins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(Text, Text)>,
    /// Starts from an empty environment instead of the agent's defaults.
    #[serde(default)]
    pub env_clear: bool,
    /// Working directory. If absent: the user's home, or `/` if that does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<Text>,
    /// The user, written as in [`UserRef`](crate::UserRef); the agent's own user if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where stdin comes from.
    #[serde(default)]
    pub stdin: Stdin,
    /// A terminal instead of pipes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<Tty>,
    /// What the command may use.
    #[serde(default)]
    pub limits: Limits,
    /// Lets the command outlive the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionSpec>,
}

/// Where a command's stdin comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdin {
    /// `/dev/null`.
    #[default]
    None,
    /// `DataIn` frames up to `Eof`.
    Stream,
}

/// A terminal. Its output comes as `DataOut`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tty {
    /// Height in characters; 0 means unknown, as in the kernel.
    pub rows: u16,
    /// Width in characters.
    pub cols: u16,
    /// `TERM`; `xterm-256color` if empty.
    #[serde(default)]
    pub term: String,
}

/// What a command may use; an absent limit is the agent's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// CPU time of the whole group, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ms: Option<u64>,
    /// Time since the start, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall_ms: Option<u64>,
    /// How long a command that reached `wall_ms` or `cpu_ms` may still run after a SIGTERM, in milliseconds. If absent
    /// or 0, it is killed at once. An agent that is older than this field refuses it by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
    /// The signal that a command gets instead of SIGTERM when its time is up; 1 ..= 64. An agent without
    /// [`Capability::StopSignal`](crate::Capability::StopSignal) refuses it by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<i32>,
    /// Memory of the whole group, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processes and threads of the group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Output that is passed on, stdout and stderr together, in bytes. The rest is read and dropped, and `truncated` is
    /// set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_bytes: Option<u64>,
    /// Open files of one process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
}

/// Payload of `Started`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Pid in the guest; also the id of its process group.
    pub pid: u32,
    /// Name of the session, if one was requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// Payload of `Exited`: how a command ended and what it used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exited {
    /// Exit code or signal.
    pub status: ExitStatus,
    /// Time from start to end, in microseconds.
    pub wall_us: u64,
    /// CPU time in user mode, in microseconds.
    pub user_us: u64,
    /// CPU time in the kernel, in microseconds.
    pub sys_us: u64,
    /// Largest resident set of the command, in bytes.
    pub max_rss_bytes: u64,
    /// The kernel killed a process of the group because memory ran out.
    #[serde(default)]
    pub oom_killed: bool,
    /// `wall_ms` or `cpu_ms` ended it. `status` is the command's own if it ended within the grace.
    #[serde(default)]
    pub timed_out: bool,
    /// Output was dropped at `output_bytes`.
    #[serde(default)]
    pub truncated: bool,
    /// A process outlived the command and kept its output open. It was killed after the drain.
    #[serde(default)]
    pub pipes_held: bool,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl ExitStatus {
    /// The status as a shell gives it: the code, or 128 + the signal.
    ///
    /// ```
    /// # use kiln_wire::ExitStatus;
    /// assert_eq!(ExitStatus::Signal(15).shell_code(), 143);
    /// ```
    pub const fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128i32.saturating_add(signal),
        }
    }
}

/// Payload of `Signal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// Number of the signal in Linux on x86-64; 1 ..= 64.
    pub signal: i32,
}

/// Payload of `Resize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// Height in characters.
    pub rows: u16,
    /// Width in characters.
    pub cols: u16,
}
