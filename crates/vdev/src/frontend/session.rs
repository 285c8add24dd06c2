//! One session: the state of this connection, and how messages and their replies go over it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::backend_channel::BackendSide;
use super::error::FrontendError;
use super::inflight::InflightFile;
use super::memory_table::SharedRegion;
use super::options::{Negotiated, Options, Wish};
use super::vring::RingSteps;
use crate::protocol::{Flags, Message, ProtocolFeatures, Request};
use crate::socket::{Channel, SocketError, wait_readable};
use crate::virtio::feature;

/// Messages whose answers are outstanding at the same time in a batch: both sockets hold that many before either side reads.
const BATCH_MESSAGES: usize = 32;

/// The driver's side of a vhost-user session.
///
/// ```no_run
/// use kiln_vdev::frontend::{Frontend, Options, Wish};
///
/// let mut frontend = Frontend::connect("disk.sock".as_ref(), &Options::default())?;
/// let negotiated = frontend.handshake(&Wish::default())?;
/// println!("{} queues, {}", negotiated.usable_queues(), negotiated.protocol_features);
/// # Ok::<(), kiln_vdev::frontend::FrontendError>(())
/// ```
#[derive(Debug)]
pub struct Frontend {
    pub(super) channel: Channel,
    path: Option<PathBuf>,
    pub(super) options: Options,
    pub(super) said: Said,
    pub(super) backend: BackendSide,
    /// Messages whose answers have not been read, oldest first.
    pending: VecDeque<Pending>,
    batching: bool,
    // What outlives the connection.
    pub(super) wish: Wish,
    pub(super) negotiated: Negotiated,
    pub(super) memory: Vec<SharedRegion>,
    pub(super) inflight: Option<InflightFile>,
}

/// What was sent and received on this connection.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) owner: bool,
    pub(super) offered: Option<u64>,
    pub(super) features: Option<u64>,
    pub(super) protocol_offered: Option<ProtocolFeatures>,
    pub(super) protocol: ProtocolFeatures,
    pub(super) memory: bool,
    pub(super) rings: Vec<RingSteps>,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    request: Request,
    ring: Option<u32>,
}

impl Frontend {
    /// Connects to a backend. Nothing is sent yet.
    ///
    /// # Errors
    /// If no backend listens there, or it does not accept the connection in time.
    pub fn connect(path: &Path, options: &Options) -> Result<Self, FrontendError> {
        let channel = Channel::connect(path, options.timeout)?;
        Ok(Self { path: Some(path.to_owned()), ..Self::from_channel(channel, options) })
    }

    /// A session on a connection that is there already. It can't reconnect.
    pub fn from_channel(mut channel: Channel, options: &Options) -> Self {
        channel.set_timeout(options.timeout);
        Self {
            channel,
            path: None,
            options: options.clone(),
            said: Said::default(),
            backend: BackendSide::default(),
            pending: VecDeque::with_capacity(BATCH_MESSAGES),
            batching: false,
            wish: Wish::default(),
            negotiated: Negotiated::default(),
            memory: Vec::new(),
            inflight: None,
        }
    }

    /// The name of the socket, as errors give it.
    pub(crate) fn name(&self) -> &str {
        self.channel.name()
    }

    /// The socket's path, if the session was made by one.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The connection.
    pub(crate) const fn channel(&self) -> &Channel {
        &self.channel
    }

    /// What the last handshake came to.
    pub(crate) const fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// Whether these protocol features were negotiated on this connection.
    pub(super) const fn has_protocol(&self, features: ProtocolFeatures) -> bool {
        self.said.protocol.contains(features)
    }

    /// Whether these virtio features were acknowledged on this connection.
    pub(super) fn has_features(&self, features: u64) -> bool {
        self.said.features.is_some_and(|acknowledged| acknowledged & features == features)
    }

