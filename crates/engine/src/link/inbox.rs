//! The data and answers of one stream that its reader has not taken yet.
//!
//! The guest fills it, so everything in it is bounded: data by the window, in which each frame has its cost; answers by
//! their number and their encoded bytes. Answers are parsed when they are taken, because a parsed answer can be much
//! larger than its encoding.
//!
//! A stream can end in several ways: by its last answer, by a fault of the agent, by a broken rule, with the link. None
//! of them discards what arrived before. The end is stored beside the queue and returned only when the queue is empty,
//! so a reader gets all output of a command before its exit code, and before the error of a lost link. After the end
//! nothing is added any more, so the order can't change. The only exception is an answer that can't be parsed: what
//! follows it has no meaning and is dropped.
//!
//! Credit is sent for data that the reader has taken, not for data that arrived. So a reader that stops reading stops
//! the guest after one window, and only on this stream. After the end of a stream no credit is sent, because the agent
//! does not know the stream any more.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use kiln_wire::credit::{ReceiveWindow, SendWindow, WINDOW_BYTES, WINDOW_BYTES_MAX, frame_cost};
use kiln_wire::{Channel, ErrorCode, Fault, Frame, Kind, Message, StreamId};
use tokio::sync::Notify;

use super::stream::{Event, StreamError};

/// Answers that may wait beside data, which its window bounds.
const ANSWERS_MAX: usize = 4096;
/// The encoded size of these answers together: a few of the longest.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// What the windows of all streams of a link may grow by together.
const GROWTH_BYTES_MAX: u32 = 16 << 20;

/// Frames are joined up to this size. With a larger bound, bytes would be copied again and again.
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
    life: Life,
    receive: ReceiveWindow,
    growth: Arc<Growth>,
    grown: Option<Grown>,
    send: SendWindow,
}

/// What is left for the windows of a link's streams to grow by.
///
/// A window is what a transfer has in flight while a credit is on its way to the guest and its effect on the way back.
/// On a busy host that takes milliseconds, because five threads have to run one after the other, so a small window
/// would bound the rate of a file however fast both sides are. But a hostile guest can fill all windows of streams that
/// are not read, so not each of them may be large: a stream whose data flows takes what is left, and gives it back when
/// it ends.
#[derive(Debug)]
pub(super) struct Growth(AtomicU32);

/// What a window has grown by; dropped, it is given back.
#[derive(Debug)]
struct Grown {
    bytes: u32,
    growth: Arc<Growth>,
}

impl Default for Growth {
    fn default() -> Self {
        Self(AtomicU32::new(GROWTH_BYTES_MAX))
    }
}

impl Growth {
    fn take(self: &Arc<Self>, wanted: u32) -> Grown {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left - left.min(wanted)));
        let left = taken.unwrap_or_default();
        Grown { bytes: left.min(wanted), growth: Arc::clone(self) }
    }
}

impl Drop for Grown {
    fn drop(&mut self) {
        self.growth.0.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// A stream that is not open neither receives nor sends.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Life {
    #[default]
    Open,
    /// Ended on this side, because the agent broke a rule or the link is lost. The agent may still serve it.
    GivenUp,
    /// The agent ended it.
    Over,
}

#[derive(Debug)]
enum Waiting {
    /// An answer, not parsed yet.
    Answer(Kind, Box<[u8]>),
    /// Small neighbouring data frames of one channel are joined, so that tiny frames don't cost more memory than their
    /// bytes.
    Data { channel: Channel, bytes: BytesMut, cost: usize },
}

impl Inbox {
    pub(super) fn new(growth: &Arc<Growth>) -> Arc<Self> {
        // The host has the memory for large windows.
        let state = State { growth: Arc::clone(growth), ..State::default() };
        Arc::new(Self { state: Mutex::new(state), ..Self::default() })
    }

    /// Stores one data frame.
    pub(super) fn push_data(&self, channel: Channel, bytes: &[u8]) {
        self.change(|state| match state.receive.received(bytes.len()) {
            Err(overrun) => {
                let fault = Fault::new(ErrorCode::FlowControl, overrun.to_string());
                state.finish(Life::GivenUp, StreamError::Fault(fault));
            }
            Ok(()) => state.push_data(channel, bytes),
        });
    }

