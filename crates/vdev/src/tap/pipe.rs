//! One direction of one connection: what one socket sends goes to the other, byte for byte, descriptors with the bytes
//! they came with.
//!
//! ```text
//!   poll source ─▶ header ─▶ payload ─▶ inspect ─▶ poll sink ─▶ send ─▶ record
//!                    │ a size that no message has: bytes from here on
//! ```
//! It holds one message at most, and reads on only when that has been taken. What comes in pieces is passed on in pieces
//! as soon as no more is there at once, so that a peer that dawdles dawdles on the other side too.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use super::descriptor::Descriptor;
use super::entry::Ending;
use crate::protocol::{HEADER_BYTES, Header, PAYLOAD_BYTES_MAX};
use crate::socket::Event;

/// The most descriptors that the system passes with one `sendmsg` (`SCM_MAX_FD`).
const DESCRIPTORS_PASSED: usize = 253;
/// Bytes that are read at once after messages cannot be found any more.
const RAW_BYTES: usize = 4096;

/// What passes, before it is sent on.
pub(super) enum Passing<'a> {
    /// A message, whole: its header and payload, what came with it, and the descriptors that may still be replaced, one
    /// by one.
    Message(Header, &'a [u8], &'a [Descriptor], &'a mut [OwnedFd]),
    /// Bytes that are no message, what came with them, and why.
    Bytes(&'a [u8], &'a [Descriptor], &'static str),
}

/// One direction of one connection.
pub(super) struct Pipe<'a> {
    pub source: &'a UnixStream,
    pub sink: &'a UnixStream,
    pub stop: &'a Event,
}

/// Bytes that came together, and the descriptors that came with the first of them.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    /// Descriptors, and before which byte they belong.
    fds: Vec<(usize, Vec<OwnedFd>)>,
    /// What those descriptors are, also of those that were sent on.
    descriptors: Vec<Descriptor>,
    /// What was sent on already, since the rest was late.
    sent: usize,
}

enum Read {
    Some,
    NotYet,
    Over,
}

/// Why a direction ends early.
enum Stop {
    Stopped,
    SinkGone,
    Failed,
}

