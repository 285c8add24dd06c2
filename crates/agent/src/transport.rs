//! The byte stream to the host: a virtio-serial port or a Unix socket. Reads and writes may wait at the same time.
//!
//! A virtio-serial port whose host is away reads as 0 and polls as hung up for as long as it lasts. Registered with
//! the runtime directly it would be "closed" for ever, so the port sits edge-triggered in an epoll instance of its
//! own, and the runtime watches that: one event each time something changes, none in between.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::watched::{Watched, watch, watch_reading};

/// The port driver hands out one buffer of this size for each read, so a read is split into pieces of it.
const PORT_BUFFER_BYTES: usize = 4096;
/// Pieces of one read.
const READ_PIECES: usize = 16;
/// Size of the buffer to read into.
pub const READ_BYTES: usize = PORT_BUFFER_BYTES * READ_PIECES;

/// From this many expected bytes on a read waits for them in the kernel instead of through the runtime.
const BULK_BYTES: usize = 4 * PORT_BUFFER_BYTES;
/// For this long at most; a host that stops inside a frame must not stop the other streams.
const BULK_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// One byte stream to the host.
#[derive(Debug)]
pub enum Transport {
    /// A virtio-serial port: one stream for the whole life of the VM, links start with a reset marker.
    Port(Port),
    /// A connected stream socket: one link.
    Socket(Watched),
}

/// A virtio-serial port.
#[derive(Debug)]
pub struct Port {
    port: File,
    /// Readable when something happened to the port since it was last asked.
    changes: Watched,
}

impl Transport {
    /// Opens a virtio-serial port.
    ///
    /// # Errors
    /// The device can't be opened or watched.
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
    /// It can't be watched.
    pub fn socket(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self::Socket(watch(socket.into())?))
    }

    /// Whether the stream outlives its links.
    pub const fn is_port(&self) -> bool {
        matches!(self, Self::Port(_))
    }

    /// Reads what is there, waiting for at least one byte; 0 where the host is away. The rest of a frame, so many bytes
    /// as are `expected`, comes a page at a time and is gathered where there is much of it.
    ///
    /// # Errors
    /// The stream broke.
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

    /// Waits until something changed on a port whose host is away.
    ///
    /// # Errors
    /// The port can't be watched any more.
    pub async fn changed(&self) -> io::Result<()> {
        match self {
            Self::Port(port) => port.changed().await,
            Self::Socket(_) => std::future::pending().await,
        }
    }

    /// Writes some of `bytes`, waiting for room.
    ///
    /// # Errors
    /// The host went away or the stream broke.
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
        // The driver stops a vectored read at the first piece that it can't fill, so the pieces stay contiguous.
        let mut pieces = buffer.chunks_mut(PORT_BUFFER_BYTES);
        let mut vector: [IoSliceMut<'_>; READ_PIECES] =
            std::array::from_fn(|_| IoSliceMut::new(pieces.next().unwrap_or_default()));
        rustix::io::readv(&self.port, &mut vector)
    }

    /// Waits a moment for more; says whether it came.
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
                    if self.host_is_away()? {
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

    fn host_is_away(&self) -> io::Result<bool> {
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
