//! One queue of a block device: its ring and the slots of its requests.
//!
//! A queue belongs to one thread and does not use the session. It watches the connection: if that ends while requests
//! are in flight, the waiting caller gets an error.

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use super::options::{BlkConfig, BlkOptions};
use super::patience::{LOOKS_PER_CLOCK, Patience};
use super::request::{BlkRequest, BlkStatus, Done, HEADER_BYTES, NO_STATUS, RANGE_BYTES};
use crate::frontend::{FrontendError, Ring};
use crate::memory::{Area, VolatileSlice};
use crate::queue::{Arena, Buffer, QueueError, RingLayout};
use crate::socket::wait_readable;

/// Pieces of memory for the data of one request at most.
const SEGMENTS_MAX: usize = 62;
/// Where a slot's status and data begin, behind the header; data at a page.
const STATUS_AT: usize = HEADER_BYTES as usize;
const SLOT_BYTES: usize = 32;
const PAGE_BYTES: u64 = 4096;

/// A place for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub(super) u16);

impl Slot {
    /// Which one it is: less than [`BlkQueue::depth`].
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug, Clone, Copy)]
struct SlotState {
    /// The request that the device has and has not completed.
    request: Option<BlkRequest>,
    /// Its position among all requests, so that they can be submitted again in the same order.
    number: u64,
}

/// One queue of a block device.
#[derive(Debug)]
pub struct BlkQueue {
    pub(super) ring: Ring,
    slots: Box<[SlotState]>,
    free: Vec<Slot>,
    requests: u64,
    /// Headers and statuses, and data, of all slots.
    control: Area,
    data: Area,
    data_bytes: u32,
    segment_bytes: u32,
    segments_max: usize,
    patience: Patience,
    pub(super) timeout: Duration,
    pub(super) connection: OwnedFd,
    socket: String,
    /// Whether calls are enabled.
    calls_enabled: bool,
}

impl BlkQueue {
    /// Bytes of shared memory that a queue needs, its ring and all its slots.
    pub(super) fn memory_bytes(options: &BlkOptions) -> u64 {
        let size = u64::from(options.queue_size);
        // Descriptors, both other areas, and a table of 64 entries for each descriptor; rounded up generously.
        let ring = size * (16 + 2 + 8) + if options.indirect { size * 64 * 16 } else { 0 } + 4 * PAGE_BYTES;
        let slots = u64::from(options.depth) * (SLOT_BYTES as u64 + u64::from(data_bytes(options))) + 2 * PAGE_BYTES;
        (ring + slots).next_multiple_of(PAGE_BYTES)
    }

    pub(super) fn create(
        index: u32,
        layout: RingLayout,
        options: &BlkOptions,
        config: &BlkConfig,
        arena: &mut Arena,
        (socket, connection): (String, OwnedFd),
    ) -> Result<Self, QueueError> {
        let ring = Ring::create(index, layout, arena)?;
        let depth = usize::from(options.depth);
        let data_bytes = data_bytes(options);
        let control = arena.allocate(depth * SLOT_BYTES, PAGE_BYTES)?;
        let data = arena.allocate(depth * data_bytes as usize, PAGE_BYTES)?;
        let limit = |wanted: u32, told: Option<u32>| told.map_or(wanted, |told| wanted.min(told));
        let wanted = if options.segment_bytes == 0 { data_bytes } else { options.segment_bytes };
        let segments = limit(SEGMENTS_MAX as u32, config.seg_max) as usize;
        let room = if layout.indirect { SEGMENTS_MAX } else { usize::from(layout.size).saturating_sub(2) };
        Ok(Self {
            ring,
            slots: vec![SlotState { request: None, number: 0 }; depth].into(),
            free: (0..options.depth).rev().map(Slot).collect(),
            requests: 0,
            control,
            data,
            data_bytes,
            segment_bytes: limit(wanted, config.size_max).max(1),
            segments_max: segments.min(room),
            patience: Patience::new(options.spin),
            timeout: options.timeout,
            connection,
            socket,
            calls_enabled: true,
        })
    }

    /// Which queue it is.
    pub const fn index(&self) -> u32 {
        self.ring.index()
    }

    /// How many requests the device has.
    pub fn outstanding(&self) -> u16 {
        self.ring.driver.outstanding()
    }

    /// How many requests may be under way.
    pub(crate) fn depth(&self) -> u16 {
        u16::try_from(self.slots.len()).expect("was made of such a number")
    }

    /// A slot for the next request, if one is free.
    pub fn reserve(&mut self) -> Option<Slot> {
        self.free.pop()
    }

