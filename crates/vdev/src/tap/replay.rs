//! Plays the frontend's part of a recording to a backend, and compares what it answers with what was answered then.
//!
//! ```text
//!   recording: frontend → ──▶ sent again, with descriptors made again
//!              backend  ← ──▶ waited for, and compared
//!              ended      ──▶ done again, or waited for
//! ```
//! Data is not in a recording: memory is zeros and rings are idle, so this is about messages, not about what is read
//! and written. The position of a ring (`GET_VRING_BASE`) is therefore not compared.

use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use serde::Serialize;

use super::compare::{differing, has_reply, kinds, name_of, seen, words};
use super::entry::{Ending, Entry, Recorded, Side, TapChannel, TapEvent};
use super::remake::{Memory, remake};
use super::witness::{Violation, Witness};
use crate::protocol::{Flags, FrontendCall, FrontendRequest, ProtocolFeatures};
use crate::socket::{Channel, Event, RawMessage, SocketError, wait_readable};
use crate::virtio::DeviceKind;

/// Answers that were not expected, after which a session is given up.
const EXTRA_MAX: usize = 16;
/// Differences that are kept; the rest is counted.
const DIFFERENCES_KEPT: usize = 1000;
/// How long more answers are waited for at the end of a session.
const LAST_LOOK: Duration = Duration::from_millis(50);
/// Our ends of sockets and pipes that are kept open for a session.
const ENDS_KEPT: usize = 64;

/// What to play, and to whom.
#[derive(Debug, Clone)]
pub struct ReplayOptions {
    /// The backend.
    pub connect: PathBuf,
    /// How long one answer may take.
    pub timeout: Duration,
    /// Only this session.
    pub session: Option<u32>,
    /// The kind of device, to name features and fields in differences.
    pub device: Option<DeviceKind>,
}

/// What came of a replay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReplayReport {
    /// Sessions that were played.
    pub sessions: u32,
    /// Messages that were sent.
    pub sent: u64,
    /// Answers that were compared and are the same.
    pub same: u64,
    /// Answers that can't be compared, since they depend on data.
    pub not_compared: u64,
    /// What differs.
    pub differences: Vec<Difference>,
    /// Differences beyond those.
    pub more_differences: u64,
}

/// Something that the backend did otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Which session of the recording.
    pub session: u32,
    /// Its place in the recording.
    pub time_us: u64,
    /// The request that it is about.
    pub request: String,
    /// What was recorded.
    pub recorded: String,
    /// What happened now.
    pub replayed: String,
    /// How often just this happened; place and time are those of the first.
    pub count: u64,
}

/// Plays recordings.
#[derive(Debug)]
pub struct Replay {
    options: ReplayOptions,
    report: ReplayReport,
    live: Option<Live>,
}

/// A session that is being played.
struct Live {
    number: u32,
    channel: Channel,
    witness: Witness,
    memory: Memory,
    is_gpa: bool,
    last_request: String,
    /// The backend took no more, which is a difference unless it did the same when it was recorded.
    lost: Option<Difference>,
    ends: Vec<OwnedFd>,
    /// What this backend answered to `GET_INFLIGHT_FD`: it gets its own memory back.
    inflight: Option<RawMessage>,
    backend_channel: Option<BackendChannel>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("number", &self.number).finish_non_exhaustive()
    }
}

/// The session is out of step and over.
struct GivenUp;

impl Replay {
    /// A replay that has not begun.
    pub fn new(options: ReplayOptions) -> Self {
        Self { options, report: ReplayReport::default(), live: None }
    }

