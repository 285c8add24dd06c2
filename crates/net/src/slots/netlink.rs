//! Netlink: messages as the kernel reads them, and a socket that sends a batch of them and waits for each answer.
//!
//! A slot takes about ten changes of links, addresses and routes. As `ip` commands they cost 20 ms, because each starts
//! a program. In one batch they cost what the kernel needs. The encoder is small enough to own: a header, attributes of
//! type, length and value, and padding to four bytes (netlink(7)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{bind, recv, send, socket_with, sockopt};

/// The kernel answers at once, unless another program holds the lock of all network changes.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// The kernel sends dumps in parts of at most 32 KiB.
const RECEIVE_BYTES: usize = 64 << 10;
/// `struct nlmsghdr`: length, type, flags, sequence number, port.
const HEADER_BYTES: usize = 16;
/// `struct nlattr`: length, type.
const ATTRIBUTE_BYTES: usize = 4;
const NESTED: u16 = 1 << 15;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Asks for an answer.
pub(super) const ACK: u16 = libc::NLM_F_ACK as u16;
/// Creates, and fails if it exists.
pub(super) const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
/// Creates if it does not exist.
pub(super) const ENSURE: u16 = libc::NLM_F_CREATE as u16;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const DUMP: u16 = libc::NLM_F_DUMP as u16;

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A request of this type. `header` is the fixed part of the family, such as `struct ifinfomsg`.
    pub(super) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST | flags).to_ne_bytes());
        bytes.extend_from_slice(header);
        Self { bytes }.padded()
    }

    /// Adds an attribute.
    pub(super) fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let bytes = u16::try_from(ATTRIBUTE_BYTES + value.len()).expect("values are short");
        self.bytes.extend_from_slice(&bytes.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.padded()
    }

    /// Adds a text, with the zero byte that ends it.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let value: Vec<u8> = value.bytes().chain([0]).collect();
        self.put(kind, &value)
    }

    /// Adds an attribute that holds attributes.
    pub(super) fn nest(mut self, kind: u16, build: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; ATTRIBUTE_BYTES]);
        let mut this = build(self);
        let bytes = u16::try_from(this.bytes.len() - start).expect("nests are short");
        this.bytes[start..start + 2].copy_from_slice(&bytes.to_ne_bytes());
        this.bytes[start + 2..start + 4].copy_from_slice(&(kind | NESTED).to_ne_bytes());
        this
    }

    /// Adds raw bytes, such as the fixed part of a nested message.
    pub(super) fn raw(mut self, value: &[u8]) -> Self {
        self.bytes.extend_from_slice(value);
        self.padded()
    }

    fn padded(mut self) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    fn flags(&self) -> u16 {
        u16::from_ne_bytes([self.bytes[6], self.bytes[7]])
    }

    fn finish(&mut self, sequence: u32) -> &[u8] {
        let bytes = u32::try_from(self.bytes.len()).expect("messages are short");
        self.bytes[0..4].copy_from_slice(&bytes.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.bytes
    }
}

/// A message from the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer<'a> {
    pub(super) kind: u16,
    /// The port of the socket that asked: the process id, for the first socket of a process. Zero is the kernel.
    pub(super) port: u32,
    /// The fixed part of the family, and the attributes.
    pub(super) body: &'a [u8],
}

impl<'a> Answer<'a> {
    /// The attributes after a fixed part of this length.
    pub(super) fn attributes(&self, header_bytes: usize) -> Attributes<'a> {
        Attributes { rest: self.body.get(header_bytes.next_multiple_of(4)..).unwrap_or_default() }
    }
}

