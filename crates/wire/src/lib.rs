//! What Kiln's host and guest may say to each other: one ordered byte stream of frames.
//!
//! ```text
//!   transport bytes ── ResetScanner ──▶ Decoder ──▶ Frame ──▶ Message      (in)
//!   Message ──▶ encode ──▶ frame bytes ──▶ transport                       (out)
//! ```
//!
//! Nothing here does I/O, reads a clock or spawns anything: bytes and values go in, bytes and values come out. Either
//! side may be hostile to the other, so everything that comes from the peer is bounded before it is stored.
//!
//! A link starts with a [reset marker](reset) on transports that have no connections of their own, then both sides
//! say [`Hello`]. Requests open *streams* (odd ids by the host, even ids by the guest); each stream ends with exactly
//! one of `Exited`, `Done` or `Error`. Data on a stream is paced by [credit].
#![forbid(unsafe_code)]

mod activity;
mod decode;
mod exec;
mod fault;
mod file;
mod frame;
mod handshake;
mod message;
mod service;
mod session;
mod shown;
mod text;
mod user;

pub mod credit;
pub mod reset;

pub use activity::{Activity, LEASE_SECONDS_MAX, LEASES_MAX, Lease};
pub use decode::{Decoder, EndError};
pub use exec::{ExecRequest, ExitStatus, Exited, Limits, Resize, Signal, Started, Stdin, Tty};
pub use fault::{ErrorCode, Fault, WORDS_BYTES_MAX, cut};
pub use file::{Done, Entry, FileKind, FileRequest, FileStat, FilesRequest, ListPage, Owner, ReadRange, WriteMode};
pub use frame::{
    Frame, FrameError, HEADER_BYTES, Kind, LENGTH_MAX, LENGTH_MIN, PAYLOAD_MAX, StreamId, WRITE_CHUNK_BYTES, encode,
};
pub use handshake::{
    AUTH_DEADLINE, Auth, Capability, Goodbye, GoodbyeReason, Hello, Identity, MACS_MAX, Sync, VERSION, negotiate,
    token_matches,
};
pub use message::{Channel, Message, MessageError, Reply};
pub use service::{
    CgroupUsage, CodeRequest, ForwardRequest, LogSource, LogsRequest, MetricsRequest, MetricsSample, TraceRequest,
    WatchEvent, WatchEventKind, WatchRequest,
};
pub use session::{
    AttachRequest, Attached, Lagged, OnDetach, SESSION_RING_BYTES, SESSION_RING_BYTES_MAX, SessionInfo, SessionSpec,
    SessionState, SessionsRequest,
};
pub use shown::{Shown, is_hidden, shown};
pub use text::Text;
pub use user::{ID_MAX, NameOrId, UserRef, UserRefError, parse_id};
