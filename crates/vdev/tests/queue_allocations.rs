//! Rings allocate nothing for a request: counted, on both sides, in every kind there is.
#![expect(unsafe_code, reason = "an allocator that counts is an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use kiln_vdev::queue::{
    Arena, Buffer, Chain, DeviceRing, DriverRing, InflightRegion, QueueError, RingKind, RingLayout,
};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // There is no thread-local left when a thread ends.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: all is done by the system's allocator, whose promises hold; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller promises what `System` requires.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: the pointer came from `System`.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const REQUESTS: u64 = 100_000;
const WARM_UP: u64 = 1_000;
const DEPTH: u64 = 32;

struct Both {
    driver: DriverRing,
    device: DeviceRing,
    data: u64,
    chain: Chain,
    added: u64,
    taken: u64,
}

impl Both {
    fn new(layout: RingLayout, is_recorded: bool) -> Self {
        let (mut arena, _file) = Arena::new(0x1000, 4 << 20).expect("memory");
        let driver = DriverRing::create(0, layout, &mut arena).expect("a ring");
        let data = arena.allocate(1 << 16, 4096).expect("has room").guest_address();
        let memory = arena.memory().clone();
        let mut device = DeviceRing::new(0, layout, &driver.address(), driver.base(), memory).expect("a ring");
        if is_recorded {
            let (region, _file) = InflightRegion::create(layout.kind, 1, layout.size).expect("memory");
            device.set_inflight(region.queue(0).expect("is there")).expect("is right");
        }
        Self { driver, device, data, chain: Chain::new(), added: 0, taken: 0 }
    }

    /// As a block device's requests are: a header, data, a status.
    fn drive(&mut self, until: u64) {
        let Self { driver, device, data, chain, .. } = self;
        let readable = [Buffer { guest_address: *data, bytes: 16 }];
        let writable = [4096, 1].map(|bytes| Buffer { guest_address: *data + 0x1000, bytes });
        while self.taken < until {
            while self.added < until && self.added - self.taken < DEPTH {
                match driver.add(&readable, &writable, self.added) {
                    Ok(()) => self.added += 1,
                    Err(QueueError::Full { .. }) => break,
                    Err(other) => panic!("{other}"),
                }
            }
            let _ = driver.publish();
            while device.pop(chain).expect("is right") {
                assert_eq!(chain.write_from(4096, &[0]), 1);
                device.push(chain, 4097);
            }
            let _ = device.publish() | device.enable_kicks();
            while let Some(used) = driver.take_used().expect("is right") {
                assert_eq!((used.token, used.written), (self.taken, 4097));
                self.taken += 1;
            }
            let _ = driver.enable_calls();
        }
    }
}

#[test]
fn nothing_is_allocated_for_a_request() {
    for bits in 0..16_u8 {
        let is = |bit: u8| bits >> bit & 1 == 1;
        let kind = if is(0) { RingKind::Packed } else { RingKind::Split };
        let layout = RingLayout { kind, size: 64, event_idx: is(1), indirect: is(2) };
        let mut both = Both::new(layout, is(3));
        both.drive(WARM_UP);
        let before = ALLOCATIONS.with(Cell::get);
        both.drive(WARM_UP + if is(3) { REQUESTS / 5 } else { REQUESTS });
        let allocations = ALLOCATIONS.with(Cell::get) - before;
        assert_eq!(allocations, 0, "{layout:?}, recorded: {}", is(3));
    }
}

#[test]
fn an_allocation_is_counted() {
    let before = ALLOCATIONS.with(Cell::get);
    drop(std::hint::black_box(vec![1_u8]));
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 1);
}
