//! One descriptor, as it stands in memory.

use super::layout::DESCRIPTOR_BYTES;
use crate::memory::Area;

/// `VIRTQ_DESC_F_NEXT`: the chain goes on.
pub(super) const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`: the device writes.
pub(super) const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`: the buffer is a table of descriptors.
pub(super) const INDIRECT: u16 = 4;

/// A descriptor's numbers. In a split ring the two small ones are flags and next; in a packed ring, id and flags.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub address: u64,
    pub bytes: u32,
    pub small: [u16; 2],
}

impl Descriptor {
    pub(super) const fn split(address: u64, bytes: u32, flags: u16, next: u16) -> Self {
        Self { address, bytes, small: [flags, next] }
    }

    pub(super) const fn packed(address: u64, bytes: u32, id: u16, flags: u16) -> Self {
        Self { address, bytes, small: [id, flags] }
    }

    /// The descriptor at this place, loaded once.
    #[inline]
    pub(super) fn load(area: &Area, index: usize) -> Self {
        Self::from_bits(u128::from_le(area.read(index * DESCRIPTOR_BYTES)))
    }

    #[inline]
    pub(super) fn store(self, area: &Area, index: usize) {
        area.write(index * DESCRIPTOR_BYTES, self.to_bits().to_le());
    }

    /// The descriptor that these bytes are.
    #[inline]
    pub(super) const fn from_bytes(bytes: [u8; DESCRIPTOR_BYTES]) -> Self {
        Self::from_bits(u128::from_le_bytes(bytes))
    }

    const fn from_bits(bits: u128) -> Self {
        Self { address: bits as u64, bytes: (bits >> 64) as u32, small: [(bits >> 96) as u16, (bits >> 112) as u16] }
    }

    const fn to_bits(self) -> u128 {
        self.address as u128
            | (self.bytes as u128) << 64
            | (self.small[0] as u128) << 96
            | (self.small[1] as u128) << 112
    }
}
