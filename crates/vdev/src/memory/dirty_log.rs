//! Which pages of guest memory a backend has written ("Migration" in the specification): one bit for each page, in memory
//! that both sides share and change at once.

use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::volatile_memory::VolatileMemory as _;

use super::error::MemoryError;
use super::region::{Region, SharedFile};
use crate::protocol::{Log, MemoryRegion};

/// What one bit stands for.
pub(super) const DIRTY_PAGE_BYTES: u64 = 4096;

/// The dirty log, as one side has it.
#[derive(Debug)]
pub struct DirtyLog {
    bits: Region,
}

impl DirtyLog {
    /// Maps the log that a frontend has sent.
    ///
    /// # Errors
    /// If its file does not hold it.
    pub(crate) fn map(log: &Log, file: SharedFile) -> Result<Self, MemoryError> {
        let region = MemoryRegion { guest_address: 0, size: log.size, user_address: 0, mmap_offset: log.offset };
        Region::map(region, file).map(|bits| Self { bits })
    }

    /// A new log for guest memory up to this address, and the file to share it by.
    ///
    /// # Errors
    /// If the system has no room for it.
    pub fn create(guest_end: u64) -> Result<(Self, Log, SharedFile), MemoryError> {
        let size = guest_end.div_ceil(DIRTY_PAGE_BYTES * 8).max(1).next_multiple_of(4096);
        let (bits, file) = Region::create(0, size)?;
        Ok((Self { bits }, Log { size, offset: 0 }, file))
    }

    /// Marks the pages of a write. Pages beyond the log are ignored.
    ///
    /// A write is marked after it was made, never before. The frontend takes bits and copies their pages while this
    /// side writes. If a bit were set first, the frontend could take it and copy the page before the write, and no bit
    /// would be left for the new bytes: the guest would run on with old ones after the migration. Set afterwards, the
    /// bit is either seen together with the write (Release here, Acquire in [`take`](Self::take)), or is left for the
    /// next round, which copies the page again. A page may be copied once too often, never once too few.
    ///
    /// The bit is set by one atomic operation on its byte. Seven other pages share the byte, and threads of other
    /// queues mark them at the same time, while the frontend clears it: a load and a store would lose their bits or
    /// bring back old ones.
    pub(crate) fn mark(&self, guest_address: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let last = guest_address.saturating_add(bytes - 1) / DIRTY_PAGE_BYTES;
        for page in guest_address / DIRTY_PAGE_BYTES..=last {
            if self.with_byte(page, |byte| byte.fetch_or(1 << (page % 8), Ordering::Release)).is_none() {
                return;
            }
        }
    }

    /// Whether a page was written since the log was last cleared there.
    pub(crate) fn is_dirty(&self, guest_address: u64) -> bool {
        let page = guest_address / DIRTY_PAGE_BYTES;
        self.with_byte(page, |byte| byte.load(Ordering::Acquire) >> (page % 8) & 1 == 1).unwrap_or(false)
    }

    /// The guest addresses of all pages that were written, and clears them.
    pub fn take(&self) -> Vec<u64> {
        let mut dirty = Vec::new();
        let pages = self.bits.description().size.saturating_mul(8);
        for first in (0..pages).step_by(8) {
            let Some(bits) = self.with_byte(first, |byte| byte.swap(0, Ordering::AcqRel)) else { break };
            dirty.extend((0..8).filter(|bit| bits >> bit & 1 == 1).map(|bit| (first + bit) * DIRTY_PAGE_BYTES));
        }
        dirty
    }

    fn with_byte<T>(&self, page: u64, access: impl FnOnce(&AtomicU8) -> T) -> Option<T> {
        let at = usize::try_from(page / 8).ok()?;
        let slice = self.bits.slice(at, 1).ok()?;
        slice.get_atomic_ref::<AtomicU8>(0).ok().map(access)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_mark_their_pages_until_they_are_taken() {
        let (log, description, file) = DirtyLog::create(1 << 20).expect("a log");
        let other = DirtyLog::map(&description, file).expect("the other side's");
        other.mark(0x1fff, 2);
        other.mark(0x9000, 0);
        other.mark(u64::MAX - 1, 10);
        assert!(log.is_dirty(0x1000) && log.is_dirty(0x2fff) && !log.is_dirty(0x3000));
        assert_eq!(log.take(), [0x1000, 0x2000]);
        assert_eq!(log.take(), [0_u64; 0]);
    }
}
