//! The driver's side of a packed ring.

use std::sync::atomic::{Ordering, fence};

use super::cursor::{
    Cursor, EVENT_DESCRIPTOR, EVENT_FLAGS, RING_EVENT_FLAGS_DESC, RING_EVENT_FLAGS_DISABLE, RING_EVENT_FLAGS_ENABLE,
    is_wanted,
};
use crate::memory::Area;
use crate::queue::descriptor::{Descriptor, INDIRECT, NEXT, WRITE};
use crate::queue::driver::{Buffer, DriverPlace, Fit, Request, TABLE_ENTRIES, Used, with_flags};
use crate::queue::error::QueueError;
use crate::queue::layout::DESCRIPTOR_BYTES;

/// The driver's side of a packed ring: its private state.
#[derive(Debug)]
pub(in crate::queue) struct Driver {
    /// Ids that no request has.
    ids: Vec<u16>,
    /// Of each id, the request that has it.
    requests: Box<[Request]>,
    free_count: u16,
    outstanding: u16,
    /// The next descriptor to write.
    next: Cursor,
    /// The next used descriptor.
    used: Cursor,
    /// The first descriptor that was written and is not published, with its flags.
    first: Option<(Cursor, u16)>,
    /// Descriptors that are not published.
    unpublished: u16,
    /// Requests that were ever added, and that were ever published.
    numbers: u64,
    published_numbers: u64,
}

impl Driver {
    pub(crate) fn new(place: &DriverPlace) -> Self {
        let size = place.layout.size;
        Self {
            ids: (0..size).rev().collect(),
            requests: vec![Request::default(); usize::from(size)].into_boxed_slice(),
            free_count: size,
            outstanding: 0,
            next: Cursor::START,
            used: Cursor::START,
            first: None,
            unpublished: 0,
            numbers: 0,
            published_numbers: 0,
        }
    }

    #[inline]
    pub(crate) fn add(
        &mut self,
        place: &DriverPlace,
        readable: &[Buffer],
        writable: &[Buffer],
        token: u64,
    ) -> Result<(), QueueError> {
        let fit = place.fit(readable, writable)?;
        let descriptors = fit.descriptors();
        let full = QueueError::Full { ring: place.index };
        if descriptors > self.free_count {
            return Err(full);
        }
        let id = self.ids.pop().ok_or(full)?;
        match (fit, &place.tables) {
            (Fit::Table, Some(tables)) => {
                let table = write_table(tables, id, readable, writable);
                self.write(place, table, id, INDIRECT);
            }
            _ => {
                let mut left = descriptors;
                for (buffer, flags) in with_flags(readable, writable) {
                    left -= 1;
                    let flags = flags | if left > 0 { NEXT } else { 0 };
                    self.write(place, *buffer, id, flags);
                }
            }
        }
        self.requests[usize::from(id)] = Request::new(writable, token, descriptors, self.numbers);
        self.numbers += 1;
        self.outstanding += 1;
        self.free_count -= descriptors;
        self.unpublished += descriptors;
        Ok(())
    }

    #[inline]
    pub(crate) fn publish(&mut self, place: &DriverPlace) -> bool {
        let Some((first, flags)) = self.first.take() else { return false };
        // The device reads descriptors in order and stops at the first one that is not available. So the flags of the first
        // descriptor of a batch publish the whole batch. They are stored last and with Release: all that was written
        // behind the first descriptor is visible before it is.
        place.areas.descriptors.store_u16(first.flags_at(), flags, Ordering::Release);
        self.published_numbers = self.numbers;
        let descriptors = std::mem::take(&mut self.unpublished);
        is_wanted(&place.areas.device, &place.layout, self.next, descriptors)
    }

    #[inline]
    pub(crate) fn take_used(&mut self, place: &DriverPlace) -> Result<Option<Used>, QueueError> {
        // Pairs with the Release store of the device's flags: what the device wrote before them, to the ring and to buffers,
        // is visible from here on.
        let flags = place.areas.descriptors.load_u16(self.used.flags_at(), Ordering::Acquire);
        if !self.used.is_used(flags) {
            return Ok(None);
        }
        let ring = place.index;
        let descriptor = Descriptor::load(&place.areas.descriptors, usize::from(self.used.index));
        let [id, _] = descriptor.small;
        // The length of what was not written means nothing.
        let written = if flags & WRITE == 0 { 0 } else { descriptor.bytes };
        let unknown = QueueError::UnknownId { ring, id: id.into() };
        let request = self.requests.get_mut(usize::from(id)).ok_or(unknown)?;
        let descriptors = request.descriptors;
        let used = request.take(ring, id, written, self.published_numbers)?;
        self.ids.push(id);
        self.free_count += descriptors;
        self.outstanding -= 1;
        self.used = self.used.advanced(descriptors, place.layout.size);
        Ok(Some(used))
    }