/// Attributes: type and value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// The attributes in a nested value.
    pub(super) fn of(value: &'a [u8]) -> Self {
        Self { rest: value }
    }

    /// The value of the first attribute of this type.
    pub(super) fn get(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// The number in the first attribute of this type, in the byte order of the host.
    pub(super) fn number(self, kind: u16) -> Option<u32> {
        self.get(kind)?.try_into().ok().map(u32::from_ne_bytes)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.rest.get(..ATTRIBUTE_BYTES)?;
        let bytes = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & !(0b11 << 14);
        let value = self.rest.get(ATTRIBUTE_BYTES..bytes)?;
        self.rest = self.rest.get(bytes.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// A netlink socket. It stays in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// For links, addresses and routes.
    pub(super) fn route() -> io::Result<Self> {
        // The protocol is number 0, the default.
        Self::open(None)
    }

    /// For nftables and connection tracking.
    pub(super) fn netfilter() -> io::Result<Self> {
        Self::open(Some(rustix::net::netlink::NETFILTER))
    }

    /// For the changes of nftables that any process makes from now on. See [`Netlink::receive`].
    pub(super) fn netfilter_changes() -> io::Result<Self> {
        let netlink = Self::netfilter()?;
        bind(&netlink.socket, &SocketAddrNetlink::new(0, 1 << (libc::NFNLGRP_NFTABLES - 1)))?;
        Ok(netlink)
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_DEADLINE))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends the requests in one write. Returns the first error. The kernel still carries out the others, except those
    /// of an nftables batch.
    pub(super) fn send(&mut self, requests: impl IntoIterator<Item = Message>) -> io::Result<()> {
        let mut bytes = Vec::new();
        let (first, mut waiting) = (self.sequence + 1, 0);
        for mut request in requests {
            self.sequence += 1;
            waiting += u32::from(request.flags() & ACK != 0);
            bytes.extend_from_slice(request.finish(self.sequence));
        }
        send_all(self.socket.as_fd(), &bytes)?;
        let mut failed = None;
        while waiting > 0 {
            self.receive(|sequence, answer| {
                // An answer to an earlier request, whose wait ended in an error.
                if sequence < first || answer.kind != NLMSG_ERROR {
                    return;
                }
                waiting = waiting.saturating_sub(1);
                if let Some(error) = error_of(answer) {
                    failed.get_or_insert(error);
                }
            })?;
            // A batch of nftables that fails as a whole has one answer, not one for each request.
            if failed.is_some() {
                break;
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Sends a request for a list and hands on each entry.
    pub(super) fn dump(&mut self, request: Message, mut each: impl FnMut(Answer<'_>)) -> io::Result<()> {
        self.sequence += 1;
        let sequence = self.sequence;
        let mut request = request;
        let flags = request.flags() | DUMP;
        request.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        send_all(self.socket.as_fd(), request.finish(sequence))?;
        let mut ended = None;
        while ended.is_none() {
            self.receive(|of, answer| {
                if of != sequence {
                    return;
                }
                match answer.kind {
                    NLMSG_DONE | NLMSG_ERROR => ended = Some(error_of(answer).map_or(Ok(()), Err)),
                    _ => each(answer),
                }
            })?;
        }
        ended.expect("the loop ends with it")
    }

    /// Receives one datagram, which holds at least one message. `each` gets the sequence number and the message.
    pub(super) fn receive(&self, mut each: impl FnMut(u32, Answer<'_>)) -> io::Result<()> {
        let mut buffer = vec![MaybeUninit::uninit(); RECEIVE_BYTES];
        let ((received, _), length) = loop {
            match recv(&self.socket, buffer.as_mut_slice(), RecvFlags::TRUNC) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                other => break other?,
            }
        };
        if length > received.len() {
            return Err(io::Error::other("an answer of the kernel is longer than the buffer"));
        }
        let mut rest: &[u8] = received;
        while let Some(header) = rest.get(..HEADER_BYTES) {
            let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            let bytes = usize::try_from(word(0)).expect("64 bits");
            let Some(body) = rest.get(HEADER_BYTES..bytes) else { break };
            each(word(8), Answer { kind, port: word(12), body });
            rest = rest.get(bytes.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn send_all(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    let sent = send(socket, bytes, SendFlags::empty())?;
    // A datagram is sent as a whole or not at all.
    if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("a request was cut")) }
}

/// The error in an answer. Zero is success.
fn error_of(answer: Answer<'_>) -> Option<io::Error> {
    let code = answer.body.get(..4).map_or(0, |code| i32::from_ne_bytes([code[0], code[1], code[2], code[3]]));
    (code < 0).then(|| io::Error::from_raw_os_error(-code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_to_four_bytes_and_nest() {
        let mut message = Message::new(16, ACK, &[1, 2, 3, 4])
            .text(3, "ab")
            .nest(18, |nest| nest.text(1, "veth").put(2, &7_u32.to_ne_bytes()));
        let bytes = message.finish(9).to_vec();
        assert_eq!(bytes.len() % 4, 0);
        let answer = Answer { kind: 16, port: 0, body: &bytes[HEADER_BYTES..] };
        let attributes = answer.attributes(4);
        assert_eq!(attributes.get(3), Some(&b"ab\0"[..]));
        let nested = Attributes::of(attributes.get(18).expect("is there"));
        assert_eq!((nested.get(1), nested.number(2)), (Some(&b"veth\0"[..]), Some(7)));
    }

    #[test]
    fn attributes_that_lie_about_their_length_end_the_list() {
        for wrong in [&[255, 0, 1, 0, 9][..], &[3, 0, 1, 0], &[0, 0, 0, 0], &[9]] {
            assert_eq!(Attributes::of(wrong).count(), 0, "{wrong:?}");
        }
    }

    #[test]
    fn the_loopback_device_is_in_a_list_of_links() {
        let mut names = Vec::new();
        let mut netlink = Netlink::route().expect("opens");
        let list = Message::new(libc::RTM_GETLINK, 0, &[0; 16]);
        netlink
            .dump(list, |link| names.extend(link.attributes(16).get(libc::IFLA_IFNAME).map(<[u8]>::to_vec)))
            .expect("lists");
        assert!(names.contains(&b"lo\0".to_vec()), "{names:?}");
    }

    #[test]
    fn a_request_that_fails_returns_the_error_of_the_kernel() {
        let mut netlink = Netlink::route().expect("opens");
        let missing = Message::new(libc::RTM_GETLINK, ACK, &[0; 16]).text(libc::IFLA_IFNAME, "kiln-missing");
        let error = netlink.send([missing]).expect_err("no link has that name");
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
