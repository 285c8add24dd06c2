//! Input from the host for one stream or one session that its task has not taken yet.
//!
//! Data is bounded by the stream's window. Everything else is merged (the last size, a few signals, one end), so a host
//! can't make an inbox grow.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use kiln_wire::credit::{Overrun, ReceiveWindow, WINDOW_BYTES, frame_cost};
use kiln_wire::{ErrorCode, Fault, Message, Resize, StreamId};

use super::outbox::Outbox;

/// Queued signals. More are dropped; the kernel merges pending signals too.
const SIGNALS_MAX: usize = 32;
/// Data is appended to the chunk before it up to this size.
const CHUNK_JOIN_BYTES: usize = 4096;

/// The reason why a stream ends early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The host sent `Cancel`.
    Cancelled,
    /// The link ended.
    LinkLost,
    /// The host broke a rule on this stream.
    Fault(Fault),
}

impl End {
    /// The fault that ends the stream.
    pub fn into_fault(self) -> Fault {
        match self {
            Self::Fault(fault) => fault,
            Self::Cancelled | Self::LinkLost => cancelled(),
        }
    }
}

/// The fault of a stream that was cancelled.
pub fn cancelled() -> Fault {
    Fault::new(ErrorCode::Cancelled, "cancelled")
}

/// Input other than data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// A signal for the command.
    Signal(i32),
    /// A new size of the terminal.
    Resize(Resize),
    /// The task must end.
    End(End),
}

/// The queue into one stream's task. The link puts, and one task takes.
#[derive(Debug)]
pub struct Inbox {
    state: RefCell<State>,
    /// The queue for credit, and the stream that it is for. A session's inbox gives no credit.
    credit: Option<(Rc<Outbox>, StreamId)>,
}

#[derive(Debug, Default)]
struct State {
    window: ReceiveWindow,
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that were taken.
    taken: usize,
    /// Bytes of all chunks that were not taken.
    bytes: usize,
    eof: bool,
    signals: VecDeque<i32>,
    resize: Option<Resize>,
    end: Option<End>,
    closed: bool,
    waker: Option<Waker>,
    /// Tasks that wait for [`room`](Inbox::room).
    room_wakers: Vec<Waker>,
}

impl Inbox {
    /// The inbox of a stream. It gives credit for data that is taken.
    pub fn of_stream(outbox: &Rc<Outbox>, stream: StreamId, window: ReceiveWindow) -> Rc<Self> {
        let state = State { window, ..State::default() };
        Rc::new(Self { state: RefCell::new(state), credit: Some((Rc::clone(outbox), stream)) })
    }

    /// An inbox that several streams put data into. Each waits for [`room`](Self::room) first.
    pub fn shared() -> Rc<Self> {
        Rc::new(Self { state: RefCell::default(), credit: None })
    }

    /// Adds data from the host.
    ///
    /// # Errors
    /// If the data exceeds the stream's window.
    pub fn data(&self, bytes: &[u8]) -> Result<(), Overrun> {
        self.state.borrow_mut().window.received(bytes.len())?;
        self.put(bytes);
        // A small frame costs more of the window than its bytes, because each frame could need a queue entry. Here it
        // needs none: small data is appended to the chunk before it, so any two neighbouring chunks hold more than
        // `CHUNK_JOIN_BYTES` together, and the number of chunks is bounded by the bytes. So the surcharge is given back
        // now, and the bytes when they are taken. If it were given back with the bytes, it would be unknown by then: a
        // chunk doesn't record how many frames it was made of.
        let surcharge = frame_cost(bytes.len()) - bytes.len();
        if surcharge > 0 {
            self.consumed(surcharge);
        }
        Ok(())
    }

