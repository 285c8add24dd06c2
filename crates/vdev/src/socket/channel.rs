//! One end of a connection. What is sent goes out in one `sendmsg`, its descriptors with the first byte; what is received
//! is read in exact pieces, so that descriptors are never taken for those of another message.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use super::error::SocketError;
use super::event::wait_readable;
use crate::protocol::{Flags, HEADER_BYTES, Header, Message, PAYLOAD_BYTES_MAX, Payload, Request};

/// Descriptors that are taken with one message: more than any may carry, so that too many are seen; the system closes
/// what is beyond.
const DESCRIPTORS_TAKEN: usize = 64;

/// Bytes behind a header that are read along with it at most.
const AHEAD_BYTES: usize = 640;

/// A message as it was on the socket.
#[derive(Debug)]
pub struct RawMessage {
    /// Its header.
    pub header: Header,
    /// The bytes after it.
    pub payload: Vec<u8>,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    name: String,
    timeout: Duration,
    /// The timeout that the socket has now.
    armed: Option<Duration>,
    /// Whether a peer has this very socket too, and so can change how it waits.
    is_shared: bool,
    /// Bytes that were read and belong to the next message: a peer answered less than its message has.
    ahead: VecDeque<u8>,
    /// The buffer in which messages are built, kept so that sending allocates nothing.
    scratch: Vec<u8>,
}

