//! What can go wrong between two peers. Each error names the socket and what was going on.

use std::io;
use std::time::Duration;

use crate::protocol::{HeaderError, PayloadError};

/// Why a message was not sent or not received.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// No peer listens there.
    #[error("failed to connect to `{socket}`")]
    Connect {
        /// The socket.
        socket: String,
        /// Why.
        source: io::Error,
    },
    /// It can't listen there.
    #[error("failed to listen on `{socket}`")]
    Listen {
        /// The socket.
        socket: String,
        /// Why.
        source: io::Error,
    },
    /// The peer has disconnected between two messages.
    #[error("`{socket}` was closed by its peer while {doing}")]
    Closed {
        /// The socket.
        socket: String,
        /// What we did.
        doing: String,
    },
    /// The peer has disconnected in the middle of a message.
    #[error("`{socket}` was closed by its peer {got} bytes into a message of {wanted}, while {doing}")]
    Cut {
        /// The socket.
        socket: String,
        /// What we did.
        doing: String,
        /// Bytes that came.
        got: usize,
        /// Bytes that the message has.
        wanted: usize,
    },
    /// The peer took too long.
    #[error("`{socket}` sent no reply within {waited:?} while {doing}")]
    Timeout {
        /// The socket.
        socket: String,
        /// What we did.
        doing: String,
        /// How long we waited.
        waited: Duration,
    },
    /// The operating system refuses.
    #[error("`{socket}` failed while {doing}")]
    Io {
        /// The socket.
        socket: String,
        /// What we did.
        doing: String,
        /// Why.
        source: io::Error,
    },
    /// The peer sent a header that no peer may send.
    #[error("`{socket}` sent bytes that are not a message while {doing}")]
    Header {
        /// The socket.
        socket: String,
        /// What we did.
        doing: String,
        /// What is wrong with it.
        source: HeaderError,
    },
    /// The peer answered something else.
    #[error("`{socket}` replied with message {found} while {doing}")]
    WrongReply {
        /// The socket.
        socket: String,
        /// What we did.
        doing: String,
        /// What it answered: the number and the flags that came.
        found: String,
    },
    /// The payload is not the message's.
    #[error("`{socket}` sent a wrong payload while {doing}")]
    Payload {
        /// The socket.
        socket: String,
        /// What we did.
        doing: String,
        /// What is wrong with it.
        source: PayloadError,
    },
    /// The peer refused (`REPLY_ACK`).
    #[error("`{socket}` refused with {code} while {doing}")]
    Refused {
        /// The socket.
        socket: String,
        /// What we did.
        doing: String,
        /// The number that it answered.
        code: u64,
    },
}

impl SocketError {
    /// Whether the peer closed the connection.
    pub fn is_closed(&self) -> bool {
        match self {
            Self::Closed { .. } | Self::Cut { .. } => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
            }
            _ => false,
        }
    }

    /// Whether time ran out.
    pub const fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }
}