    /// Waits until a shared inbox has room for one more chunk.
    pub async fn room(&self) {
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if state.bytes < WINDOW_BYTES as usize || state.closed {
                return Poll::Ready(());
            }
            // A task may be polled many times before there is room, and is still registered once.
            if !state.room_wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                state.room_wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// Adds data that isn't counted by a window, to a shared inbox that has [`room`](Self::room).
    pub fn put(&self, bytes: &[u8]) {
        let mut state = self.state.borrow_mut();
        if bytes.is_empty() || state.eof || state.closed {
            drop(state);
            self.consumed(bytes.len());
            return;
        }
        state.bytes += bytes.len();
        match state.chunks.back_mut() {
            Some(last) if last.len() + bytes.len() <= CHUNK_JOIN_BYTES => last.extend_from_slice(bytes),
            _ => state.chunks.push_back(bytes.to_vec()),
        }
        state.wake();
    }

    /// Marks the end of data.
    pub fn eof(&self) {
        let mut state = self.state.borrow_mut();
        state.eof = true;
        state.wake();
    }

    /// Adds a signal for the command.
    pub fn signal(&self, signal: i32) {
        let mut state = self.state.borrow_mut();
        if state.signals.len() < SIGNALS_MAX {
            state.signals.push_back(signal);
        }
        state.wake();
    }

    /// Sets a new size of the terminal. Only the last size counts.
    pub fn resize(&self, resize: Resize) {
        let mut state = self.state.borrow_mut();
        state.resize = Some(resize);
        state.wake();
    }

    /// Requests that the task ends. The first reason counts.
    pub fn end(&self, end: End) {
        let mut state = self.state.borrow_mut();
        state.end.get_or_insert(end);
        state.wake();
    }

    /// Whether [`close`](Self::close) was called.
    pub fn is_closed(&self) -> bool {
        self.state.borrow().closed
    }

    /// Call this when the task takes no more input. Queued data is dropped.
    pub fn close(&self) {
        let mut state = self.state.borrow_mut();
        state.closed = true;
        state.chunks.clear();
        state.bytes = 0;
        state.room_wakers.drain(..).for_each(Waker::wake);
    }

    /// Waits for the next input that is not data. An end comes before signals, and signals before a size.
    pub async fn control(&self) -> Control {
        self.wait(|state| {
            if let Some(end) = &state.end {
                return Some(Control::End(end.clone()));
            }
            if let Some(signal) = state.signals.pop_front() {
                return Some(Control::Signal(signal));
            }
            state.resize.take().map(Control::Resize)
        })
        .await
    }

    /// Waits for a request to end, and returns its reason.
    pub async fn ended(&self) -> End {
        self.wait(|state| state.end.clone()).await
    }

    /// Waits until there is data, or the end of data.
    pub async fn input(&self) {
        self.wait(|state| (state.bytes > 0 || state.eof).then_some(())).await;
    }

    /// Waits until there is data, for a task that discards it.
    pub async fn unwanted_input(&self) {
        self.wait(|state| (state.bytes > 0).then_some(())).await;
    }

    /// Waits for the next chunk. Returns `None` at the end of data.
    pub async fn chunk(&self) -> Option<Vec<u8>> {
        let chunk = self
            .wait(|state| match state.chunks.pop_front() {
                Some(mut chunk) => {
                    chunk.drain(..std::mem::take(&mut state.taken));
                    state.bytes -= chunk.len();
                    Some(Some(chunk))
                }
                None => state.eof.then_some(None),
            })
            .await?;
        self.consumed(chunk.len());
        Some(chunk)
    }

    /// Waits for data or the end of data. Returns all queued chunks, and whether the data has ended.
    pub async fn chunks(&self) -> (Vec<Vec<u8>>, bool) {
        let (chunks, at_end) = self
            .wait(|state| {
                let mut chunks: Vec<Vec<u8>> = state.chunks.drain(..).collect();
                if let Some(first) = chunks.first_mut() {
                    first.drain(..std::mem::take(&mut state.taken));
                }
                state.bytes = 0;
                (state.eof || !chunks.is_empty()).then_some((chunks, state.eof))
            })
            .await;
        self.consumed(chunks.iter().map(Vec::len).sum());
        (chunks, at_end)
    }

    /// Passes the first chunk to `take`, which returns how many of its bytes it took. `None` if there is no data.
    pub fn with_front<T>(&self, take: impl FnOnce(&[u8]) -> (usize, T)) -> Option<T> {
        let mut state = self.state.borrow_mut();
        let front = state.chunks.front()?;
        let (used, result) = take(&front[state.taken..]);
        state.taken += used;
        state.bytes -= used;
        if state.taken == state.chunks.front().map_or(0, Vec::len) {
            state.chunks.pop_front();
            state.taken = 0;
        }
        drop(state);
        self.consumed(used);
        Some(result)
    }

    /// Drops the queued data.
    pub fn discard(&self) {
        let mut state = self.state.borrow_mut();
        let bytes = std::mem::take(&mut state.bytes);
        state.chunks.clear();
        state.taken = 0;
        drop(state);
        self.consumed(bytes);
    }

    /// Whether the data has ended and all of it was taken.
    pub fn is_drained(&self) -> bool {
        let state = self.state.borrow();
        state.eof && state.bytes == 0
    }

    /// Whether the data has ended.
    pub fn has_ended(&self) -> bool {
        self.state.borrow().eof
    }

    fn consumed(&self, bytes: usize) {
        let mut state = self.state.borrow_mut();
        state.room_wakers.drain(..).for_each(Waker::wake);
        let Some((outbox, stream)) = &self.credit else { return };
        if let Some(credit) = state.window.consumed(bytes) {
            drop(state);
            outbox.link(*stream, &Message::Credit(credit));
        }
    }

    async fn wait<T>(&self, mut take: impl FnMut(&mut State) -> Option<T>) -> T {
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if let Some(taken) = take(&mut state) {
                return Poll::Ready(taken);
            }
            state.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Context;

    use proptest::prelude::*;

    use super::*;

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        let mut context = Context::from_waker(Waker::noop());
        match pin!(future).poll(&mut context) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    struct Quiet;

    impl std::task::Wake for Quiet {
        fn wake(self: std::sync::Arc<Self>) {}
    }

    fn inbox() -> Rc<Inbox> {
        Inbox::of_stream(&Rc::default(), StreamId(1), ReceiveWindow::default())
    }

    #[test]
    fn more_than_the_window_is_refused() {
        let inbox = inbox();
        assert_eq!(inbox.data(&vec![0; WINDOW_BYTES as usize]), Ok(()));
        assert!(inbox.data(b"x").is_err());
        inbox.discard();
        assert_eq!(inbox.data(b"x"), Ok(()));
    }

    #[test]
    fn data_after_the_end_is_credited() {
        let inbox = inbox();
        inbox.eof();
        for _ in 0..64 {
            assert_eq!(inbox.data(&[0; 65_536]), Ok(()));
        }
    }

    #[test]
    fn empty_and_small_data_is_credited_and_joined() {
        let outbox = Rc::new(Outbox::default());
        let inbox = Inbox::of_stream(&outbox, StreamId(1), ReceiveWindow::default());
        for _ in 0..WINDOW_BYTES {
            assert_eq!(inbox.data(b""), Ok(()), "an empty frame is not queued");
        }
        let taken = (0..).take_while(|_| inbox.data(b"x").is_ok()).count();
        assert!((WINDOW_BYTES as usize / 2..=WINDOW_BYTES as usize).contains(&taken), "only the bytes count: {taken}");
        assert!(inbox.state.borrow().chunks.len() <= WINDOW_BYTES as usize / CHUNK_JOIN_BYTES);
    }

    #[test]
    fn a_task_that_is_polled_often_is_registered_once() {
        let inbox = Inbox::shared();
        inbox.put(&vec![0; WINDOW_BYTES as usize]);
        // `Waker::noop` can't be used here: `will_wake` doesn't promise that its copies are equal.
        let waker = Waker::from(std::sync::Arc::new(Quiet));
        for _ in 0..1000 {
            assert_eq!(pin!(inbox.room()).poll(&mut Context::from_waker(&waker)), Poll::Pending);
        }
        assert_eq!(inbox.state.borrow().room_wakers.len(), 1);
    }

    #[test]
    fn controls_are_merged() {
        let inbox = inbox();
        for signal in 0..1000 {
            inbox.signal(signal);
            inbox.resize(Resize { rows: 1, cols: u16::try_from(signal).expect("small") });
        }
        inbox.end(End::Cancelled);
        inbox.end(End::LinkLost);
        assert_eq!(now(inbox.control()), Some(Control::End(End::Cancelled)), "the first reason counts");
        let state = inbox.state.borrow();
        assert_eq!((state.signals.len(), state.resize.map(|size| size.cols)), (SIGNALS_MAX, Some(999)));
    }

    #[test]
    fn a_full_shared_inbox_has_no_room_until_it_is_closed() {
        let inbox = Inbox::shared();
        inbox.put(&vec![0; WINDOW_BYTES as usize]);
        assert_eq!(now(inbox.room()), None);
        inbox.close();
        assert_eq!(now(inbox.room()), Some(()), "a closed inbox blocks no task");
    }

    proptest! {
        #[test]
        fn bytes_are_taken_in_the_order_in_which_they_were_put(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..30),
            takes in prop::collection::vec(0usize..5000, 1..50),
        ) {
            let inbox = inbox();
            let mut expected = Vec::new();
            for piece in &pieces {
                prop_assert_eq!(inbox.data(piece), Ok(()));
                expected.extend_from_slice(piece);
            }
            inbox.eof();
            let mut got = Vec::new();
            for take in takes {
                inbox.with_front(|bytes| {
                    let used = take.min(bytes.len());
                    got.extend_from_slice(&bytes[..used]);
                    (used, ())
                });
            }
            while let Some(Some(chunk)) = now(inbox.chunk()) {
                got.extend_from_slice(&chunk);
            }
            prop_assert_eq!(got, expected);
            prop_assert!(inbox.is_drained());
        }
    }
}