    /// Plays the next entry.
    ///
    /// # Errors
    /// If there is no backend to connect to.
    pub fn play(&mut self, entry: &Entry) -> Result<(), SocketError> {
        let Entry { time_us, session, ref event } = *entry;
        if self.options.session.is_some_and(|wanted| wanted != session) {
            return Ok(());
        }
        if *event == TapEvent::Connected {
            self.finish(time_us);
            let channel = Channel::connect(&self.options.connect, self.options.timeout)?;
            self.report.sessions += 1;
            self.live = Some(Live::new(session, channel, self.options.device));
            return Ok(());
        }
        if self.live.as_ref().is_none_or(|live| live.number != session) {
            return Ok(());
        }
        let played = match event {
            TapEvent::Message(message) if message.channel == TapChannel::Main => match message.from {
                Side::Frontend => self.say(time_us, message),
                Side::Backend => self.hear(time_us, message),
            },
            TapEvent::Bytes { channel: TapChannel::Main, from: Side::Frontend, payload, bytes, .. } => {
                self.say_bytes(time_us, payload, *bytes)
            }
            TapEvent::Bytes { channel: TapChannel::Main, from: Side::Backend, .. } => Err(GivenUp),
            TapEvent::Ended { channel: TapChannel::Main, from, how } => self.end_side(time_us, *from, *how),
            TapEvent::Over => {
                self.finish(time_us);
                Ok(())
            }
            _ => Ok(()),
        };
        if played.is_err() {
            self.live = None;
        }
        Ok(())
    }

    /// What came of it.
    pub fn end(mut self) -> ReplayReport {
        self.finish(u64::MAX);
        self.report
    }

    fn say(&mut self, time_us: u64, message: &Recorded) -> Result<(), GivenUp> {
        let Some(live) = &mut self.live else { return Err(GivenUp) };
        if live.lost.is_some() {
            return Ok(());
        }
        let name = name_of(message);
        live.last_request.clone_from(&name);
        let mut payload = message.payload.clone();
        let prepared = live.prepare(message, &mut payload);
        live.witness.see(time_us, message, &mut Vec::<Violation>::new());
        let flags = Flags::from_bits(message.flags);
        self.report.sent += 1;
        let fds = match prepared {
            Ok(fds) => fds,
            Err(error) => {
                self.differ(time_us, &name, "it was accepted", error.to_string());
                return Err(GivenUp);
            }
        };
        let fds: Vec<_> = fds.iter().map(OwnedFd::as_fd).collect();
        match live.channel.send_raw(message.request, flags, &payload, &fds) {
            Ok(()) => Ok(()),
            Err(error) if error.is_closed() => {
                let (recorded, replayed) = ("it was accepted".to_owned(), "the connection is closed".to_owned());
                let session = live.number;
                live.lost = Some(Difference { session, time_us, request: name, recorded, replayed, count: 1 });
                Ok(())
            }
            Err(error) => {
                self.differ(time_us, &name, "it was accepted", error.to_string());
                Err(GivenUp)
            }
        }
    }

    fn say_bytes(&mut self, time_us: u64, payload: &[u8], bytes: u64) -> Result<(), GivenUp> {
        let Some(live) = &mut self.live else { return Err(GivenUp) };
        if payload.len() as u64 != bytes {
            self.differ(time_us, "bytes", format!("{bytes} bytes"), "they were not recorded completely".into());
            return Err(GivenUp);
        }
        live.channel.send_bytes(payload, &[]).map_err(|error| {
            self.differ(time_us, "bytes", "they were accepted", error.to_string());
            GivenUp
        })
    }

    fn hear(&mut self, time_us: u64, recorded: &Recorded) -> Result<(), GivenUp> {
        let name = name_of(recorded);
        self.check_lost()?;
        for _ in 0..EXTRA_MAX {
            let Some(live) = &mut self.live else { return Err(GivenUp) };
            let reply = match live.channel.receive_unchecked() {
                Ok(reply) => reply,
                Err(error) => {
                    self.differ(time_us, &name, words(recorded, self.kind()), error.to_string());
                    return Err(GivenUp);
                }
            };
            if reply.header.request == recorded.request {
                self.compare(time_us, recorded, &name, reply);
                return Ok(());
            }
            let extra = seen(&reply);
            let words = words(&extra, self.kind());
            self.differ(time_us, &name_of(&extra), "no reply", words);
        }
        Err(GivenUp)
    }

