//! The device's side of a packed ring.

use std::sync::atomic::{Ordering, fence};

use super::cursor::{
    Cursor, EVENT_DESCRIPTOR, EVENT_FLAGS, RING_EVENT_FLAGS_DESC, RING_EVENT_FLAGS_DISABLE, RING_EVENT_FLAGS_ENABLE,
    is_wanted,
};
use crate::queue::chain::{Chain, ChainId, NO_ENTRY};
use crate::queue::descriptor::{Descriptor, INDIRECT, NEXT, WRITE};
use crate::queue::device::RingPlace;
use crate::queue::error::QueueError;
use crate::queue::inflight::{InflightQueue, PackedRecord};
use crate::queue::layout::DESCRIPTOR_BYTES;

/// The device's side of a packed ring: its private state.
#[derive(Debug)]
pub(in crate::queue) struct Device {
    /// The next available descriptor.
    next: Cursor,
    /// The next used descriptor to write.
    used: Cursor,
    /// What was pushed since anything was published.
    pushed: Vec<(ChainId, u32)>,
    in_flight: u16,
    /// The descriptors of what is in flight, or was pushed and not published.
    descriptors: u16,
    record: Option<PackedRecord>,
}

impl Device {
    pub(crate) fn new(place: &RingPlace, base: u32) -> Result<Self, QueueError> {
        let size = place.layout.size;
        let next = Cursor::from_bits((base & 0xffff) as u16);
        // Some frontends leave the used half 0. Then all that was available was used.
        let used = if base >> 16 == 0 { next } else { Cursor::from_bits((base >> 16) as u16) };
        let is_there = next.index < size && used.index < size;
        if !is_there || used.distance(next, size) > size.into() {
            return Err(QueueError::Base { ring: place.index, base });
        }
        let pushed = Vec::with_capacity(size.into());
        Ok(Self { next, used, pushed, in_flight: 0, descriptors: 0, record: None })
    }

    #[inline]
    pub(crate) fn pop(&mut self, place: &RingPlace, chain: &mut Chain) -> Result<bool, QueueError> {
        // Pairs with the Release store of the driver's flags: what the driver wrote before them is visible from here on.
        let flags = place.areas.descriptors.load_u16(self.next.flags_at(), Ordering::Acquire);
        if !self.next.is_available(flags) {
            return Ok(false);
        }
        let (number, descriptors) = self.walk(place, chain)?;
        let entry = self.record.as_mut().map_or(NO_ENTRY, |record| record.popped(&chain.descriptors));
        chain.id = ChainId { number, descriptors, entry };
        self.next = self.next.advanced(descriptors, place.layout.size);
        self.in_flight = self.in_flight.saturating_add(1);
        self.descriptors += descriptors;
        Ok(true)
    }

    pub(crate) fn unpop(&mut self, place: &RingPlace, id: ChainId) {
        self.next = self.next.retreated(id.descriptors, place.layout.size);
        self.in_flight = self.in_flight.saturating_sub(1);
        self.descriptors = self.descriptors.saturating_sub(id.descriptors);
        if let Some(record) = &mut self.record {
            record.unpopped(id.entry);
        }
    }

