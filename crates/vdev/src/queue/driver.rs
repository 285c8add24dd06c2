//! A ring as the driver has it.
//!
//! ```text
//!   create ──▶ add … add ──▶ publish ──▶ kick, if it returns true
//!   take_used ──▶ Used │ None: enable_calls; if that returns true, look again; otherwise wait for a call
//! ```

use super::arena::Arena;
use super::descriptor::WRITE;
use super::error::QueueError;
use super::layout::{RingAreas, RingKind, RingLayout};
use super::{packed, split};
use crate::memory::Area;
use crate::protocol::VringAddress;

/// A piece of guest memory that a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Buffer {
    /// Where it begins.
    pub guest_address: u64,
    /// How long it is.
    pub bytes: u32,
}

/// A request that the device is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Used {
    /// What it was added with.
    pub token: u64,
    /// Bytes that the device has written, from the first writable buffer on.
    pub written: u32,
}

/// A ring as the driver has it.
#[derive(Debug)]
pub struct DriverRing {
    place: DriverPlace,
    side: Side,
}

/// The place of a ring of ours.
#[derive(Debug)]
pub(super) struct DriverPlace {
    pub index: u32,
    pub layout: RingLayout,
    pub areas: RingAreas,
    /// For each descriptor a table of [`TABLE_ENTRIES`], if indirect tables were negotiated.
    pub tables: Option<Area>,
}

/// Descriptors that an indirect table of ours has.
pub(super) const TABLE_ENTRIES: usize = 64;

#[derive(Debug)]
enum Side {
    Split(split::Driver),
    Packed(packed::Driver),
}

impl DriverRing {
    /// Lays out the ring `index` in memory of ours.
    ///
    /// # Errors
    /// If there can't be such a ring, or memory has no room for it.
    pub fn create(index: u32, layout: RingLayout, arena: &mut Arena) -> Result<Self, QueueError> {
        layout.check(index)?;
        let [descriptors, driver, device] = layout.areas();
        let mut area = |(bytes, alignment): (usize, u64)| arena.allocate(bytes, alignment);
        let areas = RingAreas { descriptors: area(descriptors)?, driver: area(driver)?, device: area(device)? };
        let tables = layout.indirect.then(|| area((usize::from(layout.size) * TABLE_ENTRIES * 16, 16))).transpose()?;
        let place = DriverPlace { index, layout, areas, tables };
        place.clear();
        let side = match layout.kind {
            RingKind::Split => Side::Split(split::Driver::new(&place)),
            RingKind::Packed => Side::Packed(packed::Driver::new(&place)),
        };
        Ok(Self { place, side })
    }

    /// Which ring it is.
    pub(crate) const fn index(&self) -> u32 {
        self.place.index
    }

    /// What was agreed on.
    pub const fn layout(&self) -> RingLayout {
        self.place.layout
    }

    /// Its addresses, in the form of `SET_VRING_ADDR`. Writes to it are not logged.
    pub fn address(&self) -> VringAddress {
        let RingAreas { descriptors, driver, device } = &self.place.areas;
        VringAddress {
            index: self.place.index,
            flags: 0,
            descriptor: descriptors.user_address(),
            used: device.user_address(),
            available: driver.user_address(),
            log: device.guest_address(),
        }
    }

    /// The base for a device that has nothing of this ring but what is in memory: after the last entry that was used.
    /// It is a new ring's base, and that of a ring whose device has ended and has left an inflight region.
    pub fn base(&self) -> u32 {
        match &self.side {
            Side::Split(side) => side.base(&self.place),
            Side::Packed(side) => side.base(&self.place),
        }
    }

    /// Its areas, for tests that write wrong rings on purpose.
    pub const fn areas(&self) -> &RingAreas {
        &self.place.areas
    }

    /// Adds a request. The device sees it after the next [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`QueueError::Full`] if it has no room now, [`QueueError::Buffers`] if it never has.
    #[inline]
    pub fn add(&mut self, readable: &[Buffer], writable: &[Buffer], token: u64) -> Result<(), QueueError> {
        match &mut self.side {
            Side::Split(side) => side.add(&self.place, readable, writable, token),
            Side::Packed(side) => side.add(&self.place, readable, writable, token),
        }
    }

    /// Makes all that was added visible to the device. `true`: a kick is needed.
    #[inline]
    #[must_use = "the device waits for the kick"]
    pub fn publish(&mut self) -> bool {
        match &mut self.side {
            Side::Split(side) => side.publish(&self.place),
            Side::Packed(side) => side.publish(&self.place),
        }
    }

    /// Takes the next request that the device is done with.
    ///
    /// # Errors
    /// If the device breaks the protocol. Nothing is taken then, and it is the same the next time.
    #[inline]
    pub fn take_used(&mut self) -> Result<Option<Used>, QueueError> {
        let used = match &mut self.side {
            Side::Split(side) => side.take_used(&self.place),
            Side::Packed(side) => side.take_used(&self.place),
        };
        if self.place.areas.is_cut() { Err(QueueError::Cut { ring: self.place.index }) } else { used }
    }

