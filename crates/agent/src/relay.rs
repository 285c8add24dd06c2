//! The two loops of every stream that carries bytes: descriptor to host, and host to descriptor.

use std::future::poll_fn;
use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;

use crate::link::Inbox;
use crate::watched::Watched;

/// Whether a read that gave less than it was asked for emptied its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShortRead {
    /// As with pipes and sockets.
    Empties,
    /// As with the kernel's log, which hands out a record at a time.
    SaysNothing,
}

/// Reads up to `room` bytes behind what `frame` holds, once there are some. 0 is the end.
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
                // Whatever comes later is a new edge, so the next read can wait for it without asking first.
                if short == ShortRead::Empties && result.is_ok_and(|count| count < room) {
                    guard.clear_ready();
                }
                return Poll::Ready(result);
            }
        }
    }
}

/// Reads up to `room` bytes behind what `frame` holds. 0 is the end.
///
/// # Errors
/// The source has nothing now, or breaks.
#[expect(unsafe_code, reason = "a bounded read into spare capacity has to be counted")]
pub fn read(source: impl AsFd, frame: &mut Vec<u8>, room: usize) -> Result<usize, Errno> {
    frame.reserve(room);
    let (filled, _) = rustix::io::read(source, &mut frame.spare_capacity_mut()[..room])?;
    let count = filled.len();
    // SAFETY: the read initialised `count` bytes right behind the vector's length.
    unsafe { frame.set_len(frame.len() + count) };
    Ok(count)
}

/// Waits until there is input, or its end, and writes all that `target` takes.
///
/// # Errors
/// The target takes no more.
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
