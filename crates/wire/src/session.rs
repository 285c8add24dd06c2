//! Sessions: commands that outlive the stream, and even the link, that started them.

use serde::{Deserialize, Serialize};

/// Output that a session keeps for replay by default.
pub const SESSION_RING_BYTES: u32 = 64 << 10;
/// The most output that a session can keep.
pub const SESSION_RING_BYTES_MAX: u32 = 1 << 20;

/// Part of `Exec`: makes it a session. The stream of that exec is the session's first attachment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionSpec {
    /// 1 to 64 of `[A-Za-z0-9._-]`; the next free one of `s1`, `s2`, … if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Ends the session after this long without an attachment, input or output, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    /// What happens when the last attachment is lost.
    #[serde(default)]
    pub on_detach: OnDetach,
    /// Output kept for replay; [`SESSION_RING_BYTES`] if absent, at most [`SESSION_RING_BYTES_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring_bytes: Option<u32>,
}

/// What happens to a session when its last attachment is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDetach {
    /// It continues.
    #[default]
    Keep,
    /// Its whole group is killed.
    Kill,
}

/// Payload of `Attach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// Name of the session.
    pub session: String,
    /// Replays from this byte of the session's output, or from the oldest byte that is kept. All that is kept if
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Whether this attachment may write. Refused with `session_busy` while another attachment may, unless `steal`.
    #[serde(default)]
    pub write: bool,
    /// Takes the right to write from the attachment that has it.
    #[serde(default)]
    pub steal: bool,
}

/// Reply to `Attach`, before any data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Names only this attachment, for `Detach`.
    pub token: String,
    /// Offset of the first byte of output that follows.
    pub offset: u64,
    /// Whether requested bytes are no longer kept.
    pub lost: bool,
    /// The command's pid.
    pub pid: u32,
}

/// This attachment was too slow: bytes between the offsets were skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lagged {
    /// First offset that was not sent.
    pub from: u64,
    /// Offset of the next byte that follows.
    pub to: u64,
}

/// Payload of `Sessions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum SessionsRequest {
    /// Lists the sessions, and those that ended in the last 30 s.
    List,
    /// Sends a signal to a session's whole group.
    Kill {
        /// Its name.
        session: String,
        /// Number of the signal.
        signal: i32,
    },
    /// Ends one attachment. A stale token gets `session_not_found` and changes nothing.
    Detach {
        /// The session's name.
        session: String,
        /// From [`Attached`].
        token: String,
    },
}

/// One session, as listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Its name.
    pub name: String,
    /// Program and arguments, for people.
    pub command: String,
    /// Pid of the command.
    pub pid: u32,
    /// Whether it runs.
    pub state: SessionState,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Attachments now.
    pub attached: u32,
    /// Bytes of output so far: the offset of the next one.
    pub offset: u64,
    /// Offset of the oldest byte kept.
    pub oldest: u64,
    /// Time since input, output or a change of attachments, in milliseconds.
    pub idle_ms: u64,
}

/// Whether a session runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// It runs.
    Running,
    /// It ended. Its output can still be read for 30 s.
    Exited {
        /// Exit code, or 128 + signal.
        code: i32,
    },
}
