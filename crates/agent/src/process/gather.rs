//! What a command writes to its terminal, gathered.
//!
//! A terminal hands on each write at once, a line or less: passed on one by one, each would cost a wake of the agent, a
//! frame, and a wake of the host. So after some output the terminal is left alone for a moment, and then everything that
//! has come is read together.
//!
//! ```text
//!   waiting ──▶ output comes: read all of it ──▶ left alone (5 ms; 1 ms if much came) ──┐
//!      ▲                                                  ▲ more has come: read it ◀────┤
//!      └──────────────────────── nothing has come ◀──────────────────────────────────────┘
//! ```
//!
//! The first output after a silence is read at once, and what follows input of the host's too, so an echo never waits.
//! While the terminal is left alone the runtime does not watch it: otherwise each write would still wake the agent.

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

/// How long output is gathered.
const GATHER: Duration = Duration::from_millis(5);
/// How long it is gathered while much comes: a terminal holds a few KiB, and a command that has filled it stands still.
const GATHER_MUCH: Duration = Duration::from_millis(1);
/// What is much: half of what the kernel keeps for the reader of a terminal.
const MUCH_BYTES: usize = 2048;
/// Output flows if the terminal was left alone so often within this time.
const FLOW_PAUSES: u32 = 3;
const FLOW_TIME: Duration = Duration::from_millis(100);

/// The agent's end of a terminal, to read from.
#[derive(Debug)]
pub struct Gathered {
    terminal: OwnedFd,
    /// Another descriptor of the same terminal, while its next output is waited for.
    waiting: RefCell<Option<Watched>>,
    /// Bytes that were read since the terminal was last left alone.
    batch_bytes: Cell<usize>,
    /// When it is looked at again.
    pause: RefCell<Option<Pin<Box<Sleep>>>>,
    /// The command is over: what it left is read without a pause.
    over: Cell<bool>,
    /// How often it was left alone since then.
    flow: Cell<(Instant, u32)>,
    /// From when output flows to the next input.
    workers: RefCell<Batched>,
}

impl Gathered {
    /// Reads from `terminal`, which doesn't block.
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

    /// Reads up to `room` bytes behind what `frame` holds, once there are some. 0 is the end, and so is an error.
    pub fn poll_read(&self, context: &mut Context<'_>, frame: &mut Vec<u8>, room: usize) -> Poll<Result<usize, Errno>> {
        loop {
            if let Some(pause) = &mut *self.pause.borrow_mut() {
                ready!(pause.as_mut().poll(context));
            }
            self.look_now();
            match relay::read(&self.terminal, frame, room) {
                Ok(count) => {
                    self.batch_bytes.set(self.batch_bytes.get() + count);
                    return Poll::Ready(Ok(count));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.batch_bytes.get() > 0 && !self.over.get() => self.leave_alone(),
                Err(Errno::AGAIN) => ready!(self.poll_output(context))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Input came: what follows it is read at once.
    pub fn hurry(&self) {
        self.workers.borrow_mut().end();
        self.look_now();
    }

    /// Gathers no more: the command is over.
    pub fn finish(&self) {
        self.over.set(true);
        self.look_now();
    }

    fn look_now(&self) {
        *self.pause.borrow_mut() = None;
    }

    fn leave_alone(&self) {
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

    /// Waits until there is output. What came before the terminal is watched counts, as it is readable then.
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