    /// Gives a slot back. Its request has come back, or was never submitted.
    ///
    /// # Panics
    /// If the device still has it.
    pub fn release(&mut self, slot: Slot) {
        assert!(self.slots[usize::from(slot.0)].request.is_none(), "the device has this slot");
        debug_assert!(!self.free.contains(&slot), "a slot is released once");
        self.free.push(slot);
    }

    /// A slot's data: to be filled before a write, and to be looked at after a read.
    pub fn data(&self, slot: Slot) -> VolatileSlice<'_> {
        self.data.slice(usize::from(slot.0) * self.data_bytes as usize, self.data_bytes as usize)
    }

    /// Adds a request; the device sees it after the next [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`QueueError::Full`] if it has no room now (then the slot is still the caller's), or an error if the request is
    /// larger than the slot or the device allows.
    pub fn submit(&mut self, slot: Slot, request: BlkRequest) -> Result<(), FrontendError> {
        let bytes = u64::from(request.readable()) + u64::from(request.writable());
        if bytes > self.data_bytes.into() {
            return Err(self.no_request(&request, format!("{bytes} bytes, its slots have {}", self.data_bytes)));
        }
        if bytes.div_ceil(self.segment_bytes.into()) > self.segments_max as u64 {
            return Err(self.no_request(&request, format!("{bytes} bytes: more than {} segments", self.segments_max)));
        }
        let at = usize::from(slot.0) * SLOT_BYTES;
        self.control.slice(at, HEADER_BYTES as usize).copy_from(&request.header());
        self.control.write(at + STATUS_AT, NO_STATUS);
        if let Some(range) = request.range() {
            self.data(slot).subslice(0, RANGE_BYTES as usize).expect("slots are larger").copy_from(&range);
        }
        self.add(slot, &request)?;
        self.slots[usize::from(slot.0)] = SlotState { request: Some(request), number: self.requests };
        self.requests += 1;
        Ok(())
    }

    /// Puts the request of a slot into the ring.
    #[inline]
    fn add(&mut self, slot: Slot, request: &BlkRequest) -> Result<(), FrontendError> {
        const NONE: Buffer = Buffer { guest_address: 0, bytes: 0 };
        let mut buffers = [NONE; SEGMENTS_MAX + 4];
        let control = self.control.guest_address() + u64::from(slot.0) * SLOT_BYTES as u64;
        let data = self.data.guest_address() + u64::from(slot.0) * u64::from(self.data_bytes);
        buffers[0] = Buffer { guest_address: control, bytes: HEADER_BYTES };
        let mut count = 1;
        let mut tell = |mut address: u64, mut left: u32| {
            while left > 0 {
                let bytes = left.min(self.segment_bytes);
                buffers[count] = Buffer { guest_address: address, bytes };
                count += 1;
                address += u64::from(bytes);
                left -= bytes;
            }
            count
        };
        let readable = tell(data, request.readable());
        let end = tell(data + u64::from(request.readable()), request.writable());
        buffers[end] = Buffer { guest_address: control + STATUS_AT as u64, bytes: 1 };
        let (readable, writable) = buffers[..=end].split_at(readable);
        self.ring.driver.add(readable, writable, slot.0.into()).map_err(|what| self.queue_error(what))
    }

    /// Makes what was submitted visible to the device, and kicks it if it has requested that.
    ///
    /// # Errors
    /// If it can't be kicked.
    pub fn publish(&mut self) -> Result<(), FrontendError> {
        if self.ring.driver.publish() { self.kick() } else { Ok(()) }
    }

    /// Kicks the device, also if it has kicks disabled.
    ///
    /// # Errors
    /// If it can't be kicked.
    pub fn kick(&self) -> Result<(), FrontendError> {
        self.ring.kick.signal().map_err(|source| self.system("kicking a ring", source))
    }

    /// The next request that came back, if there is one now.
    ///
    /// # Errors
    /// If the device breaks the protocol of the ring or the request.
    #[inline]
    pub fn poll(&mut self) -> Result<Option<Done>, FrontendError> {
        match self.ring.driver.take_used() {
            Ok(None) => Ok(None),
            Ok(Some(used)) => {
                let slot = Slot(u16::try_from(used.token).expect("tokens are slots"));
                self.finish(slot, used.written).map(Some)
            }
            Err(what) => Err(self.queue_error(what)),
        }
    }

    /// The next request that came back: looks for a short while, then sleeps until the device calls.
    ///
    /// # Errors
    /// If nothing completes in time, the connection ends, or the device breaks the protocol.
    pub fn next_done(&mut self) -> Result<Done, FrontendError> {
        // In the usual case at some depth: it is there, and no clock is read.
        if let Some(done) = self.poll()? {
            return Ok(done);
        }
        let started = Instant::now();
        let spin = self.patience.looking_time(started, self.outstanding());
        if self.calls_enabled && !spin.is_zero() {
            self.ring.driver.disable_calls();
            self.calls_enabled = false;
        }
        let mut now = started;
        while now.duration_since(started) < spin {
            for _ in 0..LOOKS_PER_CLOCK {
                if let Some(done) = self.poll()? {
                    return Ok(done);
                }
                std::hint::spin_loop();
            }
            let before = std::mem::replace(&mut now, Instant::now());
            self.patience.looked(before, now);
        }
        self.sleep(started)
    }

    fn sleep(&mut self, started: Instant) -> Result<Done, FrontendError> {
        loop {
            self.calls_enabled = true;
            self.ring.driver.enable_calls();
            // The result is not needed, because the ring is looked at again in any case, after the fence in
            // `enable_calls`. Without this look a request that the device used just before would wait for a call that
            // never comes, see "Sleeping and waking" in `queue`. A call that was signalled earlier only makes the wait
            // return once for nothing.
            if let Some(done) = self.poll()? {
                return Ok(done);
            }
            let left = self.timeout.saturating_sub(started.elapsed());
            let fds = [self.ring.call.as_fd(), self.ring.err.as_fd(), self.connection.as_fd()];
            let ready = wait_readable(fds, Some(left)).map_err(|source| self.system("waiting for a call", source))?;
            let error = match ready {
                // One that calls without end has not done anything either.
                [true, _, _] if !left.is_zero() => {
                    self.ring.call.take().map_err(|source| self.system("taking a call", source))?;
                    continue;
                }
                [_, true, _] => {
                    return Err(FrontendError::RingFailed { socket: self.socket.clone(), ring: self.index() });
                }
                // No request is sent while a queue is waited for, so no reply comes: this is the end.
                [_, _, true] => FrontendError::RingLost {
                    socket: self.socket.clone(),
                    ring: self.index(),
                    outstanding: self.outstanding(),
                },
                _ => FrontendError::RingTimeout {
                    socket: self.socket.clone(),
                    ring: self.index(),
                    outstanding: self.outstanding(),
                    waited: self.timeout,
                },
            };
            // What was done before counts, as does what the device did without a call.
            return self.poll()?.ok_or(error);
        }
    }

    #[inline]
    fn finish(&mut self, slot: Slot, written: u32) -> Result<Done, FrontendError> {
        let request = self.slots[usize::from(slot.0)].request.take().expect("the ring knows what is outstanding");
        let byte = self.control.read::<u8>(usize::from(slot.0) * SLOT_BYTES + STATUS_AT);
        match BlkStatus::from_byte(byte) {
            Some(status) => Ok(Done { slot, request, status, written }),
            None if byte == NO_STATUS => Err(self.device_error(&request, "no status".to_owned())),
            None => Err(self.device_error(&request, format!("the undefined status {byte}"))),
        }
    }

    /// Begins the ring again with all that the last device has not completed, in the order in which it was submitted.
    /// That device must not use the ring any more.
    pub(super) fn submit_again(&mut self) -> Result<(), FrontendError> {
        self.ring.driver.reset();
        self.calls_enabled = true;
        let mut under_way: Vec<_> = (0..).map(Slot).zip(self.slots.iter().copied()).collect();
        under_way.sort_by_key(|(_, state)| state.number);
        for (slot, state) in under_way {
            let Some(request) = state.request else { continue };
            self.control.write(usize::from(slot.0) * SLOT_BYTES + STATUS_AT, NO_STATUS);
            self.add(slot, &request)?;
        }
        // The ring is started after this, and kicked then.
        let _wanted = self.ring.driver.publish();
        Ok(())
    }

    pub(super) fn full(&self) -> FrontendError {
        self.queue_error(QueueError::Full { ring: self.index() })
    }

    fn no_request(&self, request: &BlkRequest, what: String) -> FrontendError {
        FrontendError::NoRequest { socket: self.socket.clone(), request: request.name(), what }
    }

    pub(super) fn device_error(&self, request: &BlkRequest, what: String) -> FrontendError {
        let (socket, ring) = (self.socket.clone(), self.index());
        FrontendError::Device { socket, ring, request: request.name(), what }
    }

    fn queue_error(&self, what: QueueError) -> FrontendError {
        FrontendError::Queue { socket: self.socket.clone(), what }
    }

    fn system(&self, doing: &'static str, source: std::io::Error) -> FrontendError {
        FrontendError::System { socket: self.socket.clone(), doing, source }
    }
}

/// A slot's data begins at a page.
fn data_bytes(options: &BlkOptions) -> u32 {
    options.request_bytes.max(RANGE_BYTES).next_multiple_of(PAGE_BYTES as u32)
}
