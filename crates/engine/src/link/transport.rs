//! The tasks that own the byte stream, and the state they share with streams.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kiln_wire::{Channel, Decoder, Done, Fault, Frame, Goodbye, GoodbyeReason, Hello, Message, StreamId, Sync, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::inbox::Inbox;
use super::stream::{Event, StreamError, StreamGuard, StreamReceiver, StreamSender};

/// Control frames that wait for an agent that does not read; one more ends the link.
const CONTROL_QUEUE_FRAMES: usize = 4096;
/// Data frames that wait. Few, so that streams take turns and `Cancel` is never far behind.
const DATA_QUEUE_FRAMES: usize = 4;
/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;
/// Longest ping that is answered. Answers wait for an agent that does not read them, so large ones would add up.
const PING_BYTES_MAX: usize = 1024;
/// Control frames are joined into writes of about this size.
const CONTROL_WRITE_BYTES: usize = 64 << 10;
/// An agent that does not answer a request that needs no time of its own within this is given up.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// How long the last frame of a link may take to leave.
const GOODBYE_DEADLINE: Duration = Duration::from_millis(500);

/// A link to one agent. Clones are handles to the same link; it ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct GuestLink {
    shared: Arc<Shared>,
    tasks: Arc<Tasks>,
}

#[derive(Debug)]
struct Tasks {
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    hello: Hello,
    control: mpsc::Sender<Vec<u8>>,
    data: mpsc::Sender<Vec<u8>>,
    table: Mutex<Table>,
    lost: watch::Sender<Option<String>>,
    ping_count: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    streams: HashMap<u32, Arc<Inbox>>,
    last_id: Option<u32>,
    pongs: HashMap<u64, oneshot::Sender<()>>,
    /// Who waits for the link's own answers, in the order asked.
    answers: VecDeque<oneshot::Sender<Result<Done, Fault>>>,
}

