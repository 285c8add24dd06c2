//! One stream of a link, split into a sender and a receiver.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kiln_wire::reset::split_at_magic;
use kiln_wire::{Channel, Done, Exited, Fault, Message, Reply, Resize, Signal, Started, StreamId, WRITE_CHUNK_BYTES};

use super::inbox::Inbox;
use super::transport::Shared;

/// Replies that one request may have. A page of a listing is one reply.
pub const REPLIES_MAX: usize = 64;

/// What arrives on a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The command runs.
    Started(Started),
    /// One reply of a stream that continues.
    Reply(Box<Reply>),
    /// Data from the guest.
    Data(Channel, Bytes),
    /// The guest sends no more data.
    Eof,
    /// The last event of an exec.
    Exited(Exited),
    /// The last event of any other stream that succeeded.
    Done(Done),
}

impl Event {
    /// Whether this is the stream's last event.
    pub const fn ends(&self) -> bool {
        matches!(self, Self::Exited(_) | Self::Done(_))
    }
}

/// How a stream ended, if not with its last event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The agent refused the request or failed.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The link was lost while the stream was open.
    #[error("the link to the guest was lost: {0}")]
    LinkLost(String),
    /// The agent did not answer a request in time. The link is up. A late answer is dropped.
    #[error("no answer to {request} from the agent within {waited:?}")]
    NoAnswer {
        /// The request.
        request: &'static str,
        /// Its deadline.
        waited: Duration,
    },
    /// The stream has ended already.
    #[error("the stream has ended")]
    Ended,
    /// The request does not fit a frame.
    #[error("the request of {bytes} bytes does not fit a frame")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// The agent sent an answer that this stream does not have.
    #[error("unexpected answer from the agent: {0}")]
    Unexpected(String),
}

impl StreamError {
    /// For an event or a reply that does not belong where it arrived. It can hold a whole frame of the guest's bytes,
    /// and an error is kept, logged and printed, so its text is cut here.
    pub fn unexpected(what: &impl Debug) -> Self {
        Self::Unexpected(kiln_wire::cut(format!("{what:?}")))
    }
}

/// Dropped with the last half of its stream. Sends the agent a cancel if the stream has not ended.
#[derive(Debug)]
pub(super) struct StreamGuard {
    pub(super) id: StreamId,
    pub(super) inbox: Arc<Inbox>,
    pub(super) shared: Arc<Shared>,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.shared.close(self.id, !self.inbox.ended_there());
    }
}

/// The half that sends to the guest. A clone is another handle to the same stream.
#[derive(Debug, Clone)]
pub struct StreamSender {
    pub(super) guard: Arc<StreamGuard>,
}

impl StreamSender {
    /// Sends data. Waits for credit if needed.
    ///
    /// # Errors
    /// The stream or the link ended before all of it was sent.
    pub async fn send(&self, mut data: &[u8]) -> Result<(), StreamError> {
        while !data.is_empty() {
            let piece = split_at_magic(&data[..data.len().min(WRITE_CHUNK_BYTES)]);
            // The window is taken before the data is queued. If this future is dropped in between, that part of the
            // window is lost. The stream is of no more use then anyway, because its caller can't know how much was
            // sent.
            let given = self.guard.inbox.take_window(piece).await;
            if given == 0 {
                return Err(self.lost());
            }
            let (now, later) = data.split_at(given);
            self.unless_ended(self.guard.shared.send_data(self.guard.id, now)).await?;
            data = later;
        }
        Ok(())
    }

    /// Sends the end of the data.
    ///
    /// # Errors
    /// The stream or the link ended.
    pub async fn eof(&self) -> Result<(), StreamError> {
        // Not a control frame: it must not overtake the data before it.
        self.unless_ended(self.guard.shared.send_after_data(self.guard.id, &Message::Eof)).await
    }

    /// Sends a signal to the command's process group. When a [`ping`](super::GuestLink::ping) that was sent after it
    /// has been answered, the signal has reached the agent.
    ///
    /// # Errors
    /// The stream or the link ended.
    pub fn signal(&self, signal: i32) -> Result<(), StreamError> {
        self.control(&Message::Signal(Signal { signal }))
    }

