//! The device's side of a split ring.

use std::sync::atomic::{Ordering, fence};

use super::{FLAGS, INDEX, VIRTQ_AVAIL_F_NO_INTERRUPT, VIRTQ_USED_F_NO_NOTIFY, available_entry, used_entry};
use crate::queue::chain::{Chain, ChainId, NO_ENTRY};
use crate::queue::descriptor::{Descriptor, INDIRECT, NEXT, WRITE};
use crate::queue::device::{RingPlace, is_event_in};
use crate::queue::error::QueueError;
use crate::queue::inflight::{InflightQueue, SplitRecord};

/// The device's side of a split ring: its private state.
#[derive(Debug)]
pub(in crate::queue) struct Device {
    /// The available index, as it was loaded last.
    available: u16,
    /// The next available entry to take.
    next: u16,
    /// The next used entry to write.
    used: u16,
    /// The used index that the driver sees.
    published: u16,
    /// Of each descriptor, whether the chain that begins there was popped and not pushed.
    is_in_flight: Box<[bool]>,
    in_flight: u16,
    record: Option<SplitRecord>,
}

impl Device {
    pub(crate) fn new(place: &RingPlace, base: u32) -> Result<Self, QueueError> {
        let next = u16::try_from(base).map_err(|_| QueueError::Base { ring: place.index, base })?;
        // SET_VRING_BASE has no used index for split rings. Only the device writes that index, so it is read from the ring:
        // it has the value that the device before left there.
        let used = place.areas.device.load_u16(INDEX, Ordering::Relaxed);
        if place.layout.event_idx {
            // With EVENT_IDX the flags are not used, and the device before may have set NO_NOTIFY.
            place.store_device_u16(FLAGS, 0, Ordering::Relaxed);
        }
        let is_in_flight = vec![false; usize::from(place.layout.size)].into_boxed_slice();
        Ok(Self { available: next, next, used, published: used, is_in_flight, in_flight: 0, record: None })
    }

    #[inline]
    pub(crate) fn pop(&mut self, place: &RingPlace, chain: &mut Chain) -> Result<bool, QueueError> {
        if self.available == self.next && !self.load_available(place)? {
            return Ok(false);
        }
        let size = place.layout.size;
        let ring = place.index;
        let entry = available_entry(self.next & (size - 1));
        let head = place.areas.driver.load_u16(entry, Ordering::Relaxed);
        match self.is_in_flight.get(usize::from(head)) {
            None => return Err(QueueError::Descriptor { ring, descriptor: head, size: size.into() }),
            Some(true) => return Err(QueueError::AvailableTwice { ring, head }),
            Some(false) => {}
        }
        let descriptors = walk(place, head, chain)?;
        chain.id = ChainId { number: head, descriptors, entry: NO_ENTRY };
        self.next = self.next.wrapping_add(1);
        self.is_in_flight[usize::from(head)] = true;
        self.in_flight += 1;
        if let Some(record) = &mut self.record {
            record.popped(head);
        }
        Ok(true)
    }

    pub(crate) fn unpop(&mut self, id: ChainId) {
        self.next = self.next.wrapping_sub(1);
        if let (true, Some(record)) = (self.land(id), &self.record) {
            record.unpopped(id.number);
        }
    }

    #[inline]
    pub(crate) fn push(&mut self, place: &RingPlace, id: ChainId, written: u32) {
        let entry = used_entry(self.used & (place.layout.size - 1));
        let bits = u64::from(id.number) | u64::from(written) << 32;
        place.write_device(entry, bits.to_le());
        self.used = self.used.wrapping_add(1);
        if let (true, Some(record)) = (self.land(id), &mut self.record) {
            record.pushed(id.number);
        }
    }

    #[inline]
    pub(crate) fn publish(&mut self, place: &RingPlace) -> bool {
        if self.published == self.used {
            return false;
        }
        let old = self.published;
        // The driver loads the index with Acquire. The Release store orders the used entries, and the data that was written to
        // buffers, before it: a driver that sees the index also sees them.
        place.store_device_u16(INDEX, self.used, Ordering::Release);
        self.published = self.used;
        // Index first, then the driver's wish: see "Sleeping and waking" in `queue`.
        fence(Ordering::SeqCst);
        if let Some(record) = &mut self.record {
            record.published(self.used);
        }
        if place.layout.event_idx {
            let event = place.areas.driver.load_u16(available_entry(place.layout.size), Ordering::Relaxed);
            is_event_in(event, self.used, old)
        } else {
            place.areas.driver.load_u16(FLAGS, Ordering::Relaxed) & VIRTQ_AVAIL_F_NO_INTERRUPT == 0
        }
    }

    pub(crate) fn disable_kicks(&self, place: &RingPlace) {
        // With EVENT_IDX there is nothing to do: the driver kicks once when it passes `avail_event`, and not again.
        if !place.layout.event_idx {
            place.store_device_u16(FLAGS, VIRTQ_USED_F_NO_NOTIFY, Ordering::Relaxed);
        }
    }

