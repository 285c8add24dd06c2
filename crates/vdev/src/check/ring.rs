//! A split ring, laid out by hand: a conformance suite decides on every byte of it, right or wrong, so it shares no code
//! with the rings of our own frontend and backends.

use std::os::fd::AsFd as _;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use super::guest::Guest;
use super::link::Link;
use super::outcome::{Outcome, Stop};
use super::process::wait_until;
use crate::memory::Area;
use crate::protocol::frontend::{
    GetVringBase, SetVringAddr, SetVringBase, SetVringCall, SetVringEnable, SetVringKick, SetVringNum,
};
use crate::protocol::{VringAddress, VringFile, VringState};
use crate::socket::{Event, wait_readable};

/// The next descriptor goes on.
pub(super) const NEXT: u16 = 1;
/// The device writes.
pub(super) const WRITE: u16 = 2;
/// It points at a table of descriptors.
pub(super) const INDIRECT: u16 = 4;
/// In the available ring: no calls, please.
pub(super) const NO_INTERRUPT: u16 = 1;

/// A descriptor, in the layout of the ring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// Guest address.
    pub address: u64,
    /// Bytes.
    pub bytes: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// The one after it.
    pub next: u16,
}

impl Descriptor {
    /// A piece that the device reads.
    pub(super) const fn readable(address: u64, bytes: u32) -> Self {
        Self { address, bytes, flags: 0, next: 0 }
    }

    /// A piece that the device writes.
    pub(super) const fn writable(address: u64, bytes: u32) -> Self {
        Self { address, bytes, flags: WRITE, next: 0 }
    }

    /// A table of descriptors.
    pub(super) const fn indirect(address: u64, descriptors: u32) -> Self {
        Self { address, bytes: descriptors * 16, flags: INDIRECT, next: 0 }
    }

    /// Its bytes in the ring.
    pub(super) fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// `0x1000+0x200 write next 4`.
impl std::fmt::Display for Descriptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}+{:#x}", self.address, self.bytes)?;
        for (flag, word) in [(WRITE, " write"), (INDIRECT, " indirect")] {
            if self.flags & flag != 0 {
                f.write_str(word)?;
            }
        }
        if self.flags & NEXT != 0 {
            write!(f, " next {}", self.next)?;
        }
        match self.flags & !(WRITE | INDIRECT | NEXT) {
            0 => Ok(()),
            unknown => write!(f, " flags {unknown:#x}"),
        }
    }
}

/// Links descriptors that follow each other in a table, from `first` on.
pub(super) fn chained(first: u16, descriptors: &[Descriptor]) -> Vec<Descriptor> {
    let mut linked = descriptors.to_vec();
    for (place, descriptor) in (first..).zip(&mut linked).take(descriptors.len().saturating_sub(1)) {
        descriptor.flags |= NEXT;
        descriptor.next = place + 1;
    }
    linked
}

/// What the device gave back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Used {
    /// The head of the chain, from the used ring.
    pub head: u32,
    /// The number of written bytes, from the used ring.
    pub written: u32,
}

/// A split ring, laid out by hand.
#[derive(Debug)]
pub(super) struct SplitRing {
    /// Which ring of the device.
    pub index: u32,
    /// How many descriptors it has.
    pub size: u16,
    /// The event by which the driver kicks.
    pub kick: Event,
    /// The event by which the device calls.
    pub call: Event,
    descriptors: Area,
    available: Area,
    used: Area,
    /// The index after the last that was made available.
    pub offered: u16,
    /// The index after the last used one that was taken.
    pub taken: u16,
}

impl SplitRing {
    /// A ring in this memory, at index 0.
    pub(super) fn new(guest: &mut Guest, index: u32, size: u16) -> Outcome<Self> {
        let count = u64::from(size);
        let places = [(16 * count, 16), (6 + 2 * count, 2), (6 + 8 * count, 4)];
        let [descriptors, available, used] = places.map(|(bytes, alignment)| {
            let address = guest.take(bytes, alignment.max(64));
            guest.area(address, usize::try_from(bytes).expect("a ring is small"))
        });
        Ok(Self {
            index,
            size,
            kick: Event::new()?,
            call: Event::new()?,
            descriptors: descriptors?,
            available: available?,
            used: used?,
            offered: 0,
            taken: 0,
        })
    }

    /// Goes on at another index, as after a migration. Nothing may be under way.
    pub(super) fn start_at(&mut self, base: u16) {
        self.offered = base;
        self.taken = base;
        self.available.store_u16(2, base, Ordering::Release);
        self.used.store_u16(2, base, Ordering::Release);
    }

    /// Its addresses, in the form of `SET_VRING_ADDR`.
    pub(super) fn address(&self) -> VringAddress {
        VringAddress {
            index: self.index,
            flags: 0,
            descriptor: self.descriptors.user_address(),
            used: self.used.user_address(),
            available: self.available.user_address(),
            log: self.used.guest_address(),
        }
    }

    /// `SET_VRING_NUM`, `_BASE`, `_ADDR`.
    pub(super) fn place(&self, link: &mut Link) -> Outcome {
        link.require(&SetVringNum(self.state(self.size.into())), &[])?;
        link.require(&SetVringBase(self.state(self.taken.into())), &[])?;
        link.require(&SetVringAddr(self.address()), &[])
    }

