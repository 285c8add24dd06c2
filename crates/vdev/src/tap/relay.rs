//! The man in the middle: takes frontends one after the other, connects each to the backend, and passes on and records
//! their messages.
//!
//! ```text
//!   frontend ◀═ a.sock ═▶ ┌─ tap ─────────────┐ ◀═ b.sock ═▶ backend       channel `main`
//!       ▲                 │ a thread for each │                 ▲
//!       └─ its socket ══▶ │ direction         │ ◀══ our socket ═┘          channel `backend`, after SET_BACKEND_REQ_FD
//!                         └───────────────────┘
//! ```

use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope};
use std::time::Duration;

use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;

use super::entry::{Ending, Recorded, Side, TapChannel, TapEvent};
use super::pipe::{Passing, Pipe};
use super::recorder::{Recorder, RecorderEnd, RecorderError};
use crate::protocol::{BackendRequest, FrontendRequest};
use crate::socket::{Channel, Event, Listener, SocketError, wait_readable};

/// Backend channels of one session that are recorded; a frontend has one. Those beyond are passed on as they are.
const BACKEND_CHANNELS_MAX: usize = 8;
/// The most bytes of what is no message that an entry holds.
const BYTES_KEPT: usize = 4096;

/// What to record, and in which file.
#[derive(Debug, Clone)]
pub struct TapOptions {
    /// The socket for frontends.
    pub listen: PathBuf,
    /// The backend's socket.
    pub connect: PathBuf,
    /// The recording.
    pub record: PathBuf,
    /// The most bytes that the recording may have.
    pub bytes_max: u64,
    /// How long connecting to the backend may take.
    pub timeout: Duration,
    /// End after so many frontends.
    pub sessions_max: Option<u32>,
}

/// Why there was nothing to record.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The sockets.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The recording.
    #[error(transparent)]
    Recorder(#[from] RecorderError),
}

/// What a tap did.
#[derive(Debug)]
pub struct TapEnd {
    /// Frontends that came.
    pub sessions: u32,
    /// Those for which the backend could not be reached.
    pub unreachable: u32,
    /// What became of the recording.
    pub recording: RecorderEnd,
}

/// Forwards and records until it is stopped, or so many frontends have come and gone. `tell` gets what happens to
/// sessions, as text.
///
/// # Errors
/// If it can't listen or record.
pub fn tap(options: &TapOptions, stop: &Event, tell: &mut dyn FnMut(&str)) -> Result<TapEnd, TapError> {
    let recorder = Recorder::open(&options.record, options.bytes_max, &options.listen, &options.connect)?;
    let listener = Listener::bind(&options.listen)?;
    let (mut sessions, mut unreachable) = (0, 0);
    while options.sessions_max.is_none_or(|max| sessions < max) {
        let Some(frontend) = next_frontend(&listener, stop, options.timeout)? else { break };
        sessions += 1;
        match Channel::connect(&options.connect, options.timeout) {
            Ok(backend) => {
                tell(&format!("session {sessions}: connected"));
                recorder.record(sessions, TapEvent::Connected);
                Session { number: sessions, recorder: &recorder, stop, backend_channels: Mutex::default() }
                    .run(frontend.stream(), backend.stream());
                tell(&format!("session {sessions}: closed"));
            }
            Err(error) => {
                unreachable += 1;
                let error = words(&error);
                tell(&format!("session {sessions}: {error}"));
                recorder.record(sessions, TapEvent::Unreachable { error });
            }
        }
        recorder.record(sessions, TapEvent::Over);
    }
    Ok(TapEnd { sessions, unreachable, recording: recorder.end() })
}

/// The chain of an error in one line.
fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words.push_str(": ");
        words.push_str(&cause.to_string());
        source = cause.source();
    }
    words
}

fn next_frontend(listener: &Listener, stop: &Event, timeout: Duration) -> Result<Option<Channel>, TapError> {
    loop {
        let ready = wait_readable([listener.as_fd(), stop.as_fd()], None);
        let [_, is_stopped] = ready.map_err(|source| SocketError::Listen { socket: name(listener.path()), source })?;
        if is_stopped {
            return Ok(None);
        }
        if let Some(frontend) = listener.accept(Some(Duration::ZERO), timeout)? {
            return Ok(Some(frontend));
        }
    }
}

fn name(path: &Path) -> String {
    path.display().to_string()
}

struct Session<'a> {
    number: u32,
    recorder: &'a Recorder,
    stop: &'a Event,
    /// Kept so that they end with the session.
    backend_channels: Mutex<Vec<Arc<Sockets>>>,
}