impl Pipe<'_> {
    /// Passes everything on until the source ends, the sink has disconnected, or the tap is stopped.
    pub(super) fn run(&self, inspect: &mut dyn FnMut(Passing<'_>)) -> Ending {
        match self.pump(inspect) {
            Ok(ending) => ending,
            Err(Stop::Stopped) => Ending::Stopped,
            Err(Stop::SinkGone) => Ending::PeerGone,
            Err(Stop::Failed) => Ending::Failed,
        }
    }

    /// Passes the end on.
    pub(super) fn end(&self, how: Ending) {
        // An error means that the side has disconnected already.
        let _ = match how {
            Ending::HalfClosed => self.sink.shutdown(Shutdown::Write),
            Ending::PeerGone => self.source.shutdown(Shutdown::Read),
            Ending::Closed => self.sink.shutdown(Shutdown::Both),
            Ending::Stopped | Ending::Failed => {
                self.source.shutdown(Shutdown::Both).and(self.sink.shutdown(Shutdown::Both))
            }
        };
    }

    fn pump(&self, inspect: &mut dyn FnMut(Passing<'_>)) -> Result<Ending, Stop> {
        let mut pending = Pending::default();
        let mut is_raw = false;
        loop {
            let wanted = if is_raw { RAW_BYTES } else { pending.wanted() };
            match self.read(&mut pending, wanted)? {
                Read::NotYet => {
                    // A header is held back until it is whole: only then is it known what comes with it.
                    if pending.announced().is_some() {
                        self.send(&mut pending)?;
                    }
                    self.wait(self.source, PollFlags::IN)?;
                    continue;
                }
                Read::Over => {
                    if !pending.bytes.is_empty() {
                        let why = "the connection ended within a message";
                        inspect(Passing::Bytes(&pending.bytes, &pending.descriptors, why));
                        self.send(&mut pending)?;
                    }
                    return Ok(self.ending());
                }
                Read::Some => {}
            }
            if !is_raw && pending.announced().is_some_and(|bytes| bytes > PAYLOAD_BYTES_MAX as usize) {
                is_raw = true;
            }
            if is_raw {
                let why = "a header announced more bytes than any message has";
                inspect(Passing::Bytes(&pending.bytes, &pending.descriptors, why));
            } else if pending.is_whole() {
                pending.inspect(inspect);
            } else {
                continue;
            }
            self.send(&mut pending)?;
            pending.clear();
        }
    }

    /// Whether the source has closed both directions or one.
    fn ending(&self) -> Ending {
        let mut polled = [PollFd::new(self.source, PollFlags::IN)];
        let is_hung_up = poll(&mut polled, Some(&rustix::event::Timespec::default())).is_ok()
            && polled[0].revents().contains(PollFlags::HUP);
        if is_hung_up { Ending::Closed } else { Ending::HalfClosed }
    }

    fn read(&self, pending: &mut Pending, wanted: usize) -> Result<Read, Stop> {
        let start = pending.bytes.len();
        pending.bytes.resize(start + wanted, 0);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PASSED))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(&mut pending.bytes[start..])];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = loop {
            match recvmsg(self.source, into, &mut control, flags) {
                Err(Errno::INTR) => {}
                other => break other,
            }
        };
        pending.bytes.truncate(start + received.as_ref().map_or(0, |received| received.bytes));
        let fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let fds: Vec<OwnedFd> = fds.flatten().collect();
        if !fds.is_empty() {
            pending.descriptors.extend(fds.iter().map(Descriptor::of));
            pending.fds.push((start, fds));
            // Each byte of a message can bring as many as one call takes; that many are more than any message has.
            if pending.descriptors.len() > DESCRIPTORS_PASSED {
                return Err(Stop::Failed);
            }
        }
        match received {
            Ok(received) if received.bytes == 0 => Ok(Read::Over),
            Ok(_) => Ok(Read::Some),
            Err(Errno::AGAIN) => Ok(Read::NotYet),
            // What the source left unread when it closed.
            Err(Errno::CONNRESET) => Ok(Read::Over),
            Err(_) => Err(Stop::Failed),
        }
    }

    /// Sends what has not been sent yet: descriptors begin a `sendmsg` of their own, as they did when they came.
    fn send(&self, pending: &mut Pending) -> Result<(), Stop> {
        while pending.sent < pending.bytes.len() {
            let here = pending.fds.first().is_some_and(|(at, _)| *at == pending.sent);
            let next = pending.fds.get(usize::from(here)).map_or(pending.bytes.len(), |(at, _)| *at);
            let fds: Vec<BorrowedFd<'_>> = match pending.fds.first() {
                Some((_, fds)) if here => fds.iter().map(OwnedFd::as_fd).collect(),
                _ => Vec::new(),
            };
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_PASSED))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                return Err(Stop::Failed);
            }
            let bytes = [IoSlice::new(&pending.bytes[pending.sent..next])];
            match sendmsg(self.sink, &bytes, &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => {
                    pending.sent += sent;
                    if here && sent > 0 {
                        pending.fds.remove(0);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(self.sink, PollFlags::OUT)?,
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(Stop::SinkGone),
                Err(_) => return Err(Stop::Failed),
            }
        }
        Ok(())
    }

    /// Waits until the socket is ready. Only the end of the tap bounds it: peers may be silent as long as they like.
    fn wait(&self, socket: &UnixStream, what: PollFlags) -> Result<(), Stop> {
        let mut polled = [PollFd::new(socket, what), PollFd::new(self.stop, PollFlags::IN)];
        loop {
            match poll(&mut polled, None) {
                Err(Errno::INTR) => {}
                Err(_) => return Err(Stop::Failed),
                Ok(_) if !polled[1].revents().is_empty() => return Err(Stop::Stopped),
                Ok(_) => return Ok(()),
            }
        }
    }
}

impl Pending {
    /// What the header announces, once it is there.
    fn announced(&self) -> Option<usize> {
        self.header().map(|header| header.payload_bytes as usize)
    }

    fn header(&self) -> Option<Header> {
        self.bytes.first_chunk::<HEADER_BYTES>().map(|bytes| Header::decode(*bytes))
    }

    /// How many bytes are read next: never beyond the message, so that descriptors are never those of another.
    fn wanted(&self) -> usize {
        match self.announced() {
            None => HEADER_BYTES - self.bytes.len(),
            Some(payload) => HEADER_BYTES + payload - self.bytes.len(),
        }
    }

    fn is_whole(&self) -> bool {
        self.announced().is_some() && self.wanted() == 0
    }

    /// Passes the message to the recorder.
    fn inspect(&mut self, inspect: &mut dyn FnMut(Passing<'_>)) {
        let Some(header) = self.header() else { return };
        let mut none = Vec::new();
        // What may be replaced always comes with the first byte.
        let fds = self.fds.first_mut().map_or(&mut none, |(_, fds)| fds);
        inspect(Passing::Message(header, &self.bytes[HEADER_BYTES..], &self.descriptors, fds));
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.fds.clear();
        self.descriptors.clear();
        self.sent = 0;
    }
}
