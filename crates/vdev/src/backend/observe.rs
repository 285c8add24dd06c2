//! What a server reports of its sessions while they run, for code that prints, counts or judges.

use std::io;

use super::fault::Offer;
use super::refusal::{Refusal, SessionError};
use crate::protocol::{FrontendRequest, Header};
use crate::queue::QueueError;

/// Something that happened in a session.
#[derive(Debug)]
pub enum SessionEvent<'a> {
    /// A frontend has connected; frontends are counted from 1.
    Connected {
        /// Which.
        client: u64,
    },
    /// What the session offers.
    Offered {
        /// Features, protocol features, queues.
        offer: &'a Offer,
    },
    /// A message has come.
    Received {
        /// Its header.
        header: Header,
        /// Its payload.
        payload: &'a [u8],
        /// How many descriptors came with it.
        fds: usize,
    },
    /// A message was handled.
    Handled {
        /// Which.
        request: FrontendRequest,
    },
    /// A message was refused.
    Refused {
        /// Its number.
        request: u32,
        /// Why.
        refusal: &'a Refusal,
        /// Whether the frontend got an error; otherwise the session ends.
        told: bool,
    },
    /// A ring runs.
    RingStarted {
        /// Which.
        queue: u16,
        /// Its descriptors.
        size: u16,
        /// Whether it may have effects already.
        enabled: bool,
    },
    /// A ring was stopped.
    RingStopped {
        /// Which.
        queue: u16,
        /// Its base.
        base: u32,
    },
    /// A driver has kicked. Reported by the queue's worker.
    Kicked {
        /// Which.
        queue: u16,
    },
    /// A ring is inconsistent. Reported by the queue's worker.
    RingBroke {
        /// Which.
        queue: u16,
        /// Why.
        error: &'a QueueError,
    },
    /// A kick descriptor is of no use. Reported by the queue's worker.
    KickLost {
        /// Which.
        queue: u16,
        /// Why.
        error: &'a io::Error,
    },
    /// The session is over.
    Ended {
        /// Which.
        client: u64,
        /// Why, if the frontend did not just disconnect.
        error: Option<&'a SessionError>,
    },
}

/// Receives events. Workers and sessions call it directly, so it must not wait.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn event(&self, event: &SessionEvent<'_>);
}

/// Ignores all events.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn event(&self, _event: &SessionEvent<'_>) {}
}
