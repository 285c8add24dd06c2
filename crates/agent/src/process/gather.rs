//! Gathers a command's output on its terminal.
//!
//! A terminal makes each write readable at once, mostly a line or less. Read one by one, each write would cost a wakeup
//! of the agent, a frame, and a wakeup of the host. So after some output there is a pause, and then all output that has
//! arrived is read together.
//!
//! ```text
//!   waiting ──▶ output arrives: read all of it ──▶ pause (5 ms; 1 ms after much output) ──┐
//!      ▲                                                  ▲ there is more: read it ◀──────┤
//!      └──────────────────────── there is none ◀──────────────────────────────────────────┘
//! ```
//!
//! The first output after a quiet time is read at once. Output after input from the host is read at once too, so an
//! echo never waits. During a pause the runtime doesn't watch the terminal: otherwise each write would still wake the
//! agent.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use tokio::time::{Instant, Sleep, sleep_until};

use super::kworkers::Batched;
use crate::relay;
use crate::watched::{Watched, watch_reading};

/// Pause after some output.
const GATHER: Duration = Duration::from_millis(5);
/// Pause after much output: a terminal holds a few KiB, and a command that has filled it blocks.
const GATHER_MUCH: Duration = Duration::from_millis(1);
/// The size of much output: half of the buffer that the kernel has for a terminal's reader.
const MUCH_BYTES: usize = 2048;
/// The command writes continuously if there were this many pauses within this time.
const FLOW_PAUSES: u32 = 3;
const FLOW_TIME: Duration = Duration::from_millis(100);

/// The agent's side of a terminal, for reading.
#[derive(Debug)]
pub struct Gathered {
    terminal: OwnedFd,
    /// Another descriptor of the same terminal, while waiting for output. The runtime watches it.
    waiting: RefCell<Option<Watched>>,
    /// Bytes that were read since the last pause.
    batch_bytes: Cell<usize>,
    /// The current pause.
    pause: RefCell<Option<Pin<Box<Sleep>>>>,
    /// The command has exited: the rest is read without pauses.
    over: Cell<bool>,
    /// A start time, and the number of pauses since then.
    flow: Cell<(Instant, u32)>,
    /// Kernel workers whose policy is changed while the command writes continuously, up to the next input.
    workers: RefCell<Batched>,
}

impl Gathered {
    /// Reads from `terminal`, which must be non-blocking.
    pub fn new(terminal: OwnedFd) -> Self {
        Self {
            terminal,
            waiting: RefCell::default(),
            batch_bytes: Cell::new(0),
            pause: RefCell::default(),
            over: Cell::new(false),
            flow: Cell::new((Instant::now(), 0)),
            workers: RefCell::default(),
        }
    }

    /// Waits for output and appends up to `room` bytes to `frame`. Returns their number. Both 0 and an error are the
    /// end.
    pub fn poll_read(&self, context: &mut Context<'_>, frame: &mut Vec<u8>, room: usize) -> Poll<Result<usize, Errno>> {
        loop {
            if let Some(pause) = &mut *self.pause.borrow_mut() {
                ready!(pause.as_mut().poll(context));
            }
            self.end_pause();
            match relay::read(&self.terminal, frame, room) {
                Ok(count) => {
                    self.batch_bytes.set(self.batch_bytes.get() + count);
                    return Poll::Ready(Ok(count));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.batch_bytes.get() > 0 && !self.over.get() => self.begin_pause(),
                Err(Errno::AGAIN) => ready!(self.poll_output(context))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Call this after input from the host. The output that follows it is read at once.
    pub fn hurry(&self) {
        self.workers.borrow_mut().end();
        self.end_pause();
    }

    /// Call this when the command has exited. The rest of its output is read without pauses.
    pub fn finish(&self) {
        self.over.set(true);
        self.end_pause();
    }

    fn end_pause(&self) {
        *self.pause.borrow_mut() = None;
    }

    fn begin_pause(&self) {
        let much = self.batch_bytes.take() >= MUCH_BYTES;
        let (since, pauses) = self.flow.get();
        let now = Instant::now();
        let (since, pauses) = if now < since + FLOW_TIME { (since, pauses + 1) } else { (now, 1) };
        self.flow.set((since, pauses));
        if pauses >= FLOW_PAUSES {
            self.workers.borrow_mut().begin();
        }
        let until = now + if much { GATHER_MUCH } else { GATHER };
        *self.pause.borrow_mut() = Some(Box::pin(sleep_until(until)));
        *self.waiting.borrow_mut() = None;
    }

    /// Waits until there is output. Output that arrived before the terminal was registered isn't missed: registering
    /// reports a descriptor that is readable.
    fn poll_output(&self, context: &mut Context<'_>) -> Poll<Result<(), Errno>> {
        self.batch_bytes.set(0);
        let mut waiting = self.waiting.borrow_mut();
        let watched = match &mut *waiting {
            Some(watched) => watched,
            None => {
                let watched = self.terminal.try_clone().and_then(watch_reading).map_err(|_| Errno::IO)?;
                waiting.insert(watched)
            }
        };
        let mut guard = ready!(watched.poll_read_ready(context)).map_err(|_| Errno::IO)?;
        guard.clear_ready();
        Poll::Ready(Ok(()))
    }
}

impl AsFd for Gathered {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.terminal.as_fd()
    }
}
