//! The reader of a transport: finds the start and end of links, and dispatches their frames.
//!
//! # A new link on a transport that stays
//! A port carries one link after the other without an end between them. When a marker with a new nonce arrives, three
//! things of the old link must not reach the new one: bytes in the decoder, frames in the queue, and tasks that are
//! still running.
//!
//! - The decoder is cleared, so half a frame of the old host is not joined with the first bytes of the new one.
//! - The old queue is closed and a new one is created. A task of an old stream holds its outlet to the old queue, so
//!   whatever it still sends is dropped there. It can't reach a stream of the new link that has the same id.
//! - The old writer is aborted, perhaps in the middle of a frame. That does no harm: the new host skips all bytes
//!   before its own nonce, so it never sees the half frame. The marker is the first entry of the new queue, so nothing
//!   precedes it.
//!
//! A marker with the nonce of the current link is ignored. The host repeats the marker until the agent replies, and a
//! repetition that arrives after the reply must not end the link that it started.
//!
//! # No wait in a circle
//! The reader stops reading while the queue for replies is full. It waits for the writer, the writer waits only for the
//! host, and the host is free to read. So the only host that stops itself is one that sends requests and never reads
//! replies. Tasks of streams wait for credit, which the reader takes from the host. The reader does not wait for these
//! tasks: their data has other queues, and the link's own messages are written first, so the queue that the reader
//! waits for becomes empty as soon as the host reads.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use kiln_wire::reset::{Nonce, Piece, ResetScanner, marker};
use kiln_wire::{
    AUTH_DEADLINE, Capability, Decoder, Done, ErrorCode, Fault, Goodbye, GoodbyeReason, Hello, Message, StreamId,
    VERSION, negotiate, token_matches,
};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep_until, timeout};

use super::dispatch::Streams;
use super::links::Links;
use super::service::Service;
use crate::log::note;
use crate::transport::{READ_BYTES, Transport};

/// How long it may take to write a link's Goodbye.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(1);

/// Serves links on `transport` until it ends. A port ends only with the agent.
///
/// # Errors
/// If reading from the transport fails.
pub async fn serve(links: Rc<Links>, service: Rc<dyn Service>, transport: Transport) -> std::io::Result<()> {
    let mut server = Server {
        streams: Streams::new(service),
        phase: if transport.is_port() { Phase::NoLink } else { Phase::Hello },
        links,
        transport: Rc::new(transport),
        nonce: None,
        writer: None,
        auth_by: None,
        behind: false,
    };
    server.start();
    let result = server.run().await;
    server.end().await;
    result
}

struct Server {
    links: Rc<Links>,
    transport: Rc<Transport>,
    streams: Streams,
    phase: Phase,
    /// The nonce of the marker that started this link.
    nonce: Option<Nonce>,
    writer: Option<JoinHandle<()>>,
    auth_by: Option<Instant>,
    /// Frames wait in the decoder until the host has read replies.
    behind: bool,
}

/// The event that the reader handles next.
enum Turn {
    /// This number of bytes was read, 0 if the host is gone.
    Bytes(usize),
    /// There is room for the replies to frames that wait.
    Frames,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// There is no link. Only a reset marker starts one.
    NoLink,
    /// Hello is expected.
    Hello,
    /// A token is expected.
    Auth,
    /// Streams are served.
    Open,
}

/// What follows on the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// More bytes, of this link or of the next.
    Bytes,
    /// Nothing: the transport carries one link, which has ended.
    Nothing,
}

/// The Goodbye that ends a link.
enum Farewell {
    /// The agent sends it.
    Send(GoodbyeReason),
    /// The host has sent it.
    Received(GoodbyeReason),
}

