//! Frames that wait to be written to the host: one lane for each stream, and one for the link itself, which is written
//! first.
//!
//! ```text
//!   Outlet (one stream) ──▶ lane ─┐
//!   Outlet (one stream) ──▶ lane ─┼─▶ in turn, one frame each ──▶ writer
//!   link: Pong, Credit, … ▶ lane ─┘   (before the others)
//! ```
//!
//! Data waits for its stream's window before it is queued, so a lane holds at most one window, and a host that doesn't
//! read one stream stops only that stream. A task also waits until all lanes together hold less than
//! [`QUEUED_BYTES_MAX`]. They can exceed that by one frame for each task that had room before the queue became full,
//! and by the end of each of [`LANES_MAX`] streams. A frame counts as its bytes and [`ENTRY_BYTES`], so small frames
//! are bounded too.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use kiln_wire::credit::SendWindow;
use kiln_wire::{Channel, ErrorCode, Fault, HEADER_BYTES, Kind, Message, StreamId, encode};

/// Bytes of all streams that may be queued before senders wait.
const QUEUED_BYTES_MAX: usize = 1 << 20;
/// Bytes of the link's own lane that may be queued before the reader waits for the writer.
const LINK_BYTES_MAX: usize = 256 << 10;
/// Memory that a frame costs in addition to its bytes: its entry in a queue, and the allocator's overhead.
const ENTRY_BYTES: usize = 64;
/// Streams that may have a lane before the reader waits for the writer. A stream that has ended has a lane until its
/// end is written, so this is twice the number of streams that may be open: 256 open streams and 256 unwritten ends.
/// When the host reads ends, the number falls again, independent of the open streams.
const LANES_MAX: usize = 512;
/// Bytes of one lane that may be queued before its next message waits.
const LANE_BYTES_MAX: usize = 512 << 10;
/// The longest data frame with its header: exactly two writes of the port driver.
pub const FRAME_BYTES: usize = 64 << 10;
/// Data of one frame.
pub const CHUNK_BYTES: usize = FRAME_BYTES - HEADER_BYTES;
/// Small frames are joined up to this size, so that one write sends them.
const BATCH_BYTES: usize = 32 << 10;

/// Buffers that are kept for later frames.
const SPARES_MAX: usize = 8;

/// The link has ended, so nothing can be sent on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the link ended")]
pub struct Gone;

/// The queue of one link.
#[derive(Debug, Default)]
pub struct Outbox {
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    link: VecDeque<Vec<u8>>,
    link_bytes: usize,
    lanes: HashMap<StreamId, Lane>,
    /// Lanes that hold frames, in the order of their turns.
    turn: VecDeque<StreamId>,
    queued_bytes: usize,
    life: Life,
    /// Buffers of frames that were written, to be used again.
    spares: Vec<Vec<u8>>,
    writer: Option<Waker>,
    reader: Option<Waker>,
}

#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
enum Life {
    #[default]
    Open,
    /// The writer ends when the link's lane is empty.
    Finishing,
    Closed,
}

#[derive(Debug, Default)]
struct Lane {
    window: SendWindow,
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    ended: bool,
    waker: Option<Waker>,
}

impl Outbox {
    /// Queues a message of the link itself, or one that doesn't wait for a stream's data.
    pub fn link(&self, stream: StreamId, message: &Message<'_>) {
        let mut state = self.state.borrow_mut();
        if state.life != Life::Open {
            return;
        }
        let mut frame = Vec::new();
        if message.encode(stream, &mut frame).is_ok() {
            state.push_link(frame);
        }
    }

    /// Queues bytes that are not a frame: the reply to a reset marker.
    pub fn raw(&self, bytes: Vec<u8>) {
        self.state.borrow_mut().push_link(bytes);
    }

    /// Whether one more request may be taken, because its reply fits into the queue.
    pub fn has_link_room(&self) -> bool {
        let state = self.state.borrow();
        state.life != Life::Open || state.has_link_room()
    }

