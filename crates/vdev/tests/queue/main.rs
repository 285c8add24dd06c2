//! Rings from both sides: ours against ours, against a side that breaks the protocol, across threads, and in memory
//! that changes.

mod hostile;
mod lies;
mod memory;
mod notifications;
mod other_device;
mod rings;
mod threads;

use kiln_vdev::memory::Area;
use kiln_vdev::queue::{Arena, Buffer, Chain, DeviceRing, DriverRing, RingKind, RingLayout};

/// Both sides of ring 7, and memory for buffers.
struct Pair {
    arena: Arena,
    driver: DriverRing,
    device: DeviceRing,
    data: Area,
}

impl Pair {
    fn new(layout: RingLayout) -> Self {
        let (mut arena, _file) = Arena::new(0x10_0000, 4 << 20).expect("memory");
        let driver = DriverRing::create(7, layout, &mut arena).expect("a ring");
        let memory = arena.memory().clone();
        let device = DeviceRing::new(7, layout, &driver.address(), driver.base(), memory).expect("the other side");
        let data = arena.allocate(1 << 20, 4096).expect("has room");
        Self { arena, driver, device, data }
    }

    fn buffer(&self, at: u64, bytes: u32) -> Buffer {
        Buffer { guest_address: self.data.guest_address() + at, bytes }
    }

    /// Makes a request of 8 bytes to read and 8 to write available.
    fn ask(&mut self, token: u64) -> bool {
        let [readable, writable] = [0, 8].map(|at| [self.buffer(at, 8)]);
        self.driver.add(&readable, &writable, token).expect("has room");
        self.driver.publish()
    }

    /// Pops everything there is, and gives it back.
    fn serve(&mut self) -> bool {
        let mut chain = Chain::new();
        while self.device.pop(&mut chain).expect("the driver is honest") {
            self.device.push(&chain, u32::try_from(chain.writable_bytes()).expect("is small"));
        }
        self.device.publish()
    }

    /// The tokens of all that was used.
    fn taken(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.driver.take_used().expect("the device is honest")).map(|used| used.token).collect()
    }
}

/// Every combination, at this size.
fn layouts(size: u16) -> impl Iterator<Item = RingLayout> {
    (0..8_u8).map(move |bits| RingLayout {
        kind: if bits & 4 == 0 { RingKind::Split } else { RingKind::Packed },
        size,
        indirect: bits & 1 != 0,
        event_idx: bits & 2 != 0,
    })
}

const fn split(size: u16) -> RingLayout {
    RingLayout { kind: RingKind::Split, size, event_idx: false, indirect: true }
}

const fn packed(size: u16) -> RingLayout {
    RingLayout { kind: RingKind::Packed, size, event_idx: false, indirect: true }
}
