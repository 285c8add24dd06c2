//! Frames: the unit of the byte stream.
//!
//! ```text
//!   0        4      5           9
//!   ┌────────┬──────┬───────────┬─────────────┐
//!   │ length │ kind │ stream id │ payload …   │     length counts kind + stream id + payload
//!   └────────┴──────┴───────────┴─────────────┘     all integers big-endian
//! ```

use std::fmt;

/// Bytes before the payload: length, kind and stream id.
pub const HEADER_BYTES: usize = 9;
/// Smallest value of the length field: kind and stream id, no payload.
pub const LENGTH_MIN: u32 = 5;
/// Largest value of the length field.
pub const LENGTH_MAX: u32 = 1 << 20;
/// Largest payload of one frame, in bytes.
pub const PAYLOAD_MAX: usize = LENGTH_MAX as usize - LENGTH_MIN as usize;
/// A writer puts at most this many data bytes into one frame, so that streams interleave.
pub const WRITE_CHUNK_BYTES: usize = 64 << 10;

/// The id of one stream of a link. 0 is the link itself; the host opens odd ids, the guest even ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct StreamId(pub u32);

impl StreamId {
    /// The link itself.
    pub const LINK: Self = Self(0);

    /// Whether the host may open this id.
    pub const fn is_host(self) -> bool {
        self.0 % 2 == 1
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a frame carries. Any byte is a kind; the reply to a kind without a name is `Error{unsupported}`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind(pub u8);

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        impl Kind {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// Every kind that this version names.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The kind's name, or `None` if this version has no name for it.
            pub const fn name(self) -> Option<&'static str> {
                match self { $(Self::$name => Some(stringify!($name)),)* _ => None }
            }
        }
    };
}

kinds! {
    /// First frame of each side.
    HELLO = 0x01,
    /// Proof that the host may talk to this agent.
    AUTH = 0x02,
    /// Requests an echo; raw bytes. Frames are handled in order, so all that was sent before the ping has arrived once
    /// the echo arrives.
    PING = 0x03,
    /// The echo of a ping.
    PONG = 0x04,
    /// Clock, randomness and identity after a restore.
    SYNC = 0x05,
    /// Last frame of a side.
    GOODBYE = 0x06,

    /// Runs a command.
    EXEC = 0x10,
    /// Attaches to a session.
    ATTACH = 0x11,
    /// One file operation.
    FILES = 0x12,
    /// Connects to a socket inside the guest.
    FORWARD = 0x13,
    /// Reports file changes.
    WATCH = 0x15,
    /// Reports resource use.
    METRICS = 0x16,
    /// Reads the kernel's or the agent's log.
    LOGS = 0x17,
    /// Lists or ends sessions.
    SESSIONS = 0x19,
    /// Freezes every command, for a snapshot.
    FREEZE = 0x1a,
    /// Lets frozen commands continue.
    THAW = 0x1b,
    /// Reports whether the guest is in use.
    ACTIVITY = 0x1c,

    /// The command runs.
    STARTED = 0x20,
    /// One reply of a stream that continues.
    REPLY = 0x21,
    /// Ends an exec.
    EXITED = 0x22,
    /// Ends any other stream that succeeded.
    DONE = 0x23,
    /// Ends a stream that failed.
    ERROR = 0x24,
    /// Requests that the peer ends a stream early.
    CANCEL = 0x25,

    /// Host to guest: stdin, upload, forwarded bytes.
    DATA_IN = 0x30,
    /// Guest to host: stdout, download, forwarded bytes.
    DATA_OUT = 0x31,
    /// Guest to host: stderr.
    DATA_ERR = 0x32,
    /// No more data in this direction.
    EOF = 0x33,
    /// The receiver of data allows this many more bytes; `u32` big-endian.
    CREDIT = 0x34,

    /// Sends a signal to the command.
    SIGNAL = 0x40,
    /// Resizes the terminal.
    RESIZE = 0x41,
}

impl Kind {
    /// Whether the payload is raw data that credit counts.
    pub const fn is_data(self) -> bool {
        matches!(self, Self::DATA_IN | Self::DATA_OUT | Self::DATA_ERR)
    }

    /// Whether a frame of this kind opens a stream. `Auth` and `Sync` do too: each has its own stream, so that its
    /// reply can't be taken for the reply to another request.
    pub const fn opens(self) -> bool {
        matches!(self, Self::AUTH | Self::SYNC) || (self.0 >= 0x10 && self.0 < 0x20)
    }

    /// Whether a frame of this kind ends its stream.
    pub const fn ends(self) -> bool {
        matches!(self, Self::EXITED | Self::DONE | Self::ERROR)
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "0x{:02x}", self.0),
        }
    }
}

/// One frame, borrowed from the decoder's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the payload is.
    pub kind: Kind,
    /// The stream that the frame belongs to.
    pub stream: StreamId,
    /// At most [`PAYLOAD_MAX`] bytes.
    pub payload: &'a [u8],
}

/// A length that no frame may have. After it, the byte stream can't be split into frames any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`LENGTH_MAX`].
    #[error("frame length {0} is over the limit of {LENGTH_MAX} bytes")]
    TooLong(u64),
    /// Shorter than [`LENGTH_MIN`].
    #[error("frame length {0} is under the minimum of {LENGTH_MIN} bytes")]
    TooShort(u32),
}

/// Appends one frame to `out`.
///
/// # Errors
/// [`FrameError::TooLong`] if the payload is over [`PAYLOAD_MAX`]. `out` is unchanged then.
pub fn encode(kind: Kind, stream: StreamId, payload: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
    let length = header_length(payload.len())?;
    out.reserve(HEADER_BYTES + payload.len());
    out.extend_from_slice(&length.to_be_bytes());
    out.push(kind.0);
    out.extend_from_slice(&stream.0.to_be_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

fn header_length(payload_bytes: usize) -> Result<u32, FrameError> {
    let length = payload_bytes as u64 + u64::from(LENGTH_MIN);
    match u32::try_from(length) {
        Ok(length) if length <= LENGTH_MAX => Ok(length),
        _ => Err(FrameError::TooLong(length)),
    }
}

/// Refuses a length field before anything is allocated for it.
pub(crate) const fn check_length(length: u32) -> Result<u32, FrameError> {
    if length > LENGTH_MAX {
        return Err(FrameError::TooLong(length as u64));
    }
    if length < LENGTH_MIN {
        return Err(FrameError::TooShort(length));
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_over_the_limit_is_refused_and_nothing_is_written() {
        let mut out = vec![7];
        let payload = vec![0; PAYLOAD_MAX + 1];
        let refused = encode(Kind::DATA_IN, StreamId(1), &payload, &mut out);
        assert_eq!(refused, Err(FrameError::TooLong(u64::from(LENGTH_MAX) + 1)));
        assert_eq!(out, [7]);
    }

    #[test]
    fn the_largest_payload_fits() {
        let mut out = Vec::new();
        encode(Kind::DATA_IN, StreamId(1), &vec![1; PAYLOAD_MAX], &mut out).expect("the largest payload is allowed");
        assert_eq!(out.len(), HEADER_BYTES + PAYLOAD_MAX);
    }

    #[test]
    fn kinds_have_one_value_each() {
        let mut values: Vec<u8> = Kind::ALL.iter().map(|kind| kind.0).collect();
        values.sort_unstable();
        values.dedup();
        assert_eq!(values.len(), Kind::ALL.len());
    }
}
