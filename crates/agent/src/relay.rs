//! The two copy loops of each stream with data: from a descriptor to the host, and from the host to a descriptor.

use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;

use crate::link::Inbox;
use crate::watched::Watched;

/// Whether a read that returned fewer bytes than requested has emptied its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShortRead {
    /// It has. So it is for pipes and sockets.
    Empties,
    /// Unknown. So it is for the kernel's log, which returns one record per read.
    Unknown,
}

/// Waits for data and appends up to `room` bytes to `frame`. Returns their number, 0 at the end.
pub fn poll_read(
    source: &Watched,
    context: &mut Context<'_>,
    frame: &mut Vec<u8>,
    room: usize,
    short: ShortRead,
) -> Poll<Result<usize, Errno>> {
    loop {
        let Ok(mut guard) = ready!(source.poll_read_ready(context)) else { return Poll::Ready(Err(Errno::IO)) };
        match read(source, frame, room) {
            Err(Errno::AGAIN) => guard.clear_ready(),
            Err(Errno::INTR) => {}
            result => {
                // The source is empty, and data that arrives later is a new edge. So the next call waits for that edge
                // and saves a read that would fail with EAGAIN.
                if short == ShortRead::Empties && result.is_ok_and(|count| count < room) {
                    guard.clear_ready();
                }
                return Poll::Ready(result);
            }
        }
    }
}

/// Appends up to `room` bytes to `frame`. Returns their number, 0 at the end.
///
/// # Errors
/// `EAGAIN` if the source has no data now, or the error of reading.
#[expect(unsafe_code, reason = "a bounded read into spare capacity has to be counted")]
pub fn read(source: impl AsFd, frame: &mut Vec<u8>, room: usize) -> Result<usize, Errno> {
    frame.reserve(room);
    let (filled, _) = rustix::io::read(source, &mut frame.spare_capacity_mut()[..room])?;
    let count = filled.len();
    // SAFETY: the read initialised `count` bytes directly after the vector's length.
    unsafe { frame.set_len(frame.len() + count) };
    Ok(count)
}

/// Waits for input or its end, and writes all of it to `target`.
///
/// # Errors
/// If writing to the target fails, for example because its other side is closed.
pub async fn feed(target: &Watched, inbox: &Inbox) -> io::Result<()> {
    inbox.input().await;
    poll_fn(|context| {
        loop {
            let mut guard = ready!(target.poll_write_ready(context))?;
            let written = inbox.with_front(|bytes| match rustix::io::write(target, bytes) {
                Ok(count) => (count, Ok(())),
                Err(error) => (0, Err(error)),
            });
            match written {
                None => return Poll::Ready(Ok(())),
                Some(Ok(()) | Err(Errno::INTR)) => {}
                Some(Err(Errno::AGAIN)) => guard.clear_ready(),
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
            }
        }
    })
    .await
}