    fn compare(&mut self, time_us: u64, recorded: &Recorded, name: &str, reply: RawMessage) {
        let Some(live) = &mut self.live else { return };
        live.witness.see(time_us, recorded, &mut Vec::new());
        let request = FrontendRequest::from_number(recorded.request);
        let now = seen(&reply);
        let is_same =
            recorded.payload == now.payload && recorded.flags == now.flags && kinds(&recorded.fds) == kinds(&now.fds);
        if is_same {
            self.report.same += 1;
        } else if matches!(request, Some(FrontendRequest::GetVringBase | FrontendRequest::GetVringBaseSkipDrain)) {
            self.report.not_compared += 1;
        } else {
            let kind = live.witness.kind();
            let (then, now) = differing(recorded, &now, kind);
            self.differ(time_us, name, then, now);
        }
        if request == Some(FrontendRequest::GetInflightFd)
            && let Some(live) = &mut self.live
        {
            live.inflight = Some(reply);
        }
    }

    fn end_side(&mut self, time_us: u64, from: Side, how: Ending) -> Result<(), GivenUp> {
        let Some(live) = &mut self.live else { return Err(GivenUp) };
        match (from, how) {
            // The backend had ended, which its earlier replies show.
            (Side::Frontend, Ending::PeerGone) => Ok(()),
            (Side::Frontend, Ending::HalfClosed) => {
                // If it fails, the backend has ended. The next message finds that.
                let _ = live.channel.stream().shutdown(Shutdown::Write);
                Ok(())
            }
            (Side::Frontend, _) => {
                self.finish(time_us);
                Ok(())
            }
            (Side::Backend, Ending::Closed | Ending::HalfClosed) => {
                live.lost = None;
                let name = live.last_request.clone();
                for _ in 0..EXTRA_MAX {
                    let Some(live) = &mut self.live else { return Err(GivenUp) };
                    match live.channel.receive_unchecked() {
                        Err(error) if error.is_timeout() => {
                            self.differ(time_us, &name, "the connection was closed", "it stays open".into());
                            return Err(GivenUp);
                        }
                        Err(_) => break,
                        Ok(reply) => {
                            let extra = words(&seen(&reply), self.kind());
                            self.differ(time_us, &name_of(&seen(&reply)), "no reply", extra);
                        }
                    }
                }
                self.live = None;
                Ok(())
            }
            (Side::Backend, _) => Ok(()),
        }
    }

    /// Gives the session up if the backend took no more, and took more when it was recorded.
    fn check_lost(&mut self) -> Result<(), GivenUp> {
        match self.live.as_mut().and_then(|live| live.lost.take()) {
            Some(lost) => {
                self.add(lost);
                Err(GivenUp)
            }
            None => Ok(()),
        }
    }

    /// Ends the session that is being played; what the backend still sends is one reply too many.
    fn finish(&mut self, time_us: u64) {
        if self.check_lost().is_err() {
            self.live = None;
        }
        for _ in 0..EXTRA_MAX {
            let Some(live) = &mut self.live else { break };
            live.channel.set_timeout(LAST_LOOK);
            match live.channel.receive_unchecked() {
                // The frontend did not wait for it when it was recorded.
                Ok(reply) if has_reply(reply.header.request) => {}
                Ok(reply) => {
                    let extra = words(&seen(&reply), self.kind());
                    self.differ(time_us, &name_of(&seen(&reply)), "no reply", extra);
                }
                Err(_) => break,
            }
        }
        self.live = None;
    }

    fn kind(&self) -> Option<DeviceKind> {
        self.live.as_ref().and_then(|live| live.witness.kind())
    }

    fn differ(&mut self, time_us: u64, request: &str, recorded: impl Into<String>, replayed: String) {
        let session = self.live.as_ref().map_or(0, |live| live.number);
        let (request, recorded) = (request.to_owned(), recorded.into());
        self.add(Difference { session, time_us, request, recorded, replayed, count: 1 });
    }