    /// How many requests the device has.
    pub fn outstanding(&self) -> u16 {
        match &self.side {
            Side::Split(side) => side.outstanding(),
            Side::Packed(side) => side.outstanding(),
        }
    }

    /// The tokens of the requests that the device has, or will have after the next [`publish`](Self::publish).
    #[cfg(feature = "testing")]
    pub fn outstanding_tokens(&self) -> impl Iterator<Item = u64> + '_ {
        let requests = match &self.side {
            Side::Split(side) => side.requests(),
            Side::Packed(side) => side.requests(),
        };
        requests.iter().filter(|request| request.is_outstanding()).map(|request| request.token)
    }

    /// How many descriptors are free.
    #[cfg(feature = "testing")]
    pub fn free_descriptors(&self) -> u16 {
        match &self.side {
            Side::Split(side) => side.free_descriptors(),
            Side::Packed(side) => side.free_descriptors(),
        }
    }

    /// Enables calls. `true`: the device has used more already, and may not have called.
    pub fn enable_calls(&mut self) -> bool {
        match &mut self.side {
            Side::Split(side) => side.enable_calls(&self.place),
            Side::Packed(side) => side.enable_calls(&self.place),
        }
    }

    /// Disables calls: the driver polls.
    pub fn disable_calls(&mut self) {
        match &mut self.side {
            Side::Split(side) => side.disable_calls(&self.place),
            Side::Packed(side) => side.disable_calls(&self.place),
        }
    }

    /// Begins again at base 0, with nothing outstanding; the device must not use the ring any more.
    pub fn reset(&mut self) {
        self.place.clear();
        match &mut self.side {
            Side::Split(side) => *side = split::Driver::new(&self.place),
            Side::Packed(side) => *side = packed::Driver::new(&self.place),
        }
    }
}

impl DriverPlace {
    /// Zeros, whatever a ring before has left there.
    fn clear(&self) {
        for area in [&self.areas.descriptors, &self.areas.driver, &self.areas.device] {
            for at in 0..area.bytes() {
                area.write(at, 0_u8);
            }
        }
    }

    /// How a request of these buffers is laid out in the ring.
    #[inline]
    pub(super) fn fit(&self, readable: &[Buffer], writable: &[Buffer]) -> Result<Fit, QueueError> {
        let buffers = readable.len() + writable.len();
        let size = usize::from(self.layout.size);
        let by_table = self.tables.is_some() && buffers > 1 && buffers <= TABLE_ENTRIES;
        let max = if self.tables.is_some() { size.max(TABLE_ENTRIES) } else { size };
        match u16::try_from(buffers) {
            Ok(1..) if by_table => Ok(Fit::Table),
            Ok(buffers @ 1..) if usize::from(buffers) <= size => Ok(Fit::Chain(buffers)),
            _ => Err(QueueError::Buffers { ring: self.index, buffers, max }),
        }
    }
}

/// The buffers of a request in their order, with the flags that their descriptors have for it.
pub(super) fn with_flags<'a>(
    readable: &'a [Buffer],
    writable: &'a [Buffer],
) -> impl Iterator<Item = (&'a Buffer, u16)> {
    readable.iter().map(|buffer| (buffer, 0)).chain(writable.iter().map(|buffer| (buffer, WRITE)))
}

/// How a request is laid out in a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// As so many descriptors.
    Chain(u16),
    /// As one that refers to a table.
    Table,
}

impl Fit {
    /// Descriptors of the ring that it takes.
    pub(super) const fn descriptors(self) -> u16 {
        match self {
            Self::Chain(descriptors) => descriptors,
            Self::Table => 1,
        }
    }
}

/// What a driver remembers of a request, out of reach of any device.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Request {
    pub token: u64,
    /// Bytes that the device may write.
    pub writable: u64,
    /// Descriptors that come back with it; 0: there is no request.
    pub descriptors: u16,
    /// Its position among all requests. Shows whether it was published, so that the device can have seen it.
    pub number: u64,
}

impl Request {
    pub(super) fn new(writable: &[Buffer], token: u64, descriptors: u16, number: u64) -> Self {
        let writable = writable.iter().map(|buffer| u64::from(buffer.bytes)).sum();
        Self { token, writable, descriptors, number }
    }

    const fn is_outstanding(&self) -> bool {
        self.descriptors > 0
    }

    /// Ends the request `id`, if the device can have done that: the request was published, and it has room for the
    /// written bytes.
    #[inline]
    pub(super) fn take(&mut self, ring: u32, id: u16, written: u32, published: u64) -> Result<Used, QueueError> {
        if !self.is_outstanding() || self.number >= published {
            return Err(QueueError::UnknownId { ring, id: id.into() });
        }
        if u64::from(written) > self.writable {
            return Err(QueueError::UsedLength { ring, id, written, writable: self.writable });
        }
        self.descriptors = 0;
        Ok(Used { token: self.token, written })
    }
}