    pub(crate) fn enable_kicks(&self, place: &RingPlace) -> bool {
        let (at, value) = if place.layout.event_idx { (used_entry(place.layout.size), self.next) } else { (FLAGS, 0) };
        place.store_device_u16(at, value, Ordering::Relaxed);
        // Our wish first, then the driver's index: see "Sleeping and waking" in `queue`.
        fence(Ordering::SeqCst);
        place.areas.driver.load_u16(INDEX, Ordering::Relaxed) != self.next
    }

    pub(crate) fn base(&self) -> u32 {
        self.next.into()
    }

    pub(crate) fn set_inflight(&mut self, place: &RingPlace, queue: InflightQueue) -> Result<(), QueueError> {
        let ring = place.index;
        if self.in_flight > 0 || self.used != self.published {
            return Err(QueueError::Inflight { ring, reason: "requests are in flight that it does not have" });
        }
        let (record, is_old) = SplitRecord::open(queue, ring, &place.layout, self.used)?;
        if is_old {
            for head in record.left() {
                self.is_in_flight[usize::from(head)] = true;
                self.in_flight += 1;
            }
            // The record guarantees at each moment that a chain which counts as popped is either used or recorded, never
            // both (see its module). The available and the used index count chains from the same start, so the number
            // of popped chains, which is `next`, is `used` plus the recorded ones. That holds in whatever order chains
            // were used. The base from SET_VRING_BASE does not count: the frontend cannot know what the device before
            // popped last.
            self.next = self.used.wrapping_add(self.in_flight);
            self.available = self.next;
        }
        self.record = Some(record);
        Ok(())
    }

    pub(crate) fn resubmit(&mut self, place: &RingPlace, chain: &mut Chain) -> Result<bool, QueueError> {
        let Some(record) = &mut self.record else { return Ok(false) };
        let Some(head) = record.first_left() else { return Ok(false) };
        let descriptors = walk(place, head, chain)?;
        chain.id = ChainId { number: head, descriptors, entry: NO_ENTRY };
        record.take_left();
        Ok(true)
    }

    #[cfg(feature = "testing")]
    pub(crate) const fn in_flight(&self) -> u16 {
        self.in_flight
    }

    fn load_available(&mut self, place: &RingPlace) -> Result<bool, QueueError> {
        // Pairs with the Release store of the driver's index: entries and descriptors up to it are visible from here on. A
        // hostile driver may still change them at any time, so each is loaded once and checked after that.
        let to = place.areas.driver.load_u16(INDEX, Ordering::Acquire);
        let size = place.layout.size;
        if to.wrapping_sub(self.next) > size {
            return Err(QueueError::AvailableJump { ring: place.index, from: self.next, to, size });
        }
        self.available = to;
        Ok(to != self.next)
    }

    /// The chain is no longer in flight. `false` if it was not, because its id was forged.
    #[inline]
    fn land(&mut self, id: ChainId) -> bool {
        let was_in_flight = self.is_in_flight.get_mut(usize::from(id.number)).is_some_and(std::mem::take);
        self.in_flight -= u16::from(was_in_flight);
        was_in_flight
    }
}

/// Adds the buffers of the chain at `head`, and returns how many descriptors of the ring it has.
#[inline]
fn walk(place: &RingPlace, head: u16, chain: &mut Chain) -> Result<u16, QueueError> {
    let (ring, size) = (place.index, place.layout.size);
    let mut index = head;
    for count in 1..=size {
        let descriptor = Descriptor::load(&place.areas.descriptors, usize::from(index));
        let [flags, next] = descriptor.small;
        if flags & INDIRECT != 0 {
            walk_table(place, head, descriptor, chain)?;
            return Ok(count);
        }
        chain.add(ring, head, descriptor, flags & WRITE != 0)?;
        if flags & NEXT == 0 {
            return Ok(count);
        }
        if next >= size {
            return Err(QueueError::Descriptor { ring, descriptor: next, size: size.into() });
        }
        index = next;
    }
    Err(QueueError::Endless { ring, head })
}

/// Adds the buffers of an indirect table, whose descriptor may end a chain of others (section 2.7.5.3).
fn walk_table(place: &RingPlace, head: u16, table: Descriptor, chain: &mut Chain) -> Result<(), QueueError> {
    let ring = place.index;
    if !place.layout.indirect {
        return Err(QueueError::IndirectNotNegotiated { ring });
    }
    if table.small[0] & NEXT != 0 {
        return Err(QueueError::IndirectWithNext { ring });
    }
    let size = chain.load_table(ring, table)?;
    let mut index = 0;
    for _ in 0..size {
        let descriptor = chain.table_entry(index);
        let [flags, next] = descriptor.small;
        if flags & INDIRECT != 0 {
            return Err(QueueError::IndirectNested { ring });
        }
        chain.add(ring, head, descriptor, flags & WRITE != 0)?;
        if flags & NEXT == 0 {
            return Ok(());
        }
        index = usize::from(next);
        if index >= size {
            return Err(QueueError::Descriptor { ring, descriptor: next, size });
        }
    }
    Err(QueueError::Endless { ring, head })
}
