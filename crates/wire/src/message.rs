//! Messages: what a frame means.
//!
//! ```text
//!   Frame ──parse──▶ Message ──encode──▶ frame bytes
//! ```
//! Requests and replies are JSON, data and pings are raw bytes, credit is four bytes.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::activity::Activity;
use crate::exec::{ExecRequest, Exited, Resize, Signal, Started};
use crate::fault::{ErrorCode, Fault, cut};
use crate::file::{Done, FileStat, FilesRequest, ListPage};
use crate::frame::{Frame, FrameError, Kind, StreamId, encode};
use crate::handshake::{Auth, Goodbye, Hello, Sync};
use crate::service::{ForwardRequest, LogsRequest, MetricsRequest, MetricsSample, WatchEvent, WatchRequest};
use crate::session::{AttachRequest, Attached, Lagged, SessionInfo, SessionsRequest};

/// The meaning of one frame. Data is borrowed from the frame.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the frame kind of its name; see `Kind`")]
pub enum Message<'a> {
    Hello(Hello),
    Auth(Auth),
    Ping(&'a [u8]),
    Pong(&'a [u8]),
    Sync(Sync),
    Goodbye(Goodbye),

    Exec(Box<ExecRequest>),
    Attach(AttachRequest),
    Files(Box<FilesRequest>),
    Forward(ForwardRequest),
    Watch(WatchRequest),
    Metrics(MetricsRequest),
    Logs(LogsRequest),
    Sessions(SessionsRequest),
    Freeze,
    Thaw,
    Activity,

    Started(Started),
    Reply(Box<Reply>),
    Exited(Exited),
    Done(Done),
    Error(Fault),
    Cancel,

    Data(Channel, &'a [u8]),
    Eof,
    Credit(u32),
    Signal(Signal),
    Resize(Resize),
}

/// The direction of data, and the end of the command that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Host to guest.
    In,
    /// Guest to host.
    Out,
    /// Guest to host, in addition to [`Channel::Out`]; both share one window.
    Err,
}

impl Channel {
    /// The frame kind of data on this channel.
    pub const fn kind(self) -> Kind {
        match self {
            Self::In => Kind::DATA_IN,
            Self::Out => Kind::DATA_OUT,
            Self::Err => Kind::DATA_ERR,
        }
    }
}

/// One reply of a stream that continues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To `Attach`.
    Attached(Attached),
    /// To a slow viewer of a session.
    Lagged(Lagged),
    /// To `Sessions`.
    Sessions(Vec<SessionInfo>),
    /// To a file's `stat` and `read`.
    Stat(FileStat),
    /// To a directory's `list`.
    Page(ListPage),
    /// To `Forward`.
    Connected,
    /// To `Metrics`.
    Sample(Box<MetricsSample>),
    /// To `Watch`: later changes are reported.
    Watching,
    /// To `Watch`: a change.
    Changed(WatchEvent),
    /// To `Activity`.
    Activity(Box<Activity>),
}

/// A frame that this version can't read. The link stays up: send [`fault`](Self::fault) as the reply.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// A kind that this version does not have.
    #[error("unknown frame kind {0:?}")]
    Unknown(Kind),
    /// A payload that does not fit its kind.
    #[error("bad payload of {kind:?}: {reason}")]
    Payload {
        /// The frame's kind.
        kind: Kind,
        /// What is wrong with it.
        reason: String,
    },
}

impl MessageError {
    /// The fault to send to the peer.
    pub fn fault(&self) -> Fault {
        let code = match self {
            Self::Unknown(_) => ErrorCode::Unsupported,
            Self::Payload { .. } => ErrorCode::InvalidRequest,
        };
        Fault::new(code, self.to_string())
    }
}

impl<'a> Message<'a> {
    /// Reads a frame's payload.
    ///
    /// # Errors
    /// If this version does not have the kind, or the payload does not fit it.
    pub fn parse(frame: Frame<'a>) -> Result<Self, MessageError> {
        let Frame { kind, payload, .. } = frame;
        Ok(match kind {
            Kind::HELLO => Self::Hello(json(kind, payload)?),
            Kind::AUTH => Self::Auth(json(kind, payload)?),
            Kind::PING => Self::Ping(payload),
            Kind::PONG => Self::Pong(payload),
            Kind::SYNC => Self::Sync(json(kind, payload)?),
            Kind::GOODBYE => Self::Goodbye(json(kind, payload)?),
            Kind::EXEC => Self::Exec(json(kind, payload)?),
            Kind::ATTACH => Self::Attach(json(kind, payload)?),
            Kind::FILES => Self::Files(json(kind, payload)?),
            Kind::FORWARD => Self::Forward(json(kind, payload)?),
            Kind::WATCH => Self::Watch(json(kind, payload)?),
            Kind::METRICS => Self::Metrics(json(kind, payload)?),
            Kind::LOGS => Self::Logs(json(kind, payload)?),
            Kind::SESSIONS => Self::Sessions(json(kind, payload)?),
            Kind::FREEZE => Self::Freeze,
            Kind::THAW => Self::Thaw,
            Kind::ACTIVITY => Self::Activity,
            Kind::STARTED => Self::Started(json(kind, payload)?),
            Kind::REPLY => Self::Reply(json(kind, payload)?),
            Kind::EXITED => Self::Exited(json(kind, payload)?),
            Kind::DONE => Self::Done(json(kind, payload)?),
            Kind::ERROR => Self::Error(json(kind, payload)?),
            Kind::CANCEL => Self::Cancel,
            Kind::DATA_IN => Self::Data(Channel::In, payload),
            Kind::DATA_OUT => Self::Data(Channel::Out, payload),
            Kind::DATA_ERR => Self::Data(Channel::Err, payload),
            Kind::EOF => Self::Eof,
            Kind::CREDIT => {
                let bytes = payload.try_into().map_err(|_| MessageError::Payload {
                    kind,
                    reason: format!("{} bytes instead of 4", payload.len()),
                })?;
                Self::Credit(u32::from_be_bytes(bytes))
            }
            Kind::SIGNAL => Self::Signal(json(kind, payload)?),
            Kind::RESIZE => Self::Resize(json(kind, payload)?),
            unknown => return Err(MessageError::Unknown(unknown)),
        })
    }

