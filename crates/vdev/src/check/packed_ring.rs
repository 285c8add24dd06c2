//! A packed ring, laid out by hand, as [`SplitRing`](super::ring::SplitRing) is ("Packed Virtqueues" in the VIRTIO
//! specification).
//!
//! ```text
//!    descriptor 16 bytes: address, bytes, id, flags │ available: AVAIL = wrap, USED = !wrap │ used: AVAIL = USED = wrap
//! ```

use std::os::fd::AsFd as _;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use super::guest::Guest;
use super::link::Link;
use super::outcome::{Outcome, Stop};
use super::ring::{Descriptor, NEXT, Used};
use crate::memory::Area;
use crate::protocol::frontend::{
    GetVringBase, SetVringAddr, SetVringBase, SetVringCall, SetVringEnable, SetVringKick, SetVringNum,
};
use crate::protocol::{PackedBase, VringAddress, VringFile, VringState};
use crate::socket::{Event, wait_readable};

/// In a descriptor's flags: it is available, if this is the driver's wrap counter.
pub(super) const AVAIL: u16 = 1 << 7;
/// In a descriptor's flags: it is used, if this is the device's wrap counter.
const USED: u16 = 1 << 15;
/// In the driver's area: no calls, please.
pub(super) const EVENT_DISABLE: u16 = 1;

/// A place in the ring, and how often it has been passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    index: u16,
    wrap: bool,
}

impl Place {
    const START: Self = Self { index: 0, wrap: true };

    const fn after(self, count: u16, size: u16) -> Self {
        let index = self.index + count;
        if index >= size { Self { index: index - size, wrap: !self.wrap } } else { Self { index, wrap: self.wrap } }
    }

    fn encode(self) -> u32 {
        u32::from(self.index) | u32::from(self.wrap) << 15
    }
}

/// A packed ring, laid out by hand.
#[derive(Debug)]
pub(super) struct PackedRing {
    /// How many descriptors it has.
    pub size: u16,
    /// The event by which the device calls.
    pub call: Event,
    kick: Event,
    descriptors: Area,
    driver: Area,
    device: Area,
    offered: Place,
    taken: Place,
    /// How many descriptors the chain with this id has.
    lengths: Vec<u16>,
}

impl PackedRing {
    /// Ring 0, in this memory.
    pub(super) fn new(guest: &mut Guest, size: u16) -> Outcome<Self> {
        let bytes = usize::from(size) * 16;
        let [descriptors, driver, device] = [bytes, 4, 4].map(|bytes| {
            let address = guest.take(bytes as u64, 64);
            guest.area(address, bytes)
        });
        Ok(Self {
            size,
            call: Event::new()?,
            kick: Event::new()?,
            descriptors: descriptors?,
            driver: driver?,
            device: device?,
            offered: Place::START,
            taken: Place::START,
            lengths: vec![0; usize::from(size)],
        })
    }

    /// Goes on at another place, as after a migration. Nothing may be under way.
    pub(super) fn start_at(&mut self, base: PackedBase) {
        self.offered = Place { index: base.available, wrap: base.available_wrap };
        self.taken = Place { index: base.used, wrap: base.used_wrap };
        // What both sides have passed in this lap is used in it; the rest of the ring is used in the lap before.
        for place in 0..self.size {
            let lap = if place < base.used { base.used_wrap } else { !base.used_wrap };
            self.descriptors.store_u16(
                usize::from(place) * 16 + 14,
                if lap { AVAIL | USED } else { 0 },
                Ordering::Release,
            );
        }
    }

