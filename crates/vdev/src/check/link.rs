//! A connection whose messages are recorded. It tells a backend that does not reply from a slow one without waiting: a
//! request that every backend replies to is sent after the message, and its reply proves that no other came before.

use std::cell::RefCell;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use super::outcome::{Answer, Outcome, Stop};
use super::trace::{Side, Trace, backend_reply, frontend_message};
use crate::protocol::frontend::GetFeatures;
use crate::protocol::{Empty, Flags, FrontendRequest, Message, Payload as _, ProtocolFeatures};
use crate::socket::{Channel, RawMessage, SocketError};

/// A backend that acknowledges does it within this time; whether another does not at all is found out by asking it.
const ANSWERS_SOON: Duration = Duration::from_millis(300);

/// Answers that hostile messages may bring.
const ANSWERS_TO_NOISE: usize = 64;

/// The trace of a case, which all its connections write to.
pub(super) type SharedTrace = Rc<RefCell<Trace>>;

/// A connection whose words are written down.
#[derive(Debug)]
pub(super) struct Link {
    channel: Channel,
    trace: SharedTrace,
    /// What is waited for at most once the backend has accepted, which its first answer shows.
    timeout: Option<Duration>,
    /// `GET_FEATURES`, once it was read.
    pub offered: u64,
    /// Protocol features that were negotiated.
    pub protocol: ProtocolFeatures,
}

impl Link {
    /// A connection without a message.
    pub(super) fn new(channel: Channel, trace: SharedTrace) -> Self {
        Self { channel, trace, timeout: None, offered: 0, protocol: ProtocolFeatures::empty() }
    }

    /// Waits no longer than this from the first answer on. Before, the channel's own timeout counts, which has room for the
    /// time until the connection is accepted.
    #[must_use]
    pub(super) fn timeout_once_heard(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    /// The connection without the notes.
    pub(super) const fn channel(&mut self) -> &mut Channel {
        &mut self.channel
    }

    /// Adds a line to the trace.
    pub(super) fn note(&self, text: impl Into<String>) {
        self.trace.borrow_mut().note(text);
    }

    /// Adds a line about what was done in memory that both sides share.
    pub(super) fn done(&self, text: impl Into<String>) {
        self.trace.borrow_mut().push(Side::Done, text.into());
    }

    /// Whether `REPLY_ACK` was negotiated, so that every message can be answered.
    pub(super) const fn has_reply_ack(&self) -> bool {
        self.protocol.contains(ProtocolFeatures::REPLY_ACK)
    }

    /// Sends any message.
    pub(super) fn send_raw(&mut self, request: u32, flags: Flags, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Outcome {
        self.trace.borrow_mut().push(Side::Sent, frontend_message(request, flags, payload, fds.len()));
        Ok(self.channel.send_raw(request, flags, payload, fds)?)
    }

    /// Sends any bytes; `said` stands for them in the trace.
    pub(super) fn send_bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>], said: &str) -> Outcome {
        self.trace.borrow_mut().push(Side::Sent, said.to_owned());
        Ok(self.channel.send_bytes(bytes, fds)?)
    }