impl Server {
    async fn run(&mut self) -> std::io::Result<()> {
        let mut scanner = ResetScanner::default();
        let mut decoder = Decoder::new();
        let links = Rc::clone(&self.links);
        let mut ending = pin!(links.ending());
        loop {
            let outbox = Rc::clone(self.streams.outbox());
            let expected = decoder.missing_bytes().unwrap_or(0);
            let turn = async {
                if self.behind {
                    outbox.link_room().await;
                    return Ok(Turn::Frames);
                }
                let buffer = &mut decoder.space(READ_BYTES)[..READ_BYTES];
                self.transport.read(buffer, expected).await.map(Turn::Bytes)
            };
            let turn = tokio::select! {
                biased;
                reason = &mut ending => {
                    self.farewell(Farewell::Send(reason)).await;
                    return Ok(());
                }
                () = until(self.auth_by) => {
                    self.farewell(Farewell::Send(GoodbyeReason::Unauthorized)).await;
                    if self.transport.is_port() { continue } else { return Ok(()) }
                }
                turn = turn => turn?,
            };
            match turn {
                Turn::Bytes(0) if !self.transport.is_port() => return Ok(()),
                Turn::Bytes(0) => {
                    if self.phase != Phase::NoLink || self.nonce.is_some() {
                        note("the host is gone".into());
                        self.drop_link();
                        self.nonce = None;
                    }
                    self.transport.changed().await?;
                    continue;
                }
                Turn::Frames => {}
                Turn::Bytes(count) if self.phase != Phase::NoLink && scanner.is_plain(decoder.offered(count)) => {
                    decoder.fill(count);
                }
                Turn::Bytes(count) => {
                    let read = decoder.offered(count).to_vec();
                    let mut input = &read[..];
                    while let Some(piece) = scanner.next(&mut input) {
                        match piece {
                            Piece::Reset(nonce) if self.nonce == Some(nonce) => {}
                            Piece::Reset(nonce) => {
                                decoder.clear();
                                self.reset(nonce);
                            }
                            Piece::Bytes(_) if self.phase == Phase::NoLink => {}
                            Piece::Bytes(bytes) => {
                                decoder.push(bytes);
                                if self.follow(&mut decoder).await == Next::Nothing {
                                    return Ok(());
                                }
                            }
                        }
                    }
                }
            }
            if self.phase == Phase::NoLink {
                continue;
            }
            if self.follow(&mut decoder).await == Next::Nothing {
                return Ok(());
            }
            if self.phase != Phase::NoLink
                && !self.behind
                && let Some(bytes) = scanner.release(decoder.missing_bytes())
            {
                decoder.push(bytes);
                if self.follow(&mut decoder).await == Next::Nothing {
                    return Ok(());
                }
            }
        }
    }

    /// Dispatches whole frames while there is room for their replies. Returns what can follow.
    async fn follow(&mut self, decoder: &mut Decoder) -> Next {
        let Err(farewell) = self.frames(decoder) else { return Next::Bytes };
        self.behind = false;
        decoder.clear();
        self.farewell(farewell).await;
        if self.transport.is_port() { Next::Bytes } else { Next::Nothing }
    }

    /// Replaces the link by a new one.
    fn reset(&mut self, nonce: Nonce) {
        self.drop_link();
        self.nonce = Some(nonce);
        self.phase = Phase::Hello;
        self.auth_by = None;
        self.start();
        self.streams.outbox().raw(marker(&nonce).to_vec());
    }

