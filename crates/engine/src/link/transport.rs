//! The tasks that own the byte stream, and the state they share with streams.
//!
//! ```text
//!   open ──▶ lost: the guest closed, a protocol error, an agent that reads nothing, the last handle dropped
//! ```
//!
//! A link is lost once, with one reason. That wakes everything that waits on it: streams, pings, senders.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kiln_wire::{Channel, Decoder, Frame, Goodbye, GoodbyeReason, Hello, Kind, Message, StreamId, Sync, encode};
use tokio::io::AsyncReadExt;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::inbox::{Growth, Inbox};
use super::outbox::Outbox;
use super::stream::{StreamError, StreamGuard, StreamReceiver, StreamSender};

/// Bytes that one read takes at most.
const READ_BYTES: usize = 256 << 10;
/// The longest ping that is answered. Answers wait for an agent that does not read them, so large ones would add up.
const PING_BYTES_MAX: usize = 1024;
/// An agent has this long to answer a request that takes it no time. After that the caller gives up.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// The deadline for writing the last frame of a link.
const GOODBYE_DEADLINE: Duration = Duration::from_millis(500);

/// A link to one agent. Clones are handles to the same link. It ends when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct GuestLink {
    shared: Arc<Shared>,
    tasks: Arc<Tasks>,
}

#[derive(Debug)]
struct Tasks {
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        // Streams may outlive the last handle of their link, so they get the reason before the tasks end.
        self.shared.lose("its last handle was dropped".into());
        self.reader.abort();
        self.writer.abort();
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    hello: Hello,
    outbox: Outbox,
    table: Mutex<Table>,
    growth: Arc<Growth>,
    lost: watch::Sender<Option<String>>,
    ping_count: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    streams: HashMap<u32, Arc<Inbox>>,
    last_id: Option<u32>,
    pongs: HashMap<u64, oneshot::Sender<()>>,
}

impl GuestLink {
    /// Starts the tasks of a link whose Hellos have been exchanged.
    pub(super) fn start(read: OwnedReadHalf, write: OwnedWriteHalf, decoder: Decoder, hello: Hello) -> Self {
        let (outbox, data) = Outbox::new();
        let shared = Arc::new(Shared {
            hello,
            outbox,
            table: Mutex::default(),
            growth: Arc::default(),
            lost: watch::Sender::new(None),
            ping_count: AtomicU64::new(0),
        });
        let reader = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                let why = tokio::select! {
                    why = read_frames(read, decoder, &shared) => why,
                    why = shared.until_lost() => why,
                };
                shared.lose(why);
            }
        });
        let writer = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                let why = tokio::select! {
                    error = shared.outbox.write_to(write, data) => format!("write failed: {error}"),
                    why = shared.until_lost() => why,
                };
                shared.lose(why);
            }
        });
        Self { shared: Arc::clone(&shared), tasks: Arc::new(Tasks { shared, reader, writer }) }
    }

    /// The Hello that the agent sent.
    pub fn hello(&self) -> &Hello {
        &self.shared.hello
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// The link is lost, or the request does not fit a frame.
    ///
    /// # Panics
    /// If `request` is not of a kind that opens streams.
    pub fn open(&self, request: &Message<'_>) -> Result<(StreamSender, StreamReceiver), StreamError> {
        assert!(request.kind().opens(), "{:?} opens no stream", request.kind());
        let inbox = Inbox::new(&self.shared.growth);
        let id = self.shared.register(&inbox)?;
        let guard = Arc::new(StreamGuard { id, inbox, shared: Arc::clone(&self.shared) });
        self.shared.send_control(id, request)?;
        Ok((StreamSender { guard: Arc::clone(&guard) }, StreamReceiver { guard }))
    }

    /// The round trip of one byte to the agent. The agent handles frames in order, so all control frames that were sent
    /// before, like a signal or a cancel, have reached it once this returns.
    ///
    /// # Errors
    /// The link is lost, or no answer arrived within ten seconds.
    pub async fn ping(&self) -> Result<Duration, StreamError> {
        self.ping_within(ANSWER_DEADLINE).await
    }

    /// See [`ping`](Self::ping), but with the caller's deadline.
    ///
    /// # Errors
    /// The link is lost, or no answer arrived in time.
    pub async fn ping_within(&self, deadline: Duration) -> Result<Duration, StreamError> {
        let start = Instant::now();
        let (_forgets, answered) = PingGuard::new(&self.shared)?;
        match tokio::time::timeout(deadline, answered).await {
            Ok(Ok(())) => Ok(start.elapsed()),
            _ => Err(self.shared.no_answer("ping", deadline)),
        }
    }

    /// Gives the guest the host's time, fresh randomness and names of its own.
    ///
    /// # Errors
    /// The agent did not complete all of it. The guest must not be used.
    pub async fn sync(&self, sync: Sync) -> Result<(), StreamError> {
        self.ask(&Message::Sync(sync), "sync").await
    }

    /// Sends a request whose only answer is `Done`, and waits for that. Each request has a stream of its own, so a late
    /// answer can't be taken for the answer to the next request.
    pub(super) async fn ask(&self, request: &Message<'_>, name: &'static str) -> Result<(), StreamError> {
        // If this future is dropped early, dropping the stream cancels the request.
        let (_sender, mut receiver) = self.open(request)?;
        match tokio::time::timeout(ANSWER_DEADLINE, receiver.done()).await {
            Ok(outcome) => outcome.map(drop),
            Err(_) => Err(self.no_answer(name)),
        }
    }

    /// Streams that were opened here and have not ended.
    pub fn streams_open(&self) -> usize {
        self.shared.table().streams.values().filter(|inbox| !inbox.ended()).count()
    }

    pub(super) fn no_answer(&self, request: &'static str) -> StreamError {
        self.shared.no_answer(request, ANSWER_DEADLINE)
    }

    /// Whether the link is lost.
    pub fn is_lost(&self) -> bool {
        self.shared.lost.borrow().is_some()
    }

    /// Waits until the link is lost, and returns the reason.
    pub async fn closed(&self) -> String {
        self.shared.until_lost().await
    }

    /// Requests that the agent shuts the guest down, and ends the link.
    pub async fn shutdown(self) {
        let goodbye = Message::Goodbye(Goodbye { reason: GoodbyeReason::Shutdown });
        if self.shared.send_control(StreamId::LINK, &goodbye).is_ok() {
            // The agent closes the link once it has read this. If it does not, the caller has to kill the guest.
            let _ = tokio::time::timeout(GOODBYE_DEADLINE, self.closed()).await;
        }
        drop(self.tasks);
    }
}

