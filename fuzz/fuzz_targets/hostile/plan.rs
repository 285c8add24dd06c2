//! A session that a hostile peer plans: the usual start if the target adds it, then messages and acts from the input.

use std::collections::VecDeque;

use kiln_vdev::protocol::frontend::*;
use kiln_vdev::protocol::{
    Config, DeviceStateTransfer, Empty, FrontendRequest, Inflight, Log, MemoryRegion, MemoryTable, Message,
    ProtocolFeatures, SingleRegion, VringAddress, VringFile, VringState,
};
use kiln_vdev::virtio::feature;

use super::input::Input;
use super::{Act, EVENTS, GUEST, MEMORY_BYTES, RING_BYTES, USER};

/// The most messages of a session; longer sessions find nothing new.
const MESSAGES_MAX: usize = 40;
const NEED_REPLY: u32 = 9;
const PLAIN: u32 = 1;
/// Indices in `Descriptors`: memory, then the eventfds, then the rest.
const MEMORY: usize = 0;
const LARGE: usize = 2 + EVENTS;
const SOCKET: usize = 7 + EVENTS;

pub struct PlannedMessage {
    pub number: u32,
    pub flags: u32,
    pub payload: Vec<u8>,
    pub fds: Vec<usize>,
}

#[derive(Default)]
pub struct Plan {
    pub messages: Vec<PlannedMessage>,
    pub acts: VecDeque<(usize, Act)>,
    packed: bool,
}

/// The memory that all plans share by default.
pub const REGION: MemoryRegion =
    MemoryRegion { guest_address: GUEST, size: MEMORY_BYTES, user_address: USER, mmap_offset: 0 };

impl Plan {
    pub fn send<M: Message>(&mut self, message: &M, fds: Vec<usize>) {
        let (number, payload) = (M::REQUEST.number(), message.payload());
        self.messages.push(PlannedMessage { number, flags: NEED_REPLY, payload, fds });
    }

    pub fn act(&mut self, act: Act) {
        self.acts.push_back((self.messages.len(), act));
    }

    /// Negotiates all that is offered except these bits, and shares memory.
    pub fn begin(&mut self, without: u64, without_protocol: u64) {
        let offered = feature::VERSION_1
            | feature::RING_INDIRECT_DESC
            | feature::RING_EVENT_IDX
            | feature::RING_PACKED
            | feature::PROTOCOL_FEATURES
            | feature::LOG_ALL;
        let protocol = [
            ProtocolFeatures::MQ,
            ProtocolFeatures::LOG_SHMFD,
            ProtocolFeatures::REPLY_ACK,
            ProtocolFeatures::BACKEND_REQ,
            ProtocolFeatures::CONFIG,
            ProtocolFeatures::INFLIGHT_SHMFD,
            ProtocolFeatures::RESET_DEVICE,
            ProtocolFeatures::INBAND_NOTIFICATIONS,
            ProtocolFeatures::CONFIGURE_MEM_SLOTS,
            ProtocolFeatures::STATUS,
            ProtocolFeatures::GPA_ADDRESSES,
        ];
        let protocol = protocol.into_iter().fold(0, |all, feature| all | feature.bits());
        self.packed = !without & feature::RING_PACKED != 0;
        self.send(&SetOwner(Empty), vec![]);
        self.send(&SetProtocolFeatures(protocol & !without_protocol), vec![]);
        self.send(&SetFeatures(offered & !without), vec![]);
        self.send(&SetMemTable(MemoryTable(vec![REGION])), vec![MEMORY]);
    }

    /// Sets up a ring with its own eventfds, and enables it.
    pub fn ring(&mut self, index: u8, size: u16, base: u32) {
        let (ring, place) = (u32::from(index), usize::from(index) * 3);
        let file = VringFile::with_descriptor(index);
        self.send(&SetVringNum(VringState { index: ring, num: size.into() }), vec![]);
        self.send(&SetVringAddr(address(index)), vec![]);
        self.send(&SetVringBase(VringState { index: ring, num: base }), vec![]);
        self.send(&SetVringCall(file), vec![1 + (place + 1) % EVENTS]);
        self.send(&SetVringErr(file), vec![1 + (place + 2) % EVENTS]);
        self.send(&SetVringKick(file), vec![1 + place % EVENTS]);
        self.send(&SetVringEnable(VringState { index: ring, num: 1 }), vec![]);
    }

    /// The base of a new ring.
    pub const fn base(&self) -> u32 {
        if self.packed { 0x8000_8000 } else { 0 }
    }