    fn add(&mut self, difference: Difference) {
        let is_same = |known: &&mut Difference| {
            (&known.request, &known.recorded, &known.replayed)
                == (&difference.request, &difference.recorded, &difference.replayed)
        };
        if let Some(known) = self.report.differences.iter_mut().find(is_same) {
            known.count += 1;
            return;
        }
        if self.report.differences.len() == DIFFERENCES_KEPT {
            self.report.more_differences += 1;
            return;
        }
        self.report.differences.push(difference);
    }
}

impl Live {
    fn new(number: u32, channel: Channel, kind: Option<DeviceKind>) -> Self {
        Self {
            number,
            channel,
            witness: Witness::new(kind),
            memory: Memory::default(),
            is_gpa: false,
            last_request: "connecting".to_owned(),
            lost: None,
            ends: Vec::new(),
            inflight: None,
            backend_channel: None,
        }
    }

    /// Makes the descriptors of a message, and what they stand for.
    fn prepare(&mut self, message: &Recorded, payload: &mut Vec<u8>) -> std::io::Result<Vec<OwnedFd>> {
        use FrontendCall as Call;
        let request = FrontendRequest::from_number(message.request);
        let call = request.and_then(|request| FrontendCall::decode(request, payload).ok());
        if let (Some(Call::SetInflightFd(_)), Some(own)) = (&call, &self.inflight)
            && let [memory] = own.fds.as_slice()
        {
            payload.clone_from(&own.payload);
            return Ok(vec![memory.try_clone()?]);
        }
        let is_written = matches!(&call, Some(Call::SetDeviceStateFd(message)) if message.0.direction == 0);
        let mut fds = Vec::new();
        for descriptor in &message.fds {
            let remade = remake(descriptor, is_written)?;
            fds.push(remade.fd);
            match remade.ours {
                Some(ours) if request == Some(FrontendRequest::SetBackendReqFd) && self.backend_channel.is_none() => {
                    self.backend_channel = Some(BackendChannel::serve(ours.into())?);
                }
                Some(ours) if self.ends.len() < ENDS_KEPT => self.ends.push(ours),
                _ => {}
            }
        }
        match &call {
            Some(Call::SetProtocolFeatures(bits)) => {
                let features = ProtocolFeatures::from_bits(bits.0);
                self.is_gpa = features.contains(ProtocolFeatures::GPA_ADDRESSES);
            }
            Some(Call::SetMemTable(table)) => {
                self.memory.clear();
                for (region, fd) in table.0.0.iter().zip(&fds) {
                    self.memory.add(*region, fd);
                }
            }
            Some(Call::AddMemReg(region)) => fds.iter().take(1).for_each(|fd| self.memory.add(region.0.0, fd)),
            Some(Call::RemMemReg(region)) => self.memory.remove(&region.0.0),
            Some(Call::SetVringAddr(address)) => self.memory.set_address(address.0),
            Some(Call::SetVringBase(state)) => self.memory.set_base(state.0.index, state.0.num),
            Some(Call::SetVringKick(file)) => self.memory.quiet(file.0.index.into(), self.is_gpa),
            _ => {}
        }
        Ok(fds)
    }
}

/// Acknowledges everything that the backend requests on its own channel.
struct BackendChannel {
    stop: Event,
    thread: Option<JoinHandle<()>>,
}

impl BackendChannel {
    fn serve(stream: UnixStream) -> std::io::Result<Self> {
        let stop = Event::new()?;
        let heard = stop.try_clone()?;
        let mut channel = Channel::new(stream, "backend channel", Duration::from_secs(5));
        let thread = std::thread::spawn(move || {
            while let Ok([_, false]) = wait_readable([channel.as_fd(), heard.as_fd()], None) {
                let Ok(request) = channel.receive() else { break };
                let flags = request.header.flags;
                if flags.needs_reply() && channel.acknowledge(request.header.request, 0).is_err() {
                    break;
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for BackendChannel {
    fn drop(&mut self) {
        // A full eventfd is readable too.
        let _ = self.stop.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
