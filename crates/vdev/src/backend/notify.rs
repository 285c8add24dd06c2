//! How the other side is notified: by an eventfd that it sent, by a message on the backend's channel, or not at all.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::protocol::backend::{ConfigChangeMsg, VringCall, VringErr};
use crate::protocol::{Empty, Flags, Message, VringState};
use crate::socket::{Channel, Event, SocketError};

/// The backend's own channel to the frontend ("Back-end communication"), shared by all threads that send on it.
///
/// A frontend that has not read or answered one message in time gets no other: each would be waited for as long as the
/// first.
#[derive(Debug)]
pub(super) struct BackendChannel {
    channel: Mutex<Channel>,
    is_over: AtomicBool,
    /// Whether `REPLY_ACK` was negotiated.
    acknowledged: bool,
}

impl BackendChannel {
    pub(super) fn new(stream: UnixStream, name: String, timeout: std::time::Duration, acknowledged: bool) -> Self {
        // The frontend made the socket, and may have it still.
        let channel = Mutex::new(Channel::from_peer(stream, name, timeout));
        Self { channel, is_over: AtomicBool::new(false), acknowledged }
    }

    /// Reports that the configuration has changed. Does not wait for a reply: the frontend may be waiting for one of ours.
    ///
    /// # Errors
    /// If the frontend does not take it in time.
    pub(super) fn config_changed(&self) -> Result<(), SocketError> {
        self.say(|channel| channel.send(&ConfigChangeMsg(Empty), &[]))
    }

    /// Sends a message and waits until the frontend has acknowledged it, if that was negotiated.
    ///
    /// # Errors
    /// If the frontend does not take it, or does not answer in time.
    fn tell<M: Message>(&self, message: &M) -> Result<(), SocketError> {
        self.say(
            |channel| {
                if self.acknowledged { channel.call_acknowledged(message, &[]) } else { channel.send(message, &[]) }
            },
        )
    }

    /// Sends any message at all.
    ///
    /// # Errors
    /// If the frontend does not take it in time.
    pub(super) fn send_raw(&self, request: u32, flags: Flags, payload: &[u8]) -> Result<(), SocketError> {
        self.say(|channel| channel.send_raw(request, flags, payload, &[]))
    }

    fn say(&self, what: impl FnOnce(&mut Channel) -> Result<(), SocketError>) -> Result<(), SocketError> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_over.load(Ordering::Acquire) {
            return Err(SocketError::Closed { socket: channel.name().to_owned(), doing: "sending".to_owned() });
        }
        let said = what(&mut channel);
        if said.as_ref().is_err_and(|error| !matches!(error, SocketError::Refused { .. })) {
            self.is_over.store(true, Ordering::Release);
            channel.shut_down();
        }
        said
    }
}

/// How the frontend is notified of used buffers, or of an error.
#[derive(Debug, Default)]
pub(super) enum Notify {
    /// It polls.
    #[default]
    Never,
    /// By an eventfd.
    Event(Event),
    /// By a message (`INBAND_NOTIFICATIONS`).
    InBand(Arc<BackendChannel>),
}

/// What a frontend is notified of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// Buffers were used.
    Call,
    /// Something is wrong with it.
    Error,
}

impl Notify {
    /// Notifies the frontend.
    ///
    /// # Errors
    /// If it cannot be notified.
    pub(super) fn tell(&self, ring: u16, what: Told) -> io::Result<()> {
        let state = VringState { index: ring.into(), num: 0 };
        match (self, what) {
            (Self::Never, _) => Ok(()),
            (Self::Event(event), _) => event.signal_watched(),
            (Self::InBand(channel), Told::Call) => channel.tell(&VringCall(state)).map_err(io::Error::other),
            (Self::InBand(channel), Told::Error) => channel.tell(&VringErr(state)).map_err(io::Error::other),
        }
    }
}
