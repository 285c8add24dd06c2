//! The driver's side of a split ring.

use std::sync::atomic::{Ordering, fence};

use super::{FLAGS, INDEX, VIRTQ_AVAIL_F_NO_INTERRUPT, VIRTQ_USED_F_NO_NOTIFY, available_entry, used_entry};
use crate::memory::Area;
use crate::queue::descriptor::{Descriptor, INDIRECT, NEXT};
use crate::queue::device::is_event_in;
use crate::queue::driver::{Buffer, DriverPlace, Fit, Request, TABLE_ENTRIES, Used, with_flags};
use crate::queue::error::QueueError;
use crate::queue::layout::DESCRIPTOR_BYTES;

/// The driver's side of a split ring: its private state.
#[derive(Debug)]
pub(in crate::queue) struct Driver {
    /// Of each descriptor, the next one that is free or in the same chain.
    next: Box<[u16]>,
    /// Of each descriptor, the request that begins there.
    requests: Box<[Request]>,
    /// The first free descriptor.
    free: u16,
    free_count: u16,
    outstanding: u16,
    /// The next available entry to write.
    available: u16,
    /// The available index that the device sees.
    published: u16,
    /// The next used entry to take.
    used: u16,
    /// Requests that were ever added, and that were ever published.
    numbers: u64,
    published_numbers: u64,
}

