//! The memory that records requests, and the part of each queue in it.

use std::sync::Arc;

use crate::memory::{Area, ByteValued, GuestMemory, MemoryError, Region, SharedFile};
use crate::protocol::{Inflight, MemoryRegion};
use crate::queue::crash;
use crate::queue::error::QueueError;
use crate::queue::layout::{RingKind, RingLayout};

/// Rings that a device can have: their numbers are 8 bits in `SET_VRING_KICK`.
const QUEUES_MAX: u16 = 256;
/// Queues begin at multiples of this, in all backends.
const QUEUE_ALIGNMENT: usize = 64;
/// The version of the layout; 0 is a region that no backend has used.
pub(super) const VERSION: u16 = 1;

/// What both kinds of a queue's part begin with: features, then these.
pub(super) const VERSION_AT: usize = 8;
pub(super) const ENTRIES_AT: usize = 10;
const SPLIT_HEADER_BYTES: usize = 16;
const SPLIT_ENTRY_BYTES: usize = 16;
const PACKED_HEADER_BYTES: usize = 32;
const PACKED_ENTRY_BYTES: usize = 32;

/// The memory in which requests under way are recorded, of all queues.
#[derive(Debug)]
pub struct InflightRegion {
    kind: RingKind,
    description: Inflight,
    memory: GuestMemory,
}

/// The part of one queue.
#[derive(Debug)]
pub struct InflightQueue {
    kind: RingKind,
    pub(super) size: u16,
    area: Area,
}

impl InflightRegion {
    /// New memory for so many queues of this size, and the file to share it by: the answer to `GET_INFLIGHT_FD`.
    ///
    /// # Errors
    /// If there are no such queues, or the system has no room.
    pub fn create(kind: RingKind, queues: u16, size: u16) -> Result<(Self, SharedFile), QueueError> {
        let mmap_size = check_shape(kind, queues, size)?;
        let failed = |error: MemoryError| refused(queues, size, &error.to_string());
        let file = SharedFile::new(mmap_size).map_err(failed)?;
        let description = Inflight { mmap_size, mmap_offset: 0, num_queues: queues, queue_size: size };
        let region = Self::map(kind, &description, file.try_clone().map_err(failed)?)?;
        Ok((region, file))
    }

    /// Maps what `SET_INFLIGHT_FD` brings.
    ///
    /// # Errors
    /// If it does not hold what it should.
    pub(crate) fn map(kind: RingKind, description: &Inflight, file: SharedFile) -> Result<Self, QueueError> {
        let Inflight { mmap_size, mmap_offset, num_queues: queues, queue_size: size } = *description;
        let needed = check_shape(kind, queues, size)?;
        if mmap_size < needed {
            return Err(refused(queues, size, &format!("it has {mmap_size} bytes, not {needed}")));
        }
        let place = MemoryRegion { guest_address: 0, size: mmap_size, user_address: 0, mmap_offset };
        let region = Region::map(place, file);
        let memory = region.and_then(|region| GuestMemory::new(vec![Arc::new(region)]));
        let memory = memory.map_err(|error| refused(queues, size, &error.to_string()))?;
        Ok(Self { kind, description: *description, memory })
    }

    /// Its description for the other side.
    pub(crate) const fn description(&self) -> &Inflight {
        &self.description
    }

    /// The part of a queue.
    ///
    /// # Errors
    /// If it has no part for it.
    pub fn queue(&self, index: u16) -> Result<InflightQueue, QueueError> {
        let Inflight { num_queues: queues, queue_size: size, .. } = self.description;
        if index >= queues {
            return Err(refused(queues, size, &format!("it has no record for ring {index}")));
        }
        let bytes = queue_bytes(self.kind, size);
        let start = usize::from(index) * bytes;
        let failed = |error: MemoryError| refused(queues, size, &error.to_string());
        let span = self.memory.at_guest(start as u64, bytes).map_err(failed)?;
        let area = self.memory.area(span).map_err(failed)?;
        area.check_alignment(8).map_err(failed)?;
        Ok(InflightQueue { kind: self.kind, size, area })
    }
}

impl InflightQueue {
    /// The entries of requests that are recorded as under way, for tests that watch a backend. In a split ring
    /// an entry is the request's first descriptor.
    pub(super) fn recorded(&self) -> impl Iterator<Item = u16> + '_ {
        (0..self.size).filter(|entry| self.read::<u8>(self.entry(*entry)) != 0)
    }

    /// Its bytes, for tests that write wrong ones on purpose.
    #[cfg(feature = "testing")]
    pub const fn area(&self) -> &Area {
        &self.area
    }

    /// Where an entry begins.
    pub(super) fn entry(&self, index: u16) -> usize {
        let (header, entry) = shape(self.kind);
        header + usize::from(index) * entry
    }

    pub(super) fn read<T: ByteValued>(&self, at: usize) -> T {
        self.area.read(at)
    }

    pub(super) fn write<T: ByteValued>(&self, at: usize, value: T) {
        self.area.write(at, value);
        crash::point();
    }

    /// Whether a backend before has used it: whether there is anything to recover.
    pub(super) fn check(&self, ring: u32, layout: &RingLayout) -> Result<bool, QueueError> {
        let wrong = |reason| QueueError::Inflight { ring, reason };
        if self.area.is_cut() {
            return Err(QueueError::Cut { ring });
        }
        if self.kind != layout.kind {
            return Err(wrong("it is for the other ring layout"));
        }
        if self.size < layout.size {
            return Err(wrong("it has fewer entries than the ring"));
        }
        match (self.read::<u16>(VERSION_AT), self.read::<u16>(ENTRIES_AT)) {
            (0, _) => Ok(false),
            (VERSION, entries) if entries == self.size => Ok(true),
            (VERSION, _) => Err(wrong("it records another number of entries")),
            _ => Err(wrong("it has an unknown version")),
        }
    }
}

/// The bytes of so many queues.
fn check_shape(kind: RingKind, queues: u16, size: u16) -> Result<u64, QueueError> {
    let layout = RingLayout { kind, size, event_idx: false, indirect: false };
    if layout.check(0).is_err() || !(1..=QUEUES_MAX).contains(&queues) {
        return Err(refused(queues, size, "there are no such rings"));
    }
    Ok(queue_bytes(kind, size) as u64 * u64::from(queues))
}

fn queue_bytes(kind: RingKind, size: u16) -> usize {
    let (header, entry) = shape(kind);
    (header + usize::from(size) * entry).next_multiple_of(QUEUE_ALIGNMENT)
}

const fn shape(kind: RingKind) -> (usize, usize) {
    match kind {
        RingKind::Split => (SPLIT_HEADER_BYTES, SPLIT_ENTRY_BYTES),
        RingKind::Packed => (PACKED_HEADER_BYTES, PACKED_ENTRY_BYTES),
    }
}

fn refused(queues: u16, size: u16, reason: &str) -> QueueError {
    QueueError::InflightRegion { queues, size, reason: reason.to_owned() }
}