    pub(crate) fn enable_calls(&self, place: &DriverPlace) -> bool {
        let area = &place.areas.driver;
        if place.layout.event_idx {
            area.store_u16(EVENT_DESCRIPTOR, self.used.bits(), Ordering::Relaxed);
            area.store_u16(EVENT_FLAGS, RING_EVENT_FLAGS_DESC, Ordering::Release);
        } else {
            area.store_u16(EVENT_FLAGS, RING_EVENT_FLAGS_ENABLE, Ordering::Relaxed);
        }
        // Our wish first, then the flags of the next used descriptor: see "Sleeping and waking" in `queue`. The Release
        // store above keeps the flags behind the descriptor that they are about: a device that reads DESC also reads it.
        fence(Ordering::SeqCst);
        self.used.is_used(place.areas.descriptors.load_u16(self.used.flags_at(), Ordering::Relaxed))
    }

    pub(crate) fn disable_calls(&self, place: &DriverPlace) {
        place.areas.driver.store_u16(EVENT_FLAGS, RING_EVENT_FLAGS_DISABLE, Ordering::Relaxed);
    }

    /// Behind the last descriptor that was used, taken or not.
    ///
    /// No index in memory has this place: it follows from the descriptors. A device that dies may have used more than
    /// this side has taken, so the walk continues from the next one to take. It advances by the length of the request
    /// that the id names, because a device writes one used descriptor for a whole chain and leaves the rest as it was.
    /// The walk ends at the first descriptor that is not used in the lap of the cursor, at an unknown id, or after as
    /// many requests as are outstanding: a device that wrote used flags everywhere must not make it endless. A
    /// device without a record takes all that is behind this place for available, so it is both halves of the base.
    pub(crate) fn base(&self, place: &DriverPlace) -> u32 {
        let descriptors = &place.areas.descriptors;
        let mut at = self.used;
        for _ in 0..self.outstanding {
            if !at.is_used(descriptors.load_u16(at.flags_at(), Ordering::Acquire)) {
                break;
            }
            let [id, _] = Descriptor::load(descriptors, usize::from(at.index)).small;
            let Some(request) = self.requests.get(usize::from(id)) else { break };
            at = at.advanced(request.descriptors, place.layout.size);
        }
        u32::from(at.bits()) | u32::from(at.bits()) << 16
    }

    pub(crate) const fn outstanding(&self) -> u16 {
        self.outstanding
    }

    #[cfg(feature = "testing")]
    pub(crate) const fn free_descriptors(&self) -> u16 {
        self.free_count
    }

    #[cfg(feature = "testing")]
    pub(crate) fn requests(&self) -> &[Request] {
        &self.requests
    }

    /// Writes the next descriptor. The first one after a publish stays hidden, and hides the rest.
    #[inline]
    fn write(&mut self, place: &DriverPlace, buffer: Buffer, id: u16, flags: u16) {
        let at = self.next;
        let available = flags | at.available();
        let visible = if self.first.is_some() { available } else { flags | at.untouched() };
        self.first.get_or_insert((at, available));
        Descriptor::packed(buffer.guest_address, buffer.bytes, id, visible)
            .store(&place.areas.descriptors, usize::from(at.index));
        self.next = at.advanced(1, place.layout.size);
    }
}

/// Writes the table of the request `id`, and returns where it is.
#[inline]
fn write_table(tables: &Area, id: u16, readable: &[Buffer], writable: &[Buffer]) -> Buffer {
    let first = usize::from(id) * TABLE_ENTRIES;
    let mut entries = 0;
    for (buffer, flags) in with_flags(readable, writable) {
        Descriptor::packed(buffer.guest_address, buffer.bytes, 0, flags).store(tables, first + entries);
        entries += 1;
    }
    let guest_address = tables.guest_address() + (first * DESCRIPTOR_BYTES) as u64;
    Buffer { guest_address, bytes: (entries * DESCRIPTOR_BYTES) as u32 }
}
