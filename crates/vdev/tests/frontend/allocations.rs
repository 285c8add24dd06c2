//! The block driver allocates nothing for a request: counted on its thread, while it looks and while it sleeps.
#![expect(unsafe_code, reason = "an allocator that counts is an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use kiln_vdev::frontend::blk::{BlkOptions, BlkQueue, BlkRequest, BlkStatus};

use crate::daemon::Daemon;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: all is done by the system's allocator, whose promises hold; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the promises of this very function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the promises of this very function.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const DEPTH: u16 = 8;

fn read(queue: &mut BlkQueue, rounds: u64) {
    for round in 0..rounds {
        for place in 0..u64::from(DEPTH) {
            let slot = queue.reserve().expect("is free");
            let sector = (round * 8 + place) % 1024 * 8;
            queue.submit(slot, BlkRequest::Read { sector, bytes: 4096 }).expect("has room");
        }
        queue.publish().expect("kicks");
        for _ in 0..DEPTH {
            let done = queue.next_done().expect("comes back");
            assert_eq!(done.status, BlkStatus::Ok);
            queue.release(done.slot);
        }
    }
}

fn count(daemon: &Daemon, spin: Duration, packed: bool) -> u64 {
    let options = BlkOptions { depth: DEPTH, request_bytes: 4096, spin, packed, ..BlkOptions::default() };
    let mut driver = daemon.driver(&options).expect("starts");
    let queue = &mut driver.queues_mut()[0];
    read(queue, 4);
    let before = ALLOCATIONS.with(Cell::get);
    read(queue, 200);
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn a_request_allocates_nothing_whether_its_answer_is_looked_for_or_slept_for() {
    let daemon = Daemon::start_own(8 << 20, 1);
    for packed in [false, true] {
        for spin in [Duration::ZERO, Duration::from_millis(5)] {
            assert_eq!(count(&daemon, spin, packed), 0, "spin {spin:?}, packed {packed}");
        }
    }
}