    /// Stores one answer.
    pub(super) fn push_answer(&self, kind: Kind, payload: &[u8]) {
        self.change(|state| {
            if state.answers == ANSWERS_MAX || state.answer_bytes + payload.len() > ANSWER_BYTES_MAX {
                let words = format!("{} answers of {} bytes are not read", state.answers, state.answer_bytes);
                return state.finish(Life::GivenUp, Fault::new(ErrorCode::LimitExceeded, words).into());
            }
            if kind.ends() {
                state.life = Life::Over;
            }
            state.answers += 1;
            state.answer_bytes += payload.len();
            state.queue.push_back(Waiting::Answer(kind, payload.into()));
        });
    }

    /// Ends the stream as the agent did. What arrived before can still be taken.
    pub(super) fn fail(&self, fault: Fault) {
        self.change(|state| state.finish(Life::Over, fault.into()));
    }

    /// Ends the stream on this side. What arrived before can still be taken.
    pub(super) fn give_up(&self, error: StreamError) {
        self.change(|state| state.finish(Life::GivenUp, error));
    }

    pub(super) fn credit(&self, bytes: u32) {
        self.lock().send.credit(bytes);
        self.credited.notify_waiters();
    }

    /// Whether the stream neither receives nor sends any more.
    pub(super) fn ended(&self) -> bool {
        self.lock().life != Life::Open
    }

    /// Whether the agent has ended the stream.
    pub(super) fn ended_there(&self) -> bool {
        self.lock().life == Life::Over
    }

    /// Waits until the stream neither receives nor sends any more.
    pub(super) async fn end(&self) {
        self.until(|state| (state.life != Life::Open).then_some(())).await;
    }

    /// The next event, and the credit that the peer earns by it.
    pub(super) async fn next(&self) -> (Result<Event, StreamError>, Option<u32>) {
        loop {
            // `notify_one` stores a permit, so an arrival between `take` and the wait is not missed.
            let taken = self.lock().take();
            match taken {
                Some((Err(error), _)) => {
                    // This answer itself may be what ended the stream.
                    self.credited.notify_waiters();
                    return (Err(error), None);
                }
                Some(taken) => return taken,
                None => self.arrived.notified().await,
            }
        }
    }

    /// Waits until data may be sent, and takes up to `wanted` bytes from the window. Returns 0 once the stream has
    /// ended.
    pub(super) async fn take_window(&self, wanted: usize) -> usize {
        self.until(|state| match state.life {
            Life::Open => Some(state.send.take(wanted)).filter(|given| *given > 0),
            Life::GivenUp | Life::Over => Some(0),
        })
        .await
    }

