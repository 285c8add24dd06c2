//! Streams that start, watch and manage sessions.

use std::rc::Rc;

use kiln_wire::{
    AttachRequest, Attached, Channel, Done, ErrorCode, ExecRequest, Fault, Lagged, Message, Reply, SessionSpec,
    SessionsRequest, Started,
};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, sleep_until};

use super::registry::{KEPT_AFTER_EXIT, Session, Sessions};
use crate::link::{CHUNK_BYTES, Control, End, Gone, Outlet, Stream, cancelled, frame_buffer};
use crate::log::note;
use crate::process::{Commands, Job, Outcome, Output, supervise};

/// Signals that Linux has.
const SIGNALS: std::ops::RangeInclusive<i32> = 1..=64;
/// Longer command lines are cut in lists.
const COMMAND_CHARS_MAX: usize = 256;

/// Starts a session. Its stream is the first attachment and may write.
pub async fn start(
    commands: Rc<Commands>,
    sessions: Rc<Sessions>,
    stream: Stream,
    request: &ExecRequest,
    spec: &SessionSpec,
) {
    let argv: Vec<String> = request.argv.iter().map(ToString::to_string).collect();
    let command = argv.join(" ").chars().take(COMMAND_CHARS_MAX).collect();
    let session = match sessions.add(spec, command, request.tty.is_some()) {
        Ok(session) => session,
        Err(fault) => return stream.outlet.fail(fault),
    };
    let job = match Job::start(&commands, request, Output::Together, &stream.inbox, Some(&session.name)).await {
        Ok(job) => job,
        Err(fault) => {
            sessions.remove(&session);
            return stream.outlet.fail(fault.unwrap_or_else(cancelled));
        }
    };
    session.pid.set(job.pid());
    let token = new_token();
    let attached = session.attach(&token, true, false);
    debug_assert_eq!(attached, Ok(()), "the session has no other viewer yet");
    let started = Started { pid: job.pid(), session: Some(session.name.clone()) };
    spawn_local(run(Rc::clone(&sessions), Rc::clone(&session), job));
    let sent = stream.outlet.send(&Message::Started(started)).await;
    view(&session, &stream, &token, 0, sent).await;
}

/// Serves an attachment.
pub async fn attach(sessions: Rc<Sessions>, stream: Stream, request: AttachRequest) {
    let session = match sessions.find(&request.session) {
        Ok(session) => session,
        Err(fault) => return stream.outlet.fail(fault),
    };
    let token = new_token();
    if let Err(fault) = session.attach(&token, request.write || request.steal, request.steal) {
        return stream.outlet.fail(fault);
    }
    let (offset, lost) = {
        let ring = session.ring.borrow();
        match request.offset {
            None => (ring.oldest_boundary(), false),
            Some(offset) if offset < ring.oldest() => (ring.oldest_boundary(), true),
            Some(offset) => (offset.min(ring.end()), false),
        }
    };
    let attached = Attached { token: token.clone(), offset, lost, pid: session.pid.get() };
    let sent = stream.outlet.send(&Message::Reply(Box::new(Reply::Attached(attached)))).await;
    view(&session, &stream, &token, offset, sent).await;
}

/// Lists and ends sessions and attachments.
pub async fn manage(sessions: Rc<Sessions>, stream: Stream, request: SessionsRequest) {
    let result = match request {
        SessionsRequest::List => {
            let list = Message::Reply(Box::new(Reply::Sessions(sessions.list())));
            if stream.outlet.send(&list).await.is_err() {
                return;
            }
            Ok(())
        }
        SessionsRequest::Kill { signal, .. } if !SIGNALS.contains(&signal) => {
            Err(Fault::new(ErrorCode::InvalidRequest, format!("signal {signal} is not in {SIGNALS:?}")))
        }
        SessionsRequest::Kill { session, signal } => {
            sessions.find(&session).map(|session| session.inbox.signal(signal))
        }
        SessionsRequest::Detach { session, token } => sessions.find(&session).and_then(|session| {
            let message = || format!("session `{}` has no attachment with this token", session.name);
            if session.detach(&token) { Ok(()) } else { Err(Fault::new(ErrorCode::SessionNotFound, message())) }
        }),
    };
    match result {
        Ok(()) => stream.outlet.end(&Message::Done(Done::default())),
        Err(fault) => stream.outlet.fail(fault),
    }
}

/// The session's own task: supervises the command, watches the idle time, and keeps the output for a while after the
/// end.
async fn run(sessions: Rc<Sessions>, session: Rc<Session>, job: Job) {
    let exited = tokio::select! {
        outcome = supervise(job, &session.inbox, &*session) => match outcome {
            Outcome::Exited(exited) | Outcome::Ended(_, exited) => exited,
        },
        never = idle(&session) => match never {},
    };
    *session.exited.borrow_mut() = Some(exited);
    session.inbox.close();
    session.changed.notify_waiters();
    sleep(KEPT_AFTER_EXIT).await;
    sessions.remove(&session);
}

