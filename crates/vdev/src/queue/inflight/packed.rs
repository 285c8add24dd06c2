//! The record of a packed ring. It keeps descriptors, since used ones overwrite those in the ring.
//!
//! ```text
//!   header   features u64 · version u16 · entries u16 · free_head u16 · old_free_head u16
//!            used_idx u16 · old_used_idx u16 · used_wrap u8 · old_used_wrap u8 · 10
//!   entry    inflight u8 · 1 · next u16 · last u16 · num u16 · counter u64 · id u16 · flags u16 · len u32 · addr u64
//!
//!   pop       num = 0, counter, inflight = 1 of the entry at free_head; its descriptors, one entry each; old_free_head
//!   publish   the entries go to the front of the free list, used_idx and used_wrap, (the descriptor's flags),
//!             inflight = 0, then the old ones are as the new ones
//! ```
//! Each change is made in the new fields first and copied to the old ones last. So recovery can always undo it or complete it:
//!
//! - Killed in pop: `free_head` may have moved, `old_free_head` has not. Recovery restores `free_head` from it, so the entries
//!   are free again and the chain is not recorded. It is still available in the ring, and is popped again.
//! - Killed in publish before the used fields are written: `used_idx` equals `old_used_idx`, so recovery restores the free list,
//!   and the chain is recorded as in flight. It is submitted again; the driver has not seen it as used.
//! - Killed after the used fields are written: they differ, and the record alone does not show whether the driver can see the
//!   chain. The ring does: the descriptor at `old_used_idx` has the driver's flags until the device's flags are
//!   stored. If it is still available, recovery undoes the change, otherwise it completes it.
//!
//! The four used fields are one 8-byte write. An index without its wrap counter would be another place in the ring.
//!
//! Chains are published one by one, not as a batch. Of a batch, the later chains would be in the ring as used before the first
//! one is. Used descriptors overwrite available ones, so recovery could not submit those requests again.

use std::sync::atomic::{Ordering, compiler_fence};

use super::region::{ENTRIES_AT, InflightQueue, VERSION, VERSION_AT};
use crate::memory::Area;
use crate::queue::descriptor::Descriptor;
use crate::queue::error::QueueError;
use crate::queue::layout::RingLayout;
use crate::queue::packed::Cursor;

const FREE_HEAD_AT: usize = 12;
const OLD_FREE_HEAD_AT: usize = 14;
/// The four used fields, which are written at once: an index without its wrap counter is another place.
const USED_AT: usize = 16;

const NEXT_AT: usize = 2;
const LAST_AT: usize = 4;
const NUM_AT: usize = 6;
const COUNTER_AT: usize = 8;
const ID_AT: usize = 16;
const FLAGS_AT: usize = 18;
const LENGTH_AT: usize = 20;
const ADDRESS_AT: usize = 24;

/// The record of a packed ring. What it needs to know again it keeps for itself.
#[derive(Debug)]
pub(in crate::queue) struct PackedRecord {
    queue: InflightQueue,
    counter: u64,
    /// The first free entry; the number of entries if no entry is free.
    free_head: u16,
    free_count: u16,
    /// Of each entry, the next one that is free or in the same chain.
    next: Box<[u16]>,
    /// Of each entry, the chain that begins there.
    chains: Box<[Recorded]>,
    /// Up to where all was used.
    used: Cursor,
    /// What a device before has left, the last one first.
    left: Vec<(u64, u16)>,
}

/// A chain in the record.
#[derive(Debug, Clone, Copy, Default)]
struct Recorded {
    last: u16,
    /// 0: no chain begins here.
    descriptors: u16,
}

impl PackedRecord {
    /// Opens the record of a ring with these descriptors, of which all up to `used` were used if the region is new: no backend has used the
    /// record before. Returns `false` then.
    pub(crate) fn open(
        queue: InflightQueue,
        ring: u32,
        layout: &RingLayout,
        descriptors: &Area,
        used: Cursor,
    ) -> Result<(Self, bool), QueueError> {
        let is_old = queue.check(ring, layout)?;
        let size = queue.size;
        let mut record = Self {
            queue,
            counter: 0,
            free_head: 0,
            free_count: size,
            next: (1..=size).collect(),
            chains: vec![Recorded::default(); usize::from(size)].into_boxed_slice(),
            used,
            left: Vec::new(),
        };
        if is_old {
            record.recover(ring, layout.size, descriptors)?;
        } else {
            record.begin();
        }
        Ok((record, is_old))
    }

    /// Up to where all was used.
    pub(crate) const fn used(&self) -> Cursor {
        self.used
    }

