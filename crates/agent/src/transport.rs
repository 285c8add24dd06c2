//! The byte stream to the host: a virtio-serial port or a Unix socket. A read and a write may wait at the same time.
//!
//! While no host is connected to a virtio-serial port, reading it returns 0 and polling it returns `POLLHUP`. If the
//! port were registered with the runtime directly, the runtime would take it as closed forever. So the port is
//! registered edge-triggered with an epoll instance of its own, and the runtime watches that instance: it becomes
//! readable once each time the port's state changes.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::watched::{Watched, watch, watch_reading};

/// The port driver returns at most one buffer of this size per read, so a read is split into pieces of this size.
const PORT_BUFFER_BYTES: usize = 4096;
/// Pieces of one read.
const READ_PIECES: usize = 16;
/// Size of the read buffer.
pub const READ_BYTES: usize = PORT_BUFFER_BYTES * READ_PIECES;

/// If at least this many bytes are expected, a read waits for them in the kernel and not through the runtime.
const BULK_BYTES: usize = 4 * PORT_BUFFER_BYTES;
/// The longest such wait. It blocks the thread, and a host that stops in the middle of a frame must not stop other
/// streams.
const BULK_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// One byte stream to the host.
#[derive(Debug)]
pub enum Transport {
    /// A virtio-serial port: one stream for the whole life of the VM. Each link starts with a reset marker.
    Port(Port),
    /// A connected stream socket: one link.
    Socket(Watched),
}

/// A virtio-serial port.
#[derive(Debug)]
pub struct Port {
    port: File,
    /// Readable if the port's state has changed since the last check.
    changes: Watched,
}

impl Transport {
    /// Opens a virtio-serial port.
    ///
    /// # Errors
    /// If the device can't be opened or watched.
    pub fn port(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let port = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let inner = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let events = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&inner, &port, epoll::EventData::new_u64(0), events)?;
        Ok(Self::Port(Port { port, changes: watch_reading(inner)? }))
    }

    /// Takes a connected stream socket.
    ///
    /// # Errors
    /// If it can't be watched.
    pub fn socket(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self::Socket(watch(socket.into())?))
    }

    /// Whether the stream carries several links.
    pub const fn is_port(&self) -> bool {
        matches!(self, Self::Port(_))
    }

    /// Waits for at least one byte and reads the bytes that are there. Returns 0 if no host is connected. If `expected`
    /// bytes of a frame are missing, a port waits for them a little, because they arrive one page at a time.
    ///
    /// # Errors
    /// If reading fails.
    pub async fn read(&self, buffer: &mut [u8], expected: usize) -> io::Result<usize> {
        match self {
            Self::Port(port) => port.read(buffer, expected).await,
            Self::Socket(socket) => loop {
                match rustix::io::read(socket, &mut *buffer) {
                    Err(Errno::AGAIN) => socket.readable().await?.clear_ready(),
                    Err(Errno::INTR) => {}
                    Err(Errno::CONNRESET) => return Ok(0),
                    result => return Ok(result?),
                }
            },
        }
    }

    /// Waits until the state of a port changes: a host connects, or bytes arrive.
    ///
    /// # Errors
    /// If watching the port fails.
    pub async fn changed(&self) -> io::Result<()> {
        match self {
            Self::Port(port) => port.changed().await,
            Self::Socket(_) => std::future::pending().await,
        }
    }

    /// Waits for room and writes a part of `bytes`. Returns its length.
    ///
    /// # Errors
    /// If the host has disconnected or writing fails.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Port(port) => port.write(bytes).await,
            Self::Socket(socket) => loop {
                match rustix::net::send(socket, bytes, rustix::net::SendFlags::NOSIGNAL) {
                    Err(Errno::AGAIN) => socket.writable().await?.clear_ready(),
                    Err(Errno::INTR) => {}
                    result => return Ok(result?),
                }
            },
        }
    }
}

impl Port {
    async fn read(&self, buffer: &mut [u8], expected: usize) -> io::Result<usize> {
        let wanted = expected.min(buffer.len());
        let mut filled = 0;
        loop {
            match self.read_pieces(&mut buffer[filled..]) {
                Err(Errno::AGAIN) if filled + BULK_BYTES <= wanted && self.wait_for_bulk()? => {}
                Err(Errno::AGAIN) if filled > 0 => return Ok(filled),
                Err(Errno::AGAIN) => self.changed().await?,
                Err(Errno::INTR) => {}
                Ok(count) if count > 0 && filled + count < wanted => filled += count,
                result => return Ok(filled + result?),
            }
        }
    }

    fn read_pieces(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        // The driver ends a vectored read at the first piece that it can't fill, so the bytes read are contiguous.
        let mut pieces = buffer.chunks_mut(PORT_BUFFER_BYTES);
        let mut vector: [IoSliceMut<'_>; READ_PIECES] =
            std::array::from_fn(|_| IoSliceMut::new(pieces.next().unwrap_or_default()));
        rustix::io::readv(&self.port, &mut vector)
    }

    /// Waits up to [`BULK_WAIT`] for more bytes. Returns whether there are some.
    fn wait_for_bulk(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.port, PollFlags::IN)];
        match poll(&mut fds, Some(&BULK_WAIT)) {
            Err(Errno::INTR) => Ok(true),
            ready => Ok(ready? > 0),
        }
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.port, bytes) {
                Err(Errno::AGAIN) => {
                    if self.is_disconnected()? {
                        return Err(Errno::PIPE.into());
                    }
                    self.changed().await?;
                }
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    async fn changed(&self) -> io::Result<()> {
        let mut guard = self.changes.readable().await?;
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 1];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        epoll::wait(self.changes.get_ref(), &mut events[..], Some(&now))?;
        guard.clear_ready();
        Ok(())
    }

    fn is_disconnected(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.port, PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        Ok(fds[0].revents().contains(PollFlags::HUP))
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Port(port) => port.port.as_fd(),
            Self::Socket(socket) => socket.get_ref().as_fd(),
        }
    }
}