    /// Creates the queue and the writer of a new link.
    fn start(&mut self) {
        let outbox = self.streams.renew();
        let transport = Rc::clone(&self.transport);
        if self.phase == Phase::Hello && self.links.token().is_some() {
            self.auth_by = Some(Instant::now() + AUTH_DEADLINE);
        }
        self.writer = Some(spawn_local(async move {
            while let Some(bytes) = outbox.next().await {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    match transport.write(rest).await {
                        Ok(count) => rest = &rest[count..],
                        // The reader gets the same error, and it owns the link.
                        Err(_) => return outbox.close(),
                    }
                }
                outbox.written(bytes);
            }
        }));
    }

    /// Ends the link at once: streams end, and queued frames are dropped.
    fn drop_link(&mut self) {
        self.phase = Phase::NoLink;
        self.auth_by = None;
        self.behind = false;
        self.streams.end_all();
        self.streams.outbox().close();
        if let Some(writer) = self.writer.take() {
            writer.abort();
        }
    }

    /// Ends the link with a Goodbye.
    async fn farewell(&mut self, farewell: Farewell) {
        match farewell {
            Farewell::Send(reason) => {
                note(format!("ending the link: {reason}"));
                self.streams.end_all();
                let outbox = self.streams.outbox();
                outbox.link(StreamId::LINK, &Message::Goodbye(Goodbye { reason }));
                outbox.finish();
                if let Some(writer) = &mut self.writer {
                    // A host that doesn't read gets no Goodbye.
                    let _ = timeout(GOODBYE_DEADLINE, writer).await;
                }
            }
            Farewell::Received(reason) => {
                note(format!("the host ended the link: {reason}"));
                if reason == GoodbyeReason::Shutdown {
                    self.links.request_shutdown();
                }
            }
        }
        self.drop_link();
    }

    async fn end(&mut self) {
        self.drop_link();
        self.streams.wait_for_execs().await;
    }

    fn frames(&mut self, decoder: &mut Decoder) -> Result<(), Farewell> {
        loop {
            // Checked before each frame, because one read can return thousands of small requests.
            self.behind = !self.streams.outbox().has_link_room();
            if self.behind {
                return Ok(());
            }
            let frame = match decoder.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(()),
                Err(error) => return Err(Farewell::Send(GoodbyeReason::Protocol(error.to_string()))),
            };
            let stream = frame.stream;
            let message = Message::parse(frame);
            if self.phase == Phase::Open {
                match message {
                    Ok(Message::Goodbye(goodbye)) => return Err(Farewell::Received(goodbye.reason)),
                    Ok(message) => self.streams.message(stream, message),
                    Err(error) => self.streams.unreadable(stream, &error),
                }
                continue;
            }
            match (self.phase, message) {
                (_, Ok(Message::Goodbye(goodbye))) => return Err(Farewell::Received(goodbye.reason)),
                (Phase::Hello, Ok(Message::Hello(hello))) => self.hello(&hello)?,
                (Phase::Auth, Ok(Message::Auth(auth))) => self.auth(stream, &auth.token)?,
                (Phase::Auth, _) => return Err(Farewell::Send(GoodbyeReason::Unauthorized)),
                (_, Err(error)) => return Err(Farewell::Send(GoodbyeReason::Protocol(error.to_string()))),
                (_, Ok(message)) => {
                    let message = format!("expected Hello, got {:?}", message.kind());
                    return Err(Farewell::Send(GoodbyeReason::Protocol(message)));
                }
            }
        }
    }

    fn hello(&mut self, theirs: &Hello) -> Result<(), Farewell> {
        negotiate(theirs).map_err(|refusal| Farewell::Send(refusal.reason))?;
        let mut capabilities = self.links.capabilities().to_vec();
        self.phase = Phase::Open;
        if self.links.token().is_some() {
            capabilities.push(Capability::Auth);
            self.phase = Phase::Auth;
        }
        let hello = Hello {
            version: VERSION,
            agent: concat!("kiln-agent ", env!("CARGO_PKG_VERSION")).into(),
            capabilities,
            boot_id: self.links.boot_id().to_owned(),
        };
        self.streams.outbox().link(StreamId::LINK, &Message::Hello(hello));
        self.links.mark_up();
        Ok(())
    }

    /// Replies on the stream that the request opened.
    fn auth(&mut self, stream: StreamId, token: &str) -> Result<(), Farewell> {
        let outbox = self.streams.outbox();
        if self.links.token().is_some_and(|expected| token_matches(expected, token)) {
            outbox.link(stream, &Message::Done(Done::default()));
            self.phase = Phase::Open;
            self.auth_by = None;
            Ok(())
        } else {
            let fault = Fault::new(ErrorCode::Unauthorized, "the token is wrong");
            outbox.link(stream, &Message::Error(fault));
            Err(Farewell::Send(GoodbyeReason::Unauthorized))
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
