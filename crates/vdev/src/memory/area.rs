//! A piece of guest memory that is held for long, such as a ring.
//!
//! Its numbers are little-endian (VIRTIO 1.x) and may change at any time, so each is loaded once and used only after
//! it was checked. An access beyond the area is a bug of ours and panics: indices are computed from ring sizes, never
//! from what is in the ring.
//!
//! # Why accesses are volatile
//! The other side is a process that may write any byte at any moment, and need not follow the rules of a ring. With
//! ordinary loads the compiler may assume that no other thread writes: it could load a length a second time after the
//! check instead of keeping it in a register, and the second value would be unchecked. A volatile load happens exactly
//! once. Above 8 bytes (a descriptor has 16) `vm_memory` copies the value with `memcpy` instead, into a local that its
//! caller then works on. Neither gives ordering, and the halves of a descriptor may come from two writes of the other
//! side. That does no harm. With a driver that follows the rules, descriptors do not change while the device may read
//! them, and the Acquire load of an index or of flags ([`load_u16`](Area::load_u16)) orders all of them. With another
//! driver every mixture is only one more wrong value, and each field is checked on its own. The values themselves
//! never become references into the memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{ByteValued, Bytes as _, VolatileSlice};

use super::error::MemoryError;
use super::region::Region;

/// A piece of guest memory that is held for long.
#[derive(Debug, Clone)]
pub struct Area {
    region: Arc<Region>,
    offset: usize,
    bytes: usize,
}

const INSIDE: &str = "an area is asked only for what is in it";

impl Area {
    pub(super) const fn new(region: Arc<Region>, offset: usize, bytes: usize) -> Self {
        Self { region, offset, bytes }
    }

    /// How many bytes it has.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its first byte's user address.
    pub(crate) fn user_address(&self) -> u64 {
        self.region.description().user_address.wrapping_add(self.offset as u64)
    }

    /// Its first byte's guest address.
    pub fn guest_address(&self) -> u64 {
        self.region.description().guest_address.wrapping_add(self.offset as u64)
    }

    /// Whether the peer has truncated the area's file.
    pub(crate) fn is_cut(&self) -> bool {
        self.region.is_cut()
    }

    /// Refuses an area that does not begin at a multiple of `alignment` in this process.
    ///
    /// # Errors
    /// If it does not.
    pub(crate) fn check_alignment(&self, alignment: u64) -> Result<(), MemoryError> {
        let start = self.slice(0, 0).ptr_guard().as_ptr() as u64;
        if start.is_multiple_of(alignment) && self.user_address().is_multiple_of(alignment) {
            return Ok(());
        }
        Err(MemoryError::Unaligned { address: self.user_address(), alignment })
    }

    /// Some of its bytes.
    ///
    /// # Panics
    /// If they are not in it.
    pub fn slice(&self, at: usize, bytes: usize) -> VolatileSlice<'_> {
        assert!(at <= self.bytes && bytes <= self.bytes - at, "{INSIDE}");
        self.region.slice(self.offset + at, bytes).expect(INSIDE)
    }

    /// A value at this place, as it is now; not atomic if it is larger than 8 bytes.
    ///
    /// # Panics
    /// If it is not in the area.
    #[inline]
    pub fn read<T: ByteValued>(&self, at: usize) -> T {
        self.slice(at, size_of::<T>()).read_obj(0).expect(INSIDE)
    }

    /// Puts a value at this place.
    ///
    /// # Panics
    /// If it is not in the area.
    #[inline]
    pub fn write<T: ByteValued>(&self, at: usize, value: T) {
        self.slice(at, size_of::<T>()).write_obj(value, 0).expect(INSIDE);
    }

    /// Two bytes that both sides use as a signal.
    ///
    /// # Panics
    /// If they are not in the area, or not aligned.
    #[inline]
    pub(crate) fn load_u16(&self, at: usize, order: Ordering) -> u16 {
        u16::from_le(self.slice(at, 2).load(0, order).expect(INSIDE))
    }

    /// Puts two bytes that both sides use to tell each other something.
    ///
    /// # Panics
    /// If they are not in the area, or not aligned.
    #[inline]
    pub fn store_u16(&self, at: usize, value: u16, order: Ordering) {
        self.slice(at, 2).store(value.to_le(), 0, order).expect(INSIDE);
    }
}
