//! One request, as the device finds it: the buffers it may read, then those it may write.

use super::descriptor::Descriptor;
use super::error::QueueError;
use super::layout::DESCRIPTOR_BYTES;
use crate::memory::{DirtyLog, GuestMemory, Span};

/// What a chain is given back by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ChainId {
    /// Its first descriptor, or the buffer's id in a packed ring.
    pub(super) number: u16,
    /// Descriptors of the ring that it takes.
    pub(super) descriptors: u16,
    /// Its entry in a packed ring's inflight region, or [`NO_ENTRY`].
    pub(super) entry: u16,
}

/// No inflight region has so many.
pub(super) const NO_ENTRY: u16 = u16::MAX;

impl ChainId {
    /// The id of a chain that was not popped, for a mock that returns a wrong one on purpose.
    pub const fn forged(number: u16, descriptors: u16) -> Self {
        Self { number, descriptors, entry: NO_ENTRY }
    }

    /// The chain's first descriptor, or the buffer's id in a packed ring.
    pub const fn number(self) -> u16 {
        self.number
    }

    /// How many descriptors of the ring it takes: 1 for a table.
    pub const fn descriptors(self) -> u16 {
        self.descriptors
    }
}

/// One request. It is filled by [`DeviceRing::pop`](super::DeviceRing::pop) and is to be used again, so that its lists
/// are allocated once. It keeps the memory of its buffers alive.
#[derive(Debug, Default)]
pub struct Chain {
    pub(super) id: ChainId,
    memory: GuestMemory,
    readable: Vec<Span>,
    writable: Vec<Span>,
    readable_bytes: u64,
    writable_bytes: u64,
    has_writable: bool,
    buffers: usize,
    /// The descriptors of a packed ring that it was made of.
    pub(super) descriptors: Vec<Descriptor>,
    table: Vec<u8>,
    table_spans: Vec<Span>,
}

/// A chain's bytes at most (section 2.7.5).
const BYTES_MAX: u64 = 1 << 32;
/// A chain's buffers at most, in a ring or a table of whatever size: a device may have such a bound (section 2.7.4.1), and
/// this is QEMU's. Drivers, Linux's among them, make tables that are longer than their ring.
const BUFFERS_MAX: usize = 1024;
/// A chain's spans at most: some buffers may cross the borders of regions, but not each may cross all.
const SPANS_MAX: usize = 2 * BUFFERS_MAX;

impl Chain {
    /// A chain of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// What it is given back by.
    pub const fn id(&self) -> ChainId {
        self.id
    }

    /// The memory of its buffers.
    pub(crate) const fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// What the device may read, in order.
    pub fn readable(&self) -> &[Span] {
        &self.readable
    }

    /// What the device may write, in order.
    pub fn writable(&self) -> &[Span] {
        &self.writable
    }

    /// How many bytes the device may read.
    pub const fn readable_bytes(&self) -> u64 {
        self.readable_bytes
    }

    /// How many bytes the device may write.
    pub const fn writable_bytes(&self) -> u64 {
        self.writable_bytes
    }

