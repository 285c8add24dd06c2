//! A ring as the device has it.
//!
//! ```text
//!   new ──▶ pop ──▶ Chain ──▶ (read, write) ──▶ push … push ──▶ publish ──▶ call, if it returns true
//!            │ false: enable_kicks; if that returns true, pop again; otherwise wait for a kick
//! ```

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::chain::{Chain, ChainId};
use super::crash;
use super::error::QueueError;
use super::inflight::InflightQueue;
use super::layout::{AddressSpace, RingAreas, RingKind, RingLayout};
use super::{packed, split};
use crate::memory::{ByteValued, DirtyLog, GuestMemory};
use crate::protocol::VringAddress;

/// A ring as the device has it.
#[derive(Debug)]
pub struct DeviceRing {
    place: RingPlace,
    address: VringAddress,
    space: AddressSpace,
    side: Side,
}

/// The place of a ring, and its memory and log.
#[derive(Debug)]
pub(super) struct RingPlace {
    pub index: u32,
    pub layout: RingLayout,
    pub areas: RingAreas,
    pub memory: GuestMemory,
    pub log: Option<RingLog>,
}

/// The log for writes.
#[derive(Debug)]
pub(super) struct RingLog {
    pub log: Arc<DirtyLog>,
    /// The address of the device's area in the log, if writes to the ring are marked at all.
    pub device_area: Option<u64>,
}

#[derive(Debug)]
enum Side {
    Split(split::Device),
    Packed(packed::Device),
}

impl DeviceRing {
    /// The ring `index` at these user addresses, from `base` on.
    ///
    /// # Errors
    /// If there can't be such a ring.
    #[cfg(feature = "testing")]
    pub fn new(
        index: u32,
        layout: RingLayout,
        address: &VringAddress,
        base: u32,
        memory: GuestMemory,
    ) -> Result<Self, QueueError> {
        Self::new_in(AddressSpace::User, index, layout, address, base, memory)
    }

    /// As [`new`](Self::new), with addresses of the guest if `GPA_ADDRESSES` was negotiated.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn new_in(
        space: AddressSpace,
        index: u32,
        layout: RingLayout,
        address: &VringAddress,
        base: u32,
        memory: GuestMemory,
    ) -> Result<Self, QueueError> {
        layout.check(index)?;
        let address = VringAddress { index, ..*address };
        let areas = RingAreas::find(&layout, &address, space, &memory)?;
        let place = RingPlace { index, layout, areas, memory, log: None };
        let side = match layout.kind {
            RingKind::Split => Side::Split(split::Device::new(&place, base)?),
            RingKind::Packed => Side::Packed(packed::Device::new(&place, base)?),
        };
        let mut ring = Self { place, address, space, side };
        ring.enable_kicks();
        Ok(ring)
    }

    /// Takes the next request that the driver has made available. `false` if there is no request; the chain is empty then.
    ///
    /// # Errors
    /// If the driver breaks the protocol. Nothing is taken then, and it is the same the next time.
    #[inline]
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        chain.begin(&self.place.memory);
        let popped = match &mut self.side {
            Side::Split(side) => side.pop(&self.place, chain),
            Side::Packed(side) => side.pop(&self.place, chain),
        };
        self.checked(popped, chain)
    }

    /// Gives the chain back that was popped last, unused: the next [`pop`](Self::pop) finds it again.
    pub fn unpop(&mut self, chain: &Chain) {
        match &mut self.side {
            Side::Split(side) => side.unpop(chain.id()),
            Side::Packed(side) => side.unpop(&self.place, chain.id()),
        }
    }

    /// Gives a chain to the driver, with how many bytes were written to its writable buffers, from the first on. The
    /// driver sees it after the next [`publish`](Self::publish). Chains come back in any order.
    #[inline]
    pub fn push(&mut self, chain: &Chain, written: u32) {
        self.mark(chain);
        self.push_id(chain.id(), written);
    }

    /// Marks what was written to the buffers of a chain in the dirty log.
    #[inline]
    pub(crate) fn mark(&self, chain: &Chain) {
        if let Some(log) = &self.place.log {
            chain.mark(&log.log);
        }
    }

    /// As [`push`](Self::push), without the chain: what was written to its buffers is not marked in the dirty log.
    #[inline]
    pub fn push_id(&mut self, id: ChainId, written: u32) {
        match &mut self.side {
            Side::Split(side) => side.push(&self.place, id, written),
            Side::Packed(side) => side.push(id, written),
        }
    }

    /// Makes all that was pushed visible to the driver. `true`: it needs a call.
    #[inline]
    #[must_use = "the driver waits for the call"]
    pub fn publish(&mut self) -> bool {
        match &mut self.side {
            Side::Split(side) => side.publish(&self.place),
            Side::Packed(side) => side.publish(&self.place),
        }
    }

    /// Disables kicks: the device polls.
    pub fn disable_kicks(&mut self) {
        match &mut self.side {
            Side::Split(side) => side.disable_kicks(&self.place),
            Side::Packed(side) => side.disable_kicks(&self.place),
        }
    }

    /// Enables kicks. `true`: the driver made more available meanwhile, and may not have kicked.
    pub fn enable_kicks(&mut self) -> bool {
        match &mut self.side {
            Side::Split(side) => side.enable_kicks(&self.place),
            Side::Packed(side) => side.enable_kicks(&self.place),
        }
    }

    /// The ring's position, as `GET_VRING_BASE` returns it: in a split ring the next available entry; in a packed ring
    /// the next available descriptor with its wrap counter in bit 15, and above it the same of the next used one.
    pub fn base(&self) -> u32 {
        match &self.side {
            Side::Split(side) => side.base(),
            Side::Packed(side) => side.base(),
        }
    }

    /// How many chains were popped and not pushed since.
    #[cfg(feature = "testing")]
    pub fn in_flight(&self) -> u16 {
        match &self.side {
            Side::Split(side) => side.in_flight(),
            Side::Packed(side) => side.in_flight(),
        }
    }

    /// What was agreed on.
    pub(crate) const fn layout(&self) -> RingLayout {
        self.place.layout
    }

    /// Its areas, for a mock that writes wrong rings on purpose.
    pub const fn areas(&self) -> &RingAreas {
        &self.place.areas
    }

    /// The ring's memory.
    #[cfg(feature = "testing")]
    pub const fn memory(&self) -> &GuestMemory {
        &self.place.memory
    }

    /// The ring goes on in other memory. Chains that were popped stay in the memory that they came from.
    ///
    /// # Errors
    /// If the ring is not in it; the ring stays where it was.
    pub fn set_memory(&mut self, memory: GuestMemory) -> Result<(), QueueError> {
        self.place.areas = RingAreas::find(&self.place.layout, &self.address, self.space, &memory)?;
        self.place.memory = memory;
        Ok(())
    }

    /// From now on writes are marked in this log: those to buffers, and those to the ring if its address in the log is
    /// given. Without a log, nothing is.
    pub fn set_log(&mut self, log: Option<(Arc<DirtyLog>, Option<u64>)>) {
        self.place.log = log.map(|(log, device_area)| RingLog { log, device_area });
    }

    /// From now on requests in flight are recorded here; nothing was popped yet. What a device before has left in it
    /// is to be taken with [`resubmit`](Self::resubmit) before anything is popped. With it the ring continues where
    /// that device was lost, whatever its base was set to.
    ///
    /// # Errors
    /// If what is recorded can't be.
    pub fn set_inflight(&mut self, queue: InflightQueue) -> Result<(), QueueError> {
        match &mut self.side {
            Side::Split(side) => side.set_inflight(&self.place, queue)?,
            Side::Packed(side) => side.set_inflight(&self.place, queue)?,
        }
        self.enable_kicks();
        Ok(())
    }

    /// Takes the next request that a device before this one had popped and not pushed, in their order. `false`: there are
    /// no more.
    ///
    /// # Errors
    /// If what is recorded can't be. Nothing is taken then, and it is the same the next time.
    pub fn resubmit(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        chain.begin(&self.place.memory);
        let taken = match &mut self.side {
            Side::Split(side) => side.resubmit(&self.place, chain),
            Side::Packed(side) => side.resubmit(&self.place, chain),
        };
        self.checked(taken, chain)
    }

    /// The result, if the memory is whole. Zeros that were never written may look like requests, or like an empty
    /// ring.
    #[inline]
    fn checked(&self, taken: Result<bool, QueueError>, chain: &mut Chain) -> Result<bool, QueueError> {
        let taken = if self.place.memory.is_cut() { Err(QueueError::Cut { ring: self.place.index }) } else { taken };
        if taken.is_err() {
            chain.begin(&self.place.memory);
        }
        taken
    }
}

