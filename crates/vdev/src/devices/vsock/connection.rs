//! One stream between a guest's port and a Unix socket.
//!
//! ```text
//!            guest's REQUEST ──▶ Open ◀── RESPONSE ── Asked ◀── `CONNECT port` of the host
//!                                  │ both have closed their sending direction, or one has disconnected
//!                                  ▼
//!                                Closed: the guest gets RST, unless it sent that itself
//! ```
//! Credit is counted as in VIRTIO 1.2, 5.10.6.3: what was sent, less what the peer has read, is never more than the
//! room that the peer reports. All counters are 32 bits, free-running, and wrap after 4 GiB, so only their wrapping
//! differences mean anything. A guest can report any numbers. If it reports more read than was sent, the difference
//! wraps to nearly 4 GiB in flight, the subtraction saturates, and there is no credit: the guest has stopped its own
//! connection. If it reports more room than it has, bytes still go only into buffers that it has put into its ring, so
//! it fills its own queue. Memory on this side does not depend on any of this: `has_room` counts the bytes that are
//! kept here, not what the guest reports.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use super::device::BUFFER_BYTES;
use super::packet::{SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// The packets that a guest gets next for a connection, beside its bytes. Each is sent once, however often it is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Owed {
    pub request: bool,
    pub response: bool,
    pub shutdown: bool,
    pub credit: bool,
    /// Nothing else is sent then, and the connection is forgotten.
    pub reset: bool,
}

/// One stream.
#[derive(Debug)]
pub(super) struct Connection {
    pub stream: UnixStream,
    pub token: u64,
    /// The guest has not answered yet.
    pub is_asked: bool,
    /// The stream may have bytes, or has ended.
    pub is_readable: bool,
    /// The worker waits for the stream.
    pub is_watched: bool,
    /// The stream is waited for until it takes more.
    pub waits_to_write: bool,
    pub owed: Owed,
    /// Whether it is in the list of those that have packets for the guest.
    pub is_listed: bool,
    /// The host sends no more, or the guest reads no more.
    pub sent_all: bool,
    /// The guest sends no more.
    received_all: bool,
    /// Bytes of the guest that the stream has not taken.
    unwritten: VecDeque<u8>,
    /// The guest's room, and how much it has read.
    peer_room: u32,
    peer_read: u32,
    /// Bytes sent to the guest, ever.
    sent: u32,
    /// Bytes that the stream has taken, ever, and the last count that the guest got.
    read: u32,
    told_read: u32,
}

/// What became of the guest's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// The stream has taken all of them.
    All,
    /// The stream is full.
    Waits,
    /// The stream is closed.
    Closed,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, token: u64, is_asked: bool) -> Self {
        Self {
            stream,
            token,
            is_asked,
            is_readable: false,
            is_watched: false,
            waits_to_write: false,
            owed: Owed::default(),
            is_listed: false,
            sent_all: false,
            received_all: false,
            unwritten: VecDeque::new(),
            peer_room: 0,
            peer_read: 0,
            sent: 0,
            read: 0,
            told_read: 0,
        }
    }

    /// Takes the guest's room from a packet.
    pub(super) fn take_credit(&mut self, room: u32, read: u32) {
        (self.peer_room, self.peer_read) = (room, read);
    }

    /// How much the guest has room for.
    pub(super) fn credit(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.peer_read);
        self.peer_room.saturating_sub(under_way)
    }

    /// What has been read, for the packet to the guest that is sent now.
    pub(super) fn tell_read(&mut self) -> u32 {
        self.told_read = self.read;
        self.owed.credit = false;
        self.read
    }

    /// Whether the guest may send so many bytes now.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.unwritten.len() + bytes <= BUFFER_BYTES as usize
    }

    /// Whether the bytes of the stream can be given to the guest.
    pub(super) fn can_send(&self) -> bool {
        !self.is_asked && self.is_readable && !self.sent_all && self.credit() > 0
    }

    /// Reads some of the stream's bytes; 0 if it has ended.
    pub(super) fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = (&self.stream).read(into)?;
        self.sent = self.sent.wrapping_add(u32::try_from(read).expect("at most the credit, which has 32 bits"));
        Ok(read)
    }

    /// Has the stream take the guest's bytes, as many as it can, and keeps the rest.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Written {
        let mut left = bytes;
        while self.unwritten.is_empty() && !left.is_empty() {
            match (&self.stream).write(left) {
                Ok(taken) => {
                    self.took(taken);
                    left = &left[taken..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Written::Closed,
            }
        }
        self.unwritten.extend(left);
        if self.unwritten.is_empty() { self.finish() } else { Written::Waits }
    }

    /// Has the stream take what was kept.
    pub(super) fn write_kept(&mut self) -> Written {
        while !self.unwritten.is_empty() {
            let (first, _) = self.unwritten.as_slices();
            match (&self.stream).write(first) {
                Ok(taken) => {
                    self.unwritten.drain(..taken);
                    self.took(taken);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Written::Waits,
                Err(_) => return Written::Closed,
            }
        }
        self.finish()
    }

    fn finish(&self) -> Written {
        if self.received_all {
            // A peer that has closed already has the same effect.
            let _ = self.stream.shutdown(std::net::Shutdown::Write);
        }
        Written::All
    }

    fn took(&mut self, bytes: usize) {
        self.read = self.read.wrapping_add(u32::try_from(bytes).expect("at most `BUFFER_BYTES`"));
        // Sent early enough that the guest never waits for room that is there.
        self.owed.credit |= self.read.wrapping_sub(self.told_read) >= BUFFER_BYTES / 2;
    }

    /// The guest reports which directions it has closed. Returns whether the connection is over.
    pub(super) fn shut_down(&mut self, flags: u32) -> bool {
        self.received_all |= flags & SHUTDOWN_SEND != 0;
        self.sent_all |= flags & SHUTDOWN_RECEIVE != 0;
        if self.unwritten.is_empty() {
            self.finish();
        }
        self.is_over()
    }

    /// Whether neither side sends any more, and all was taken.
    pub(super) fn is_over(&self) -> bool {
        self.received_all && self.sent_all && self.unwritten.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        ours.set_nonblocking(true).expect("is set");
        (Connection::new(ours, 1, false), theirs)
    }

    #[test]
    fn credit_is_what_is_left_of_the_guests_room_also_where_counters_wrap() {
        let (mut connection, _peer) = connection();
        connection.sent = u32::MAX - 9;
        connection.take_credit(100, u32::MAX - 29);
        assert_eq!(connection.credit(), 80);
        connection.sent = 10;
        assert_eq!(connection.credit(), 60);
        connection.take_credit(5, u32::MAX - 29);
        assert_eq!(connection.credit(), 0);
    }

    #[test]
    fn bytes_that_the_host_does_not_read_are_kept_and_bounded() {
        let (mut connection, mut peer) = connection();
        let bytes = vec![7; BUFFER_BYTES as usize];
        let mut given = 0_usize;
        while connection.has_room(bytes.len()) {
            connection.write(&bytes);
            given += bytes.len();
        }
        assert!(connection.has_room(0) && !connection.has_room(bytes.len()));
        connection.shut_down(SHUTDOWN_SEND);
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).expect("reads to the end");
            all.len()
        });
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while connection.write_kept() == Written::Waits && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(reader.join().expect("no panic"), given);
        assert!(connection.owed.credit);
    }

    #[test]
    fn it_is_over_when_neither_side_sends() {
        let (mut connection, _peer) = connection();
        assert!(!connection.shut_down(SHUTDOWN_SEND));
        assert!(connection.shut_down(SHUTDOWN_RECEIVE));
    }
}