    /// Fills the rest of the plan from the input.
    pub fn fill(&mut self, input: &mut Input<'_>) {
        while !input.is_empty() && self.messages.len() < MESSAGES_MAX && self.acts.len() < MESSAGES_MAX {
            match input.u8() % 16 {
                0 => self.any_message(input),
                1..=5 => self.known_message(input),
                6 => {
                    let (index, size) = (input.u8() % 4, 1 << (input.u8() % 7));
                    let base = if input.u8() & 3 == 0 { input.odd() as u32 } else { self.base() };
                    self.ring(index, size, base);
                }
                7 | 8 => {
                    let (at, bytes) = (u64::from(input.u16()), input.some().to_vec());
                    self.act(Act::Poke(at, bytes));
                }
                9 => self.chains(input),
                10 => {
                    let bytes = u64::from(input.u8()) << 8;
                    self.act(Act::Cut(bytes));
                }
                11 => {
                    let place = input.u8().into();
                    self.act(Act::Signal(place));
                }
                12 if input.u8() % 8 == 0 => {
                    let place = input.u8().into();
                    self.act(Act::Clog(place));
                }
                13 => {
                    let bytes = input.some().to_vec();
                    self.act(Act::Host(bytes));
                }
                14 => self.inflight(input),
                _ => self.act(Act::Pause),
            }
        }
    }

    fn any_message(&mut self, input: &mut Input<'_>) {
        let (number, flags) = (u32::from(input.u8()), u32::from(input.u8()));
        let payload = input.some().to_vec();
        let fds = input.some().iter().map(|place| usize::from(*place)).collect();
        self.messages.push(PlannedMessage { number, flags, payload, fds });
    }

    /// A known message with a payload that is nearly right.
    fn known_message(&mut self, input: &mut Input<'_>) {
        use FrontendRequest as R;
        let request = R::ALL[usize::from(input.u8()) % R::ALL.len()];
        let how = input.u8();
        let (mut payload, mut fds) = payload(request, input);
        if how & 1 != 0 {
            let at = usize::from(input.u8()) % payload.len().max(1);
            let bytes = input.u32().to_le_bytes();
            for (byte, new) in payload.iter_mut().skip(at).zip(bytes) {
                *byte = new;
            }
        }
        if how & 2 != 0 {
            let count = usize::from(input.u8() % 4);
            fds = input.bytes(count).iter().map(|place| usize::from(*place)).collect();
        }
        let flags = if how & 4 != 0 { PLAIN } else { NEED_REPLY };
        self.messages.push(PlannedMessage { number: request.number(), flags, payload, fds });
    }

    fn inflight(&mut self, input: &mut Input<'_>) {
        let wanted = Inflight {
            mmap_size: if input.u8() & 1 == 0 { 0x4000 } else { input.odd() },
            mmap_offset: if input.u8() & 1 == 0 { 0x8000 } else { input.odd() },
            num_queues: 1 + u16::from(input.u8() % 4),
            queue_size: 1 << (input.u8() % 8),
        };
        if input.u8() & 1 == 0 {
            self.send(&GetInflightFd(wanted), vec![]);
        } else {
            self.send(&SetInflightFd(wanted), vec![MEMORY]);
        }
    }

    /// Makes requests available in a ring that are nearly right.
    pub fn chains(&mut self, input: &mut Input<'_>) {
        let ring = u64::from(input.u8() % 4) * RING_BYTES;
        let count = 1 + u16::from(input.u8() % 8);
        let mut table = Vec::new();
        for place in 0..count {
            let how = input.u8();
            let bytes = if how & 8 == 0 { u32::from(input.u8()) * 8 } else { input.odd() as u32 };
            let at = if how & 16 == 0 { 0x4000 + u64::from(input.u8()) * 0x80 } else { input.odd() };
            table.extend_from_slice(&GUEST.wrapping_add(at).to_le_bytes());
            table.extend_from_slice(&bytes.to_le_bytes());
            let flags = u16::from(how & 7);
            if self.packed {
                // Available while the wrap counter is 1.
                table.extend_from_slice(&place.to_le_bytes());
                table.extend_from_slice(&(flags | 1 << 7).to_le_bytes());
            } else {
                let next = if how & 32 == 0 { place + 1 } else { input.u16() };
                table.extend_from_slice(&flags.to_le_bytes());
                table.extend_from_slice(&next.to_le_bytes());
            }
        }
        self.act(Act::Poke(ring, table));
        if !self.packed {
            let index = if input.u8() & 7 == 0 { input.u16() } else { count };
            let entries = (0..count).flat_map(u16::to_le_bytes);
            let available = [0, 0].into_iter().chain(index.to_le_bytes()).chain(entries).collect();
            self.act(Act::Poke(ring + 0x400, available));
        }
    }
}

