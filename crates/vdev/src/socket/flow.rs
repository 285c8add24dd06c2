//! Bytes through a descriptor that came from a peer, such as the state of a device, without ever waiting in it.
//!
//! `O_NONBLOCK` is no help: the peer has the same description and can clear it. So each kind is used in the way in
//! which it can't block this side: sockets with `MSG_DONTWAIT`, pipes by `splice` from and to a pipe of ours.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat, fstatfs};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};

/// A descriptor that bytes come from or go to.
#[derive(Debug)]
pub(crate) struct Flow {
    fd: OwnedFd,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Socket,
    File,
    /// With the pipe that stands between: its reading and its writing end. It is empty between calls.
    Pipe(OwnedFd, OwnedFd),
}

/// The most that is moved through a pipe at once: what any pipe takes.
const PIECE_BYTES: usize = 4096;
const FUSE_MAGIC: u64 = 0x6573_5546;

impl Flow {
    /// Takes a pipe, a socket or a file.
    ///
    /// # Errors
    /// If it is anything else, or a file that the peer itself may serve.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let kind = match FileType::from_raw_mode(fstat(&fd)?.st_mode) {
            FileType::Fifo => {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
                Kind::Pipe(read, write)
            }
            FileType::Socket => Kind::Socket,
            FileType::RegularFile if fstatfs(&fd)?.f_type as u64 != FUSE_MAGIC => Kind::File,
            _ => return Err(io::Error::other("the descriptor is not a pipe, socket or file")),
        };
        Ok(Self { fd, kind })
    }

    /// Reads what is there; 0 if it has ended.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is nothing now, or it can't be read.
    pub(crate) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        Ok(match &self.kind {
            Kind::Socket => recv(&self.fd, into, RecvFlags::DONTWAIT)?.0,
            Kind::File => rustix::io::read(&self.fd, into)?,
            Kind::Pipe(read, write) => {
                let wanted = into.len().min(PIECE_BYTES);
                let moved = splice(&self.fd, None, write, None, wanted, SpliceFlags::NONBLOCK)?;
                if moved > 0 { rustix::io::read(read, &mut into[..moved])? } else { 0 }
            }
        })
    }

    /// Writes as much as is taken.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if nothing is taken now, and an error if it can't be written.
    pub(crate) fn write(&self, from: &[u8]) -> io::Result<usize> {
        Ok(match &self.kind {
            Kind::Socket => send(&self.fd, from, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?,
            Kind::File => rustix::io::write(&self.fd, from)?,
            Kind::Pipe(read, write) => {
                let put = rustix::io::write(write, &from[..from.len().min(PIECE_BYTES)])?;
                let moved = splice(read, None, &self.fd, None, put, SpliceFlags::NONBLOCK);
                let left = put - *moved.as_ref().unwrap_or(&0);
                if left > 0 {
                    // What was not taken is not kept.
                    rustix::io::read(read, &mut [0; PIECE_BYTES][..left])?;
                }
                moved?
            }
        })
    }

    /// Waits until it can be read or written, or has ended.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if that takes too long.
    pub(crate) fn wait(&self, what: PollFlags, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&self.fd, what)], Some(&timeout)) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::INTR) if !left.is_zero() => Ok(()),
            Ok(_) | Err(Errno::INTR) => Err(io::ErrorKind::TimedOut.into()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{OFlags, fcntl_setfl};
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    /// As a peer has it that takes `O_NONBLOCK` off.
    fn waiting(fd: OwnedFd, access: OFlags) -> Flow {
        let flow = Flow::new(fd).expect("is of use");
        fcntl_setfl(&flow.fd, access).expect("is set");
        flow
    }

    fn would_block<T: std::fmt::Debug>(result: io::Result<T>) {
        assert_eq!(result.expect_err("nothing is there").kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_pipe_never_blocks_and_comes_to_its_end() {
        let (read, mut write) = io::pipe().expect("a pipe");
        let flow = waiting(read.into(), OFlags::RDONLY);
        let mut bytes = [0; 8];
        would_block(flow.read(&mut bytes));
        write.write_all(b"a state that is longer").expect("is written");
        assert_eq!(flow.read(&mut bytes).expect("is there"), 8);
        assert_eq!(&bytes, b"a state ");
        drop(write);
        let mut rest = Vec::new();
        while let Ok(read @ 1..) = flow.read(&mut bytes) {
            rest.extend_from_slice(&bytes[..read]);
        }
        assert_eq!(rest, b"that is longer");
        assert_eq!(flow.read(&mut bytes).expect("has ended"), 0);
    }

    #[test]
    fn a_pipe_that_is_full_takes_no_more_and_loses_nothing() {
        let (mut read, write) = io::pipe().expect("a pipe");
        let flow = waiting(write.into(), OFlags::WRONLY);
        let piece: Vec<u8> = (0..3000).map(|at| at as u8).collect();
        let mut sent = Vec::new();
        while let Ok(taken) = flow.write(&piece) {
            sent.extend_from_slice(&piece[..taken]);
        }
        would_block(flow.write(&piece));
        drop(flow);
        let mut all = Vec::new();
        read.read_to_end(&mut all).expect("reads to the end");
        assert_eq!(all, sent);
    }

    #[test]
    fn sockets_and_files_do_too_and_nothing_else_is_taken() {
        let (one, mut other) = UnixStream::pair().expect("sockets");
        let flow = waiting(one.into(), OFlags::RDWR);
        let mut bytes = [0; 4];
        would_block(flow.read(&mut bytes));
        other.write_all(b"here").expect("is sent");
        assert_eq!(flow.read(&mut bytes).expect("is there"), 4);
        assert_eq!(flow.write(b"there").expect("is taken"), 5);
        let late = flow.wait(PollFlags::IN, Instant::now() + Duration::from_millis(1)).expect_err("nothing comes");
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        Flow::new(tempfile::tempfile().expect("a file").into()).expect("is a file");
        let event = crate::socket::Event::new().expect("an event");
        Flow::new(event.as_fd().try_clone_to_owned().expect("clones")).expect_err("is no stream of bytes");
        Flow::new(std::fs::File::open("/dev/zero").expect("is there").into()).expect_err("has no end");
    }
}