    /// All that it takes until the ring runs, from the driver's current place.
    pub(super) fn start(&self, link: &mut Link) -> Outcome {
        let state = |num| VringState { index: 0, num };
        let address = VringAddress {
            index: 0,
            flags: 0,
            descriptor: self.descriptors.user_address(),
            used: self.device.user_address(),
            available: self.driver.user_address(),
            log: self.device.guest_address(),
        };
        link.require(&SetVringNum(state(self.size.into())), &[])?;
        link.require(&SetVringBase(state(self.base())), &[])?;
        link.require(&SetVringAddr(address), &[])?;
        link.require(&SetVringCall(VringFile::with_descriptor(0)), &[self.call.as_fd()])?;
        link.require(&SetVringKick(VringFile::with_descriptor(0)), &[self.kick.as_fd()])?;
        link.require(&SetVringEnable(state(1)), &[])
    }

    /// The place of both sides while nothing is in flight: the available index and wrap counter, then the used ones.
    pub(super) fn base(&self) -> u32 {
        self.offered.encode() | self.taken.encode() << 16
    }

    /// `GET_VRING_BASE`: stops it.
    pub(super) fn stop(&self, link: &mut Link) -> Outcome<u32> {
        Ok(link.call(&GetVringBase(VringState { index: 0, num: 0 }))?.num)
    }

    /// Makes a chain available under this id, its first descriptor last, and kicks.
    pub(super) fn send(&mut self, id: u16, chain: &[Descriptor]) -> Outcome {
        let count = u16::try_from(chain.len()).expect("a chain is short");
        self.lengths[usize::from(id)] = count;
        for place in (0..count).rev() {
            let mut descriptor = chain[usize::from(place)];
            let at = self.offered.after(place, self.size);
            descriptor.flags |= if at.wrap { AVAIL } else { USED };
            if place + 1 < count {
                descriptor.flags |= NEXT;
            }
            self.put(at.index, descriptor, id);
        }
        self.offered = self.offered.after(count, self.size);
        self.kick()
    }

    /// Puts a descriptor with these very flags.
    pub(super) fn put(&self, place: u16, descriptor: Descriptor, id: u16) {
        let at = usize::from(place) * 16;
        self.descriptors.write(at, descriptor.address.to_le_bytes());
        self.descriptors.write(at + 8, descriptor.bytes.to_le_bytes());
        self.descriptors.write(at + 12, id.to_le_bytes());
        self.descriptors.store_u16(at + 14, descriptor.flags, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Kicks.
    pub(super) fn kick(&self) -> Outcome {
        Ok(self.kick.signal()?)
    }

    /// Sets the flags of the driver's event area.
    pub(super) fn set_event_flags(&self, flags: u16) {
        self.driver.store_u16(2, flags, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// The next that the device gave back.
    fn take_used(&mut self) -> Outcome<Option<Used>> {
        let at = usize::from(self.taken.index) * 16;
        let flags = self.descriptors.load_u16(at + 14, Ordering::Acquire);
        if (flags & AVAIL != 0) != self.taken.wrap || (flags & USED != 0) != self.taken.wrap {
            return Ok(None);
        }
        let id = self.descriptors.load_u16(at + 12, Ordering::Relaxed);
        let written = u32::from_le_bytes(self.descriptors.read(at + 8));
        let Some(count @ 1..) = self.lengths.get_mut(usize::from(id)).map(std::mem::take) else {
            return Stop::fail(format!("the device returned id {id}, which was not made available"));
        };
        self.taken = self.taken.after(count, self.size);
        Ok(Some(Used { head: id.into(), written }))
    }

    /// Waits for the next that the device gives back.
    pub(super) fn wait_used(&mut self, link: &mut Link, timeout: Duration) -> Outcome<Used> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(used) = self.take_used()? {
                return Ok(used);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Stop::Hang(format!("packed ring: a request did not complete within {timeout:?}")));
            }
            let nap = left.min(Duration::from_millis(2));
            let [_, spoke] = wait_readable([self.call.as_fd(), link.channel().stream().as_fd()], Some(nap))?;
            if spoke {
                link.is_silent_for(Duration::ZERO)?;
                return Err(Stop::Closed(
                    "closed the connection while a packed ring had requests in flight".to_owned(),
                ));
            }
        }
    }
}
