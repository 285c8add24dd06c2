//! A disk that is served allocates nothing for a request: counted on all threads but the driver's own.
#![expect(unsafe_code, reason = "an allocator that counts is an allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kiln_vdev::backend::{Options, Server};
use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
use kiln_vdev::frontend::blk::{BlkDriver, BlkOptions as DriverOptions, BlkRequest};
use kiln_vdev::frontend::{self, Frontend, Wish};
use kiln_vdev::socket::{Channel, Event};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_DRIVER: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    // There is no thread-local left when a thread ends.
    if !IS_DRIVER.try_with(Cell::get).unwrap_or(true) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
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

const REQUESTS: u64 = 20_000;
const WARM_UP: u64 = 1_000;
const SECTORS: u64 = 1 << 14;

/// Keeps 16 requests under way until so many are done.
fn drive(driver: &mut BlkDriver, requests: u64) {
    let queue = &mut driver.queues_mut()[0];
    let (mut submitted, mut done) = (0, 0);
    while done < requests {
        while submitted < requests
            && let Some(slot) = queue.reserve()
        {
            let sector = submitted * 8 * 37 % (SECTORS - 8);
            let request = if submitted % 3 == 0 {
                BlkRequest::Write { sector, bytes: 4096 }
            } else {
                BlkRequest::Read { sector, bytes: 4096 }
            };
            queue.submit(slot, request).expect("has room");
            submitted += 1;
        }
        queue.publish().expect("kicks");
        let next = queue.next_done().expect("is done");
        queue.release(next.slot);
        done += 1;
    }
}

#[test]
fn a_disk_allocates_nothing_for_a_request() {
    IS_DRIVER.set(true);
    for packed in [false, true] {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(SECTORS * 512).expect("grows");
        let disk = Blk::open(&BlkOptions::new(Backing::File(file.path().to_owned()))).expect("a disk");
        let server = Server::new(Arc::new(disk), Options::default()).expect("a server");
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let stop = Event::new().expect("an event");
        let stopped = stop.try_clone().expect("clones");
        let timeout = Duration::from_secs(10);
        let server = std::thread::spawn(move || {
            server.serve_client(Channel::new(theirs, "theirs", timeout), 1, &stopped);
        });
        let session = Frontend::from_channel(Channel::new(ours, "ours", timeout), &frontend::Options::default());
        let options = DriverOptions { packed, depth: 16, request_bytes: 4096, ..DriverOptions::default() };
        let mut driver = BlkDriver::start(session, &Wish::default(), &options).expect("starts");
        drive(&mut driver, WARM_UP);
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        drive(&mut driver, REQUESTS);
        let allocated = ALLOCATIONS.load(Ordering::Relaxed) - before;
        assert_eq!(allocated, 0, "for {REQUESTS} requests, packed: {packed}");
        stop.signal().expect("is told");
        drop(driver);
        server.join().expect("no panic");
    }
}
