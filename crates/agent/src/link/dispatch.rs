//! The streams of one link: dispatches each frame to its stream.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use kiln_wire::credit::ReceiveWindow;
use kiln_wire::{Channel, ErrorCode, Fault, Message, MessageError, StreamId};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::inbox::{End, Inbox};
use super::outbox::{Outbox, Outlet};
use super::service::Service;

/// Window of a file that is written, once its data flows.
const FILE_WINDOW_BYTES: u32 = 1 << 20;
/// Streams of one link at a time.
const STREAMS_MAX: usize = 256;
/// Streams that ended are removed from the table once it has this many entries.
const STREAMS_SWEEP: usize = 32;
/// The highest signal that Linux has.
const SIGNAL_MAX: i32 = 64;
/// How long the tasks of a link may take to kill their commands after the link has ended.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// One stream, for the task that serves it.
#[derive(Debug)]
pub struct Stream {
    /// From the host.
    pub inbox: Rc<Inbox>,
    /// To the host.
    pub outlet: Outlet,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

pub(super) struct Streams {
    service: Rc<dyn Service>,
    outbox: Rc<Outbox>,
    inboxes: HashMap<StreamId, Rc<Inbox>>,
    tasks: JoinSet<()>,
}

impl Streams {
    pub(super) fn new(service: Rc<dyn Service>) -> Self {
        Self { service, outbox: Rc::default(), inboxes: HashMap::new(), tasks: JoinSet::new() }
    }

    pub(super) fn outbox(&self) -> &Rc<Outbox> {
        &self.outbox
    }

    /// Creates the queue of a new link.
    pub(super) fn renew(&mut self) -> Rc<Outbox> {
        self.outbox = Rc::default();
        Rc::clone(&self.outbox)
    }

    /// Ends every stream.
    pub(super) fn end_all(&mut self) {
        for (_, inbox) in self.inboxes.drain() {
            inbox.end(End::LinkLost);
        }
    }

    /// Waits until the commands of streams that ended have exited.
    pub(super) async fn wait_for_execs(&mut self) {
        // Each task kills its command as soon as its stream ends. A process that the kernel can't kill is left behind.
        let _ = timeout(END_DEADLINE, async { while self.tasks.join_next().await.is_some() {} }).await;
    }

    pub(super) fn unreadable(&mut self, stream: StreamId, error: &MessageError) {
        let fault = error.fault();
        match self.inbox(stream) {
            Some(inbox) => inbox.end(End::Fault(fault)),
            None => self.outbox.link(stream, &Message::Error(fault)),
        }
    }

    pub(super) fn message(&mut self, stream: StreamId, message: Message<'_>) {
        match message {
            Message::Ping(bytes) => self.outbox.link(stream, &Message::Pong(bytes)),
            Message::Credit(bytes) => self.outbox.credit(stream, bytes),
            Message::Data(Channel::In, bytes) => {
                if let Some(inbox) = self.inbox(stream)
                    && let Err(overrun) = inbox.data(bytes)
                {
                    inbox.end(End::Fault(Fault::new(ErrorCode::FlowControl, overrun.to_string())));
                }
            }
            Message::Eof => self.with(stream, Inbox::eof),
            Message::Cancel => self.with(stream, |inbox| inbox.end(End::Cancelled)),
            Message::Resize(resize) => self.with(stream, |inbox| inbox.resize(resize)),
            Message::Signal(signal) => self.with(stream, |inbox| {
                if (1..=SIGNAL_MAX).contains(&signal.signal) {
                    inbox.signal(signal.signal);
                } else {
                    let message = format!("signal {} is not in 1..={SIGNAL_MAX}", signal.signal);
                    inbox.end(End::Fault(Fault::new(ErrorCode::InvalidRequest, message)));
                }
            }),
            // A host may reply to a ping that was never sent, or end its side. Neither requires anything.
            Message::Pong(_) | Message::Done(_) | Message::Error(_) => {}
            Message::Exec(_)
            | Message::Attach(_)
            | Message::Files(_)
            | Message::Forward(_)
            | Message::Watch(_)
            | Message::Metrics(_)
            | Message::Logs(_)
            | Message::Sessions(_)
            | Message::Freeze
            | Message::Thaw
            | Message::Activity
            | Message::Sync(_) => self.open(stream, message),
            Message::Hello(_)
            | Message::Auth(_)
            | Message::Goodbye(_)
            | Message::Started(_)
            | Message::Reply(_)
            | Message::Exited(_)
            | Message::Data(Channel::Out | Channel::Err, _) => {
                let message = format!("an agent does not take {:?} here", message.kind());
                let fault = Fault::new(ErrorCode::InvalidRequest, message);
                match self.inbox(stream) {
                    Some(inbox) => inbox.end(End::Fault(fault)),
                    None => self.outbox.link(stream, &Message::Error(fault)),
                }
            }
        }
    }

    fn inbox(&self, stream: StreamId) -> Option<Rc<Inbox>> {
        self.inboxes.get(&stream).filter(|inbox| !inbox.is_closed()).cloned()
    }

    /// Frames of a stream that has ended are ignored: the host may have sent them before it received the end.
    fn with(&self, stream: StreamId, act: impl FnOnce(&Inbox)) {
        if let Some(inbox) = self.inbox(stream) {
            act(&inbox);
        }
    }

    fn open(&mut self, id: StreamId, request: Message<'_>) {
        let refuse = |message: String| {
            self.outbox.link(id, &Message::Error(Fault::new(ErrorCode::StreamRefused, message)));
        };
        if !id.is_host() {
            return refuse(format!("stream {id} can't be opened by a host"));
        }
        if self.inbox(id).is_some() {
            return refuse(format!("stream {id} is in use"));
        }
        if self.inboxes.len() >= STREAMS_SWEEP {
            self.inboxes.retain(|_, inbox| !inbox.is_closed());
            while self.tasks.try_join_next().is_some() {}
        }
        if self.inboxes.len() >= STREAMS_MAX {
            return refuse(format!("more than {STREAMS_MAX} streams at once"));
        }
        let Some(outlet) = self.outbox.open(id) else {
            return refuse(format!("frames of an earlier stream {id} are still queued"));
        };
        // A file takes data as fast as it arrives, so a large window is soon empty again. A command may stop reading
        // its input, and a large window would then stay full in memory.
        let window = match request {
            Message::Files(_) => ReceiveWindow::growing(FILE_WINDOW_BYTES),
            _ => ReceiveWindow::default(),
        };
        let inbox = Inbox::of_stream(&self.outbox, id, window);
        self.inboxes.insert(id, Rc::clone(&inbox));
        let stream = Stream { inbox, outlet };
        if let Some(task) = self.service.open(stream, request) {
            self.tasks.spawn_local(task);
        }
    }
}
