//! Frames over the socket pair to QEMU: each has its length before it, 4 bytes with the highest first.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// The longest frame: what QEMU's own buffer of a stream holds.
pub const FRAME_BYTES_MAX: usize = 65_536 + 4096;

/// What is kept for QEMU while it does not read. Connections wait when it is full; single datagrams are dropped.
pub const OUT_BYTES_MAX: usize = 1 << 20;

const LENGTH_BYTES: usize = 4;
/// Bytes that are read at once.
const IN_BYTES: usize = 256 << 10;
/// Sent bytes at the front of the buffer are removed when there are this many.
const SENT_BYTES_MAX: usize = 256 << 10;

/// Both directions, with their buffers.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    input: Vec<u8>,
    /// The part of `input` that was received and not yet taken.
    received: std::ops::Range<usize>,
    output: Vec<u8>,
    sent: usize,
}

/// What reading a link came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// There may be frames.
    Some,
    /// There is nothing to read now.
    Nothing,
    /// The other side is gone.
    End,
}

impl Link {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self { socket, input: vec![0; IN_BYTES], received: 0..0, output: Vec::new(), sent: 0 })
    }

    /// Reads once. Frames that are complete must be taken before.
    pub(super) fn fill(&mut self) -> io::Result<Filled> {
        self.input.copy_within(self.received.clone(), 0);
        self.received = 0..self.received.len();
        match recv(&self.socket, &mut self.input[self.received.end..], RecvFlags::empty()) {
            Ok((0, _)) => Ok(Filled::End),
            Ok((length, _)) => {
                self.received.end += length;
                Ok(Filled::Some)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(Filled::Nothing),
            Err(Errno::CONNRESET | Errno::PIPE) => Ok(Filled::End),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the next frame that is complete. A frame that is too long is an error: what follows it can't be found.
    pub(super) fn next(&mut self, frame: &mut Vec<u8>) -> io::Result<bool> {
        let received = &self.input[self.received.clone()];
        let Some((length, rest)) = received.split_first_chunk::<LENGTH_BYTES>() else { return Ok(false) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
        }
        let Some(bytes) = rest.get(..length) else { return Ok(false) };
        frame.clear();
        frame.extend_from_slice(bytes);
        self.received.start += LENGTH_BYTES + length;
        Ok(true)
    }

    /// Whether one more frame may be added.
    pub(super) fn has_room(&self) -> bool {
        self.output.len() - self.sent < OUT_BYTES_MAX
    }

    /// Whether something waits to be sent.
    pub(super) fn is_waiting(&self) -> bool {
        self.output.len() > self.sent
    }

    /// Adds a frame of this length, which the function writes.
    pub(super) fn push<R>(&mut self, length: usize, write: impl FnOnce(&mut [u8]) -> R) -> R {
        let start = self.output.len();
        // A frame has less than 2^16 bytes and a header.
        self.output.extend((length as u32).to_be_bytes());
        self.output.resize(start + LENGTH_BYTES + length, 0);
        write(&mut self.output[start + LENGTH_BYTES..])
    }

    /// Sends what waits, as far as QEMU takes it.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while self.is_waiting() {
            match send(&self.socket, &self.output[self.sent..], SendFlags::NOSIGNAL) {
                Ok(length) => self.sent += length,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        if !self.is_waiting() {
            self.output.clear();
            self.sent = 0;
        } else if self.sent >= SENT_BYTES_MAX {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
        Ok(())
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