impl GuestLink {
    /// Starts the tasks of a link whose Hellos have been exchanged.
    pub(super) fn start(read: OwnedReadHalf, write: OwnedWriteHalf, decoder: Decoder, hello: Hello) -> Self {
        let (control, control_queue) = mpsc::channel(CONTROL_QUEUE_FRAMES);
        let (data, data_queue) = mpsc::channel(DATA_QUEUE_FRAMES);
        let shared = Arc::new(Shared {
            hello,
            control,
            data,
            table: Mutex::default(),
            lost: watch::Sender::new(None),
            ping_count: AtomicU64::new(0),
        });
        let reader = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                let why = read_frames(read, decoder, &shared).await;
                shared.lose(why);
            }
        });
        let writer = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                if let Err(error) = write_frames(write, control_queue, data_queue).await {
                    shared.lose(format!("write failed: {error}"));
                }
            }
        });
        Self { shared, tasks: Arc::new(Tasks { reader, writer }) }
    }

    /// What the agent said of itself.
    pub fn hello(&self) -> &Hello {
        &self.shared.hello
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// The link is lost, or the request does not fit a frame.
    ///
    /// # Panics
    /// Where `request` is not of a kind that opens streams.
    pub fn open(&self, request: &Message<'_>) -> Result<(StreamSender, StreamReceiver), StreamError> {
        assert!(request.kind().opens(), "{:?} opens no stream", request.kind());
        let inbox = Inbox::new();
        let id = self.shared.register(&inbox)?;
        let guard = Arc::new(StreamGuard { id, inbox, shared: Arc::clone(&self.shared) });
        self.shared.send_control(id, request)?;
        Ok((StreamSender { guard: Arc::clone(&guard) }, StreamReceiver { guard }))
    }

    /// Time that one byte takes to the agent and back.
    ///
    /// # Errors
    /// The link is lost, or no answer came in time.
    pub async fn ping(&self) -> Result<Duration, StreamError> {
        let number = self.shared.ping_count.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.shared.table().pongs.insert(number, answer);
        let start = Instant::now();
        self.shared.send_control(StreamId::LINK, &Message::Ping(&number.to_be_bytes()))?;
        let outcome = tokio::time::timeout(ANSWER_DEADLINE, answered).await;
        self.shared.table().pongs.remove(&number);
        match outcome {
            Ok(Ok(())) => Ok(start.elapsed()),
            _ => Err(self.shared.no_answer("ping")),
        }
    }

    /// Gives the guest the host's time, fresh randomness and names of its own.
    ///
    /// # Errors
    /// The agent could not do all of it: the guest must not be used.
    pub async fn sync(&self, sync: Sync) -> Result<(), StreamError> {
        self.ask(&Message::Sync(sync), "sync").await
    }

    /// Sends a request of the link itself and waits for its `Done`.
    pub(super) async fn ask(&self, request: &Message<'_>, name: &str) -> Result<(), StreamError> {
        let answered = {
            let mut table = self.shared.table();
            let (answer, answered) = oneshot::channel();
            table.answers.push_back(answer);
            self.shared.send_control(StreamId::LINK, request)?;
            answered
        };
        match tokio::time::timeout(ANSWER_DEADLINE, answered).await {
            Ok(Ok(outcome)) => outcome.map(drop).map_err(StreamError::Fault),
            _ => Err(self.shared.no_answer(name)),
        }
    }

    /// Streams that were opened here and did not end yet.
    pub fn streams_open(&self) -> usize {
        self.shared.table().streams.values().filter(|inbox| !inbox.ended()).count()
    }

    pub(super) fn no_answer(&self, request: &str) -> StreamError {
        self.shared.no_answer(request)
    }

    /// Whether the link is lost.
    pub fn is_lost(&self) -> bool {
        self.shared.lost.borrow().is_some()
    }

    /// Waits until the link is lost and says why.
    pub async fn closed(&self) -> String {
        let mut lost = self.shared.lost.subscribe();
        lost.wait_for(Option::is_some).await.ok().and_then(|why| why.clone()).unwrap_or_default()
    }

    /// Tells the agent to shut the guest down and ends the link.
    pub async fn shutdown(self) {
        let goodbye = Message::Goodbye(Goodbye { reason: GoodbyeReason::Shutdown });
        if self.shared.send_control(StreamId::LINK, &goodbye).is_ok() {
            // The agent closes the link once it has read this; a guest that does not is the caller's to kill.
            let _ = tokio::time::timeout(GOODBYE_DEADLINE, self.closed()).await;
        }
        drop(self.tasks);
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, inbox: &Arc<Inbox>) -> Result<StreamId, StreamError> {
        let mut table = self.table();
        if let Some(why) = self.lost() {
            return Err(StreamError::LinkLost(why));
        }
        let id = table.last_id.map_or(Some(1), |last| last.checked_add(2));
        let id = id.ok_or_else(|| StreamError::LinkLost("all stream ids are used up".into()))?;
        table.last_id = Some(id);
        table.streams.insert(id, Arc::clone(inbox));
        Ok(StreamId(id))
    }

    /// Forgets a stream that nobody holds any more.
    pub(super) fn close(&self, id: StreamId, cancel: bool) {
        self.table().streams.remove(&id.0);
        if cancel && self.lost().is_none() {
            // Where even this can't be queued the link is lost, and the agent ends the stream by itself.
            let _ = self.send_control(id, &Message::Cancel);
        }
    }

    /// Why the link is lost, if it is.
    pub(super) fn lost(&self) -> Option<String> {
        self.lost.borrow().clone()
    }

    fn lose(&self, why: String) {
        self.lost.send_if_modified(|lost| {
            let first = lost.is_none();
            lost.get_or_insert(why);
            first
        });
        let mut table = self.table();
        table.pongs.clear();
        table.answers.clear();
        let streams = std::mem::take(&mut table.streams);
        drop(table);
        let why = self.lost().unwrap_or_default();
        for inbox in streams.into_values() {
            inbox.end(StreamError::LinkLost(why.clone()));
        }
    }

    fn no_answer(&self, request: &str) -> StreamError {
        let silence = || format!("no answer to {request} within {ANSWER_DEADLINE:?}");
        StreamError::LinkLost(self.lost().unwrap_or_else(silence))
    }

    pub(super) fn send_control(&self, id: StreamId, message: &Message<'_>) -> Result<(), StreamError> {
        let frame = encoded(id, message)?;
        self.control.try_send(frame).map_err(|error| {
            let why = match error {
                mpsc::error::TrySendError::Full(_) => {
                    format!("the agent reads nothing: {CONTROL_QUEUE_FRAMES} frames wait")
                }
                mpsc::error::TrySendError::Closed(_) => self.lost().unwrap_or_else(|| "closed".into()),
            };
            StreamError::LinkLost(why)
        })
    }

    pub(super) async fn send_data(&self, id: StreamId, data: &[u8]) -> Result<(), ()> {
        let mut frame = Vec::new();
        encode(Channel::In.kind(), id, data, &mut frame).map_err(drop)?;
        self.data.send(frame).await.map_err(drop)
    }

    /// Queues a frame that must not overtake data.
    pub(super) async fn send_after_data(&self, id: StreamId, message: &Message<'_>) -> Result<(), ()> {
        let frame = encoded(id, message).map_err(drop)?;
        self.data.send(frame).await.map_err(drop)
    }

    /// Gives a frame to whom it belongs.
    ///
    /// # Errors
    /// Why the link ends with it.
    fn route(&self, frame: Frame<'_>) -> Result<(), String> {
        let size = frame.payload.len();
        let stream = frame.stream;
        let message = match Message::parse(frame) {
            Ok(message) => message,
            // A later agent may send kinds that we don't know; what breaks a stream of ours ends that stream.
            Err(error) => {
                if let Some(inbox) = self.table().streams.get(&stream.0) {
                    inbox.end(StreamError::Unexpected(error.to_string()));
                }
                return Ok(());
            }
        };
        if stream == StreamId::LINK {
            return self.route_link(&message);
        }
        // A frame for a stream that was closed here was on its way already.
        let Some(inbox) = self.table().streams.get(&stream.0).cloned() else { return Ok(()) };
        match message {
            Message::Data(channel, bytes) if channel != Channel::In => inbox.push_data(channel, bytes),
            Message::Credit(bytes) => inbox.credit(bytes),
            Message::Started(started) => inbox.push_event(Event::Started(started), size),
            Message::Reply(reply) => inbox.push_event(Event::Reply(reply), size),
            Message::Eof => inbox.push_event(Event::Eof, size),
            Message::Exited(exited) => inbox.push_event(Event::Exited(exited), size),
            Message::Done(done) => inbox.push_event(Event::Done(done), size),
            Message::Error(fault) => inbox.end(StreamError::Fault(fault)),
            other => inbox.end(StreamError::Unexpected(format!("{:?}", other.kind()))),
        }
        Ok(())
    }

    fn route_link(&self, message: &Message<'_>) -> Result<(), String> {
        match message {
            Message::Pong(echo) => {
                let number = (*echo).try_into().map(u64::from_be_bytes);
                if let Some(answer) = number.ok().and_then(|number| self.table().pongs.remove(&number)) {
                    // Nobody waits any more where this fails.
                    let _ = answer.send(());
                }
            }
            Message::Ping(bytes) if bytes.len() > PING_BYTES_MAX => {
                return Err(format!("a ping of {} bytes", bytes.len()));
            }
            Message::Ping(bytes) => {
                self.send_control(StreamId::LINK, &Message::Pong(bytes)).map_err(|error| error.to_string())?;
            }
            Message::Done(done) => self.answer(Ok(*done)),
            Message::Error(fault) => self.answer(Err(fault.clone())),
            Message::Goodbye(goodbye) => return Err(goodbye.to_string()),
            _ => {}
        }
        Ok(())
    }

    fn answer(&self, outcome: Result<Done, Fault>) {
        if let Some(answer) = self.table().answers.pop_front() {
            // Nobody waits any more where this fails.
            let _ = answer.send(outcome);
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

/// Reads until the link ends and says why it did.
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

/// Writes until every handle is gone. Control frames go first.
async fn write_frames(
    mut write: OwnedWriteHalf,
    mut control: mpsc::Receiver<Vec<u8>>,
    mut data: mpsc::Receiver<Vec<u8>>,
) -> std::io::Result<()> {
    loop {
        let mut bytes = tokio::select! {
            biased;
            frame = control.recv() => match frame { Some(frame) => frame, None => return Ok(()) },
            frame = data.recv() => match frame { Some(frame) => frame, None => return Ok(()) },
        };
        while bytes.len() < CONTROL_WRITE_BYTES {
            match control.try_recv() {
                Ok(frame) => bytes.extend_from_slice(&frame),
                Err(_) => break,
            }
        }
        write.write_all(&bytes).await?;
    }
}
