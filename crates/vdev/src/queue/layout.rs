//! What a ring is made of: its kind, its size, and the three areas it has in guest memory.

use super::error::QueueError;
use crate::memory::{Area, GuestMemory};
use crate::protocol::VringAddress;

/// The two layouts that VIRTIO has for a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RingKind {
    /// Descriptor table, available ring and used ring (section 2.7).
    Split,
    /// One ring of descriptors that both sides write (section 2.8).
    Packed,
}

/// What the two sides have agreed on for a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RingLayout {
    /// Its kind.
    pub kind: RingKind,
    /// Its descriptors: 1 to 32768, a power of two in a split ring.
    pub size: u16,
    /// `VIRTIO_F_EVENT_IDX`: each side sets the entry at which it is to be notified.
    pub event_idx: bool,
    /// `VIRTIO_F_INDIRECT_DESC`: a descriptor may refer to a table of descriptors.
    pub indirect: bool,
}

/// The addresses of a [`VringAddress`]: user addresses, or guest addresses if `GPA_ADDRESSES` was negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressSpace {
    /// Those of the frontend's process.
    User,
    /// Those of the guest.
    Guest,
}

/// The most descriptors that a ring may have.
const SIZE_MAX: u16 = 1 << 15;

pub(super) const DESCRIPTOR_BYTES: usize = 16;
/// Bytes of a packed ring's event area.
pub(super) const EVENT_BYTES: usize = 4;

impl RingLayout {
    /// Refuses a size that no ring of this kind has.
    ///
    /// # Errors
    /// If it is such a size.
    pub(super) fn check(&self, ring: u32) -> Result<(), QueueError> {
        let is_allowed = match self.kind {
            RingKind::Split => self.size.is_power_of_two() && self.size <= SIZE_MAX,
            RingKind::Packed => (1..=SIZE_MAX).contains(&self.size),
        };
        if is_allowed { Ok(()) } else { Err(QueueError::Size { ring, size: self.size }) }
    }

    /// The areas' sizes and alignments: descriptors, the driver's, the device's.
    pub(super) fn areas(&self) -> [(usize, u64); 3] {
        let size = usize::from(self.size);
        let event = if self.event_idx { 2 } else { 0 };
        match self.kind {
            RingKind::Split => [(size * DESCRIPTOR_BYTES, 16), (4 + size * 2 + event, 2), (4 + size * 8 + event, 4)],
            RingKind::Packed => [(size * DESCRIPTOR_BYTES, 16), (EVENT_BYTES, 4), (EVENT_BYTES, 4)],
        }
    }
}

/// The parts of a ring in guest memory.
#[derive(Debug, Clone)]
pub struct RingAreas {
    /// The descriptor table; the descriptor ring of a packed ring.
    pub descriptors: Area,
    /// What the driver writes: the available ring, or its event area.
    pub driver: Area,
    /// What the device writes: the used ring, or its event area.
    pub device: Area,
}

const PARTS: [&str; 3] = ["descriptors", "driver area", "device area"];

impl RingAreas {
    /// Finds a ring's parts in memory.
    ///
    /// # Errors
    /// If one is not in it as a whole, or not aligned.
    pub(crate) fn find(
        layout: &RingLayout,
        address: &VringAddress,
        space: AddressSpace,
        memory: &GuestMemory,
    ) -> Result<Self, QueueError> {
        let starts = [address.descriptor, address.available, address.used];
        let find = |part: usize| {
            let (bytes, alignment) = layout.areas()[part];
            let outside =
                QueueError::RingOutside { ring: address.index, part: PARTS[part], address: starts[part], bytes };
            let span = match space {
                AddressSpace::User => memory.at_user(starts[part], bytes),
                AddressSpace::Guest => memory.at_guest(starts[part], bytes),
            };
            let area = span.and_then(|span| memory.area(span)).map_err(|_| outside)?;
            let unaligned =
                || QueueError::Unaligned { ring: address.index, part: PARTS[part], address: starts[part], alignment };
            let is_aligned = starts[part].is_multiple_of(alignment) && area.check_alignment(alignment).is_ok();
            if is_aligned { Ok(area) } else { Err(unaligned()) }
        };
        Ok(Self { descriptors: find(0)?, driver: find(1)?, device: find(2)? })
    }

    /// Whether one of them is in a file that was truncated.
    pub(super) fn is_cut(&self) -> bool {
        self.descriptors.is_cut() || self.driver.is_cut() || self.device.is_cut()
    }
}
