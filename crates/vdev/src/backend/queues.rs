//! What a handler works with: the rings of its worker that run, and the descriptors that its worker waits for.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};

use super::fault::{Completion, Faults, RingEvent};
use super::notify::{Notify, Told};
use crate::queue::{Chain, DeviceRing, QueueError, RingAreas, RingLayout};

/// A ring that runs, as its handler sees it.
pub struct Queue {
    index: u16,
    pub(super) ring: DeviceRing,
    pub(super) call: Notify,
    pub(super) enabled: bool,
    pub(super) faults: Option<Arc<dyn Faults>>,
    /// Notifies the frontend that the log has changed.
    pub(super) log_changed: Option<Arc<crate::socket::Event>>,
    /// Chains that were taken, to see whether a handler did anything.
    taken: u64,
    /// Whether something was completed and not published.
    unpublished: bool,
    /// Whether there may be chains that were under way when another backend ended.
    pub(super) resubmits: bool,
    /// How many used entries the ring is to show beyond those that it has.
    jump: u16,
    /// It is inconsistent: no handler finds it any more.
    pub(super) is_broken: bool,
}

impl Queue {
    pub(super) fn new(index: u16, ring: DeviceRing) -> Self {
        Self {
            index,
            ring,
            call: Notify::Never,
            enabled: false,
            faults: None,
            log_changed: None,
            taken: 0,
            unpublished: false,
            resubmits: false,
            jump: 0,
            is_broken: false,
        }
    }

    /// Its place among the device's queues.
    pub(super) const fn index(&self) -> u16 {
        self.index
    }

    /// Whether the frontend lets it have effects.
    pub(crate) const fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Takes the next chain of buffers. Returns whether there was one.
    ///
    /// # Errors
    /// If the ring is inconsistent.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        // What a backend before this one had taken comes first.
        self.resubmits = self.resubmits && self.ring.resubmit(chain)?;
        let popped = self.resubmits || self.ring.pop(chain)?;
        self.taken += u64::from(popped);
        Ok(popped)
    }

    /// Gives the chain that was taken last back, to be taken again.
    pub(crate) fn unpop(&mut self, chain: &Chain) {
        self.ring.unpop(chain);
        self.taken -= 1;
    }

    /// Returns a chain as used, with how many bytes were written to it. The driver sees it after the next
    /// [`flush`](Self::flush).
    pub fn complete(&mut self, chain: &Chain, written: u32) {
        let Some(faults) = &self.faults else {
            self.ring.push(chain, written);
            self.unpublished = true;
            return;
        };
        let completion: Completion = faults.completed(self.index, chain, written);
        self.ring.mark(chain);
        for _ in 0..completion.times {
            self.ring.push_id(completion.id, completion.written);
            self.unpublished = true;
        }
        self.jump = self.jump.wrapping_add(completion.jump);
    }

    /// Makes completed chains visible to the driver, and calls it if it has requested that.
    pub(crate) fn flush(&mut self) {
        if !std::mem::take(&mut self.unpublished) {
            return;
        }
        let wants_call = self.ring.publish();
        let jump = std::mem::take(&mut self.jump);
        if let (1.., Some(faults)) = (jump, &self.faults) {
            faults.jump(self, jump);
        }
        if wants_call {
            self.notify();
        }
        if let Some(event) = &self.log_changed {
            // The frontend reads the log anyway at the end of a migration.
            let _ = event.signal_watched();
        }
    }

    /// Calls the driver for used buffers, also if it has calls disabled.
    pub fn notify(&mut self) {
        let calls = match &self.faults {
            None => 1,
            Some(faults) => faults.calls(self.index),
        };
        for _ in 0..calls {
            if self.call.tell(self.index, Told::Call).is_err() {
                // It cannot be notified: it is about to end, or reads no messages. It is not waited for again.
                self.call = Notify::Never;
                return;
            }
        }
    }

    /// Disables kicks.
    pub(crate) fn disable_kicks(&mut self) {
        self.ring.disable_kicks();
    }

    /// Enables kicks. Returns whether there is something in the ring already, for which no kick will come.
    pub(crate) fn enable_kicks(&mut self) -> bool {
        self.ring.enable_kicks()
    }

    /// How it is laid out.
    pub(crate) const fn layout(&self) -> RingLayout {
        self.ring.layout()
    }

    /// Its areas, for a mock that writes wrong rings on purpose.
    pub(crate) const fn areas(&self) -> &RingAreas {
        self.ring.areas()
    }

    /// Its position, as `GET_VRING_BASE` returns it.
    pub(crate) fn base(&self) -> u32 {
        self.ring.base()
    }

    pub(super) const fn taken(&self) -> u64 {
        self.taken
    }
}

