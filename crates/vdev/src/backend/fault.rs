//! Where a backend can be wrong on purpose. The server calls this before it sends or does something that a peer can
//! see. A server without faults never calls it, and is right.

use std::time::Duration;

use super::queues::{Queue, StoppedQueue};
use crate::protocol::{Flags, ProtocolFeatures};
use crate::queue::{Chain, ChainId};

/// What a session offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer {
    /// Virtio features.
    pub features: u64,
    /// Protocol features.
    pub protocol_features: ProtocolFeatures,
    /// What `GET_QUEUE_NUM` returns.
    pub queues: u64,
}

/// Something that happens on a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingEvent {
    /// The ring starts. If this is not seen, the requests that are in it already are never returned.
    Start,
    /// The driver has kicked.
    Kick,
    /// The frontend has enabled the ring.
    Enable,
    /// The kick descriptor has come to its end, or is of no use.
    KickEnds,
}

/// How a used chain is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Which chain.
    pub id: ChainId,
    /// How often it is put into the ring.
    pub times: u32,
    /// The number of bytes that is reported as written.
    pub written: u32,
    /// How many used entries the ring shows beyond those that it has.
    pub jump: u16,
}

impl Completion {
    /// Once, with what was written.
    pub const fn as_it_is(id: ChainId, written: u32) -> Self {
        Self { id, times: 1, written, jump: 0 }
    }
}

/// What is done instead of the right thing when a message has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MessageFault {
    /// Waited before anything else.
    pub delay: Duration,
    /// Instead of handling it.
    pub instead: Option<Instead>,
    /// Changes of the answer.
    pub answer: AnswerFault,
    /// Sent on the backend's channel afterwards, whatever it is.
    pub backend_channel: Option<(u32, Vec<u8>)>,
}

/// What is done instead of handling a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instead {
    /// Nothing, and no answer.
    Ignore,
    /// The connection is closed.
    Close,
    /// The process ends at once.
    Crash,
    /// It is refused, with this code.
    Nack(u64),
    /// It is acknowledged, and not done.
    Ack,
}

/// Changes of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnswerFault {
    /// It is not sent, although the message was handled.
    pub silent: bool,
    /// It is sent twice.
    pub twice: bool,
    /// It is sent as the reply to another message.
    pub request: Option<u32>,
    /// Its flags.
    pub flags: Option<Flags>,
    /// The size that its header has; the payload stays as it is.
    pub size: Option<u32>,
    /// Its payload.
    pub payload: Option<Vec<u8>>,
    /// Descriptors that come with it and do not belong to it.
    pub extra_fds: usize,
    /// It is cut after so many bytes, and the connection is closed.
    pub cut_after: Option<usize>,
}

/// How a backend serves its clients, if not at once and one after the other forever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Serving {
    /// How long it takes until it listens.
    pub start_delay: Duration,
    /// How long a connection waits before it is accepted.
    pub accept_delay: Duration,
    /// How long after a client has left new connections are closed at once.
    pub pause: Duration,
    /// After how many clients it ends; never, if it is left out.
    pub clients: Option<u64>,
}

/// How a backend is wrong. Every method is right by default.
pub trait Faults: Send + Sync {
    /// How clients are accepted.
    fn serving(&self) -> Serving {
        Serving::default()
    }

    /// A session begins: what it offers may be changed.
    fn offer(&self, _offer: &mut Offer) {}

    /// The configuration space, each time it is read.
    fn config(&self, _config: &mut Vec<u8>) {}

    /// A message has come. Asked once for each.
    fn message(&self, _request: u32) -> Option<MessageFault> {
        None
    }

    /// Whether workers look for more without being kicked, as far as the device does.
    fn looks_unasked(&self) -> bool {
        true
    }

    /// Whether something that has happened on a ring is not seen.
    fn ignores(&self, _queue: u16, _event: RingEvent) -> bool {
        false
    }

    /// A chain was used; its contents may be changed.
    fn completed(&self, _queue: u16, chain: &Chain, written: u32) -> Completion {
        Completion::as_it_is(chain.id(), written)
    }

    /// Makes a ring show more used entries than it has.
    fn jump(&self, _queue: &Queue, _by: u16) {}

    /// What `GET_VRING_BASE` returns of a stopped ring.
    fn base(&self, _queue: u16, base: u32) -> u32 {
        base
    }

    /// A ring was stopped. It is released when this is dropped.
    fn stopped(&self, _queue: StoppedQueue) {}

    /// Buffers were used: how often the driver is called for them.
    fn calls(&self, _queue: u16) -> u32 {
        1
    }
}