/// The two ends between which a backend channel is passed on.
struct Sockets {
    ours: UnixStream,
    frontends: UnixStream,
    is_closed: AtomicBool,
}

/// One direction of one connection.
struct Way<'a> {
    channel: TapChannel,
    from: Side,
    source: &'a UnixStream,
    sink: &'a UnixStream,
    /// One side has closed both directions.
    is_closed: &'a AtomicBool,
}

impl Session<'_> {
    fn run(&self, frontend: &UnixStream, backend: &UnixStream) {
        let is_closed = &AtomicBool::new(false);
        let channel = TapChannel::Main;
        let way = |from, source, sink| Way { channel, from, source, sink, is_closed };
        let (there, back) = (way(Side::Frontend, frontend, backend), way(Side::Backend, backend, frontend));
        thread::scope(|scope| {
            let back = scope.spawn(move || self.pass(scope, &back));
            self.pass(scope, &there);
            // A panic is passed on when the scope ends.
            let _ = back.join();
            for sockets in self.channels().iter() {
                // Those that have ended need no signal.
                let _ = sockets.ours.shutdown(Shutdown::Both);
                let _ = sockets.frontends.shutdown(Shutdown::Both);
            }
        });
    }

    fn channels(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Sockets>>> {
        self.backend_channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, way: &Way<'_>) {
        let Way { channel, from, source, sink, .. } = *way;
        let pipe = Pipe { source, sink, stop: self.stop };
        let how = pipe.run(&mut |passing| match passing {
            Passing::Message(header, payload, descriptors, fds) => {
                // Recorded before it is sent on, so that no reply comes before its request.
                self.recorder.record(
                    self.number,
                    TapEvent::Message(Recorded {
                        channel,
                        from,
                        request: header.request,
                        name: request_name(channel, header.request).into(),
                        flags: header.flags.bits(),
                        payload: payload.to_vec(),
                        fds: descriptors.to_vec(),
                    }),
                );
                let asks_for_channel = header.request == FrontendRequest::SetBackendReqFd.number();
                if let ([fd], TapChannel::Main, Side::Frontend, true) = (fds, channel, from, asks_for_channel) {
                    self.tap_backend_channel(scope, fd);
                }
            }
            Passing::Bytes(bytes, fds, reason) => {
                let payload = bytes[..bytes.len().min(BYTES_KEPT)].to_vec();
                let (bytes, fds, reason) = (bytes.len() as u64, fds.to_vec(), reason.to_owned());
                self.recorder.record(self.number, TapEvent::Bytes { channel, from, payload, bytes, fds, reason });
            }
        });
        // Which side closed is known only of the first: the end of the other is what we made of it.
        let how = match how {
            Ending::Closed | Ending::HalfClosed if way.is_closed.load(Ordering::Acquire) => Ending::PeerGone,
            how => how,
        };
        if how == Ending::Closed {
            way.is_closed.store(true, Ordering::Release);
        }
        self.recorder.record(self.number, TapEvent::Ended { channel, from, how });
        pipe.end(how);
    }

    /// Puts a socket of ours in the place of the frontend's, and passes on what comes through it.
    fn tap_backend_channel<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, fd: &mut OwnedFd) {
        let mut channels = self.channels();
        if socket_type(&*fd) != Ok(SocketType::STREAM) || channels.len() >= BACKEND_CHANNELS_MAX {
            return;
        }
        // If no descriptors are left, the frontend's own is passed on.
        let Ok((ours, backends)) = UnixStream::pair() else { return };
        let frontends = UnixStream::from(std::mem::replace(fd, backends.into()));
        let sockets = Arc::new(Sockets { ours, frontends, is_closed: AtomicBool::new(false) });
        for from in [Side::Backend, Side::Frontend] {
            let sockets = Arc::clone(&sockets);
            scope.spawn(move || {
                let Sockets { ours, frontends, is_closed } = &*sockets;
                let (source, sink) = if from == Side::Backend { (ours, frontends) } else { (frontends, ours) };
                self.pass(scope, &Way { channel: TapChannel::Backend, from, source, sink, is_closed });
            });
        }
        channels.push(sockets);
    }
}

/// The specification's name of a request, or nothing.
pub(super) fn request_name(channel: TapChannel, number: u32) -> &'static str {
    match channel {
        TapChannel::Main => FrontendRequest::from_number(number).map_or("", FrontendRequest::name),
        TapChannel::Backend => BackendRequest::from_number(number).map_or("", BackendRequest::name),
    }
}