impl Driver {
    pub(crate) fn new(place: &DriverPlace) -> Self {
        let size = place.layout.size;
        Self {
            next: (1..=size).collect(),
            requests: vec![Request::default(); usize::from(size)].into_boxed_slice(),
            free: 0,
            free_count: size,
            outstanding: 0,
            available: 0,
            published: 0,
            used: 0,
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
        if fit.descriptors() > self.free_count {
            return Err(QueueError::Full { ring: place.index });
        }
        let head = self.free;
        let last = match (fit, &place.tables) {
            (Fit::Table, Some(tables)) => write_table(place, tables, head, readable, writable),
            _ => self.write_chain(place, head, readable, writable),
        };
        self.free = self.next[usize::from(last)];
        self.free_count -= fit.descriptors();
        self.requests[usize::from(head)] = Request::new(writable, token, fit.descriptors(), self.numbers);
        self.numbers += 1;
        self.outstanding += 1;
        let entry = available_entry(self.available & (place.layout.size - 1));
        place.areas.driver.store_u16(entry, head, Ordering::Relaxed);
        self.available = self.available.wrapping_add(1);
        Ok(())
    }

    #[inline]
    pub(crate) fn publish(&mut self, place: &DriverPlace) -> bool {
        if self.published == self.available {
            return false;
        }
        let old = self.published;
        // The index is what publishes: the device reads descriptors and entries only up to it, and loads it with Acquire. The
        // Release store orders all writes of `add` before it. With a relaxed store the processor or the compiler could make
        // the index visible first, and the device would take the descriptors of an older request for this one.
        place.areas.driver.store_u16(INDEX, self.available, Ordering::Release);
        self.published = self.available;
        self.published_numbers = self.numbers;
        // Index first, then the device's wish: see "Sleeping and waking" in `queue`.
        fence(Ordering::SeqCst);
        if place.layout.event_idx {
            let event = place.areas.device.load_u16(used_entry(place.layout.size), Ordering::Relaxed);
            is_event_in(event, self.available, old)
        } else {
            place.areas.device.load_u16(FLAGS, Ordering::Relaxed) & VIRTQ_USED_F_NO_NOTIFY == 0
        }
    }

    #[inline]
    pub(crate) fn take_used(&mut self, place: &DriverPlace) -> Result<Option<Used>, QueueError> {
        // Pairs with the Release store of the device's index: what the device wrote before it, to the used ring and to
        // buffers, is visible from here on.
        let to = place.areas.device.load_u16(INDEX, Ordering::Acquire);
        let ring = place.index;
        if to == self.used {
            return Ok(None);
        }
        // The device can have used at most what it has seen: what is outstanding, less what was added and not
        // published. The difference of free-running 16-bit indices is right also if they wrap, because a ring has at
        // most 32768 entries. A larger difference is wrong, or the index went back. To follow it would read entries of
        // the lap before as new.
        let outstanding = self.outstanding - self.available.wrapping_sub(self.published);
        if to.wrapping_sub(self.used) > outstanding {
            return Err(QueueError::UsedJump { ring, from: self.used, to, outstanding });
        }
        let entry = used_entry(self.used & (place.layout.size - 1));
        let bits = u64::from_le(place.areas.device.read(entry));
        let (id, written) = (bits as u32, (bits >> 32) as u32);
        let unknown = QueueError::UnknownId { ring, id };
        let head = u16::try_from(id).ok().filter(|head| *head < place.layout.size).ok_or(unknown)?;
        let request = &mut self.requests[usize::from(head)];
        let descriptors = request.descriptors;
        let used = request.take(ring, head, written, self.published_numbers)?;
        self.free_chain(head, descriptors);
        self.used = self.used.wrapping_add(1);
        self.outstanding -= 1;
        Ok(Some(used))
    }

    pub(crate) fn enable_calls(&self, place: &DriverPlace) -> bool {
        let (at, value) =
            if place.layout.event_idx { (available_entry(place.layout.size), self.used) } else { (FLAGS, 0) };
        place.areas.driver.store_u16(at, value, Ordering::Relaxed);
        // Our wish first, then the device's index: see "Sleeping and waking" in `queue`.
        fence(Ordering::SeqCst);
        place.areas.device.load_u16(INDEX, Ordering::Relaxed) != self.used
    }

    pub(crate) fn disable_calls(&self, place: &DriverPlace) {
        // With EVENT_IDX there is nothing to do: the device calls once when it passes `used_event`, and not again.
        if !place.layout.event_idx {
            place.areas.driver.store_u16(FLAGS, VIRTQ_AVAIL_F_NO_INTERRUPT, Ordering::Relaxed);
        }
    }

    pub(crate) fn base(&self, place: &DriverPlace) -> u32 {
        place.areas.device.load_u16(INDEX, Ordering::Relaxed).into()
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

    /// Writes a chain of free descriptors from `head` on, and returns the last one.
    #[inline]
    fn write_chain(&self, place: &DriverPlace, head: u16, readable: &[Buffer], writable: &[Buffer]) -> u16 {
        let mut left = readable.len() + writable.len();
        let (mut index, mut last) = (head, head);
        for (buffer, flags) in with_flags(readable, writable) {
            left -= 1;
            let next = self.next[usize::from(index)];
            let (flags, link) = if left > 0 { (flags | NEXT, next) } else { (flags, 0) };
            Descriptor::split(buffer.guest_address, buffer.bytes, flags, link)
                .store(&place.areas.descriptors, usize::from(index));
            (last, index) = (index, next);
        }
        last
    }

    /// Frees a chain of as many descriptors as were taken for it.
    #[inline]
    fn free_chain(&mut self, head: u16, descriptors: u16) {
        let last = (1..descriptors).fold(head, |index, _| self.next[usize::from(index)]);
        self.next[usize::from(last)] = self.free;
        self.free = head;
        self.free_count += descriptors;
    }
}

/// Writes the table of `head`. The chain ends with it, so `head` is returned.
#[inline]
fn write_table(place: &DriverPlace, tables: &Area, head: u16, readable: &[Buffer], writable: &[Buffer]) -> u16 {
    let first = usize::from(head) * TABLE_ENTRIES;
    let buffers = readable.len() + writable.len();
    let mut next = 0;
    for (buffer, flags) in with_flags(readable, writable) {
        let at = first + usize::from(next);
        next += 1;
        let (flags, link) = if usize::from(next) < buffers { (flags | NEXT, next) } else { (flags, 0) };
        Descriptor::split(buffer.guest_address, buffer.bytes, flags, link).store(tables, at);
    }
    let address = tables.guest_address() + (first * DESCRIPTOR_BYTES) as u64;
    let bytes = u32::from(next) * DESCRIPTOR_BYTES as u32;
    Descriptor::split(address, bytes, INDIRECT, 0).store(&place.areas.descriptors, usize::from(head));
    head
}
