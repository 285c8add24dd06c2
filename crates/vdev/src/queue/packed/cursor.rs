//! Places in a packed ring, and what the flags of a descriptor and of an event area mean there.

use std::sync::atomic::{Ordering, fence};

use crate::memory::Area;
use crate::queue::device::is_event_in;
use crate::queue::layout::{DESCRIPTOR_BYTES, RingLayout};

/// `VIRTQ_DESC_F_AVAIL`.
const AVAILABLE: u16 = 1 << 7;
/// `VIRTQ_DESC_F_USED`.
const USED: u16 = 1 << 15;

/// Where in an event area the descriptor is, in the form of [`Cursor::bits`].
pub(super) const EVENT_DESCRIPTOR: usize = 0;
/// Where in an event area the flags are (`RING_EVENT_FLAGS_*`).
pub(super) const EVENT_FLAGS: usize = 2;
/// Notify of every batch.
pub(super) const RING_EVENT_FLAGS_ENABLE: u16 = 0;
/// Do not notify.
pub(super) const RING_EVENT_FLAGS_DISABLE: u16 = 1;
/// Notify when the descriptor at [`EVENT_DESCRIPTOR`] is passed.
pub(super) const RING_EVENT_FLAGS_DESC: u16 = 2;

/// An index in the ring and its wrap counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::queue) struct Cursor {
    pub index: u16,
    pub lap: bool,
}

impl Cursor {
    /// The start of both sides.
    pub(super) const START: Self = Self { index: 0, lap: true };

    /// The form that `SET_VRING_BASE` and event areas use: the wrap counter is bit 15.
    pub(super) const fn bits(self) -> u16 {
        self.index | (self.lap as u16) << 15
    }

    pub(super) const fn from_bits(bits: u16) -> Self {
        Self { index: bits & !(1 << 15), lap: bits >> 15 == 1 }
    }

    /// So many descriptors on, at most a lap.
    #[must_use]
    pub(super) const fn advanced(self, descriptors: u16, size: u16) -> Self {
        let (size, descriptors) = (size as u32, descriptors as u32);
        let index = self.index as u32 + if descriptors < size { descriptors } else { size };
        if index < size {
            Self { index: index as u16, lap: self.lap }
        } else {
            Self { index: (index - size) as u16, lap: !self.lap }
        }
    }

    /// So many descriptors back, at most a lap. A ring need not have a power of 2 of descriptors, so an index below 0
    /// does not wrap to the right one in 16 bits. `size - descriptors` forward is the same index, in the lap after the
    /// one that is meant: a whole lap forward flips the counter once. So the counter is flipped once more.
    #[must_use]
    pub(super) const fn retreated(self, descriptors: u16, size: u16) -> Self {
        let forward = self.advanced(size - descriptors, size);
        Self { index: forward.index, lap: !forward.lap }
    }

    /// How far it is to another place that is less than two laps ahead.
    ///
    /// A wrap counter has one bit, so it shows whether the number of laps between two places is odd or even, and no
    /// more. Below two laps that is enough. With equal counters both are in the same lap, if `to` is not behind: the
    /// difference of the indices. With different counters `to` is in the next lap: what is left of this lap, and
    /// `to.index` more. With equal counters and `to` behind, it is two laps on, which is more than a ring can have in
    /// flight: the caller, who checks a base from a peer, sees a distance above the size and refuses it.
    pub(super) const fn distance(self, to: Self, size: u16) -> u32 {
        let (from, to_index) = (self.index as u32, to.index as u32);
        if self.lap == to.lap && to_index >= from {
            to_index - from
        } else if self.lap != to.lap {
            to_index + size as u32 - from
        } else {
            to_index + 2 * size as u32 - from
        }
    }

    /// Flags of a descriptor that the driver has written here.
    pub(super) const fn available(self) -> u16 {
        if self.lap { AVAILABLE } else { USED }
    }

    /// Flags of a descriptor that the device has written here.
    pub(super) const fn used(self) -> u16 {
        if self.lap { AVAILABLE | USED } else { 0 }
    }

    /// Flags of a descriptor that neither side has written here in this lap.
    pub(super) const fn untouched(self) -> u16 {
        if self.lap { 0 } else { AVAILABLE | USED }
    }

    pub(in crate::queue) const fn is_available(self, flags: u16) -> bool {
        flags & (AVAILABLE | USED) == self.available()
    }

    pub(super) const fn is_used(self, flags: u16) -> bool {
        flags & (AVAILABLE | USED) == self.used()
    }

    /// Where the flags of its descriptor are.
    pub(in crate::queue) const fn flags_at(self) -> usize {
        self.index as usize * DESCRIPTOR_BYTES + 14
    }
}

/// Whether the other side needs a notification of the last `descriptors` before `new` (section 2.8.10).
///
/// Flags and descriptor of the event area are two fields. The other side stores the descriptor first and then the
/// flags, with Release, so after an Acquire load of DESC the descriptor is the one that was meant, or a later one. If
/// this side loads the old flags, the fence of the other side comes after ours, and its next look at the ring finds
/// what was published.
///
/// The indices of a packed ring start at 0 in each lap, so two of them cannot be compared as they are. The start of
/// the lap of `new` is taken for 0: an event of the same lap keeps its index, one of the lap before is `size` below
/// it, a negative number in 16 bits. `new.index - descriptors` may be negative in the same way. All of these are at
/// most `size <= 32768` from 0, and `descriptors <= size`, so the wrapping differences in `is_event_in` are exact: an
/// event ahead of `new` has a distance of at least 32768 there, which is no less than any number of descriptors. No
/// event is in the lap after `new`: the other side waits for the next descriptor that it expects, which is `new` at
/// most. A hostile one that names another event gets one notification too many or too few.
pub(super) fn is_wanted(area: &Area, layout: &RingLayout, new: Cursor, descriptors: u16) -> bool {
    // See "Sleeping and waking" in `queue`.
    fence(Ordering::SeqCst);
    match area.load_u16(EVENT_FLAGS, Ordering::Acquire) & 3 {
        RING_EVENT_FLAGS_DISABLE => false,
        RING_EVENT_FLAGS_DESC if layout.event_idx => {
            let at = Cursor::from_bits(area.load_u16(EVENT_DESCRIPTOR, Ordering::Relaxed));
            let event = if at.lap == new.lap { at.index } else { at.index.wrapping_sub(layout.size) };
            is_event_in(event, new.index, new.index.wrapping_sub(descriptors))
        }
        _ => true,
    }
}