    /// The frame kind of this message.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::HELLO,
            Self::Auth(_) => Kind::AUTH,
            Self::Ping(_) => Kind::PING,
            Self::Pong(_) => Kind::PONG,
            Self::Sync(_) => Kind::SYNC,
            Self::Goodbye(_) => Kind::GOODBYE,
            Self::Exec(_) => Kind::EXEC,
            Self::Attach(_) => Kind::ATTACH,
            Self::Files(_) => Kind::FILES,
            Self::Forward(_) => Kind::FORWARD,
            Self::Watch(_) => Kind::WATCH,
            Self::Metrics(_) => Kind::METRICS,
            Self::Logs(_) => Kind::LOGS,
            Self::Sessions(_) => Kind::SESSIONS,
            Self::Freeze => Kind::FREEZE,
            Self::Thaw => Kind::THAW,
            Self::Activity => Kind::ACTIVITY,
            Self::Started(_) => Kind::STARTED,
            Self::Reply(_) => Kind::REPLY,
            Self::Exited(_) => Kind::EXITED,
            Self::Done(_) => Kind::DONE,
            Self::Error(_) => Kind::ERROR,
            Self::Cancel => Kind::CANCEL,
            Self::Data(channel, _) => channel.kind(),
            Self::Eof => Kind::EOF,
            Self::Credit(_) => Kind::CREDIT,
            Self::Signal(_) => Kind::SIGNAL,
            Self::Resize(_) => Kind::RESIZE,
        }
    }

    /// Appends the message as one frame.
    ///
    /// # Errors
    /// If the payload is over [`PAYLOAD_MAX`](crate::PAYLOAD_MAX). `out` is unchanged then.
    pub fn encode(&self, stream: StreamId, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let put = |payload: &[u8], out: &mut Vec<u8>| encode(self.kind(), stream, payload, out);
        match self {
            Self::Freeze | Self::Thaw | Self::Activity | Self::Cancel | Self::Eof => put(&[], out),
            Self::Ping(bytes) | Self::Pong(bytes) | Self::Data(_, bytes) => put(bytes, out),
            Self::Credit(bytes) => put(&bytes.to_be_bytes(), out),
            Self::Hello(body) => put(&to_json(body), out),
            Self::Auth(body) => put(&to_json(body), out),
            Self::Sync(body) => put(&to_json(body), out),
            Self::Goodbye(body) => put(&to_json(body), out),
            Self::Exec(body) => put(&to_json(body), out),
            Self::Attach(body) => put(&to_json(body), out),
            Self::Files(body) => put(&to_json(body), out),
            Self::Forward(body) => put(&to_json(body), out),
            Self::Watch(body) => put(&to_json(body), out),
            Self::Metrics(body) => put(&to_json(body), out),
            Self::Logs(body) => put(&to_json(body), out),
            Self::Sessions(body) => put(&to_json(body), out),
            Self::Started(body) => put(&to_json(body), out),
            Self::Reply(body) => put(&to_json(body), out),
            Self::Exited(body) => put(&to_json(body), out),
            Self::Done(body) => put(&to_json(body), out),
            Self::Error(body) => put(&to_json(body), out),
            Self::Signal(body) => put(&to_json(body), out),
            Self::Resize(body) => put(&to_json(body), out),
        }
    }

    /// Whether this message ends its stream.
    pub const fn ends(&self) -> bool {
        self.kind().ends()
    }
}

fn json<T: DeserializeOwned>(kind: Kind, payload: &[u8]) -> Result<T, MessageError> {
    serde_json::from_slice(payload).map_err(|error| MessageError::Payload { kind, reason: cut(error.to_string()) })
}

fn to_json<T: Serialize>(body: &T) -> Vec<u8> {
    serde_json::to_vec(body).expect("payload types have string keys and no failing serializers")
}