impl RingPlace {
    /// Puts a value in the device's area: the used ring, or a packed ring's event area.
    #[inline]
    pub(super) fn write_device<T: ByteValued>(&self, at: usize, value: T) {
        self.areas.device.write(at, value);
        crash::point();
        self.mark_device(at, size_of::<T>());
    }

    /// As [`write_device`](Self::write_device), of two bytes that the driver waits for. The page is marked after the
    /// store, see [`DirtyLog::mark`]. The driver may see the store before the mark. That is harmless: the last round
    /// of a migration begins after GET_VRING_BASE has stopped the ring, and its reply waits for this thread.
    #[inline]
    pub(super) fn store_device_u16(&self, at: usize, value: u16, order: Ordering) {
        self.areas.device.store_u16(at, value, order);
        crash::point();
        self.mark_device(at, 2);
    }

    /// Puts a value in the descriptors, which the device writes in a packed ring.
    #[inline]
    pub(super) fn write_descriptor<T: ByteValued>(&self, at: usize, value: T) {
        self.areas.descriptors.write(at, value);
        crash::point();
        self.mark_descriptors(at, size_of::<T>());
    }

    /// As [`write_descriptor`](Self::write_descriptor), of two bytes that the driver waits for.
    #[inline]
    pub(super) fn store_descriptor_u16(&self, at: usize, value: u16, order: Ordering) {
        self.areas.descriptors.store_u16(at, value, order);
        crash::point();
        self.mark_descriptors(at, 2);
    }

    #[inline]
    fn mark_device(&self, at: usize, bytes: usize) {
        if let Some(RingLog { log, device_area: Some(start) }) = &self.log {
            log.mark(start.wrapping_add(at as u64), bytes as u64);
        }
    }

    /// The log's address is the device area's; descriptors are marked where they are.
    #[inline]
    fn mark_descriptors(&self, at: usize, bytes: usize) {
        if let Some(RingLog { log, device_area: Some(_) }) = &self.log {
            log.mark(self.areas.descriptors.guest_address().wrapping_add(at as u64), bytes as u64);
        }
    }
}

/// Whether a side that set `event` needs a notification of the entries `old..new` ("vring_need_event").
///
/// All indices wrap, so they are compared by their distance from `new`: `event` was passed if it is at most `new - old` entries
/// behind. A plain `old <= event && event < new` is wrong for the batch that wraps. For the same reason a side that never
/// updates `event` is notified once every 65536 entries.
pub(super) const fn is_event_in(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