    /// Sends the messages of `work` without waiting for each reply, then waits for all. Messages with a reply of their
    /// own are still waited for at once. The messages arrive and are handled in the same order either way.
    ///
    /// # Errors
    /// What `work` returns; else the first message that was refused, named as always. Later ones were sent as well.
    pub(super) fn batched<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, FrontendError>,
    ) -> Result<T, FrontendError> {
        let outer = std::mem::replace(&mut self.batching, true);
        let done = work(self);
        self.batching = outer;
        if outer {
            return done;
        }
        let settled = self.settle();
        let value = done?;
        settled?;
        Ok(value)
    }

    /// Gives this session another connection, without messages so far.
    pub(super) fn replace_channel(&mut self, channel: Channel) {
        self.channel = channel;
        self.said = Said::default();
        self.backend.close();
        self.pending.clear();
    }

    /// Sends a message and waits for the reply that it always has.
    pub(super) fn ask<M: Message>(
        &mut self,
        ring: Option<u32>,
        message: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(M::Reply, Vec<OwnedFd>), FrontendError> {
        self.post(ring, message, fds)?;
        self.settle()?;
        self.collect::<M>(ring)
    }

    /// As [`ask`](Self::ask), for a reply that brings no descriptor.
    pub(super) fn ask_plain<M: Message>(
        &mut self,
        ring: Option<u32>,
        message: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Result<M::Reply, FrontendError> {
        self.post(ring, message, fds)?;
        self.settle()?;
        self.collect_plain::<M>(ring)
    }

    /// Sends a message and waits until the backend acknowledges it, if that was negotiated.
    pub(super) fn tell<M: Message>(
        &mut self,
        ring: Option<u32>,
        message: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), FrontendError> {
        if !(self.options.need_reply && self.has_protocol(ProtocolFeatures::REPLY_ACK)) {
            return self.post(ring, message, fds);
        }
        let sent = self.channel.send_with(message, Flags::request_with_reply(), fds);
        self.at(ring, M::REQUEST, sent)?;
        self.pending.push_back(Pending { request: M::REQUEST, ring });
        if self.batching && self.pending.len() < BATCH_MESSAGES {
            return Ok(());
        }
        self.settle()
    }

    /// Sends a message without waiting for anything.
    pub(super) fn post<M: Message>(
        &mut self,
        ring: Option<u32>,
        message: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), FrontendError> {
        let sent = self.channel.send(message, fds);
        self.at(ring, M::REQUEST, sent)
    }

    /// Waits for the reply to the oldest message that was posted and has one.
    pub(super) fn collect<M: Message>(&mut self, ring: Option<u32>) -> Result<(M::Reply, Vec<OwnedFd>), FrontendError> {
        self.wait_for_answer(M::REQUEST, ring)?;
        let reply = self.channel.reply_to::<M>();
        self.at(ring, M::REQUEST, reply)
    }

    /// As [`collect`](Self::collect), for a reply that brings no descriptor.
    pub(super) fn collect_plain<M: Message>(&mut self, ring: Option<u32>) -> Result<M::Reply, FrontendError> {
        let (reply, fds) = self.collect::<M>(ring)?;
        if fds.is_empty() {
            return Ok(reply);
        }
        Err(self.answer_error(M::REQUEST.name(), format!("it has {} descriptors", fds.len())))
    }

    /// Waits for all answers that are outstanding. After a refusal the rest is still read, so that the next answer is
    /// that of the next message.
    pub(super) fn settle(&mut self) -> Result<(), FrontendError> {
        let mut refused = None;
        while let Some(Pending { request, ring }) = self.pending.pop_front() {
            let answered = match self.wait_for_answer(request, ring) {
                Ok(()) => {
                    let answer = self.channel.acknowledgement_of(request, self.pending.len());
                    self.at(ring, request, answer)
                }
                Err(error) => Err(error),
            };
            match answered {
                Ok(()) => {}
                Err(error) if error.refused().is_some() => {
                    refused.get_or_insert(error);
                }
                // A backend that refuses may close the connection; the refusal is the more useful error.
                Err(error) => {
                    self.pending.clear();
                    return Err(refused.unwrap_or(error));
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// Waits until there is something to read, and serves the backend's own channel meanwhile.
    pub(super) fn wait_for_answer(&mut self, request: Request, ring: Option<u32>) -> Result<(), FrontendError> {
        let deadline = Instant::now() + self.options.timeout;
        while let Some(backend) = self.backend.channel()
            && !self.channel.has_read_ahead()
        {
            let left = deadline.saturating_duration_since(Instant::now());
            let readable = if backend.has_read_ahead() {
                Ok([false, true])
            } else {
                wait_readable([self.channel.as_fd(), backend.as_fd()], Some(left))
            };
            let [answered, asked] = readable.map_err(|source| self.system("waiting for a reply", source))?;
            if answered {
                break;
            }
            // A backend that sends requests without end does not reply either.
            if asked && !left.is_zero() {
                self.backend.serve_one(self.channel.name(), &mut self.said)?;
            } else {
                let timeout = SocketError::Timeout {
                    socket: self.name().to_owned(),
                    doing: format!("waiting for the reply to {request}"),
                    waited: self.options.timeout,
                };
                return self.at(ring, request, Err(timeout));
            }
        }
        Ok(())
    }

    /// Names the ring that a message was about.
    pub(super) fn at<T>(
        &self,
        ring: Option<u32>,
        request: Request,
        result: Result<T, SocketError>,
    ) -> Result<T, FrontendError> {
        match (result, ring) {
            (Ok(value), _) => Ok(value),
            (Err(source), None) => Err(FrontendError::Socket(source)),
            (Err(source), Some(ring)) => Err(FrontendError::RingMessage {
                socket: self.name().to_owned(),
                request: request.name(),
                ring,
                source: Box::new(source),
            }),
        }
    }

    /// Refuses a message that needs a protocol feature which was not negotiated.
    pub(super) fn need(
        &self,
        request: &'static str,
        feature: ProtocolFeatures,
        name: &'static str,
    ) -> Result<(), FrontendError> {
        if self.has_protocol(feature) {
            return Ok(());
        }
        Err(FrontendError::NotNegotiated { socket: self.name().to_owned(), request, feature: name })
    }

    /// Refuses a message that comes before `SET_FEATURES`.
    pub(super) fn need_features(&self, request: &'static str) -> Result<(), FrontendError> {
        self.after(self.said.features.is_some(), request, "SET_FEATURES")
    }

    /// Refuses a message whose turn it is not.
    pub(super) fn after(&self, done: bool, request: &'static str, after: &'static str) -> Result<(), FrontendError> {
        if done { Ok(()) } else { Err(FrontendError::Order { socket: self.name().to_owned(), request, after }) }
    }

    /// Refuses what does not fit a message.
    pub(super) fn bound(
        &self,
        request: &'static str,
        what: &'static str,
        found: u64,
        max: u64,
    ) -> Result<(), FrontendError> {
        if found <= max {
            return Ok(());
        }
        Err(FrontendError::Bound { socket: self.name().to_owned(), request, what, max, found })
    }

    pub(super) fn answer_error(&self, request: &'static str, what: String) -> FrontendError {
        FrontendError::Answer { socket: self.name().to_owned(), request, what }
    }

    pub(super) fn system(&self, doing: &'static str, source: io::Error) -> FrontendError {
        FrontendError::System { socket: self.name().to_owned(), doing, source }
    }

    /// Whether rings have to be enabled: without protocol features they begin enabled.
    pub(super) fn rings_are_enabled_by_message(&self) -> bool {
        self.has_features(feature::PROTOCOL_FEATURES)
    }
}
