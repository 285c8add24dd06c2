//! Why a backend does not do what a frontend requests, and why a session ends.

use super::device::DeviceError;
use super::worker::WorkerError;
use crate::memory::MemoryError;
use crate::protocol::{FrontendRequest, PayloadError, ProtocolFeatures};
use crate::queue::QueueError;
use crate::socket::SocketError;

/// Why a message was not followed. Nothing was changed by it.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Its number means nothing.
    #[error("message {0} does not exist")]
    Unknown(u32),
    /// It needs a protocol feature that was not negotiated.
    #[error("`{0}` was not negotiated")]
    NotNegotiated(ProtocolFeatures),
    /// It needs a virtio feature that was not negotiated.
    #[error("the virtio feature `{0}` was not negotiated")]
    FeatureNotNegotiated(&'static str),
    /// This device has no use for it.
    #[error("this device does not support it")]
    OfNoUse,
    /// Feature bits that were not offered.
    #[error("the feature bits {0:#x} were not offered")]
    NotOffered(u64),
    /// Protocol features without others that they need.
    #[error("`{feature}` requires `{needs}`")]
    Needs {
        /// Which.
        feature: ProtocolFeatures,
        /// What else.
        needs: ProtocolFeatures,
    },
    /// Another number of descriptors came with it than belong to it.
    #[error("it has {found} descriptors, not {expected}")]
    Descriptors {
        /// How many came.
        found: usize,
        /// How many belong to it.
        expected: usize,
    },
    /// A descriptor of another kind than the message is for.
    #[error("its descriptor is not a {0}")]
    DescriptorKind(&'static str),
    /// The payload is not the message's.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// A ring that the device doesn't have.
    #[error("ring {index} does not exist: the device has {queues}")]
    NoRing {
        /// Which.
        index: u32,
        /// How many there are.
        queues: u16,
    },
    /// A field with a value it can't have.
    #[error("`{field}` cannot be {value:#x}")]
    Value {
        /// Which.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A ring that runs can't be changed so.
    #[error("ring {ring} is running")]
    Running {
        /// Which.
        ring: u16,
    },
    /// Something of a ring comes before what it stands on.
    #[error("ring {ring} needs {missing} first")]
    NotSet {
        /// Which.
        ring: u16,
        /// What.
        missing: &'static str,
    },
    /// Memory that can't be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A ring that can't be.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The device refuses.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The system refuses.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A queue's worker is of no use any more.
    #[error(transparent)]
    Worker(WorkerError),
    /// A script refuses.
    #[error("refused on purpose")]
    OnPurpose,
}

impl Refusal {
    /// Whether a session can't continue after it, even if the frontend can get an error.
    pub(super) const fn ends_session(&self) -> bool {
        matches!(self, Self::Needs { .. } | Self::Worker(_))
    }
}

impl From<WorkerError> for Refusal {
    fn from(error: WorkerError) -> Self {
        match error {
            WorkerError::Queue(error) => Self::Queue(error),
            error => Self::Worker(error),
        }
    }
}

/// Why a session has ended before the frontend left.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection is of no use any more.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// A message was refused, and the frontend could not get an error.
    #[error("`{socket}` sent {name}, which was refused", name = name_of(*.request))]
    Refused {
        /// The socket.
        socket: String,
        /// The message.
        request: u32,
        /// Why.
        source: Refusal,
    },
    /// A script closes the connection.
    #[error("`{socket}` was closed on purpose")]
    OnPurpose {
        /// The socket.
        socket: String,
    },
}

fn name_of(request: u32) -> String {
    FrontendRequest::from_number(request).map_or_else(|| format!("message {request}"), |known| known.name().to_owned())
}