    /// The spans of so many readable bytes from an offset on, as far as the chain has them.
    pub(crate) fn readable_part(&self, offset: u64, bytes: u64) -> impl Iterator<Item = Span> + '_ {
        part(&self.readable, offset, bytes)
    }

    /// The spans of so many writable bytes from an offset on, as far as the chain has them.
    pub fn writable_part(&self, offset: u64, bytes: u64) -> impl Iterator<Item = Span> + '_ {
        part(&self.writable, offset, bytes)
    }

    /// Copies what is to be read from an offset on, and returns how much that was.
    pub fn read_into(&self, offset: u64, to: &mut [u8]) -> usize {
        let mut done = 0;
        for span in self.readable_part(offset, to.len() as u64) {
            let Ok(slice) = self.memory.slice(span) else { break };
            done += slice.copy_to(&mut to[done..]);
        }
        done
    }

    /// Copies to what is to be written from an offset on, and returns how much had room.
    pub fn write_from(&self, offset: u64, from: &[u8]) -> usize {
        let mut done = 0;
        for span in self.writable_part(offset, from.len() as u64) {
            let Ok(slice) = self.memory.slice(span) else { break };
            slice.copy_from(&from[done..]);
            done += span.bytes();
        }
        done
    }

    /// Forgets what it held; what it allocated stays.
    pub(super) fn begin(&mut self, memory: &GuestMemory) {
        if !self.memory.is_same(memory) {
            self.memory = memory.clone();
        }
        self.id = ChainId::default();
        self.readable.clear();
        self.writable.clear();
        self.descriptors.clear();
        self.readable_bytes = 0;
        self.writable_bytes = 0;
        self.has_writable = false;
        self.buffers = 0;
    }

    /// Adds a buffer of the chain that begins at `head`.
    #[inline]
    pub(super) fn add(
        &mut self,
        ring: u32,
        head: u16,
        descriptor: Descriptor,
        is_writable: bool,
    ) -> Result<(), QueueError> {
        let Descriptor { address, bytes, .. } = descriptor;
        if self.has_writable && !is_writable {
            return Err(QueueError::ReadableBehindWritable { ring, head });
        }
        if self.readable_bytes + self.writable_bytes + u64::from(bytes) > BYTES_MAX {
            return Err(QueueError::TooLong { ring, head });
        }
        self.has_writable = is_writable;
        self.buffers += 1;
        if self.buffers > BUFFERS_MAX || self.readable.len() + self.writable.len() > SPANS_MAX {
            return Err(QueueError::TooManyBuffers { ring, head, max: BUFFERS_MAX });
        }
        let (spans, total) = if is_writable {
            (&mut self.writable, &mut self.writable_bytes)
        } else {
            (&mut self.readable, &mut self.readable_bytes)
        };
        *total += u64::from(bytes);
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        let pushed = self.memory.push_guest(address, length, spans);
        pushed.map_err(|_| QueueError::BufferOutside { ring, address, bytes })
    }

    /// Copies an indirect table, so that it is read once, and returns how many descriptors it has.
    pub(super) fn load_table(&mut self, ring: u32, descriptor: Descriptor) -> Result<usize, QueueError> {
        let Descriptor { address, bytes, .. } = descriptor;
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        let entries = length / DESCRIPTOR_BYTES;
        if !length.is_multiple_of(DESCRIPTOR_BYTES) || entries == 0 || entries > BUFFERS_MAX {
            return Err(QueueError::IndirectSize { ring, bytes, max: BUFFERS_MAX });
        }
        self.table_spans.clear();
        let outside = |_| QueueError::BufferOutside { ring, address, bytes };
        self.memory.push_guest(address, length, &mut self.table_spans).map_err(outside)?;
        self.table.resize(length, 0);
        let mut done = 0;
        for span in &self.table_spans {
            done += self.memory.slice(*span).map_err(outside)?.copy_to(&mut self.table[done..]);
        }
        Ok(entries)
    }

    /// An entry of the table that was copied last.
    #[inline]
    pub(super) fn table_entry(&self, index: usize) -> Descriptor {
        let at = index * DESCRIPTOR_BYTES;
        let bytes = self.table[at..at + DESCRIPTOR_BYTES].try_into().expect("is as long as a descriptor");
        Descriptor::from_bytes(bytes)
    }

    /// Marks all that the device may have written. It is more than the used length: too much costs the copy of a page,
    /// too little loses one.
    pub(super) fn mark(&self, log: &DirtyLog) {
        for span in &self.writable {
            log.mark(self.memory.guest_address(*span), span.bytes() as u64);
        }
    }
}

fn part(spans: &[Span], offset: u64, bytes: u64) -> impl Iterator<Item = Span> + '_ {
    let (mut skip, mut left) = (offset, bytes);
    spans.iter().filter_map(move |span| {
        let length = span.bytes() as u64;
        if skip >= length || left == 0 {
            skip = skip.saturating_sub(length);
            return None;
        }
        let here = left.min(length - skip);
        // Both are at most the span's length, which is a `usize`.
        let piece = span.part(usize::try_from(skip).ok()?, usize::try_from(here).ok()?);
        (skip, left) = (0, left - here);
        Some(piece)
    })
}