    /// Waits until one more request may be taken.
    pub async fn link_room(&self) {
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if state.life != Life::Open || state.has_link_room() {
                return Poll::Ready(());
            }
            state.reader = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Adds a stream. `None` if frames of an earlier stream with this id are still queued.
    pub fn open(self: &Rc<Self>, stream: StreamId) -> Option<Outlet> {
        let mut state = self.state.borrow_mut();
        if state.lanes.contains_key(&stream) {
            return None;
        }
        state.lanes.insert(stream, Lane::default());
        Some(Outlet { outbox: Rc::clone(self), stream, ended: Cell::new(false) })
    }

    /// Adds credit that the host sent.
    pub fn credit(&self, stream: StreamId, bytes: u32) {
        let mut state = self.state.borrow_mut();
        if let Some(lane) = state.lanes.get_mut(&stream) {
            lane.window.credit(bytes);
            wake(&mut lane.waker);
        }
    }

    /// Ends the writer after the link's own messages are written. Frames of streams are dropped.
    pub fn finish(&self) {
        let mut state = self.state.borrow_mut();
        if state.life == Life::Open {
            state.life = Life::Finishing;
        }
        state.drop_lanes();
        wake(&mut state.writer);
    }

    /// Ends the link: queued frames are dropped, and tasks that wait return [`Gone`].
    pub fn close(&self) {
        let mut state = self.state.borrow_mut();
        state.life = Life::Closed;
        state.link.clear();
        state.drop_lanes();
        wake(&mut state.writer);
        wake(&mut state.reader);
    }

    /// Takes back a buffer that was written. Buffers of large frames are used again.
    pub fn written(&self, frame: Vec<u8>) {
        let mut state = self.state.borrow_mut();
        if frame.len() == FRAME_BYTES && state.spares.len() < SPARES_MAX {
            state.spares.push(frame);
        }
    }

    /// Waits for the next bytes to write: one large frame, or several small ones. `None` when the writer must end.
    pub async fn next(&self) -> Option<Vec<u8>> {
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            let Some(mut batch) = state.pop(usize::MAX) else {
                if state.life != Life::Open {
                    return Poll::Ready(None);
                }
                state.writer = Some(context.waker().clone());
                return Poll::Pending;
            };
            while let Some(frame) = BATCH_BYTES.checked_sub(batch.len()).and_then(|room| state.pop(room)) {
                batch.extend_from_slice(&frame);
            }
            Poll::Ready(Some(batch))
        })
        .await
    }
}

impl State {
    fn has_link_room(&self) -> bool {
        self.link_bytes < LINK_BYTES_MAX && self.lanes.len() < LANES_MAX
    }

    fn push_link(&mut self, frame: Vec<u8>) {
        self.link_bytes += cost(&frame);
        self.link.push_back(frame);
        wake(&mut self.writer);
    }

    fn push(&mut self, stream: StreamId, frame: Vec<u8>) {
        let Some(lane) = self.lanes.get_mut(&stream) else { return };
        lane.bytes += cost(&frame);
        self.queued_bytes += cost(&frame);
        if lane.frames.is_empty() {
            self.turn.push_back(stream);
        }
        lane.frames.push_back(frame);
        wake(&mut self.writer);
    }

    /// The next frame, if it is not longer than `bytes_max`.
    fn pop(&mut self, bytes_max: usize) -> Option<Vec<u8>> {
        if let Some(frame) = self.link.front() {
            if frame.len() > bytes_max {
                return None;
            }
            let frame = self.link.pop_front()?;
            self.link_bytes -= cost(&frame);
            if self.has_link_room() {
                wake(&mut self.reader);
            }
            return Some(frame);
        }
        let stream = *self.turn.front()?;
        let lane = self.lanes.get_mut(&stream)?;
        if lane.frames.front()?.len() > bytes_max {
            return None;
        }
        let frame = lane.frames.pop_front()?;
        lane.bytes -= cost(&frame);
        wake(&mut lane.waker);
        self.turn.pop_front();
        if !lane.frames.is_empty() {
            self.turn.push_back(stream);
        } else if lane.ended {
            self.lanes.remove(&stream);
            if self.has_link_room() {
                wake(&mut self.reader);
            }
        }
        let was_full = self.queued_bytes >= QUEUED_BYTES_MAX;
        self.queued_bytes -= cost(&frame);
        if was_full && self.queued_bytes < QUEUED_BYTES_MAX {
            self.lanes.values_mut().for_each(|lane| wake(&mut lane.waker));
        }
        Some(frame)
    }