/// A ping that waits for its answer. Dropping it removes it from the table on every path.
struct PingGuard<'a> {
    shared: &'a Shared,
    number: u64,
}

impl<'a> PingGuard<'a> {
    fn new(shared: &'a Shared) -> Result<(Self, oneshot::Receiver<()>), StreamError> {
        let number = shared.ping_count.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        shared.table().pongs.insert(number, answer);
        let guard = Self { shared, number };
        shared.send_control(StreamId::LINK, &Message::Ping(&number.to_be_bytes()))?;
        Ok((guard, answered))
    }
}

impl Drop for PingGuard<'_> {
    fn drop(&mut self) {
        self.shared.table().pongs.remove(&self.number);
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, inbox: &Arc<Inbox>) -> Result<StreamId, StreamError> {
        let mut table = self.table();
        // A link can be lost while a stream is opened, and that stream has to end too. `lose` first stores the reason,
        // then locks the table and takes all streams. Here the table is locked first, and the reason is read under the
        // lock. If `lose` locks the table later than this call, it finds the new stream and ends it. If it locked the
        // table earlier, its reason was stored before that, so it is seen here. No order leaves a stream in the table
        // of a lost link.
        if let Some(why) = self.lost() {
            return Err(StreamError::LinkLost(why));
        }
        let id = table.last_id.map_or(Some(1), |last| last.checked_add(2));
        let id = id.ok_or_else(|| StreamError::LinkLost("all stream ids are used up".into()))?;
        table.last_id = Some(id);
        table.streams.insert(id, Arc::clone(inbox));
        Ok(StreamId(id))
    }

    /// Removes a stream whose halves are both dropped, and cancels it if the agent has not ended it.
    pub(super) fn close(&self, id: StreamId, cancel: bool) {
        self.table().streams.remove(&id.0);
        if cancel && self.lost().is_none() {
            // This fails only if the link is lost, and an agent ends the streams of a lost link.
            let _ = self.send_control(id, &Message::Cancel);
        }
    }

    /// Why the link is lost, if it is.
    pub(super) fn lost(&self) -> Option<String> {
        self.lost.borrow().clone()
    }

    async fn until_lost(&self) -> String {
        let mut lost = self.lost.subscribe();
        // The `Shared` holds the sender, so the channel stays open.
        lost.wait_for(Option::is_some).await.ok().and_then(|why| why.clone()).unwrap_or_default()
    }

    /// Ends the link. Only the first reason counts.
    fn lose(&self, why: String) {
        self.lost.send_if_modified(|lost| {
            let first = lost.is_none();
            lost.get_or_insert(why);
            first
        });
        let (streams, pongs) = {
            let mut table = self.table();
            (std::mem::take(&mut table.streams), std::mem::take(&mut table.pongs))
        };
        drop(pongs);
        let why = self.lost().unwrap_or_default();
        for inbox in streams.into_values() {
            inbox.give_up(StreamError::LinkLost(why.clone()));
        }
    }

    fn no_answer(&self, request: &'static str, waited: Duration) -> StreamError {
        self.lost().map_or(StreamError::NoAnswer { request, waited }, StreamError::LinkLost)
    }

    pub(super) fn send_control(&self, id: StreamId, message: &Message<'_>) -> Result<(), StreamError> {
        let frame = encoded(id, message)?;
        if let Some(why) = self.lost() {
            return Err(StreamError::LinkLost(why));
        }
        self.outbox.control(frame).map_err(|unread| {
            self.lose(unread.to_string());
            StreamError::LinkLost(self.lost().unwrap_or_default())
        })
    }

    /// Queues data for which a window was taken.
    pub(super) async fn send_data(&self, id: StreamId, data: &[u8]) -> Result<(), ()> {
        let mut frame = Vec::new();
        encode(Channel::In.kind(), id, data, &mut frame).map_err(drop)?;
        self.outbox.data(frame).await
    }

    /// Queues a frame that must not overtake data.
    pub(super) async fn send_after_data(&self, id: StreamId, message: &Message<'_>) -> Result<(), ()> {
        let frame = encoded(id, message).map_err(drop)?;
        self.outbox.data(frame).await
    }

    /// Passes a frame to its stream. A later agent may send kinds that are unknown here. On the link they are ignored;
    /// on a stream they end that stream.
    ///
    /// # Errors
    /// Returns why the link ends if the frame ends it.
    fn route(&self, frame: Frame<'_>) -> Result<(), String> {
        let Frame { kind, stream, payload } = frame;
        if stream == StreamId::LINK {
            return Message::parse(frame).map_or(Ok(()), |message| self.route_link(&message));
        }
        // A frame for a stream that was closed here may have been on its way already.
        let Some(inbox) = self.table().streams.get(&stream.0).cloned() else { return Ok(()) };
        match kind {
            Kind::DATA_OUT => inbox.push_data(Channel::Out, payload),
            Kind::DATA_ERR => inbox.push_data(Channel::Err, payload),
            Kind::STARTED | Kind::REPLY | Kind::EOF | Kind::EXITED | Kind::DONE => inbox.push_answer(kind, payload),
            _ => match Message::parse(frame) {
                Ok(Message::Credit(bytes)) => inbox.credit(bytes),
                Ok(Message::Error(fault)) => inbox.fail(fault),
                Ok(other) => inbox.give_up(StreamError::Unexpected(format!("{:?}", other.kind()))),
                Err(error) => inbox.give_up(StreamError::Unexpected(error.to_string())),
            },
        }
        Ok(())
    }

    fn route_link(&self, message: &Message<'_>) -> Result<(), String> {
        match message {
            Message::Pong(echo) => {
                let number = (*echo).try_into().map(u64::from_be_bytes);
                if let Some(answer) = number.ok().and_then(|number| self.table().pongs.remove(&number)) {
                    // This fails if the ping was dropped meanwhile.
                    let _ = answer.send(());
                }
                Ok(())
            }
            Message::Ping(bytes) if bytes.len() > PING_BYTES_MAX => Err(format!("a ping of {} bytes", bytes.len())),
            Message::Ping(bytes) => {
                self.send_control(StreamId::LINK, &Message::Pong(bytes)).map_err(|error| error.to_string())
            }
            Message::Goodbye(goodbye) => Err(goodbye.to_string()),
            _ => Ok(()),
        }
    }
}

fn encoded(id: StreamId, message: &Message<'_>) -> Result<Vec<u8>, StreamError> {
    let mut frame = Vec::new();
    message.encode(id, &mut frame).map_err(|error| match error {
        kiln_wire::FrameError::TooLong(bytes) => StreamError::TooLarge { bytes },
        kiln_wire::FrameError::TooShort(_) => StreamError::TooLarge { bytes: 0 },
    })?;
    Ok(frame)
}

/// Reads until the link ends, and returns the reason.
async fn read_frames(mut read: OwnedReadHalf, mut decoder: Decoder, shared: &Shared) -> String {
    loop {
        loop {
            match decoder.next() {
                Ok(Some(frame)) => {
                    if let Err(why) = shared.route(frame) {
                        return why;
                    }
                }
                Ok(None) => break,
                Err(error) => return format!("protocol error: {error}"),
            }
        }
        match read.read(&mut decoder.space(READ_BYTES)[..READ_BYTES]).await {
            Ok(0) => {
                return match decoder.finish() {
                    Ok(()) => "closed by the guest".into(),
                    Err(error) => error.to_string(),
                };
            }
            Ok(count) => decoder.fill(count),
            Err(error) => return format!("read failed: {error}"),
        }
    }
}