    /// `SET_VRING_CALL`, `_KICK`, with both descriptors.
    pub(super) fn connect(&self, link: &mut Link) -> Outcome {
        link.require(&SetVringCall(VringFile::with_descriptor(self.small_index())), &[self.call.as_fd()])?;
        link.require(&SetVringKick(VringFile::with_descriptor(self.small_index())), &[self.kick.as_fd()])
    }

    /// All that it takes until the ring runs.
    pub(super) fn start(&self, link: &mut Link) -> Outcome {
        self.place(link)?;
        self.connect(link)?;
        if link.offered & crate::virtio::feature::PROTOCOL_FEATURES != 0 {
            self.enable(link, true)?;
        }
        Ok(())
    }

    /// `SET_VRING_ENABLE`.
    pub(super) fn enable(&self, link: &mut Link, enabled: bool) -> Outcome {
        link.require(&SetVringEnable(self.state(enabled.into())), &[])
    }

    /// `GET_VRING_BASE`: stops it. Returns the index that the device will take next.
    pub(super) fn stop(&self, link: &mut Link) -> Outcome<u32> {
        let reply = link.call(&GetVringBase(self.state(0)))?;
        if reply.index != self.index {
            return Stop::fail(format!(
                "the reply to GET_VRING_BASE of ring {} is for ring {}",
                self.index, reply.index
            ));
        }
        Ok(reply.num)
    }

    /// This ring and a number, as many messages have them.
    pub(super) const fn state(&self, num: u32) -> VringState {
        VringState { index: self.index, num }
    }

    /// Its number, as `SET_VRING_KICK` and its like have it.
    pub(super) fn small_index(&self) -> u8 {
        u8::try_from(self.index).expect("cases use rings below 256")
    }

    /// Puts a descriptor into the table.
    pub(super) fn put(&self, place: u16, descriptor: Descriptor) {
        self.descriptors.write(usize::from(place % self.size) * 16, descriptor.encode());
    }

    /// Puts a chain into the table, from `first` on.
    pub(super) fn put_chain(&self, first: u16, descriptors: &[Descriptor]) {
        for (place, descriptor) in (first..).zip(chained(first, descriptors)) {
            self.put(place, descriptor);
        }
    }

    /// Makes a chain available. The device sees it when [`publish`](Self::publish) is called.
    pub(super) fn offer(&mut self, head: u16) {
        let slot = usize::from(self.offered % self.size);
        self.available.write(4 + 2 * slot, head.to_le_bytes());
        self.offered = self.offered.wrapping_add(1);
    }

    /// Shows the device all that was offered.
    pub(super) fn publish(&self) {
        self.publish_index(self.offered);
    }

    /// Shows the device any index at all.
    fn publish_index(&self, index: u16) {
        self.available.store_u16(2, index, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Kicks.
    pub(super) fn kick(&self) -> Outcome {
        Ok(self.kick.signal()?)
    }

    /// Makes the chain from `first` on available, and kicks.
    pub(super) fn send(&mut self, first: u16, descriptors: &[Descriptor]) -> Outcome {
        self.put_chain(first, descriptors);
        self.offer(first);
        self.publish();
        self.kick()
    }

    /// The flags of the available ring.
    pub(super) fn set_available_flags(&self, flags: u16) {
        self.available.store_u16(0, flags, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// From which used index on the driver requests a call (`used_event`).
    pub(super) fn set_used_event(&self, index: u16) {
        self.available.store_u16(4 + 2 * usize::from(self.size), index, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// The device's index.
    pub(super) fn used_index(&self) -> u16 {
        self.used.load_u16(2, Ordering::Acquire)
    }

    /// Puts the device's index, in a device's stead.
    pub(super) fn set_used_index(&self, index: u16) {
        self.used.store_u16(2, index, Ordering::Release);
    }

    /// Puts an entry of the used ring, in a device's stead.
    pub(super) fn put_used(&self, slot: u16, head: u32, written: u32) {
        let at = 4 + 8 * usize::from(slot % self.size);
        self.used.write(at, head.to_le_bytes());
        self.used.write(at + 4, written.to_le_bytes());
    }

    /// The next that the device gave back.
    pub(super) fn take_used(&mut self) -> Option<Used> {
        if self.used_index() == self.taken {
            return None;
        }
        let at = 4 + 8 * usize::from(self.taken % self.size);
        let [head, written] = [at, at + 4].map(|at| u32::from_le_bytes(self.used.read(at)));
        self.taken = self.taken.wrapping_add(1);
        Some(Used { head, written })
    }

    /// Waits for the next that the device gives back.
    pub(super) fn wait_used(&mut self, link: &mut Link, timeout: Duration) -> Outcome<Used> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(used) = self.take_used() {
                return Ok(used);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let (offered, taken) = (self.offered, self.taken);
                return Err(Stop::Hang(format!(
                    "ring {}: a request did not complete within {timeout:?} ({} made available, {taken} used)",
                    self.index, offered
                )));
            }
            // A call may be lost or disabled, so the index is looked at again soon.
            let nap = left.min(Duration::from_millis(2));
            let [_, spoke] = wait_readable([self.call.as_fd(), link.channel().stream().as_fd()], Some(nap))?;
            self.call.take()?;
            if spoke && self.used_index() == self.taken {
                link.is_silent_for(Duration::ZERO)?;
                return Err(Stop::Closed(format!(
                    "closed the connection while ring {} had requests in flight",
                    self.index
                )));
            }
        }
    }

    /// Whether the device gives nothing back for this long.
    pub(super) fn is_quiet_for(&self, time: Duration) -> bool {
        !wait_until(time, || self.used_index() != self.taken)
    }
}
