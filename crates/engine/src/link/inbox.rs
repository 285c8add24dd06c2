//! What one stream has received and nobody has taken yet.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use kiln_wire::credit::{ReceiveWindow, SendWindow};
use kiln_wire::{Channel, ErrorCode, Fault};
use tokio::sync::Notify;

use super::stream::{Event, StreamError};

/// Answers that may wait besides data, which its window bounds.
const ANSWERS_MAX: usize = 4096;
/// And their size together.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Frames are joined up to this size; larger ones would be copied again and again.
const JOINED_BYTES_MAX: usize = 16 << 10;

/// The state that the link's reader and a stream's two halves share.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    /// Something arrived, or the stream ended.
    arrived: Notify,
    /// The send window grew, or the stream ended.
    credited: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Waiting>,
    answers: usize,
    answer_bytes: usize,
    end: Option<StreamError>,
    ended: bool,
    receive: ReceiveWindow,
    send: SendWindow,
}

#[derive(Debug)]
enum Waiting {
    Event(Event, usize),
    /// Small neighbouring data frames of one channel are joined, so that tiny ones don't cost more than their bytes.
    Data(Channel, BytesMut),
}

impl Inbox {
    pub(super) fn new() -> Arc<Self> {
        // The host has the memory for it.
        let state = State { receive: ReceiveWindow::growing(), ..State::default() };
        Arc::new(Self { state: Mutex::new(state), ..Self::default() })
    }

    /// Takes in one data frame.
    pub(super) fn push_data(&self, channel: Channel, bytes: &[u8]) {
        let mut state = self.lock();
        if state.ended {
            return;
        }
        if let Err(overrun) = state.receive.received(bytes.len()) {
            state.finish(StreamError::Fault(Fault::new(ErrorCode::FlowControl, overrun.to_string())));
        } else if let Some(Waiting::Data(last, joined)) = state.queue.back_mut()
            && *last == channel
            && joined.len() + bytes.len() <= JOINED_BYTES_MAX
        {
            joined.extend_from_slice(bytes);
        } else {
            state.queue.push_back(Waiting::Data(channel, BytesMut::from(bytes)));
        }
        drop(state);
        self.arrived.notify_one();
    }

    /// Takes in one answer, which came in a frame of `bytes`.
    pub(super) fn push_event(&self, event: Event, bytes: usize) {
        let mut state = self.lock();
        if state.ended {
            return;
        }
        if state.answers == ANSWERS_MAX || state.answer_bytes + bytes > ANSWER_BYTES_MAX {
            let words = format!("{} answers of {} bytes wait unread", state.answers, state.answer_bytes);
            state.finish(StreamError::Fault(Fault::new(ErrorCode::LimitExceeded, words)));
        } else {
            state.ended = event.ends();
            state.answers += 1;
            state.answer_bytes += bytes;
            state.queue.push_back(Waiting::Event(event, bytes));
        }
        drop(state);
        self.arrived.notify_one();
        self.credited.notify_waiters();
    }

    /// Ends the stream; what arrived before can still be taken.
    pub(super) fn end(&self, error: StreamError) {
        let mut state = self.lock();
        if !state.ended {
            state.finish(error);
        }
        drop(state);
        self.arrived.notify_one();
        self.credited.notify_waiters();
    }

    pub(super) fn credit(&self, bytes: u32) {
        self.lock().send.credit(bytes);
        self.credited.notify_waiters();
    }

    /// Whether the last frame of the stream came.
    pub(super) fn ended(&self) -> bool {
        self.lock().ended
    }

    /// The next thing that arrived, and the credit that taking it earns the peer.
    pub(super) async fn next(&self) -> (Result<Event, StreamError>, Option<u32>) {
        loop {
            // `notify_one` stores a permit, so an arrival between the look and the wait is not missed.
            if let Some(taken) = self.lock().take() {
                return taken;
            }
            self.arrived.notified().await;
        }
    }

    /// Waits until data may be sent and takes up to `wanted` bytes of the window; 0 where the stream ended.
    pub(super) async fn take_window(&self, wanted: usize) -> usize {
        loop {
            let credited = self.credited.notified();
            tokio::pin!(credited);
            credited.as_mut().enable();
            {
                let mut state = self.lock();
                if state.ended {
                    return 0;
                }
                let given = state.send.take(wanted);
                if given > 0 {
                    return given;
                }
            }
            credited.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn finish(&mut self, error: StreamError) {
        self.ended = true;
        self.end = Some(error);
    }

    fn take(&mut self) -> Option<(Result<Event, StreamError>, Option<u32>)> {
        match self.queue.pop_front() {
            Some(Waiting::Event(event, bytes)) => {
                self.answers -= 1;
                self.answer_bytes -= bytes;
                Some((Ok(event), None))
            }
            Some(Waiting::Data(channel, bytes)) => {
                let credit = self.receive.consumed(bytes.len());
                Some((Ok(Event::Data(channel, Bytes::from(bytes))), credit.filter(|_| !self.ended)))
            }
            None if self.ended => Some((Err(self.end.clone().unwrap_or(StreamError::Ended)), None)),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_wire::Done;
    use kiln_wire::credit::{WINDOW_BYTES, WINDOW_BYTES_MAX};

    #[tokio::test]
    async fn tiny_frames_are_joined_and_the_window_grows_with_the_first_credit() {
        let inbox = Inbox::new();
        for _ in 0..WINDOW_BYTES {
            inbox.push_data(Channel::Out, b"x");
        }
        inbox.push_data(Channel::Err, b"");
        let (mut credits, mut pieces, mut total) = (Vec::new(), 0, 0);
        while total < WINDOW_BYTES as usize {
            let (event, credit) = inbox.next().await;
            let Ok(Event::Data(Channel::Out, bytes)) = event else { panic!("no data: {event:?}") };
            total += bytes.len();
            pieces += 1;
            credits.extend(credit);
        }
        assert_eq!(pieces, WINDOW_BYTES as usize / JOINED_BYTES_MAX);
        assert_eq!(credits[0], WINDOW_BYTES / 4 + WINDOW_BYTES_MAX - WINDOW_BYTES);
    }

    #[tokio::test]
    async fn an_overrun_ends_the_stream_after_what_was_allowed() {
        let inbox = Inbox::new();
        inbox.push_data(Channel::Out, &vec![0; WINDOW_BYTES as usize]);
        inbox.push_data(Channel::Out, b"x");
        assert!(matches!(inbox.next().await.0, Ok(Event::Data(..))));
        assert!(matches!(inbox.next().await.0, Err(StreamError::Fault(fault)) if fault.code == ErrorCode::FlowControl));
    }

    #[tokio::test]
    async fn endless_answers_end_the_stream() {
        let inbox = Inbox::new();
        for _ in 0..=ANSWERS_MAX {
            inbox.push_event(Event::Eof, 0);
        }
        assert!(inbox.ended());
    }

    #[tokio::test]
    async fn nothing_comes_after_the_end() {
        let inbox = Inbox::new();
        inbox.push_event(Event::Done(Done::default()), 2);
        inbox.push_data(Channel::Out, b"late");
        assert!(matches!(inbox.next().await.0, Ok(Event::Done(_))));
        assert!(matches!(inbox.next().await.0, Err(StreamError::Ended)));
        assert_eq!(inbox.take_window(1).await, 0);
    }
}
