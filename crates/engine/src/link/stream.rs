//! One stream of a link, in two halves.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kiln_wire::reset::split_at_magic;
use kiln_wire::{Channel, Done, Exited, Fault, Message, Reply, Resize, Signal, Started, StreamId, WRITE_CHUNK_BYTES};

use super::inbox::Inbox;
use super::transport::Shared;

/// Replies that one request may have; a page of a listing is one.
pub const REPLIES_MAX: usize = 64;

/// What arrives on a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The command runs.
    Started(Started),
    /// One answer of a stream that goes on.
    Reply(Box<Reply>),
    /// Data from the guest.
    Data(Channel, Bytes),
    /// No more data from the guest.
    Eof,
    /// Last event of an exec.
    Exited(Exited),
    /// Last event of any other stream that went well.
    Done(Done),
}

impl Event {
    /// Whether this is the stream's last event.
    pub const fn ends(&self) -> bool {
        matches!(self, Self::Exited(_) | Self::Done(_))
    }
}

/// How a stream ended otherwise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The agent refused or failed.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The link ended under it.
    #[error("the link to the guest was lost: {0}")]
    LinkLost(String),
    /// The agent did not answer a request in time. The link is up, and the answer counts no more if it comes.
    #[error("no answer to {request} from the agent within {waited:?}")]
    NoAnswer {
        /// The request.
        request: &'static str,
        /// Its deadline.
        waited: Duration,
    },
    /// It has ended already.
    #[error("the stream has ended")]
    Ended,
    /// The request does not fit a frame.
    #[error("the request of {bytes} bytes does not fit a frame")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// The agent answered something that this stream does not have.
    #[error("unexpected answer from the agent: {0}")]
    Unexpected(String),
}

impl StreamError {
    /// Of an event or reply that has no place where it came. It can hold a whole frame of the guest's bytes, and an error
    /// is kept, logged and printed, so it is cut here.
    pub fn unexpected(what: &impl Debug) -> Self {
        Self::Unexpected(kiln_wire::cut(format!("{what:?}")))
    }
}

/// Dropped with the last half of its stream: asks the agent to end what still runs there.
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

/// The half that talks to the guest. Cloning gives another handle to the same stream.
#[derive(Debug, Clone)]
pub struct StreamSender {
    pub(super) guard: Arc<StreamGuard>,
}

impl StreamSender {
    /// Sends data, waiting for credit as needed.
    ///
    /// # Errors
    /// The stream or the link ended before all of it was sent.
    pub async fn send(&self, mut data: &[u8]) -> Result<(), StreamError> {
        while !data.is_empty() {
            let piece = split_at_magic(&data[..data.len().min(WRITE_CHUNK_BYTES)]);
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

    /// Says that no more data follows.
    ///
    /// # Errors
    /// The stream or the link ended.
    pub async fn eof(&self) -> Result<(), StreamError> {
        // Not a control frame: it must not overtake the data before it.
        self.unless_ended(self.guard.shared.send_after_data(self.guard.id, &Message::Eof)).await
    }

    /// Sends a signal to the command's process group. Once a [`ping`](super::GuestLink::ping) that is sent after it is
    /// answered, the signal has reached the agent.
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

    /// Asks the agent to end the stream now; its last event still comes.
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

    /// Waits for a place in the queue to the agent, which an agent that reads nothing never has, or for the stream's end.
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

/// The half that listens to the guest.
#[derive(Debug)]
pub struct StreamReceiver {
    pub(super) guard: Arc<StreamGuard>,
}

impl StreamReceiver {
    /// The next event. Taking data gives the agent credit for more.
    ///
    /// # Errors
    /// How the stream ended, if not with an event; [`StreamError::Ended`] after its last event.
    pub async fn next(&mut self) -> Result<Event, StreamError> {
        let (event, credit) = self.guard.inbox.next().await;
        if let Some(bytes) = credit {
            // A link that ends here is reported by the next call.
            let _ = self.guard.shared.send_control(self.guard.id, &Message::Credit(bytes));
        }
        event
    }

    /// Takes events up to the end of a stream that carries no data, and gives back its replies.
    ///
    /// # Errors
    /// How the stream ended, an answer that does not belong there, or more than [`REPLIES_MAX`] of them.
    pub async fn replies(mut self) -> Result<Vec<Reply>, StreamError> {
        let mut replies = Vec::new();
        loop {
            match self.next().await? {
                // A guest may go on and on.
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
    /// How the stream ended, no reply, or more than that one.
    pub async fn reply(mut self) -> Result<Reply, StreamError> {
        let mut reply = None;
        loop {
            match self.next().await? {
                Event::Reply(first) if reply.is_none() => reply = Some(*first),
                Event::Done(_) => return reply.ok_or_else(|| StreamError::Unexpected("an end without a reply".into())),
                other => return Err(StreamError::unexpected(&other)),
            }
        }
    }
}

/// Drives `feed` for as long as `answer` takes and no longer: whatever ends a stream on the receiving side, an answer
/// that does not belong there too, nobody waits for its sender after that.
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