    /// Sends a message without need_reply.
    pub(super) fn send<M: Message>(&mut self, message: &M, fds: &[BorrowedFd<'_>]) -> Outcome {
        self.send_raw(M::REQUEST.number(), Flags::request(), &message.payload(), fds)
    }

    /// Receives whatever comes next.
    pub(super) fn receive(&mut self) -> Outcome<RawMessage> {
        self.receive_for("an answer")
    }

    fn receive_for(&mut self, what: &str) -> Outcome<RawMessage> {
        match self.channel.receive_unchecked() {
            Ok(message) => {
                if let Some(timeout) = self.timeout.take() {
                    self.channel.set_timeout(timeout);
                }
                self.trace.borrow_mut().push(Side::Received, backend_reply(&message));
                Ok(message)
            }
            Err(error) => {
                let closed = error.is_closed();
                self.trace.borrow_mut().note(if closed { "the connection is closed" } else { "no message arrives" });
                match error {
                    SocketError::Timeout { waited, .. } => {
                        Err(Stop::Hang(format!("no reply within {waited:?} while waiting for {what}")))
                    }
                    _ if closed => Err(Stop::Closed(format!("closed the connection while waiting for {what}"))),
                    other => Err(other.into()),
                }
            }
        }
    }

    /// Receives the reply to a request of this number. Its flags are not checked, since other cases are about them and
    /// one defect must not fail all cases.
    pub(super) fn reply_to(&mut self, request: u32) -> Outcome<RawMessage> {
        let name = FrontendRequest::from_number(request).map_or("the request", FrontendRequest::name);
        let reply = self.receive_for(&format!("the reply to {name}"))?;
        if reply.header.request != request {
            return Stop::fail(format!("instead of a reply to {name} the backend sent {}", backend_reply(&reply)));
        }
        Ok(reply)
    }

    /// Sends a message that has a reply and decodes it.
    pub(super) fn call<M: Message>(&mut self, message: &M) -> Outcome<M::Reply> {
        self.call_with_fds(message, &[]).map(|(reply, _)| reply)
    }

    /// As [`call`](Self::call), with descriptors both ways.
    pub(super) fn call_with_fds<M: Message>(
        &mut self,
        message: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Outcome<(M::Reply, Vec<OwnedFd>)> {
        self.send(message, fds)?;
        let reply = self.reply_to(M::REQUEST.number())?;
        match M::Reply::decode(&reply.payload) {
            Ok(decoded) => Ok((decoded, reply.fds)),
            Err(error) => Stop::fail(format!("the reply to {} is malformed: {error}", M::REQUEST)),
        }
    }

    /// `GET_FEATURES`, which every backend answers.
    pub(super) fn features(&mut self) -> Outcome<u64> {
        self.call(&GetFeatures(Empty))
    }

    /// Sends a message with `need_reply`, if that was negotiated, and finds out what became of it.
    pub(super) fn ask<M: Message>(&mut self, message: &M, fds: &[BorrowedFd<'_>]) -> Outcome<Answer> {
        let flags = if self.has_reply_ack() { Flags::request_with_reply() } else { Flags::request() };
        self.ask_raw(M::REQUEST.number(), flags, &message.payload(), fds)
    }

    /// Sends any message and finds out what became of it: what comes before the answer to the question behind it.
    pub(super) fn ask_raw(
        &mut self,
        request: u32,
        flags: Flags,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Outcome<Answer> {
        let sent = self.send_raw(request, flags, payload, fds);
        match sent {
            Ok(()) => self.settle(request),
            Err(Stop::Closed(_)) => Ok(Answer { code: None, closed: true }),
            Err(stop) => Err(stop),
        }
    }

    /// Finds out what became of messages that were sent: the last reply to `request` before that of a question behind.
    fn settle(&mut self, request: u32) -> Outcome<Answer> {
        let question = if request == 1 { FrontendRequest::GetProtocolFeatures } else { FrontendRequest::GetFeatures };
        let mut answer = Answer { code: None, closed: false };
        // A message that is refused by closing may be found closed only when the answer is awaited.
        match self.send_raw(question.number(), Flags::request(), &[], &[]) {
            Ok(()) | Err(Stop::Closed(_)) => {}
            Err(stop) => return Err(stop),
        }
        loop {
            match self.receive_for(&format!("the reply to {question}, sent after it")) {
                Err(Stop::Closed(_)) => {
                    answer.closed = true;
                    return Ok(answer);
                }
                Err(stop) => return Err(stop),
                Ok(reply) if reply.header.request == question.number() => return Ok(answer),
                Ok(reply) if reply.header.request == request && answer.code.is_none() => {
                    let code = reply.payload.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
                    answer.code = Some(code);
                }
                Ok(reply) => {
                    return Stop::fail(format!("the backend sent {} without a request", backend_reply(&reply)));
                }
            }
        }
    }

    /// Sends a message that the backend has to take.
    pub(super) fn require<M: Message>(&mut self, message: &M, fds: &[BorrowedFd<'_>]) -> Outcome {
        let answer = if self.has_reply_ack() { self.acknowledgement(message, fds)? } else { self.ask(message, fds)? };
        match answer {
            _ if answer.is_accepted() => Ok(()),
            Answer { code: None, closed: true } => {
                Err(Stop::Closed(format!("closed the connection after {}", M::REQUEST)))
            }
            _ => Stop::fail(format!("{answer} after {}", M::REQUEST)),
        }
    }

    /// Sends a message with `need_reply`. Only if the backend does not reply soon, a request is sent after it.
    fn acknowledgement<M: Message>(&mut self, message: &M, fds: &[BorrowedFd<'_>]) -> Outcome<Answer> {
        let number = M::REQUEST.number();
        self.send_raw(number, Flags::request_with_reply(), &message.payload(), fds)?;
        if !self.channel.is_readable(ANSWERS_SOON)? {
            return self.settle(number);
        }
        let reply = self.reply_to(number)?;
        let code = reply.payload.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        Ok(Answer { code: Some(code), closed: false })
    }

    /// Sends a message that the backend should refuse: with an error, or by closing.
    pub(super) fn require_refusal<M: Message>(&mut self, message: &M, fds: &[BorrowedFd<'_>], what: &str) -> Outcome {
        let answer = self.ask(message, fds)?;
        self.judge_refusal(answer, what)
    }

    /// Fails unless the backend refused.
    pub(super) fn judge_refusal(&self, answer: Answer, what: &str) -> Outcome {
        if answer.is_refused() {
            return Ok(());
        }
        if answer.code.is_none() && !self.has_reply_ack() {
            return Stop::skip("without REPLY_ACK a refusal is not visible");
        }
        Stop::fail(format!("{what}: the backend {answer}"))
    }

    /// After something hostile: whether the backend still replies here; false if it has closed the connection. Replies
    /// to what was hostile may come first.
    pub(super) fn is_alive(&mut self) -> Outcome<bool> {
        match self.send(&GetFeatures(Empty), &[]) {
            Err(Stop::Closed(_)) => return Ok(false),
            sent => sent?,
        }
        // A backend that took several messages for questions answers each of them.
        for _ in 0..ANSWERS_TO_NOISE {
            match self.receive_for("the reply to GET_FEATURES, sent after it") {
                Err(Stop::Closed(_)) => return Ok(false),
                Ok(reply) if reply.header.request == 1 => return Ok(true),
                Ok(_) => {}
                Err(stop) => return Err(stop),
            }
        }
        Ok(true)
    }

    /// Whether the backend sends nothing for this long: true if the time runs out, false if it closes; an error if it
    /// sends something.
    pub(super) fn is_silent_for(&mut self, time: Duration) -> Outcome<bool> {
        if !self.channel.is_readable(time)? {
            return Ok(true);
        }
        match self.receive_for("nothing") {
            Err(Stop::Closed(_)) => Ok(false),
            Ok(message) => Stop::fail(format!("the backend sent {} without a request", backend_reply(&message))),
            Err(stop) => Err(stop),
        }
    }

    /// Waits until the backend closes the connection.
    pub(super) fn is_closed_within(&mut self, time: Duration) -> Outcome<bool> {
        Ok(!self.is_silent_for(time)?)
    }
}