/// The default address of a ring.
pub fn address(index: u8) -> VringAddress {
    let start = USER + u64::from(index % 4) * RING_BYTES;
    VringAddress {
        index: index.into(),
        flags: 0,
        descriptor: start,
        available: start + 0x400,
        used: start + 0x500,
        log: 0x1_0000,
    }
}

/// The payload of a message with numbers from the input, and the descriptors that fit it.
fn payload(request: FrontendRequest, input: &mut Input<'_>) -> (Vec<u8>, Vec<usize>) {
    use FrontendRequest as R;
    let state = |input: &mut Input<'_>| VringState { index: (input.u8() % 6).into(), num: input.odd() as u32 };
    let region = |input: &mut Input<'_>| {
        let shift = u64::from(input.u8() % 8) * 0x1000;
        let size = if input.u8() & 3 == 0 { input.odd() } else { 0x1000 };
        let mmap_offset = if input.u8() & 3 == 0 { input.odd() } else { shift };
        MemoryRegion { guest_address: GUEST + shift, size, user_address: USER + shift, mmap_offset }
    };
    match request {
        R::SetFeatures => (SetFeatures(feature_bits(input)).payload(), vec![]),
        R::SetProtocolFeatures => (SetProtocolFeatures(feature_bits(input)).payload(), vec![]),
        R::SetMemTable => {
            let regions: Vec<_> = (0..1 + input.u8() % 3).map(|_| region(input)).collect();
            let fds = regions.iter().map(|_| MEMORY).collect();
            (SetMemTable(MemoryTable(regions)).payload(), fds)
        }
        R::SetLogBase => (SetLogBase(Log { size: input.odd(), offset: input.odd() }).payload(), vec![MEMORY]),
        R::SetVringNum => (SetVringNum(state(input)).payload(), vec![]),
        R::SetVringAddr => {
            let mut address = address(input.u8() % 4);
            address.flags = (input.u8() & 1).into();
            (SetVringAddr(address).payload(), vec![])
        }
        R::SetVringBase => (SetVringBase(state(input)).payload(), vec![]),
        R::GetVringBase => (GetVringBase(VringState { num: 0, ..state(input) }).payload(), vec![]),
        R::SetVringEnable => (SetVringEnable(VringState { num: 1, ..state(input) }).payload(), vec![]),
        R::VringKick => (VringKick(VringState { num: 0, ..state(input) }).payload(), vec![]),
        R::SetVringKick | R::SetVringCall | R::SetVringErr => {
            let (index, place) = (input.u8() % 4, usize::from(input.u8()));
            let (file, fds) = match input.u8() & 3 {
                0 => (VringFile::polled(index), vec![]),
                _ => (VringFile::with_descriptor(index), vec![place]),
            };
            (SetVringKick(file).payload(), fds)
        }
        R::SendRarp => (SendRarp(input.u64() & 0xffff_ffff_ffff).payload(), vec![]),
        R::NetSetMtu => (NetSetMtu(input.odd()).payload(), vec![]),
        R::SetBackendReqFd => (vec![], vec![SOCKET]),
        R::SetLogFd => (vec![], vec![1]),
        R::GetConfig | R::SetConfig => {
            let config = Config { offset: input.odd() as u32, flags: 0, bytes: input.some().to_vec() };
            (GetConfig(config).payload(), vec![])
        }
        R::GetInflightFd | R::SetInflightFd => {
            let inflight = Inflight { mmap_size: 0x4000, mmap_offset: 0x8000, num_queues: 4, queue_size: 64 };
            (GetInflightFd(inflight).payload(), if request == R::SetInflightFd { vec![MEMORY] } else { vec![] })
        }
        R::AddMemReg => {
            (AddMemReg(SingleRegion(region(input))).payload(), vec![[MEMORY, LARGE][usize::from(input.u8() & 1)]])
        }
        R::RemMemReg => (RemMemReg(SingleRegion(region(input))).payload(), vec![]),
        R::SetStatus => (SetStatus(input.odd()).payload(), vec![]),
        R::SetDeviceStateFd => {
            let transfer = DeviceStateTransfer { direction: (input.u8() & 1).into(), phase: 0 };
            (SetDeviceStateFd(transfer).payload(), vec![usize::from(input.u8())])
        }
        _ => (vec![], vec![]),
    }
}

/// Some of the bits that are often offered, or any bits.
fn feature_bits(input: &mut Input<'_>) -> u64 {
    if input.u8() & 3 == 0 { input.u64() } else { 0x0001_0000_7c00_0000 & u64::MAX.rotate_left(input.u8().into()) }
}
