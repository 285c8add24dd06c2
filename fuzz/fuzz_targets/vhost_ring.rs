//! Rings whose memory changes in any way between the steps of both sides, and in-flight records with any content:
//! no panic, every loop ends, and neither side has more requests in flight than the ring has room for.
#![no_main]

use kiln_vdev::memory::Area;
use kiln_vdev::queue::{
    Arena, Buffer, Chain, ChainId, DeviceRing, DriverRing, InflightRegion, RingAreas, RingKind, RingLayout,
};
use libfuzzer_sys::fuzz_target;

const GUEST_ADDRESS: u64 = 0x1000;
const ARENA_BYTES: u64 = 1 << 19;
const STEPS_MAX: usize = 512;

/// The unread rest of the input.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> u16 {
        u16::from_le_bytes([self.byte().unwrap_or(0), self.byte().unwrap_or(0)])
    }
}

struct Ring {
    layout: RingLayout,
    arena: Arena,
    data: Area,
    areas: RingAreas,
    driver: DriverRing,
    device: DeviceRing,
    inflight: InflightRegion,
    popped: Vec<Chain>,
    /// A chain was returned that was never taken. After that the device's own counts are meaningless.
    has_forged: bool,
}

impl Ring {
    fn new(bits: u8, size: u8) -> Self {
        let kind = if bits & 1 == 0 { RingKind::Split } else { RingKind::Packed };
        let size = match kind {
            RingKind::Split => 1 << (size % 6),
            RingKind::Packed => 1 + u16::from(size % 32),
        };
        let layout = RingLayout { kind, size, event_idx: bits & 2 != 0, indirect: bits & 4 != 0 };
        let (mut arena, _file) = Arena::new(GUEST_ADDRESS, ARENA_BYTES).expect("memory");
        let driver = DriverRing::create(3, layout, &mut arena).expect("has room");
        let data = arena.allocate(1 << 14, 16).expect("has room");
        let memory = arena.memory().clone();
        let device = DeviceRing::new(3, layout, &driver.address(), driver.base(), memory).expect("a ring");
        let inflight = InflightRegion::create(kind, 1, size).expect("memory").0;
        let areas = driver.areas().clone();
        Self { layout, arena, data, areas, driver, device, inflight, popped: Vec::new(), has_forged: false }
    }

    /// Replaces the device, like after a crash of the one before.
    fn restart(&mut self, base: u32, is_recorded: bool) {
        let memory = self.arena.memory().clone();
        let Ok(device) = DeviceRing::new(3, self.layout, &self.driver.address(), base, memory) else { return };
        self.device = device;
        self.popped.clear();
        self.has_forged = false;
        if is_recorded && self.device.set_inflight(self.inflight.queue(0).expect("is there")).is_ok() {
            let mut chain = Chain::new();
            while self.device.resubmit(&mut chain) == Ok(true) {
                self.popped.push(std::mem::take(&mut chain));
                assert!(self.popped.len() <= usize::from(self.layout.size), "the record has more chains than the ring");
            }
        }
    }

    fn step(&mut self, what: u8, input: &mut Input<'_>) {
        match what % 16 {
            0 => {
                let buffer = Buffer { guest_address: self.data.guest_address(), bytes: input.number().into() };
                let split = usize::from(input.byte().unwrap_or(0) % 5);
                let _ = self.driver.add(&[buffer; 4][..split], &[buffer; 3][..split % 3 + 1], 1);
            }
            1 => _ = self.driver.publish(),
            2 => while let Ok(Some(_)) = self.driver.take_used() {},
            3 => _ = self.driver.enable_calls(),
            4 => self.driver.disable_calls(),
            5 | 6 => {
                let mut chain = Chain::new();
                if let Ok(true) = self.device.pop(&mut chain) {
                    let mut bytes = [0; 32];
                    let _ = chain.read_into(u64::from(what), &mut bytes);
                    let _ = chain.write_from(chain.writable_bytes() / 3, &bytes);
                    assert!(chain.readable_bytes() + chain.writable_bytes() <= 1 << 32);
                    self.popped.push(chain);
                }
            }
            7 => {
                let mut chain = Chain::new();
                if let Ok(true) = self.device.pop(&mut chain) {
                    self.device.unpop(&chain);
                }
            }
            8 => {
                if let Some(chain) = self.popped.pop() {
                    self.device.push(&chain, input.number().into());
                }
            }
            9 => {
                self.has_forged = true;
                self.device.push_id(ChainId::forged(input.number(), input.number()), input.number().into());
            }
            10 => _ = self.device.publish() | self.device.enable_kicks(),
            11 => self.device.disable_kicks(),
            12 => {
                let wraps = if self.layout.kind == RingKind::Packed { u32::from(input.number()) << 16 } else { 0 };
                self.restart(u32::from(input.number()) | wraps, what & 16 != 0);
            }
            13 => self.restart(self.driver.base(), true),
            _ => {
                let record = self.inflight.queue(0).expect("is there");
                let areas =
                    [&self.areas.descriptors, &self.areas.driver, &self.areas.device, &self.data, record.area()];
                let area = areas[usize::from(what >> 5) % areas.len()];
                let start = usize::from(input.number()) % area.bytes();
                let count = usize::from(input.byte().unwrap_or(0) % 40).min(area.bytes() - start);
                for at in start..start + count {
                    area.write(at, input.byte().unwrap_or(0));
                }
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let (Some(bits), Some(size)) = (input.byte(), input.byte()) else { return };
    let mut ring = Ring::new(bits, size);
    if bits & 8 != 0 {
        ring.restart(ring.driver.base(), true);
    }
    for _ in 0..STEPS_MAX {
        let Some(what) = input.byte() else { break };
        ring.step(what, &mut input);
        let size = ring.layout.size;
        assert!(ring.driver.outstanding() <= size && ring.driver.free_descriptors() <= size);
        assert!(ring.has_forged || ring.device.in_flight() <= size);
    }
});