    fn drop_lanes(&mut self) {
        self.turn.clear();
        self.queued_bytes = 0;
        for (_, mut lane) in self.lanes.drain() {
            wake(&mut lane.waker);
        }
    }

    fn lane(&mut self, stream: StreamId) -> Result<&mut Lane, Gone> {
        match (self.life, self.lanes.get_mut(&stream)) {
            (Life::Open, Some(lane)) => Ok(lane),
            _ => Err(Gone),
        }
    }
}

fn cost(frame: &[u8]) -> usize {
    frame.len() + ENTRY_BYTES
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// One stream's output to the host. If it is dropped before the stream has ended, the stream ends with an internal
/// fault.
#[derive(Debug)]
pub struct Outlet {
    outbox: Rc<Outbox>,
    stream: StreamId,
    /// The stream has ended. From then on the lane may belong to a later stream with this id.
    ended: Cell<bool>,
}

impl Outlet {
    /// Waits until data may be sent. Returns the number of bytes, at least 1.
    ///
    /// # Errors
    /// If the link has ended.
    pub async fn room(&self) -> Result<usize, Gone> {
        poll_fn(|context| self.poll_room(context, 1)).await
    }

    /// Waits until `bytes` may be sent at once. They must fit into one frame.
    ///
    /// # Errors
    /// If the link has ended.
    pub async fn room_for(&self, bytes: usize) -> Result<(), Gone> {
        poll_fn(|context| self.poll_room(context, bytes)).await.map(|_| ())
    }

    /// A buffer of [`FRAME_BYTES`] with undefined content, used before or new.
    pub fn spare(&self) -> Vec<u8> {
        self.outbox.state.borrow_mut().spares.pop().unwrap_or_else(|| vec![0; FRAME_BYTES])
    }

    fn poll_room(&self, context: &Context<'_>, bytes: usize) -> Poll<Result<usize, Gone>> {
        let mut state = self.outbox.state.borrow_mut();
        let full = state.queued_bytes >= QUEUED_BYTES_MAX;
        let lane = state.lane(self.stream)?;
        let available = lane.window.frame_room();
        if available >= bytes && !full {
            return Poll::Ready(Ok(available));
        }
        lane.waker = Some(context.waker().clone());
        Poll::Pending
    }

    /// Queues a frame that was begun with [`frame_buffer`], and leaves an empty one in its place. The caller must have
    /// waited for [`room`](Self::room). Small data is appended to the frame before it.
    pub fn data(&self, channel: Channel, frame: &mut Vec<u8>) {
        let bytes = frame.len() - HEADER_BYTES;
        let mut state = self.outbox.state.borrow_mut();
        if bytes > 0
            && !self.ended.get()
            && let Ok(lane) = state.lane(self.stream)
        {
            if let Some(last) = lane.frames.back_mut()
                && last[4] == channel.kind().0
                && last.len() + bytes <= FRAME_BYTES
            {
                lane.window.take_more(last.len() - HEADER_BYTES, bytes);
                last.extend_from_slice(&frame[HEADER_BYTES..]);
                seal(last, channel.kind(), self.stream);
                lane.bytes += bytes;
                state.queued_bytes += bytes;
            } else {
                let taken = lane.window.take(bytes);
                debug_assert_eq!(taken, bytes, "the caller has waited for room");
                seal(frame, channel.kind(), self.stream);
                // A buffer that is mostly empty is copied and stays with the caller: queued, it would waste its
                // capacity.
                let whole = if bytes >= CHUNK_BYTES / 2 {
                    let spare = state.spares.pop().unwrap_or_else(|| Vec::with_capacity(FRAME_BYTES));
                    std::mem::replace(frame, spare)
                } else {
                    frame.clone()
                };
                state.push(self.stream, whole);
            }
        }
        frame.clear();
        frame.resize(HEADER_BYTES, 0);
    }

    /// Queues a whole frame without copying it. The caller must have waited for [`room_for`](Self::room_for) its bytes.
    pub fn whole(&self, channel: Channel, mut frame: Vec<u8>) {
        let bytes = frame.len() - HEADER_BYTES;
        let mut state = self.outbox.state.borrow_mut();
        if self.ended.get() || bytes == 0 {
            return;
        }
        if let Ok(lane) = state.lane(self.stream) {
            let taken = lane.window.take(bytes);
            debug_assert_eq!(taken, bytes, "the caller has waited for room");
            seal(&mut frame, channel.kind(), self.stream);
            state.push(self.stream, frame);
        }
    }

    /// Queues data in as many frames as it needs, and waits for room before each.
    ///
    /// # Errors
    /// If the link has ended.
    pub async fn data_from(&self, channel: Channel, mut bytes: &[u8]) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let take = self.room().await?.min(bytes.len()).min(CHUNK_BYTES);
            let mut frame = Vec::with_capacity(HEADER_BYTES + take);
            frame.resize(HEADER_BYTES, 0);
            frame.extend_from_slice(&bytes[..take]);
            self.data(channel, &mut frame);
            bytes = &bytes[take..];
        }
        Ok(())
    }

    /// Waits for room, and queues a message after the stream's data.
    ///
    /// # Errors
    /// If the link has ended.
    pub async fn send(&self, message: &Message<'_>) -> Result<(), Gone> {
        poll_fn(|context| {
            let mut state = self.outbox.state.borrow_mut();
            let full = state.queued_bytes >= QUEUED_BYTES_MAX;
            let lane = state.lane(self.stream)?;
            if lane.bytes < LANE_BYTES_MAX && !full {
                return Poll::Ready(Ok(()));
            }
            lane.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await?;
        self.put(message);
        Ok(())
    }

    /// Queues the message that ends the stream. Only the first end counts.
    pub fn end(&self, message: &Message<'_>) {
        debug_assert!(message.ends(), "{message:?} does not end a stream");
        self.put(message);
        self.set_ended();
    }

    fn set_ended(&self) {
        if !self.ended.replace(true)
            && let Some(lane) = self.outbox.state.borrow_mut().lanes.get_mut(&self.stream)
        {
            lane.ended = true;
        }
    }

    /// Ends the stream with a fault.
    pub fn fail(&self, fault: Fault) {
        self.end(&Message::Error(fault));
    }

    fn put(&self, message: &Message<'_>) {
        if self.ended.get() {
            return;
        }
        let mut frame = Vec::new();
        let too_long = message.encode(self.stream, &mut frame).is_err();
        if too_long {
            let fault = Fault::new(ErrorCode::LimitExceeded, "the reply is too long for one frame");
            Message::Error(fault).encode(self.stream, &mut frame).expect("a short fault fits into a frame");
        }
        self.outbox.state.borrow_mut().push(self.stream, frame);
        if too_long {
            self.set_ended();
        }
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.fail(Fault::new(ErrorCode::Internal, "the stream's task ended without a result"));
    }
}

/// A buffer for [`Outlet::data`]: space for the header, to which the payload is appended.
pub fn frame_buffer() -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_BYTES);
    frame.resize(HEADER_BYTES, 0);
    frame
}