    /// Changes a stream that has not ended, and wakes every task that may wait for it. Each way to an end goes through
    /// here, so no path can forget to wake one of them.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let ended = {
            let mut state = self.lock();
            if state.life != Life::Open {
                return;
            }
            change(&mut state);
            state.life != Life::Open
        };
        self.arrived.notify_one();
        if ended {
            self.credited.notify_waiters();
        }
    }

    /// Waits until `look` returns a value, for the sending half.
    ///
    /// Several tasks may wait for credit, so credit wakes all of them with `notify_waiters`. That stores no permit: a
    /// credit between a look without success and the start of the wait would be missed, and the task could wait
    /// forever. So the task is registered with `enable` before it looks. Then a credit that comes after the look has a
    /// waiter to wake. The receiving half can't be cloned, so one task at most waits there, and `notify_one` with its
    /// permit is enough.
    async fn until<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let credited = self.credited.notified();
            tokio::pin!(credited);
            credited.as_mut().enable();
            if let Some(found) = look(&mut self.lock()) {
                return found;
            }
            credited.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push_data(&mut self, channel: Channel, bytes: &[u8]) {
        let cost = frame_cost(bytes.len());
        if let Some(Waiting::Data { channel: last, bytes: joined, cost: paid }) = self.queue.back_mut()
            && *last == channel
            && joined.len() + bytes.len() <= JOINED_BYTES_MAX
        {
            joined.extend_from_slice(bytes);
            *paid += cost;
        } else {
            self.queue.push_back(Waiting::Data { channel, bytes: BytesMut::from(bytes), cost });
        }
    }

    /// Lets the window grow with the first credit, and returns by how much.
    fn grow(&mut self) -> u32 {
        if self.grown.is_some() {
            return 0;
        }
        let grown = self.growth.take(WINDOW_BYTES_MAX - WINDOW_BYTES);
        let bytes = self.receive.grow(grown.bytes);
        self.grown = Some(grown);
        bytes
    }

    fn finish(&mut self, life: Life, error: StreamError) {
        self.life = life;
        self.end = Some(error);
    }

    fn take(&mut self) -> Option<(Result<Event, StreamError>, Option<u32>)> {
        match self.queue.pop_front() {
            Some(Waiting::Answer(kind, payload)) => {
                self.answers -= 1;
                self.answer_bytes -= payload.len();
                let event = event(kind, &payload);
                if let Err(error) = &event {
                    // Once an answer can't be parsed, nothing after it has a meaning.
                    self.queue.clear();
                    self.end = Some(error.clone());
                    if self.life == Life::Open {
                        self.life = Life::GivenUp;
                    }
                }
                Some((event, None))
            }
            Some(Waiting::Data { channel, bytes, cost }) => {
                let credit = self.receive.consumed(cost).filter(|_| self.life == Life::Open);
                let credit = credit.map(|credit| credit + self.grow());
                Some((Ok(Event::Data(channel, Bytes::from(bytes))), credit))
            }
            None if self.life != Life::Open => Some((Err(self.end.clone().unwrap_or(StreamError::Ended)), None)),
            None => None,
        }
    }
}