    /// Resizes the command's terminal.
    ///
    /// # Errors
    /// The stream or the link ended.
    pub fn resize(&self, rows: u16, cols: u16) -> Result<(), StreamError> {
        self.control(&Message::Resize(Resize { rows, cols }))
    }

    /// Requests that the agent ends the stream now. Its last event still arrives.
    ///
    /// # Errors
    /// The stream or the link ended.
    pub fn cancel(&self) -> Result<(), StreamError> {
        self.control(&Message::Cancel)
    }

    fn control(&self, message: &Message<'_>) -> Result<(), StreamError> {
        if self.guard.inbox.ended() {
            return Err(StreamError::Ended);
        }
        self.guard.shared.send_control(self.guard.id, message)
    }

    /// Waits for a place in the queue to the agent, or for the stream's end. If the agent reads nothing, there never is
    /// a place.
    async fn unless_ended(&self, sent: impl Future<Output = Result<(), ()>>) -> Result<(), StreamError> {
        tokio::select! {
            biased;
            () = self.guard.inbox.end() => Err(self.lost()),
            sent = sent => sent.map_err(|()| self.lost()),
        }
    }

    fn lost(&self) -> StreamError {
        self.guard.shared.lost().map_or(StreamError::Ended, StreamError::LinkLost)
    }
}

/// The half that receives from the guest.
#[derive(Debug)]
pub struct StreamReceiver {
    pub(super) guard: Arc<StreamGuard>,
}

impl StreamReceiver {
    /// The next event. Taking data gives the agent credit for more.
    ///
    /// # Errors
    /// How the stream ended, if not with an event. After its last event: [`StreamError::Ended`].
    pub async fn next(&mut self) -> Result<Event, StreamError> {
        let (event, credit) = self.guard.inbox.next().await;
        if let Some(bytes) = credit {
            // If the link is lost here, the next call reports it.
            let _ = self.guard.shared.send_control(self.guard.id, &Message::Credit(bytes));
        }
        event
    }

    /// Takes events until the end of a stream that carries no data, and returns its replies.
    ///
    /// # Errors
    /// How the stream ended, an answer that does not belong there, or more than [`REPLIES_MAX`] replies.
    pub async fn replies(mut self) -> Result<Vec<Reply>, StreamError> {
        let mut replies = Vec::new();
        loop {
            match self.next().await? {
                // A guest may send replies without end.
                Event::Reply(_) if replies.len() == REPLIES_MAX => {
                    return Err(StreamError::Unexpected(format!("more than {REPLIES_MAX} replies")));
                }
                Event::Reply(reply) => replies.push(*reply),
                Event::Done(_) => return Ok(replies),
                other => return Err(StreamError::unexpected(&other)),
            }
        }
    }

    /// Takes the one reply of a stream that carries nothing else.
    ///
    /// # Errors
    /// How the stream ended, no reply, or more than one.
    pub async fn reply(mut self) -> Result<Reply, StreamError> {
        let mut reply = None;
        loop {
            match self.next().await? {
                Event::Reply(first) if reply.is_none() => reply = Some(*first),
                Event::Done(_) => {
                    return reply.ok_or_else(|| StreamError::Unexpected("it ended without a reply".into()));
                }
                other => return Err(StreamError::unexpected(&other)),
            }
        }
    }
}

/// Drives `feed` until `answer` completes, and no longer. If the receiving side ends the stream in any way, also by an
/// answer that does not belong there, the sender is not waited for.
pub(super) async fn beside<T>(answer: impl Future<Output = T>, feed: impl Future<Output = ()>) -> T {
    tokio::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        () = feed => answer.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_does_not_hold_a_whole_frame_of_the_guest() {
        let event = Event::Data(Channel::Out, Bytes::from(vec![0xff; 1 << 20]));
        let words = StreamError::unexpected(&event).to_string();
        assert!(words.len() < kiln_wire::WORDS_BYTES_MAX + 64, "{} bytes", words.len());
    }
}
