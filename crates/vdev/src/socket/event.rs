//! Notifications between driver and device: eventfds, and waiting for several descriptors at once.
//!
//! Some peers set `O_NONBLOCK` on the eventfd that both sides share, so no thread here blocks in `read`: [`Event::wait`]
//! polls, and taking what is there never waits. A hostile peer takes it off again, so it is never what keeps us from waiting.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, ReadWriteFlags};

/// A descriptor that one side writes and the other polls: an eventfd of ours, or what a peer sent.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// A new eventfd.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// A descriptor that came from a peer.
    ///
    /// # Errors
    /// If it can't be made non-blocking.
    pub fn from_peer(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self(fd))
    }

    /// The same event under another descriptor.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Signals the event. An eventfd that is full is already signalled, so that is not an error.
    ///
    /// # Errors
    /// If the descriptor takes no 8-byte write.
    pub fn signal(&self) -> io::Result<()> {
        // There is no write to an eventfd that is sure not to wait; this leaves a peer no more than a moment to fill it.
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], Some(&now)) {
            Ok(0) | Err(Errno::INTR) => Ok(()),
            Ok(_) => self.signal_watched(),
            Err(error) => Err(error.into()),
        }
    }

    /// As [`signal`](Self::signal), with one call of the system less. A peer that fills the event and takes `O_NONBLOCK`
    /// off has this wait until a signal comes, so it is for threads that another thread watches.
    ///
    /// # Errors
    /// See [`signal`](Self::signal).
    pub(crate) fn signal_watched(&self) -> io::Result<()> {
        match rustix::io::write(&self.0, &1_u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes what was signalled. Returns whether there was anything.
    ///
    /// # Errors
    /// If the descriptor can't be read, or has come to its end.
    pub fn take(&self) -> io::Result<bool> {
        let mut bytes = [0; 8];
        // "From where the file is" of a descriptor that has no place.
        let nowhere = u64::MAX;
        let mut into = [IoSliceMut::new(&mut bytes)];
        let read = match rustix::io::preadv2(&self.0, &mut into, nowhere, ReadWriteFlags::NOWAIT) {
            // Some kinds of descriptors do not support reads that never wait.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => rustix::io::read(&self.0, &mut bytes),
            read => read,
        };
        match read {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(true),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for a signal and takes it. Returns whether one came in time.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let [ready] = wait_readable([self.0.as_fd()], Some(timeout))?;
        if ready { self.take() } else { Ok(false) }
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of the descriptors can be read or has ended; without a timeout forever. If the time runs out, no
/// descriptor is ready.
///
/// # Errors
/// If the system can't poll them.
pub fn wait_readable<const N: usize>(fds: [BorrowedFd<'_>; N], timeout: Option<Duration>) -> io::Result<[bool; N]> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut polled = fds.each_ref().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(&mut polled, left.as_ref()) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(polled.each_ref().map(|fd| !fd.revents().is_empty())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_taken_once() {
        let event = Event::new().expect("an eventfd");
        assert!(!event.take().expect("reads"));
        event.signal().expect("writes");
        event.signal().expect("writes");
        assert!(event.wait(Duration::from_secs(5)).expect("reads"));
        assert!(!event.wait(Duration::from_millis(1)).expect("reads"));
    }

    #[test]
    fn an_event_that_is_full_was_told_already() {
        let event = Event::new().expect("an eventfd");
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).expect("fits");
        event.signal().expect("is no error");
    }

    #[test]
    fn a_peer_that_makes_an_event_block_blocks_no_thread() {
        let event = Event::new().expect("an eventfd");
        rustix::fs::fcntl_setfl(&event, rustix::fs::OFlags::RDWR).expect("is set");
        assert!(!event.take().expect("reads"));
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).expect("fits");
        event.signal().expect("is no error");
        assert!(event.take().expect("reads"));
        let (pipe, _writer) = io::pipe().expect("a pipe");
        let pipe = Event::from_peer(pipe.into()).expect("is made non-blocking");
        rustix::fs::fcntl_setfl(&pipe, rustix::fs::OFlags::RDONLY).expect("is set");
        assert!(!pipe.take().expect("reads"));
    }
}