/// Ends the command when the session has been idle for its timeout.
async fn idle(session: &Session) -> std::convert::Infallible {
    loop {
        let changed = session.changed.notified();
        match session.idle_until().map(Instant::from_std) {
            Some(until) if Instant::now() >= until => {
                note(format!("ending session `{}` after its idle timeout", session.name));
                session.inbox.end(End::Cancelled);
                return std::future::pending().await;
            }
            Some(until) => {
                tokio::select! {
                    () = sleep_until(until) => {}
                    () = changed => {}
                }
            }
            None => changed.await,
        }
    }
}

/// Connects the session to one stream until either ends. `sent` is the result of sending the stream's first reply.
async fn view(session: &Session, stream: &Stream, token: &str, mut offset: u64, sent: Result<(), Gone>) {
    let mut bytes = 0;
    let end = match sent {
        Ok(()) => watch(session, stream, token, &mut offset, &mut bytes).await,
        Err(Gone) => Err(Gone),
    };
    session.detach(token);
    match end {
        Ok(Viewed::Exited) => {
            if let Some(exited) = session.exited.borrow().clone() {
                stream.outlet.end(&Message::Exited(exited));
            }
        }
        Ok(Viewed::Detached) => stream.outlet.end(&Message::Done(Done { bytes, ..Done::default() })),
        Ok(Viewed::Left(end)) => stream.outlet.fail(end.into_fault()),
        Err(Gone) => stream.outlet.fail(cancelled()),
    }
}

enum Viewed {
    /// The command has exited and all its output was sent.
    Exited,
    /// The attachment was removed by its token.
    Detached,
    /// The stream ended.
    Left(End),
}

async fn watch(
    session: &Session,
    stream: &Stream,
    token: &str,
    offset: &mut u64,
    bytes: &mut u64,
) -> Result<Viewed, Gone> {
    let mut frame = frame_buffer();
    loop {
        if !session.is_attached(token) {
            return Ok(Viewed::Detached);
        }
        if session.has_exited() && *offset >= session.ring.borrow().end() {
            return Ok(Viewed::Exited);
        }
        let may_write = session.may_write(token);
        let changed = session.changed.notified();
        tokio::select! {
            biased;
            control = stream.inbox.control() => match control {
                Control::End(reason) => return Ok(Viewed::Left(reason)),
                Control::Signal(signal) if may_write => session.inbox.signal(signal),
                Control::Resize(size) if may_write => session.inbox.resize(size),
                Control::Signal(_) | Control::Resize(_) => {}
            },
            chunk = input(session, stream, may_write) => match chunk {
                Some(bytes) if may_write => {
                    session.touch();
                    session.inbox.put(&bytes);
                }
                None if may_write => session.inbox.eof(),
                _ => {}
            },
            room = output_room(session, &stream.outlet, *offset) => {
                *bytes += send_output(session, &stream.outlet, offset, room?, &mut frame).await?;
            }
            () = changed => {}
        }
    }
}

/// Waits for the next input. Input of a viewer that may not write is taken too; the caller drops it.
async fn input(session: &Session, stream: &Stream, may_write: bool) -> Option<Vec<u8>> {
    if may_write {
        session.inbox.room().await;
    }
    match stream.inbox.chunk().await {
        Some(bytes) => Some(bytes),
        None if session.inbox.has_ended() || !may_write => std::future::pending().await,
        None => None,
    }
}

/// Waits until there is output to send and room for it.
async fn output_room(session: &Session, outlet: &Outlet, offset: u64) -> Result<usize, Gone> {
    if offset >= session.ring.borrow().end() {
        return std::future::pending().await;
    }
    outlet.room().await
}

async fn send_output(
    session: &Session,
    outlet: &Outlet,
    offset: &mut u64,
    room: usize,
    frame: &mut Vec<u8>,
) -> Result<u64, Gone> {
    let lagged = {
        let ring = session.ring.borrow();
        (*offset < ring.oldest()).then(|| Lagged { from: *offset, to: ring.oldest_boundary() })
    };
    if let Some(lagged) = lagged {
        *offset = lagged.to;
        outlet.send(&Message::Reply(Box::new(Reply::Lagged(lagged)))).await?;
        return Ok(0);
    }
    let before = frame.len();
    session.ring.borrow().copy(*offset, room.min(CHUNK_BYTES), frame);
    let count = (frame.len() - before) as u64;
    *offset += count;
    outlet.data(Channel::Out, frame);
    Ok(count)
}

/// 128 random bits.
fn new_token() -> String {
    let mut bytes = [0u8; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    debug_assert_eq!(filled, Ok(bytes.len()), "the kernel fills short requests completely");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
