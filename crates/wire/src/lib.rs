//! The protocol of Kiln's host and guest: one ordered byte stream of frames.
//!
//! ```text
//!   transport bytes ── ResetScanner ──▶ Decoder ──▶ Frame ──▶ Message      (in)
//!   Message ──▶ encode ──▶ frame bytes ──▶ transport                       (out)
//! ```
//!
//! This crate does no I/O, reads no clock and spawns nothing: bytes and values go in, bytes and values come out. Either
//! side may be hostile to the other, so everything that comes from the peer is bounded before it is stored.
//!
//! On transports without connections a link starts with a [reset marker](reset). Then both sides send [`Hello`].
//! Requests open *streams* (odd ids by the host, even ids by the guest). Each stream ends with exactly
//! one of `Exited`, `Done` or `Error`. [Credit](credit) bounds the data that is in flight on a stream.
//!
//! Where to look: [`Decoder`] splits bytes into [`Frame`]s, [`Message::parse`] reads a frame, and [`Message::encode`]
//! writes one. The host's side of a link is `engine::link`, the guest's is `agent::link`.
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
    AUTH_DEADLINE, Auth, Capability, Goodbye, GoodbyeReason, Hello, Identity, Interface, MACS_MAX, MOUNTS_MAX, Mount,
    NAMESERVERS_MAX, Network, Sync, VERSION, negotiate, token_matches,
};
pub use message::{Channel, Message, MessageError, Reply};
pub use service::{
    CgroupUsage, ForwardRequest, LogSource, LogsRequest, MetricsRequest, MetricsSample, WatchEvent, WatchEventKind,
    WatchRequest,
};
pub use session::{
    AttachRequest, Attached, Lagged, OnDetach, SESSION_RING_BYTES, SESSION_RING_BYTES_MAX, SessionInfo, SessionSpec,
    SessionState, SessionsRequest,
};
pub use shown::{Shown, is_hidden, shown};
pub use text::Text;
pub use user::{ID_MAX, NameOrId, UserRef, UserRefError, parse_id};