/// Parses an answer.
fn event(kind: Kind, payload: &[u8]) -> Result<Event, StreamError> {
    // Only its kind and payload matter; the stream is known.
    let message = Message::parse(Frame { kind, stream: StreamId::default(), payload });
    match message.map_err(|error| StreamError::Unexpected(error.to_string()))? {
        Message::Started(started) => Ok(Event::Started(started)),
        Message::Reply(reply) => Ok(Event::Reply(reply)),
        Message::Eof => Ok(Event::Eof),
        Message::Exited(exited) => Ok(Event::Exited(exited)),
        Message::Done(done) => Ok(Event::Done(done)),
        other => Err(StreamError::Unexpected(format!("{:?}", other.kind()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_wire::credit::FRAME_COST_MIN;

    fn done() -> (Kind, &'static [u8]) {
        (Kind::DONE, b"{}")
    }

    #[tokio::test]
    async fn small_frames_are_joined_and_the_window_grows_with_the_first_credit() {
        let inbox = Inbox::new(&Arc::default());
        for _ in 0..WINDOW_BYTES as usize / FRAME_COST_MIN {
            inbox.push_data(Channel::Out, &[7; FRAME_COST_MIN]);
        }
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
    async fn the_windows_of_a_link_grow_by_a_bounded_size_together() {
        let growth = Arc::<Growth>::default();
        let each = WINDOW_BYTES_MAX - WINDOW_BYTES;
        let mut streams = Vec::new();
        let mut grown = 0;
        for _ in 0..2 * GROWTH_BYTES_MAX / each {
            let inbox = Inbox::new(&growth);
            inbox.push_data(Channel::Out, &vec![0; WINDOW_BYTES as usize]);
            grown += inbox.next().await.1.expect("a whole window is credited") - WINDOW_BYTES;
            streams.push(inbox);
        }
        assert_eq!(grown, GROWTH_BYTES_MAX);
        drop(streams);
        assert_eq!(growth.take(u32::MAX).bytes, GROWTH_BYTES_MAX, "all of it is given back");
    }

    #[tokio::test]
    async fn an_overrun_ends_the_stream_after_the_allowed_data() {
        let inbox = Inbox::new(&Arc::default());
        inbox.push_data(Channel::Out, &vec![0; WINDOW_BYTES as usize]);
        inbox.push_data(Channel::Out, b"x");
        assert!(matches!(inbox.next().await.0, Ok(Event::Data(..))));
        assert!(matches!(inbox.next().await.0, Err(StreamError::Fault(fault)) if fault.code == ErrorCode::FlowControl));
        assert!(!inbox.ended_there(), "the agent has not ended it");
    }

    #[tokio::test]
    async fn empty_frames_and_frames_of_two_channels_in_turn_are_bounded() {
        for bytes in [&b""[..], b"x"] {
            let inbox = Inbox::new(&Arc::default());
            let mut taken = 0;
            while !inbox.ended() {
                inbox.push_data(if taken % 2 == 0 { Channel::Out } else { Channel::Err }, bytes);
                taken += 1;
            }
            assert_eq!(taken, WINDOW_BYTES as usize / FRAME_COST_MIN + 1);
        }
    }

    #[tokio::test]
    async fn endless_answers_end_the_stream() {
        let inbox = Inbox::new(&Arc::default());
        for _ in 0..=ANSWERS_MAX {
            inbox.push_answer(Kind::EOF, b"");
        }
        assert!(inbox.ended());
        let inbox = Inbox::new(&Arc::default());
        for _ in 0..=ANSWER_BYTES_MAX / (1 << 20) {
            inbox.push_answer(Kind::REPLY, &[b' '; 1 << 20]);
        }
        assert!(inbox.ended());
    }

    #[tokio::test]
    async fn nothing_comes_after_the_end() {
        let inbox = Inbox::new(&Arc::default());
        let (kind, payload) = done();
        inbox.push_answer(kind, payload);
        inbox.push_data(Channel::Out, b"late");
        assert!(matches!(inbox.next().await.0, Ok(Event::Done(_))));
        assert!(matches!(inbox.next().await.0, Err(StreamError::Ended)));
        assert_eq!(inbox.take_window(1).await, 0);
    }

    #[tokio::test]
    async fn an_answer_that_cannot_be_parsed_ends_the_stream() {
        let inbox = Inbox::new(&Arc::default());
        inbox.push_answer(Kind::REPLY, b"{\"what\":1}");
        inbox.push_data(Channel::Out, b"after it");
        for _ in 0..2 {
            assert!(matches!(inbox.next().await.0, Err(StreamError::Unexpected(_))));
        }
        assert!(inbox.ended() && !inbox.ended_there());
    }

    /// Each way to the end of a stream, and the tasks that have to wake: a sender that waits for credit, a sender that
    /// waits for the end, and the receiver.
    #[tokio::test]
    async fn each_way_to_an_end_wakes_all_waiting_tasks() {
        type Way = fn(&Inbox);
        let ways: [Way; 7] = [
            |inbox| inbox.push_data(Channel::Out, &vec![0; WINDOW_BYTES as usize + 1]),
            |inbox| inbox.push_answer(Kind::REPLY, &vec![0; ANSWER_BYTES_MAX + 1]),
            |inbox| inbox.push_answer(Kind::DONE, b"{}"),
            |inbox| inbox.push_answer(Kind::DONE, b"no JSON"),
            |inbox| inbox.push_answer(Kind::STARTED, b"no JSON"),
            |inbox| inbox.fail(Fault::new(ErrorCode::Io, "")),
            |inbox| inbox.give_up(StreamError::LinkLost(String::new())),
        ];
        for (number, way) in ways.iter().enumerate() {
            let inbox = Inbox::new(&Arc::default());
            assert_eq!(inbox.take_window(WINDOW_BYTES as usize).await, WINDOW_BYTES as usize);
            let all = async { tokio::join!(inbox.take_window(1), inbox.end(), inbox.next()) };
            tokio::pin!(all);
            let early = tokio::time::timeout(std::time::Duration::ZERO, &mut all).await;
            assert!(early.is_err(), "{number}: nothing has ended yet");
            way(&inbox);
            let woken = tokio::time::timeout(std::time::Duration::from_secs(5), all).await;
            assert_eq!(woken.expect("all of them wake").0, 0, "{number}");
        }
    }
}