/// A stopped ring, for a mock that keeps writing to it on purpose.
pub struct StoppedQueue(Box<Queue>);

impl StoppedQueue {
    pub(super) const fn new(queue: Box<Queue>) -> Self {
        Self(queue)
    }

    /// Its place among the device's queues.
    pub(crate) const fn index(&self) -> u16 {
        self.0.index
    }

    /// Shows one more used entry than there is, and calls.
    pub(crate) fn write_late(&self) {
        if let Some(faults) = &self.0.faults {
            faults.jump(&self.0, 1);
        }
        // The frontend may have ended by now.
        let _ = self.0.call.tell(self.0.index, Told::Call);
    }
}

/// The first token of the worker's own; those of handlers are smaller.
pub(super) const OWN_TOKENS: u64 = 1 << 63;

/// The queues of a worker, and the descriptors that it waits for.
pub struct Queues {
    epoll: OwnedFd,
    /// By place; those that do not run are absent.
    running: Vec<Option<Box<Queue>>>,
}

impl Queues {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, running: Vec::new() })
    }

    /// A queue, if it runs and is consistent.
    pub fn get(&mut self, queue: u16) -> Option<&mut Queue> {
        self.running.get_mut(usize::from(queue))?.as_deref_mut().filter(|queue| !queue.is_broken)
    }

    /// Has the worker wait for a descriptor too; [`QueueHandler::ready`](super::QueueHandler::ready) is called with the
    /// token while it is ready.
    ///
    /// # Errors
    /// If it can't be waited for, or is already.
    pub(crate) fn watch(&self, fd: impl AsFd, token: u64, interest: EventFlags) -> io::Result<()> {
        debug_assert!(token < OWN_TOKENS, "the token is a handler's");
        self.watch_any(fd, token, interest)
    }

    /// Changes what a descriptor is waited for.
    ///
    /// # Errors
    /// If it is not waited for.
    pub(crate) fn rewatch(&self, fd: impl AsFd, token: u64, interest: EventFlags) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, EventData::new_u64(token), interest)?)
    }

    /// Removes a descriptor from those that the worker waits for. This must come before it is closed if another
    /// process has it too.
    pub(crate) fn unwatch(&self, fd: impl AsFd) {
        // An error means that it is not waited for, which is the intended state.
        let _ = epoll::delete(&self.epoll, fd);
    }

    pub(super) fn watch_any(&self, fd: impl AsFd, token: u64, interest: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token), interest)?)
    }

    /// Chains that were ever taken from the rings that run.
    pub(super) fn taken(&self) -> u64 {
        self.running.iter().flatten().fold(0, |all, queue| all.wrapping_add(queue.taken()))
    }

    pub(super) fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    pub(super) fn insert(&mut self, queue: Queue) {
        let place = usize::from(queue.index);
        if self.running.len() <= place {
            self.running.resize_with(place + 1, || None);
        }
        self.running[place] = Some(Box::new(queue));
    }

    pub(super) fn remove(&mut self, queue: u16) -> Option<Box<Queue>> {
        self.running.get_mut(usize::from(queue))?.take()
    }

    /// Whether something that has happened on a ring is to be overlooked.
    pub(super) fn is_ignored(&mut self, queue: u16, event: RingEvent) -> bool {
        let faults = self.get(queue).and_then(|queue| queue.faults.clone());
        faults.is_some_and(|faults| faults.ignores(queue, event))
    }
}
