//! The record of a split ring.
//!
//! ```text
//!   header   features u64 · version u16 · entries u16 · last_batch_head u16 · used_idx u16
//!   entry    inflight u8 · 5 · next u16 · counter u64          one for each descriptor, its head's counts
//!
//!   pop       counter, inflight = 1
//!   push      next = last_batch_head, last_batch_head = it
//!   publish   (the used index), inflight = 0 of each in the batch, used_idx
//! ```
//! A device that is killed leaves one of these states. No request is lost in any of them, and none that the driver has seen as
//! used is done again:
//!
//! - Before `inflight = 1`: the request is not recorded, but it is still available, since the next device begins at the used
//!   index plus the number of recorded requests. It pops the request again. The counter is written before, because
//!   recovery sorts by the counters of all entries with `inflight = 1`.
//! - After that, until the used index is stored: `used_idx` equals the ring's used index. All requests with `inflight = 1`
//!   are submitted again, also those that were pushed: the driver has not seen them as used. A write to a disk may happen
//!   twice then, with the same data.
//! - After the used index is stored, until `used_idx` is: the driver may have seen the batch, so it must not be done again.
//!   The difference of the two indices is the length of the batch, and the list from `last_batch_head` names its requests.
//!   Recovery clears their `inflight`, which repeats what the killed device may have done in part.
//! - After that the record describes the ring again.
//!
//! `used_idx` is therefore written last. Before the zeros, a kill between the two would leave requests recorded that the
//! driver has seen as used, and nothing would show it. The list may be longer than the batch, or may even be a circle (a
//! request that was pushed, not published, and pushed again by the next device), so only as many links are followed as the
//! difference has.

use std::sync::atomic::{Ordering, compiler_fence};

use super::region::{ENTRIES_AT, InflightQueue, VERSION, VERSION_AT};
use crate::queue::error::QueueError;
use crate::queue::layout::RingLayout;

const LAST_BATCH_HEAD_AT: usize = 12;
const USED_AT: usize = 14;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;

/// The record of a split ring. What it needs to know again it keeps for itself.
#[derive(Debug)]
pub(in crate::queue) struct SplitRecord {
    queue: InflightQueue,
    counter: u64,
    last_batch_head: u16,
    /// Heads that were pushed since anything was published.
    batch: Vec<u16>,
    /// What a device before has left, the last one first.
    left: Vec<(u64, u16)>,
}

impl SplitRecord {
    /// Opens the record of a ring whose used index is this. If no backend has used it before, it begins empty and
    /// this returns `false`.
    pub(crate) fn open(
        queue: InflightQueue,
        ring: u32,
        layout: &RingLayout,
        used: u16,
    ) -> Result<(Self, bool), QueueError> {
        let is_old = queue.check(ring, layout)?;
        let batch = Vec::with_capacity(layout.size.into());
        let mut record = Self { queue, counter: 0, last_batch_head: 0, batch, left: Vec::new() };
        if is_old {
            record.recover(ring, layout.size, used)?;
        } else {
            for head in 0..record.queue.size {
                record.queue.write(record.queue.entry(head), 0_u8);
            }
            record.queue.write(LAST_BATCH_HEAD_AT, 0_u16);
            record.queue.write(USED_AT, used);
            record.queue.write(ENTRIES_AT, record.queue.size);
            record.queue.write(VERSION_AT, VERSION);
        }
        Ok((record, is_old))
    }

    /// The heads that a device before has left, in no order.
    pub(crate) fn left(&self) -> impl Iterator<Item = u16> + '_ {
        self.left.iter().map(|(_, head)| *head)
    }

    /// The first of those that a device before has left.
    pub(crate) fn first_left(&self) -> Option<u16> {
        self.left.last().map(|(_, head)| *head)
    }

    /// The first of them was taken.
    pub(crate) fn take_left(&mut self) {
        self.left.pop();
    }

    #[inline]
    pub(crate) fn popped(&mut self, head: u16) {
        let entry = self.queue.entry(head);
        self.queue.write(entry + COUNTER_AT, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.queue.write(entry, 1_u8);
    }

    pub(crate) fn unpopped(&self, head: u16) {
        self.queue.write(self.queue.entry(head), 0_u8);
    }

    #[inline]
    pub(crate) fn pushed(&mut self, head: u16) {
        self.queue.write(self.queue.entry(head) + NEXT_AT, self.last_batch_head);
        self.queue.write(LAST_BATCH_HEAD_AT, head);
        self.last_batch_head = head;
        self.batch.push(head);
    }

    /// All that was pushed is visible, up to this used index.
    #[inline]
    pub(crate) fn published(&mut self, used: u16) {
        // The used index was stored before this. The compiler must not move the zeros before it: the requests would be neither
        // recorded nor used, and would be lost with this process.
        compiler_fence(Ordering::SeqCst);
        for head in self.batch.drain(..) {
            self.queue.write(self.queue.entry(head), 0_u8);
        }
        self.queue.write(USED_AT, used);
    }

    fn recover(&mut self, ring: u32, size: u16, used: u16) -> Result<(), QueueError> {
        let wrong = |reason| QueueError::Inflight { ring, reason };
        let queue = &self.queue;
        self.last_batch_head = queue.read(LAST_BATCH_HEAD_AT);
        let batch = match used.wrapping_sub(queue.read(USED_AT)) {
            batch if batch <= size => batch,
            // A frontend may lay out a ring again and keep the region, which has nothing in flight then.
            _ if queue.recorded().next().is_none() => 0,
            _ => return Err(wrong("its used index is not of this ring")),
        };
        let mut head = self.last_batch_head;
        for _ in 0..batch {
            if head >= size {
                return Err(wrong("its last batch has entries that the ring does not have"));
            }
            queue.write(queue.entry(head), 0_u8);
            head = queue.read(queue.entry(head) + NEXT_AT);
        }
        queue.write(USED_AT, used);
        let recorded = queue.recorded().filter(|head| *head < size);
        self.left = recorded.map(|head| (queue.read(queue.entry(head) + COUNTER_AT), head)).collect();
        self.left.sort_unstable_by(|one, other| other.cmp(one));
        self.counter = self.left.first().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(())
    }
}