impl Channel {
    /// Connects to a socket. `timeout` bounds the connecting and, until it is changed, every send and receive.
    ///
    /// # Errors
    /// If no peer listens, or it accepts no connection in time.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, SocketError> {
        let name = path.display().to_string();
        let failed = |source: io::Error| SocketError::Connect { socket: path.display().to_string(), source };
        let deadline = Instant::now() + timeout;
        let address = rustix::net::SocketAddrUnix::new(path).map_err(|error| failed(error.into()))?;
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK,
            None,
        )
        .map_err(|error| failed(error.into()))?;
        loop {
            match rustix::net::connect(&socket, &address) {
                Ok(()) => break,
                // The queue of connections that wait for `accept` is full.
                Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(failed(error.into())),
            }
        }
        rustix::io::ioctl_fionbio(&socket, false).map_err(|error| failed(error.into()))?;
        Ok(Self::new(UnixStream::from(socket), name, timeout))
    }

    /// A connection that is there already. `name` stands for it in errors.
    pub fn new(stream: UnixStream, name: impl Into<String>, timeout: Duration) -> Self {
        Self {
            stream,
            name: name.into(),
            timeout,
            armed: None,
            is_shared: false,
            ahead: VecDeque::new(),
            scratch: Vec::new(),
        }
    }

    /// A connection whose socket came from a peer, which may still have it: nothing that the peer does to it makes this side
    /// wait longer.
    pub(crate) fn from_peer(stream: UnixStream, name: impl Into<String>, timeout: Duration) -> Self {
        Self { is_shared: true, ..Self::new(stream, name, timeout) }
    }

    /// Two ends that are connected to each other.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    #[cfg(feature = "testing")]
    pub fn pair(timeout: Duration) -> io::Result<(Self, Self)> {
        let (one, other) = UnixStream::pair()?;
        Ok((Self::new(one, "one end", timeout), Self::new(other, "the other end", timeout)))
    }

    /// What it is called in errors.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Sets the longest that one send or receive takes.
    pub const fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The socket.
    pub const fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Shuts down both directions; both sides see it.
    pub(crate) fn shut_down(&self) {
        // A peer that has disconnected already has the same effect.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// Sends a message without need_reply.
    ///
    /// # Errors
    /// If the peer has disconnected or does not take it in time.
    pub fn send<M: Message>(&mut self, message: &M, fds: &[BorrowedFd<'_>]) -> Result<(), SocketError> {
        self.send_with(message, Flags::request(), fds)
    }

    /// Sends a message with these flags.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_with<M: Message>(
        &mut self,
        message: &M,
        flags: Flags,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), SocketError> {
        self.send_raw(M::REQUEST.number(), flags, &message.payload(), fds)
    }

    /// Sends a message and waits for the reply that it always has.
    ///
    /// # Errors
    /// If the peer has disconnected, is late, or sends any other reply.
    pub fn call<M: Message>(
        &mut self,
        message: &M,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(M::Reply, Vec<OwnedFd>), SocketError> {
        debug_assert!(M::HAS_REPLY, "{} has no reply", M::REQUEST);
        self.send(message, fds)?;
        self.reply_to::<M>()
    }

    /// Sends a message with `need_reply` and waits for the acknowledgement of the peer (`REPLY_ACK`).
    ///
    /// # Errors
    /// [`SocketError::Refused`] if the peer refuses; otherwise as [`call`](Self::call).
    pub fn call_acknowledged<M: Message>(&mut self, message: &M, fds: &[BorrowedFd<'_>]) -> Result<(), SocketError> {
        debug_assert!(!M::HAS_REPLY, "{} already has a reply", M::REQUEST);
        self.send_with(message, Flags::request_with_reply(), fds)?;
        self.acknowledgement_of(M::REQUEST, 0)
    }

    /// Waits for the acknowledgement of a message with `need_reply`: the second half of
    /// [`call_acknowledged`](Self::call_acknowledged), for callers that send more before they wait. `more` acknowledgements
    /// are to come after it; those that are there are read along.
    ///
    /// # Errors
    /// See [`call_acknowledged`](Self::call_acknowledged).
    pub(crate) fn acknowledgement_of(&mut self, request: Request, more: usize) -> Result<(), SocketError> {
        let doing = || waiting_for(request.name());
        let expected = 8 + more * (HEADER_BYTES + 8);
        let reply = self.receive_answer(request.number(), expected, &doing)?;
        match u64::decode(&reply.payload) {
            Ok(0) => Ok(()),
            Ok(code) => Err(SocketError::Refused { socket: self.name.clone(), doing: doing(), code }),
            Err(source) => Err(SocketError::Payload { socket: self.name.clone(), doing: doing(), source }),
        }
    }

    /// Waits for the reply to a message that was sent.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn reply_to<M: Message>(&mut self) -> Result<(M::Reply, Vec<OwnedFd>), SocketError> {
        let doing = || waiting_for(M::REQUEST.name());
        // Replies of fixed size are read in one piece.
        let expected = match size_of::<M::Reply>() {
            size @ (0 | 8) => size,
            _ => 0,
        };
        let reply = self.receive_answer(M::REQUEST.number(), expected, &doing)?;
        let decoded = M::Reply::decode(&reply.payload).map_err(|source| SocketError::Payload {
            socket: self.name.clone(),
            doing: doing(),
            source,
        })?;
        Ok((decoded, reply.fds))
    }

    /// Answers a message.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn answer(&mut self, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), SocketError> {
        self.send_raw(request, Flags::reply(), payload, fds)
    }

    /// Answers a message with success or an error (`REPLY_ACK`).
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn acknowledge(&mut self, request: u32, code: u64) -> Result<(), SocketError> {
        self.answer(request, &code.to_ne_bytes(), &[])
    }

    /// Sends any message at all, right or wrong, with the size that its payload has.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_raw(
        &mut self,
        request: u32,
        flags: Flags,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), SocketError> {
        let payload_bytes = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = Header { request, flags, payload_bytes }.encode();
        let mut message = std::mem::take(&mut self.scratch);
        message.clear();
        message.extend_from_slice(&header);
        message.extend_from_slice(payload);
        let sent = self.send_bytes(&message, fds);
        self.scratch = message;
        sent
    }

    /// Sends any bytes at all; the descriptors go with the first.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), SocketError> {
        let started = Instant::now();
        let mut left = bytes;
        let mut fds = fds;
        while !left.is_empty() {
            self.arm(started, "sending")?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_TAKEN))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(self.io_error("sending", io::ErrorKind::InvalidInput.into()));
            }
            let wait = if self.is_shared { SendFlags::DONTWAIT } else { SendFlags::empty() };
            match sendmsg(&self.stream, &[IoSlice::new(left)], &mut control, SendFlags::NOSIGNAL | wait) {
                Ok(sent) => {
                    left = &left[sent..];
                    fds = &[];
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.is_shared => self.poll(PollFlags::OUT, started, "sending")?,
                Err(Errno::AGAIN) => return Err(self.timed_out("sending".to_owned())),
                Err(error) => return Err(self.io_error("sending", error.into())),
            }
        }
        Ok(())
    }

    /// Receives one message; its header has been checked.
    ///
    /// # Errors
    /// If no message comes in time, the peer has disconnected, or what comes is no message.
    pub fn receive(&mut self) -> Result<RawMessage, SocketError> {
        self.receive_while(0, &|| "waiting for a message".to_owned())
    }

    /// Receives one message of any kind whose payload fits, its header unchecked.
    ///
    /// # Errors
    /// If no message comes in time, the peer has disconnected, or announces more than [`PAYLOAD_BYTES_MAX`] bytes.
    pub fn receive_unchecked(&mut self) -> Result<RawMessage, SocketError> {
        let doing = || "waiting for a message".to_owned();
        let message = self.receive_any(0, &doing)?;
        Ok(message)
    }

    /// Whether bytes of the next message were read with the last one, so that polling the socket alone does not show
    /// them.
    pub(crate) fn has_read_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Whether a message, or the end, is there to be received within this time.
    ///
    /// # Errors
    /// If the system can't poll.
    pub fn is_readable(&self, timeout: Duration) -> io::Result<bool> {
        if !self.ahead.is_empty() {
            return Ok(true);
        }
        wait_readable([self.stream.as_fd()], Some(timeout)).map(|[ready]| ready)
    }

    fn receive_answer(
        &mut self,
        request: u32,
        expected: usize,
        doing: &dyn Fn() -> String,
    ) -> Result<RawMessage, SocketError> {
        let reply = self.receive_while(expected, doing)?;
        if reply.header.request == request && reply.header.flags.is_reply() {
            return Ok(reply);
        }
        let found = format!("{} (flags {:#x})", reply.header.request, reply.header.flags.bits());
        Err(SocketError::WrongReply { socket: self.name.clone(), doing: doing(), found })
    }

    fn receive_while(&mut self, expected: usize, doing: &dyn Fn() -> String) -> Result<RawMessage, SocketError> {
        let message = self.receive_any(expected, doing)?;
        match message.header.check() {
            Ok(()) => Ok(message),
            Err(source) => Err(SocketError::Header { socket: self.name.clone(), doing: doing(), source }),
        }
    }

    /// Reads a header and, if they come with it, the payload bytes that are expected.
    ///
    /// The kernel returns descriptors with the byte that they were sent with, and a read that reaches that byte
    /// returns them, whatever else it returns. So a read that goes beyond this message can take descriptors of the
    /// next one, and nothing in the result shows to which byte they belong. Therefore no read goes beyond the header
    /// while the size of the payload is unknown, nor beyond the payload after that, except for the bytes that the
    /// caller expects. Beyond the message itself only [`acknowledgement_of`](Self::acknowledgement_of) expects any:
    /// further acknowledgements, which have no descriptors. If a peer attaches descriptors to them anyway, they are
    /// closed with the acknowledgement that they were read with.
    fn receive_any(&mut self, expected: usize, doing: &dyn Fn() -> String) -> Result<RawMessage, SocketError> {
        let started = Instant::now();
        let mut fds = Vec::new();
        let mut buffer = [0; HEADER_BYTES + AHEAD_BYTES];
        let mut got = 0;
        while got < buffer.len() {
            let Some(byte) = self.ahead.pop_front() else { break };
            buffer[got] = byte;
            got += 1;
        }
        let most = (HEADER_BYTES + expected).min(buffer.len()).max(got);
        while got < HEADER_BYTES {
            let read = self.read(&mut buffer[got..most], &mut fds, started, doing)?;
            if read == 0 && got == 0 {
                return Err(SocketError::Closed { socket: self.name.clone(), doing: doing() });
            }
            if read == 0 {
                return Err(self.cut(got, HEADER_BYTES, doing));
            }
            got += read;
        }
        let header = Header::decode(*buffer.first_chunk().expect("is longer"));
        if header.payload_bytes > PAYLOAD_BYTES_MAX {
            let source = header.check().expect_err("is too large at least");
            return Err(SocketError::Header { socket: self.name.clone(), doing: doing(), source });
        }
        let wanted = header.payload_bytes as usize;
        let mut payload = vec![0; wanted];
        let here = wanted.min(got - HEADER_BYTES);
        payload[..here].copy_from_slice(&buffer[HEADER_BYTES..HEADER_BYTES + here]);
        // More than one message came: the rest is the next one's.
        self.ahead.extend(&buffer[HEADER_BYTES + here..got]);
        let mut filled = here;
        while filled < wanted {
            let read = self.read(&mut payload[filled..], &mut fds, started, doing)?;
            if read == 0 {
                return Err(self.cut(HEADER_BYTES + filled, HEADER_BYTES + wanted, doing));
            }
            filled += read;
        }
        Ok(RawMessage { header, payload, fds })
    }

    fn read(
        &mut self,
        into: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        started: Instant,
        doing: &dyn Fn() -> String,
    ) -> Result<usize, SocketError> {
        loop {
            self.arm(started, "receiving").map_err(|error| match error {
                SocketError::Timeout { socket, waited, .. } => SocketError::Timeout { socket, waited, doing: doing() },
                other => other,
            })?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_TAKEN))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let wait = if self.is_shared { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
            let flags = RecvFlags::CMSG_CLOEXEC | wait;
            match recvmsg(&self.stream, &mut [IoSliceMut::new(into)], &mut control, flags) {
                Ok(received) => {
                    for message in control.drain() {
                        if let RecvAncillaryMessage::ScmRights(more) = message {
                            fds.extend(more);
                        }
                    }
                    // A peer that pushes descriptors at us gets nowhere: what no message may carry is closed at once.
                    fds.truncate(DESCRIPTORS_TAKEN);
                    return Ok(received.bytes);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.is_shared => self.poll(PollFlags::IN, started, "receiving")?,
                Err(Errno::AGAIN) => return Err(self.timed_out(doing())),
                // What a peer left unread when it closed.
                Err(Errno::CONNRESET) => return Ok(0),
                Err(source) => {
                    return Err(SocketError::Io { socket: self.name.clone(), doing: doing(), source: source.into() });
                }
            }
        }
    }

    /// Gives the socket the time that is left. In the usual case that is the whole time, which it has already.
    fn arm(&mut self, started: Instant, doing: &str) -> Result<(), SocketError> {
        let elapsed = started.elapsed();
        let left = self.timeout.saturating_sub(elapsed);
        if left.is_zero() {
            return Err(self.timed_out(doing.to_owned()));
        }
        // The clock of a wait that has just begun need not be set by the microsecond.
        let left = if elapsed < self.timeout / 64 { self.timeout } else { left.max(Duration::from_millis(1)) };
        if self.armed != Some(left) && !self.is_shared {
            for direction in [Timeout::Recv, Timeout::Send] {
                set_socket_timeout(&self.stream, direction, Some(left))
                    .map_err(|error| self.io_error(doing, error.into()))?;
            }
            self.armed = Some(left);
        }
        Ok(())
    }

    /// Waits for the time that is left; whether that was enough is seen by trying again.
    fn poll(&self, what: PollFlags, started: Instant, doing: &str) -> Result<(), SocketError> {
        let left = self.timeout.saturating_sub(started.elapsed());
        let timeout =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&self.stream, what)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(self.io_error(doing, error.into())),
        }
    }

    fn cut(&self, got: usize, wanted: usize, doing: &dyn Fn() -> String) -> SocketError {
        SocketError::Cut { socket: self.name.clone(), doing: doing(), got, wanted }
    }

    fn timed_out(&self, doing: String) -> SocketError {
        SocketError::Timeout { socket: self.name.clone(), doing, waited: self.timeout }
    }

    fn io_error(&self, doing: &str, source: io::Error) -> SocketError {
        SocketError::Io { socket: self.name.clone(), doing: doing.to_owned(), source }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn waiting_for(request: &str) -> String {
    format!("waiting for the reply to {request}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::frontend::{GetFeatures, GetQueueNum, SetVringCall, SetVringNum};
    use crate::protocol::{Empty, VringFile, VringState};

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn pair() -> (Channel, Channel) {
        Channel::pair(TIMEOUT).expect("a socket pair")
    }

    #[test]
    fn a_call_returns_the_reply() {
        let (mut frontend, mut backend) = pair();
        let server = std::thread::spawn(move || {
            let request = backend.receive().expect("a message");
            assert_eq!((request.header.request, request.payload.len()), (1, 0));
            backend.answer(1, &7_u64.to_ne_bytes(), &[]).expect("is sent");
        });
        assert_eq!(frontend.call(&GetFeatures(Empty), &[]).expect("is answered").0, 7);
        server.join().expect("no panic");
    }

    #[test]
    fn messages_in_one_piece_are_told_apart_and_keep_their_descriptors() {
        let (mut frontend, mut backend) = pair();
        let event = super::super::Event::new().expect("an eventfd");
        frontend.send(&SetVringNum(VringState { index: 0, num: 8 }), &[]).expect("is sent");
        frontend.send(&SetVringCall(VringFile::with_descriptor(0)), &[event.as_fd()]).expect("is sent");
        frontend.send(&GetQueueNum(Empty), &[]).expect("is sent");
        let messages = [(); 3].map(|()| backend.receive().expect("a message"));
        assert_eq!(messages.each_ref().map(|message| message.header.request), [8, 13, 17]);
        assert_eq!(messages.each_ref().map(|message| message.fds.len()), [0, 1, 0]);
    }

    #[test]
    fn two_replies_in_one_piece_are_two() {
        let (mut frontend, mut backend) = pair();
        let header = Header { request: 1, flags: Flags::reply(), payload_bytes: 0 }.encode();
        let next = Header { request: 17, flags: Flags::reply(), payload_bytes: 8 }.encode();
        let bytes = [&header[..], &next[..], &5_u64.to_ne_bytes()[..]].concat();
        backend.send_bytes(&bytes, &[]).expect("is sent");
        assert!(matches!(frontend.reply_to::<GetFeatures>(), Err(SocketError::Payload { .. })));
        assert_eq!(frontend.reply_to::<GetQueueNum>().expect("the next").0, 5);
    }

    #[test]
    fn a_message_in_many_pieces_is_one() {
        let (mut frontend, mut backend) = pair();
        let header = Header { request: 8, flags: Flags::request(), payload_bytes: 8 }.encode();
        let writer = std::thread::spawn(move || {
            for byte in header.iter().chain(&[0; 8]) {
                frontend.send_bytes(&[*byte], &[]).expect("is sent");
            }
            frontend
        });
        assert_eq!(backend.receive().expect("a message").payload.len(), 8);
        writer.join().expect("no panic");
    }

    #[test]
    fn the_ends_of_a_peer_have_names() {
        let (mut frontend, backend) = pair();
        frontend.send_bytes(&[1, 0, 0], &[]).expect("is sent");
        let mut backend = backend;
        drop(frontend);
        assert!(matches!(backend.receive(), Err(SocketError::Cut { got: 3, wanted: 12, .. })));
        assert!(matches!(backend.receive(), Err(SocketError::Closed { .. })));
    }

    #[test]
    fn a_mute_peer_and_one_that_drips_end_at_the_deadline() {
        let (mut frontend, mut backend) = pair();
        frontend.set_timeout(Duration::from_millis(60));
        let error = frontend.call(&GetFeatures(Empty), &[]).expect_err("there is no reply");
        assert!(error.is_timeout() && error.to_string().contains("GET_FEATURES"), "{error}");

        let dripping = std::thread::spawn(move || {
            for _ in 0..10 {
                std::thread::sleep(Duration::from_millis(15));
                if backend.send_bytes(&[0], &[]).is_err() {
                    break;
                }
            }
        });
        assert!(frontend.receive().expect_err("no message in time").is_timeout());
        drop(frontend);
        dripping.join().expect("no panic");
    }

    #[test]
    fn a_payload_over_the_bound_is_refused_before_it_is_read() {
        let (mut frontend, mut backend) = pair();
        let header = Header { request: 1, flags: Flags::reply(), payload_bytes: u32::MAX }.encode();
        backend.send_bytes(&header, &[]).expect("is sent");
        assert!(matches!(frontend.receive_unchecked(), Err(SocketError::Header { .. })));
    }
}
