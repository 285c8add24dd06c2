//! Slots that are ready before they are needed.
//!
//! A pool belongs to one process, such as the server, and ends with it: a host without VMs has no slots. `kiln run`
//! needs no pool, because it makes its slot while the VM is restored.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::error::SlotError;
use super::home::Slots;
use super::slot::Slot;
use crate::policy::Policy;

/// Slots that a pool may hold.
const READY_MAX: usize = 64;
/// What `kiln net ls` shows for a slot in a pool.
const LABEL: &str = "ready";

/// Keeps a number of slots ready. They are removed when the pool is dropped.
#[derive(Debug)]
pub struct SlotPool {
    slots: Slots,
    ready: Arc<Mutex<Vec<Slot>>>,
    /// `None` while the pool is dropped.
    wanted: Option<SyncSender<()>>,
    maker: Option<JoinHandle<()>>,
    ends: Arc<AtomicBool>,
}

impl SlotPool {
    /// Starts to make `count` slots, at most 64, on a thread of its own.
    pub fn start(slots: Slots, count: usize) -> Self {
        let ready = Arc::new(Mutex::new(Vec::new()));
        let (wanted, receiver) = sync_channel(1);
        let ends = Arc::new(AtomicBool::new(false));
        let maker = {
            let (slots, ready, ends) = (slots.clone(), Arc::clone(&ready), Arc::clone(&ends));
            thread::spawn(move || keep_ready(&slots, &ready, &receiver, &ends, count.min(READY_MAX)))
        };
        let this = Self { slots, ready, wanted: Some(wanted), maker: Some(maker), ends };
        this.refill();
        this
    }

    /// A slot under this policy: a ready one, or a new one if there is none.
    pub fn acquire(&self, policy: &Policy) -> Result<Slot, SlotError> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let slot = match ready {
            Some(mut slot) => slot.apply(policy, &[]).map(|()| slot),
            None => self.slots.acquire(LABEL, policy),
        };
        // The next slot is made afterwards, because both would wait for the same locks of the kernel.
        self.refill();
        slot
    }

    /// How many slots are ready now.
    pub fn ready_count(&self) -> usize {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn refill(&self) {
        if let Some(Err(TrySendError::Disconnected(()))) = self.wanted.as_ref().map(|wanted| wanted.try_send(())) {
            tracing::warn!("the pool of network slots makes no more slots");
        }
    }
}

impl Drop for SlotPool {
    fn drop(&mut self) {
        self.wanted = None;
        self.ends.store(true, Ordering::Relaxed);
        if let Some(maker) = self.maker.take() {
            // If it panicked, its slots are in the journal.
            drop(maker.join());
        }
    }
}

fn keep_ready(slots: &Slots, ready: &Mutex<Vec<Slot>>, wanted: &Receiver<()>, ends: &AtomicBool, count: usize) {
    let is_short = || ready.lock().unwrap_or_else(PoisonError::into_inner).len() < count;
    while wanted.recv().is_ok() {
        while !ends.load(Ordering::Relaxed) && is_short() {
            match slots.prepare(LABEL) {
                Ok(slot) => ready.lock().unwrap_or_else(PoisonError::into_inner).push(slot),
                Err(error) => {
                    // The next acquire makes a slot itself and reports why that fails.
                    tracing::warn!(error = &error as &dyn std::error::Error, "failed to prepare a network slot");
                    break;
                }
            }
        }
    }
}