    #[inline]
    pub(crate) fn push(&mut self, id: ChainId, written: u32) {
        self.pushed.push((id, written));
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    #[inline]
    pub(crate) fn publish(&mut self, place: &RingPlace) -> bool {
        if self.pushed.is_empty() {
            return false;
        }
        let descriptors = if self.record.is_some() { self.publish_recorded(place) } else { self.publish_batch(place) };
        self.descriptors = self.descriptors.saturating_sub(descriptors);
        is_wanted(&place.areas.driver, &place.layout, self.used, descriptors)
    }

    /// Publishes all with the flags of the first one. The driver reads used descriptors in order, so it does not look at the
    /// others before the first one is used. Its flags are stored last and with Release, which makes the others visible with it.
    #[inline]
    fn publish_batch(&mut self, place: &RingPlace) -> u16 {
        let first = self.used;
        let mut first_flags = None;
        let mut descriptors: u16 = 0;
        for (id, written) in self.pushed.drain(..) {
            let flags = write_used(place, self.used, id, written);
            if first_flags.is_none() {
                first_flags = Some(flags);
            } else {
                place.store_descriptor_u16(self.used.flags_at(), flags, Ordering::Relaxed);
            }
            self.used = self.used.advanced(id.descriptors, place.layout.size);
            descriptors = descriptors.saturating_add(id.descriptors);
        }
        if let Some(flags) = first_flags {
            place.store_descriptor_u16(first.flags_at(), flags, Ordering::Release);
        }
        descriptors
    }

    /// Publishes one by one. The record can describe one chain that is being published, not a batch: a device that is
    /// killed in the middle of a batch would leave used descriptors in the ring that the record does not have.
    fn publish_recorded(&mut self, place: &RingPlace) -> u16 {
        let mut descriptors: u16 = 0;
        for (id, written) in self.pushed.drain(..) {
            let at = self.used;
            self.used = at.advanced(id.descriptors, place.layout.size);
            let show = || {
                let flags = write_used(place, at, id, written);
                place.store_descriptor_u16(at.flags_at(), flags, Ordering::Release);
            };
            match &mut self.record {
                Some(record) => record.publish(id.entry, self.used, show),
                None => show(),
            }
            descriptors = descriptors.saturating_add(id.descriptors);
        }
        descriptors
    }

    pub(crate) fn disable_kicks(&self, place: &RingPlace) {
        place.store_device_u16(EVENT_FLAGS, RING_EVENT_FLAGS_DISABLE, Ordering::Relaxed);
    }

    pub(crate) fn enable_kicks(&self, place: &RingPlace) -> bool {
        if place.layout.event_idx {
            place.store_device_u16(EVENT_DESCRIPTOR, self.next.bits(), Ordering::Relaxed);
            place.store_device_u16(EVENT_FLAGS, RING_EVENT_FLAGS_DESC, Ordering::Release);
        } else {
            place.store_device_u16(EVENT_FLAGS, RING_EVENT_FLAGS_ENABLE, Ordering::Relaxed);
        }
        // Our wish first, then the flags of the next descriptor: see "Sleeping and waking" in `queue`.
        fence(Ordering::SeqCst);
        self.next.is_available(place.areas.descriptors.load_u16(self.next.flags_at(), Ordering::Relaxed))
    }

    pub(crate) fn base(&self) -> u32 {
        u32::from(self.next.bits()) | u32::from(self.used.bits()) << 16
    }

    pub(crate) fn set_inflight(&mut self, place: &RingPlace, queue: InflightQueue) -> Result<(), QueueError> {
        let ring = place.index;
        if self.in_flight > 0 || !self.pushed.is_empty() {
            return Err(QueueError::Inflight { ring, reason: "requests are in flight that it does not have" });
        }
        let (record, is_old) = PackedRecord::open(queue, ring, &place.layout, &place.areas.descriptors, self.used)?;
        if is_old {
            (self.in_flight, self.descriptors) = record.left();
            self.used = record.used();
            self.next = self.used.advanced(self.descriptors, place.layout.size);
        }
        self.record = Some(record);
        Ok(())
    }

    pub(crate) fn resubmit(&mut self, place: &RingPlace, chain: &mut Chain) -> Result<bool, QueueError> {
        let Some(record) = &mut self.record else { return Ok(false) };
        let Some(entry) = record.first_left() else { return Ok(false) };
        let mut id = ChainId { number: 0, descriptors: 0, entry };
        for descriptor in record.descriptors(entry) {
            add(place, entry, descriptor, id.descriptors == 0, chain)?;
            id = ChainId { number: descriptor.small[0], descriptors: id.descriptors + 1, entry };
        }
        chain.id = id;
        record.take_left();
        Ok(true)
    }

    #[cfg(feature = "testing")]
    pub(crate) const fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Adds the buffers of the next chain, and returns its id and how many descriptors it has.
    #[inline]
    fn walk(&self, place: &RingPlace, chain: &mut Chain) -> Result<(u16, u16), QueueError> {
        let (ring, size) = (place.index, place.layout.size);
        let head = self.next.index;
        let mut at = self.next;
        // A chain may take the descriptors that are neither in flight nor pushed and unpublished. The others belong to
        // the device until it has written used flags there, whatever their flags are now: a hostile driver can write
        // flags of this lap over them. If `next` ran into them, it would pass `used`, and a used descriptor would be
        // written over one that was never popped. The record has a bound of its own, because its entries become free
        // only when a chain is published.
        let room = self.record.as_ref().map_or(size, PackedRecord::room);
        let free = (size - self.descriptors.min(size)).min(room);
        // `pop` loaded the flags of the first descriptor with Acquire. That covers the whole chain, because a driver
        // makes the first descriptor available after it has written all others (section 2.8.6). So the others need no
        // Acquire, and one that is not available breaks this rule. Each is loaded once, since it may change at any
        // time.
        for count in 1..=free {
            let descriptor = Descriptor::load(&place.areas.descriptors, usize::from(at.index));
            let [id, flags] = descriptor.small;
            if !at.is_available(flags) {
                return Err(QueueError::Unfinished { ring, head });
            }
            chain.descriptors.push(descriptor);
            add(place, head, descriptor, count == 1, chain)?;
            if flags & NEXT == 0 {
                return Ok((id, count));
            }
            at = at.advanced(1, size);
        }
        Err(if free == size { QueueError::Endless { ring, head } } else { QueueError::AvailableTwice { ring, head } })
    }
}

/// Adds the buffer of a descriptor, or those of its table, which is a chain's only descriptor.
#[inline]
fn add(
    place: &RingPlace,
    head: u16,
    descriptor: Descriptor,
    is_first: bool,
    chain: &mut Chain,
) -> Result<(), QueueError> {
    let (ring, [_, flags]) = (place.index, descriptor.small);
    if flags & INDIRECT == 0 {
        return chain.add(ring, head, descriptor, flags & WRITE != 0);
    }
    if flags & NEXT != 0 || !is_first {
        return Err(QueueError::IndirectWithNext { ring });
    }
    add_table(place, head, descriptor, chain)
}

/// Adds the buffers of an indirect table: all of it, one after the other. Whether the device writes is all that counts of
/// their flags (section 2.8.7).
fn add_table(place: &RingPlace, head: u16, table: Descriptor, chain: &mut Chain) -> Result<(), QueueError> {
    let ring = place.index;
    if !place.layout.indirect {
        return Err(QueueError::IndirectNotNegotiated { ring });
    }
    let entries = chain.load_table(ring, table)?;
    for entry in 0..entries {
        let descriptor = chain.table_entry(entry);
        let [_, flags] = descriptor.small;
        chain.add(ring, head, descriptor, flags & WRITE != 0)?;
    }
    Ok(())
}

/// Writes length and id of a used descriptor, and returns its flags, which the caller stores. Until then the descriptor has
/// the driver's flags. They show a device that recovers that the chain was not published.
#[inline]
fn write_used(place: &RingPlace, at: Cursor, id: ChainId, written: u32) -> u16 {
    let start = usize::from(at.index) * DESCRIPTOR_BYTES;
    place.write_descriptor(start + 8, written.to_le());
    place.write_descriptor(start + 12, id.number.to_le());
    at.used() | if written > 0 { WRITE } else { 0 }
}
