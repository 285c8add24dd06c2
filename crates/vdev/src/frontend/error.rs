//! What can go wrong in a session, as the frontend sees it. Each error names the socket, the message and, if there is
//! one, the ring.

use std::io;
use std::time::Duration;

use crate::memory::MemoryError;
use crate::queue::QueueError;
use crate::socket::SocketError;

/// Why a request of a frontend's came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// A message was not sent, not answered, or refused.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The same, for a message that is about one ring.
    #[error("`{socket}`: {request} failed for ring {ring}")]
    RingMessage {
        /// The socket.
        socket: String,
        /// The message.
        request: &'static str,
        /// The ring.
        ring: u32,
        /// Why.
        source: Box<SocketError>,
    },
    /// The backend answered, and the answer can't be true.
    #[error("`{socket}` sent a wrong reply to {request}: {what}")]
    Answer {
        /// The socket.
        socket: String,
        /// The message.
        request: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The message needs a feature that the two sides have not agreed on.
    #[error("`{socket}`: {request} needs {feature}, which was not negotiated")]
    NotNegotiated {
        /// The socket.
        socket: String,
        /// The message.
        request: &'static str,
        /// The feature.
        feature: &'static str,
    },
    /// A feature was to be acknowledged that the backend does not offer.
    #[error("`{socket}`: {request} has bits that the backend does not offer: {bits}")]
    NotOffered {
        /// The socket.
        socket: String,
        /// The message.
        request: &'static str,
        /// Those bits, by name if they have one.
        bits: String,
    },
    /// The message comes too early or too late.
    #[error("`{socket}`: {request} must come after {after}")]
    Order {
        /// The socket.
        socket: String,
        /// The message.
        request: &'static str,
        /// What comes before it.
        after: &'static str,
    },
    /// The request is larger than the message allows, or than we take.
    #[error("`{socket}`: {request} takes at most {max} {what}, not {found}")]
    Bound {
        /// The socket.
        socket: String,
        /// The message.
        request: &'static str,
        /// Of what there is too much.
        what: &'static str,
        /// The most.
        max: u64,
        /// What was requested.
        found: u64,
    },
    /// The backend's own channel brought what no backend may send; it is closed.
    #[error("`{socket}` broke the protocol on its own channel: {what}")]
    BackendChannel {
        /// The socket.
        socket: String,
        /// Its error.
        what: String,
    },
    /// Moving the device's state failed.
    #[error("`{socket}`: the device's state was not {moved}: {what}")]
    DeviceState {
        /// The socket.
        socket: String,
        /// `saved` or `loaded`.
        moved: &'static str,
        /// Why.
        what: String,
    },
    /// Guest memory can't be shared or reached.
    #[error("`{socket}`: guest memory failed")]
    Memory {
        /// The socket.
        socket: String,
        /// Why.
        source: MemoryError,
    },
    /// The operating system refuses.
    #[error("`{socket}`: {doing} failed")]
    System {
        /// The socket.
        socket: String,
        /// What we did.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A ring can't be made, or the backend breaks its protocol.
    #[error("`{socket}`: {what}")]
    Queue {
        /// The socket.
        socket: String,
        /// What is wrong, and with which ring.
        what: QueueError,
    },
    /// The backend reports that it can't work with a ring.
    #[error("`{socket}` reports an error of ring {ring}")]
    RingFailed {
        /// The socket.
        socket: String,
        /// The ring.
        ring: u32,
    },
    /// Requests of a ring were not done in time.
    #[error("`{socket}` completed none of {outstanding} requests of ring {ring} within {waited:?}")]
    RingTimeout {
        /// The socket.
        socket: String,
        /// The ring.
        ring: u32,
        /// How many it has.
        outstanding: u16,
        /// How long we waited.
        waited: Duration,
    },
    /// The backend has ended while it had requests of a ring.
    #[error("`{socket}` was closed by its peer with {outstanding} requests of ring {ring} in flight")]
    RingLost {
        /// The socket.
        socket: String,
        /// The ring.
        ring: u32,
        /// How many it has.
        outstanding: u16,
    },
    /// The device did a request wrong, or not at all.
    #[error("`{socket}`: ring {ring}: the device completed {request} with {what}")]
    Device {
        /// The socket.
        socket: String,
        /// The ring.
        ring: u32,
        /// The kind of request.
        request: &'static str,
        /// What it answered.
        what: String,
    },
    /// A request that the device does not take.
    #[error("`{socket}`: the device does not accept a {request} of {what}")]
    NoRequest {
        /// The socket.
        socket: String,
        /// The kind of request.
        request: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// A new connection is needed and this session was not made by path.
    #[error("`{socket}` has no path to connect to again")]
    NoPath {
        /// The socket.
        socket: String,
    },
    /// The backend accepted no new connection in time.
    #[error("`{socket}` accepted no new connection within {waited:?}")]
    NotBack {
        /// The socket.
        socket: String,
        /// How long we tried.
        waited: Duration,
        /// What the last attempt came to.
        source: Box<Self>,
    },
    /// After a reconnect the backend is another one than before.
    #[error("`{socket}` came back without {what}")]
    Changed {
        /// The socket.
        socket: String,
        /// What it had before.
        what: String,
    },
}

impl FrontendError {
    /// What happened on the socket, if that is the cause.
    pub(crate) fn socket_error(&self) -> Option<&SocketError> {
        match self {
            Self::Socket(source) => Some(source),
            Self::RingMessage { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Whether the backend closed the connection.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::RingLost { .. }) || self.socket_error().is_some_and(SocketError::is_closed)
    }

    /// Whether time ran out.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::RingTimeout { .. }) || self.socket_error().is_some_and(SocketError::is_timeout)
    }

    /// The number that the backend refused with (`REPLY_ACK`).
    pub(crate) fn refused(&self) -> Option<u64> {
        match self.socket_error() {
            Some(SocketError::Refused { code, .. }) => Some(*code),
            _ => None,
        }
    }
}
