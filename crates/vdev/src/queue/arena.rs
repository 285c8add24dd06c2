//! Guest memory of our own, handed out from its start on: for rings, tables and buffers of a driver without a guest.

use std::sync::Arc;

use super::error::QueueError;
use crate::memory::{Area, GuestMemory, MemoryError, Region, SharedFile};

/// Guest memory of our own.
#[derive(Debug)]
pub struct Arena {
    memory: GuestMemory,
    used: u64,
}

impl Arena {
    /// So much memory of zeros at this guest address, and the file to share it by.
    ///
    /// # Errors
    /// If the system has no room for it.
    pub fn new(guest_address: u64, bytes: u64) -> Result<(Self, SharedFile), MemoryError> {
        let (region, file) = Region::create(guest_address, bytes)?;
        let memory = GuestMemory::new(vec![Arc::new(region)])?;
        Ok((Self { memory, used: 0 }, file))
    }

    /// The next so many bytes, at a multiple of `alignment`, which is a power of two.
    ///
    /// # Errors
    /// If there are too few left.
    pub fn allocate(&mut self, bytes: usize, alignment: u64) -> Result<Area, QueueError> {
        let description = *self.region().description();
        let full = || QueueError::ArenaFull { bytes, left: description.size - self.used };
        let address =
            (description.guest_address + self.used).checked_next_multiple_of(alignment.max(1)).ok_or_else(full)?;
        let span = self.memory.at_guest(address, bytes).map_err(|_| full())?;
        let area = self.memory.area(span).map_err(|_| full())?;
        self.used = address - description.guest_address + bytes as u64;
        Ok(area)
    }

    /// The memory as one region.
    pub fn region(&self) -> &Arc<Region> {
        &self.memory.regions()[0]
    }

    /// The memory as a guest has it.
    #[cfg(feature = "testing")]
    pub const fn memory(&self) -> &GuestMemory {
        &self.memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_apart_and_end() {
        let (mut arena, _file) = Arena::new(0x1000, 0x100).expect("memory");
        let first = arena.allocate(3, 1).expect("has room");
        let second = arena.allocate(0x20, 0x10).expect("has room");
        assert_eq!((first.guest_address(), second.guest_address()), (0x1000, 0x1010));
        assert_eq!(
            arena.allocate(0x100, 1).expect_err("is too much"),
            QueueError::ArenaFull { bytes: 0x100, left: 0xd0 }
        );
        assert_eq!(arena.allocate(0xd0, 1).expect("is the rest").bytes(), 0xd0);
        assert!(arena.allocate(1, 1).is_err());
    }
}