/// Writes the header into the space for it.
fn seal(frame: &mut [u8], kind: Kind, stream: StreamId) {
    let mut header = Vec::with_capacity(HEADER_BYTES);
    encode(kind, stream, &[], &mut header).expect("an empty payload fits");
    let length = u32::try_from(frame.len() - 4).expect("a frame has at most 64 KiB");
    header[..4].copy_from_slice(&length.to_be_bytes());
    frame[..HEADER_BYTES].copy_from_slice(&header);
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use kiln_wire::Decoder;
    use kiln_wire::credit::{FRAME_COST_MIN, WINDOW_BYTES};

    use super::*;

    fn outlet(outbox: &Rc<Outbox>, id: u32) -> Outlet {
        outbox.open(StreamId(id)).expect("the id is free")
    }

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        let mut context = Context::from_waker(Waker::noop());
        match pin!(future).poll(&mut context) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    fn put(outlet: &Outlet, bytes: usize) {
        let mut frame = frame_buffer();
        frame.resize(HEADER_BYTES + bytes, 7);
        outlet.data(Channel::Out, &mut frame);
        assert_eq!(frame.len(), HEADER_BYTES, "the buffer is left for the next data");
    }

    /// Takes everything that is queued, as (stream, kind, length).
    fn written(outbox: &Outbox) -> Vec<(u32, Kind, usize)> {
        let mut decoder = Decoder::new();
        let mut frames = Vec::new();
        while let Some(Some(bytes)) = now(outbox.next()) {
            decoder.push(&bytes);
            while let Some(frame) = decoder.next().expect("frames are whole and sealed") {
                frames.push((frame.stream.0, frame.kind, frame.payload.len()));
            }
        }
        frames
    }

    #[test]
    fn streams_take_turns_and_the_link_comes_first() {
        let outbox = Rc::new(Outbox::default());
        let (a, b) = (outlet(&outbox, 1), outlet(&outbox, 3));
        for _ in 0..2 {
            put(&a, CHUNK_BYTES);
        }
        put(&b, CHUNK_BYTES);
        outbox.link(StreamId::LINK, &Message::Pong(b"x"));
        let order: Vec<_> = written(&outbox).into_iter().map(|(stream, ..)| stream).collect();
        assert_eq!(order, [0, 1, 3, 1]);
    }

    #[test]
    fn a_stream_stops_at_its_window_and_continues_with_credit() {
        let outbox = Rc::new(Outbox::default());
        let a = outlet(&outbox, 1);
        let mut sent = 0;
        while let Some(Ok(room)) = now(a.room()) {
            let bytes = room.min(CHUNK_BYTES);
            put(&a, bytes);
            sent += bytes;
        }
        assert_eq!(sent, WINDOW_BYTES as usize);
        assert_eq!(written(&outbox).iter().map(|(.., bytes)| bytes).sum::<usize>(), sent);
        assert_eq!(now(a.room()), None, "only credit opens the window");
        outbox.credit(StreamId(1), 10);
        assert_eq!(now(a.room()), None, "it is less than the smallest frame costs");
        outbox.credit(StreamId(1), 90);
        assert_eq!(now(a.room()), Some(Ok(100)));
        assert_eq!(now(a.room_for(101)), None);
    }

    #[test]
    fn all_streams_together_are_bounded() {
        let outbox = Rc::new(Outbox::default());
        let outlets: Vec<_> = (0..100).map(|index| outlet(&outbox, 2 * index + 1)).collect();
        let mut queued = 0;
        for outlet in &outlets {
            while let Some(Ok(room)) = now(outlet.room()) {
                put(outlet, room.min(CHUNK_BYTES));
                queued += room.min(CHUNK_BYTES);
            }
        }
        assert!(queued <= QUEUED_BYTES_MAX + FRAME_BYTES, "{queued}");
        written(&outbox);
        assert!(matches!(now(outlets[99].room()), Some(Ok(_))), "written frames make room again");
    }

    #[test]
    fn data_that_alternates_between_channels_is_bounded_by_the_window() {
        let outbox = Rc::new(Outbox::default());
        let a = outlet(&outbox, 1);
        let mut frames = 0;
        while let Some(Ok(1..)) = now(a.room()) {
            let mut frame = frame_buffer();
            frame.push(7);
            a.data(if frames % 2 == 0 { Channel::Out } else { Channel::Err }, &mut frame);
            frames += 1;
        }
        assert_eq!(frames, WINDOW_BYTES as usize / FRAME_COST_MIN);
        assert!(outbox.state.borrow().queued_bytes <= QUEUED_BYTES_MAX + ENTRY_BYTES + HEADER_BYTES + 1);
    }

    #[test]
    fn messages_of_all_streams_together_are_bounded() {
        let outbox = Rc::new(Outbox::default());
        let outlets: Vec<_> = (0..100).map(|index| outlet(&outbox, 2 * index + 1)).collect();
        for outlet in &outlets {
            while now(outlet.send(&Message::Eof)) == Some(Ok(())) {}
        }
        assert!(outbox.state.borrow().queued_bytes <= QUEUED_BYTES_MAX + ENTRY_BYTES + HEADER_BYTES);
        written(&outbox);
        assert_eq!(now(outlets[99].send(&Message::Eof)), Some(Ok(())));
    }

    #[test]
    fn the_reader_stops_if_the_host_does_not_read_ends() {
        let outbox = Rc::new(Outbox::default());
        let mut opened = 0;
        while outbox.has_link_room() {
            outlet(&outbox, 2 * opened + 1).end(&Message::Done(kiln_wire::Done::default()));
            opened += 1;
        }
        assert_eq!(opened as usize, LANES_MAX);
        assert_eq!(now(outbox.link_room()), None);
        assert!(now(outbox.next()).is_some(), "the host reads");
        assert_eq!(now(outbox.link_room()), Some(()));
    }

    #[test]
    fn small_data_is_joined_and_stays_in_order() {
        let outbox = Rc::new(Outbox::default());
        let a = outlet(&outbox, 1);
        put(&a, 3);
        put(&a, 4);
        let mut err = frame_buffer();
        err.push(1);
        a.data(Channel::Err, &mut err);
        put(&a, 5);
        a.end(&Message::Done(kiln_wire::Done::default()));
        let frames = written(&outbox);
        let kinds: Vec<_> = frames.iter().map(|(_, kind, bytes)| (*kind, *bytes)).take(3).collect();
        assert_eq!(kinds, [(Kind::DATA_OUT, 7), (Kind::DATA_ERR, 1), (Kind::DATA_OUT, 5)]);
        assert_eq!(frames[3].1, Kind::DONE);
    }

    #[test]
    fn only_the_first_end_is_sent_and_the_id_is_free_once_it_is_written() {
        let outbox = Rc::new(Outbox::default());
        let a = outlet(&outbox, 1);
        a.end(&Message::Done(kiln_wire::Done::default()));
        a.fail(Fault::new(ErrorCode::Io, "late"));
        assert!(outbox.open(StreamId(1)).is_none(), "its end is still queued");
        assert_eq!(written(&outbox).len(), 1);
        let again = outlet(&outbox, 1);
        drop(a);
        assert_eq!(written(&outbox), [], "the old stream's outlet does not change the new stream");
        drop(again);
        assert_eq!(written(&outbox).first().map(|frame| frame.1), Some(Kind::ERROR), "each stream gets an end");
    }

    #[test]
    fn tasks_that_wait_return_when_the_link_is_closed() {
        let outbox = Rc::new(Outbox::default());
        let a = outlet(&outbox, 1);
        outbox.close();
        assert_eq!(now(a.room()), Some(Err(Gone)));
        assert_eq!(now(a.send(&Message::Eof)), Some(Err(Gone)));
        assert_eq!(now(outbox.next()), Some(None));
    }

    #[test]
    fn messages_of_the_link_are_written_before_its_end() {
        let outbox = Rc::new(Outbox::default());
        let a = outlet(&outbox, 1);
        put(&a, 10);
        outbox.link(StreamId::LINK, &Message::Pong(b""));
        outbox.finish();
        assert!(matches!(now(outbox.next()), Some(Some(bytes)) if bytes.len() == HEADER_BYTES));
        assert_eq!(now(outbox.next()), Some(None));
    }

    #[test]
    fn a_reply_that_is_too_long_for_a_frame_ends_the_stream_with_a_fault() {
        let outbox = Rc::new(Outbox::default());
        let a = outlet(&outbox, 1);
        let huge = "x".repeat(2 << 20);
        assert_eq!(now(a.send(&Message::Started(kiln_wire::Started { pid: 1, session: Some(huge) }))), Some(Ok(())));
        assert_eq!(written(&outbox).iter().map(|frame| frame.1).collect::<Vec<_>>(), [Kind::ERROR]);
    }
}