    /// How many chains a device before has left, and how many descriptors of the ring they take.
    pub(crate) fn left(&self) -> (u16, u16) {
        let chains = self.left.iter().map(|(_, entry)| self.chains[usize::from(*entry)].descriptors);
        chains.fold((0, 0), |(count, all), descriptors| (count + 1, all + descriptors))
    }

    /// The first of those that a device before has left.
    pub(crate) fn first_left(&self) -> Option<u16> {
        self.left.last().map(|(_, entry)| *entry)
    }

    /// The first of them was taken.
    pub(crate) fn take_left(&mut self) {
        self.left.pop();
    }

    /// The descriptors of a recorded chain, as they were in the ring.
    pub(crate) fn descriptors(&self, entry: u16) -> impl Iterator<Item = Descriptor> + '_ {
        let count = self.chains[usize::from(entry)].descriptors;
        let mut at = entry;
        (0..count).map(move |_| {
            let place = self.queue.entry(at);
            at = self.next[usize::from(at)];
            let small = [self.queue.read(place + ID_AT), self.queue.read(place + FLAGS_AT)];
            let (address, bytes) = (self.queue.read(place + ADDRESS_AT), self.queue.read(place + LENGTH_AT));
            Descriptor { address, bytes, small }
        })
    }

    /// How many descriptors it has room for: as many as the ring has, less those of chains that were not published.
    pub(crate) const fn room(&self) -> u16 {
        self.free_count
    }

    /// Records a chain that it has room for, and returns its entry.
    pub(crate) fn popped(&mut self, descriptors: &[Descriptor]) -> u16 {
        let head = self.free_head;
        let head_at = self.queue.entry(head);
        self.queue.write(head_at + NUM_AT, 0_u16);
        self.queue.write(head_at + COUNTER_AT, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.queue.write(head_at, 1_u8);
        let mut last = head;
        for (count, descriptor) in (1_u16..).zip(descriptors) {
            let entry = self.free_head;
            if usize::from(count) == descriptors.len() {
                self.queue.write(head_at + LAST_AT, entry);
                last = entry;
            }
            self.queue.write(head_at + NUM_AT, count);
            self.write_entry(entry, *descriptor);
            self.free_head = self.next[usize::from(entry)];
            self.free_count -= 1;
            self.queue.write(FREE_HEAD_AT, self.free_head);
            self.chains[usize::from(head)] = Recorded { last, descriptors: count };
        }
        self.queue.write(OLD_FREE_HEAD_AT, self.free_head);
        head
    }

    pub(crate) fn unpopped(&mut self, entry: u16) {
        if self.free(entry) {
            self.queue.write(OLD_FREE_HEAD_AT, self.free_head);
            self.queue.write(self.queue.entry(entry), 0_u8);
        }
    }

    /// Makes a chain visible to the driver as used, up to this place: `show` writes the descriptor's flags.
    pub(crate) fn publish(&mut self, entry: u16, used: Cursor, show: impl FnOnce()) {
        let was_recorded = self.free(entry);
        self.queue.write(USED_AT, used_fields(used, self.used));
        self.used = used;
        // The flags stay between the two: recovery looks at them only if the used fields differ, and must find the chain
        // recorded until the driver can see it.
        compiler_fence(Ordering::SeqCst);
        show();
        compiler_fence(Ordering::SeqCst);
        if was_recorded {
            self.queue.write(self.queue.entry(entry), 0_u8);
        }
        self.queue.write(OLD_FREE_HEAD_AT, self.free_head);
        self.queue.write(USED_AT, used_fields(used, used));
    }

    /// Puts the entries of a chain at the front of the free list, if there is such a chain.
    fn free(&mut self, entry: u16) -> bool {
        let Some(chain) = self.chains.get_mut(usize::from(entry)).map(std::mem::take) else { return false };
        if chain.descriptors == 0 {
            return false;
        }
        self.queue.write(self.queue.entry(chain.last) + NEXT_AT, self.free_head);
        self.next[usize::from(chain.last)] = self.free_head;
        self.queue.write(FREE_HEAD_AT, entry);
        self.free_head = entry;
        self.free_count += chain.descriptors;
        true
    }

    fn write_entry(&self, entry: u16, descriptor: Descriptor) {
        let at = self.queue.entry(entry);
        let [id, flags] = descriptor.small;
        self.queue.write(at + ADDRESS_AT, descriptor.address);
        self.queue.write(at + LENGTH_AT, descriptor.bytes);
        self.queue.write(at + FLAGS_AT, flags);
        self.queue.write(at + ID_AT, id);
    }

    fn begin(&self) {
        for entry in 0..self.queue.size {
            let at = self.queue.entry(entry);
            self.queue.write(at, 0_u8);
            self.queue.write(at + NEXT_AT, entry + 1);
        }
        self.queue.write(FREE_HEAD_AT, 0_u16);
        self.queue.write(OLD_FREE_HEAD_AT, 0_u16);
        self.queue.write(USED_AT, used_fields(self.used, self.used));
        self.queue.write(ENTRIES_AT, self.queue.size);
        self.queue.write(VERSION_AT, VERSION);
    }

    fn recover(&mut self, ring: u32, size: u16, descriptors: &Area) -> Result<(), QueueError> {
        let wrong = |reason| QueueError::Inflight { ring, reason };
        let [mut free_head, old_free_head] = [FREE_HEAD_AT, OLD_FREE_HEAD_AT].map(|at| self.queue.read::<u16>(at));
        let (mut used, old_used) = from_used_fields(self.queue.read(USED_AT));
        if old_used.index >= size || used.index >= size {
            return Err(wrong("its used index is not of this ring"));
        }
        if used != old_used {
            let flags = descriptors.load_u16(old_used.flags_at(), Ordering::Acquire);
            if old_used.is_available(flags) {
                (free_head, used) = (old_free_head, old_used);
            }
        } else {
            free_head = old_free_head;
        }
        self.queue.write(FREE_HEAD_AT, free_head);
        self.queue.write(OLD_FREE_HEAD_AT, free_head);
        self.queue.write(USED_AT, used_fields(used, used));
        (self.free_head, self.used) = (free_head, used);
        let is_free = self.recover_free(free_head).ok_or(wrong("its free list does not end"))?;
        self.recover_chains(is_free, size).map_err(wrong)
    }

    /// Entries on the free list are not in flight; clears their `inflight`.
    fn recover_free(&mut self, free_head: u16) -> Option<Vec<bool>> {
        let mut is_free = vec![false; self.next.len()];
        let mut entry = free_head;
        while let Some(seen) = is_free.get_mut(usize::from(entry)) {
            if std::mem::replace(seen, true) {
                return None;
            }
            let at = self.queue.entry(entry);
            self.queue.write(at, 0_u8);
            let next = self.queue.read(at + NEXT_AT);
            self.next[usize::from(entry)] = next;
            entry = next;
        }
        Some(is_free)
    }

    /// Finds the chains that were left. No entry is in two of them, or free.
    fn recover_chains(&mut self, mut is_taken: Vec<bool>, size: u16) -> Result<(), &'static str> {
        let heads: Vec<u16> = self.queue.recorded().collect();
        let mut all: u16 = 0;
        for head in heads {
            let at = self.queue.entry(head);
            let descriptors: u16 = self.queue.read(at + NUM_AT);
            all =
                all.checked_add(descriptors).filter(|all| *all <= size).ok_or("more is recorded than the ring has")?;
            let (mut entry, mut last) = (head, head);
            for _ in 0..descriptors {
                match is_taken.get_mut(usize::from(entry)) {
                    Some(taken) if !*taken => *taken = true,
                    _ => return Err("an entry is in two chains, or in no chain"),
                }
                last = entry;
                entry = self.queue.read(self.queue.entry(entry) + NEXT_AT);
                self.next[usize::from(last)] = entry;
            }
            if descriptors == 0 || self.queue.read::<u16>(at + LAST_AT) != last {
                return Err("a chain does not end at its recorded last entry");
            }
            self.chains[usize::from(head)] = Recorded { last, descriptors };
            self.left.push((self.queue.read(at + COUNTER_AT), head));
        }
        if is_taken.contains(&false) {
            return Err("an entry is neither free nor in a chain");
        }
        self.free_count = self.queue.size - all;
        self.left.sort_unstable_by(|one, other| other.cmp(one));
        self.counter = self.left.first().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(())
    }
}

/// `used_idx`, `old_used_idx`, `used_wrap_counter`, `old_used_wrap_counter` as they lie in memory.
///
/// They are stored as one number because a process can be killed between two instructions and not within one. An
/// aligned store of 8 bytes is one instruction: the part of a queue is aligned to 64 bytes, which
/// `InflightRegion::queue` checks for this process, and the fields are at byte 16 of it.
fn used_fields(used: Cursor, old: Cursor) -> u64 {
    let [used_low, used_high] = used.index.to_ne_bytes();
    let [old_low, old_high] = old.index.to_ne_bytes();
    u64::from_ne_bytes([used_low, used_high, old_low, old_high, used.lap.into(), old.lap.into(), 0, 0])
}

fn from_used_fields(fields: u64) -> (Cursor, Cursor) {
    let [used_low, used_high, old_low, old_high, used_lap, old_lap, ..] = fields.to_ne_bytes();
    let used = Cursor { index: u16::from_ne_bytes([used_low, used_high]), lap: used_lap != 0 };
    let old = Cursor { index: u16::from_ne_bytes([old_low, old_high]), lap: old_lap != 0 };
    (used, old)
}
