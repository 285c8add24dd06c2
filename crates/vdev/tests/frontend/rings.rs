//! What is written is what is read, however the rings are made.

use kiln_vdev::frontend::FrontendError;
use kiln_vdev::frontend::blk::{BlkOptions, BlkRequest, BlkStatus, Slot};
use kiln_vdev::virtio::feature;

use crate::daemon::Daemon;

const DISK_BYTES: u64 = 8 << 20;
const BLOCK: u32 = 16 << 10;
const BLOCKS: u64 = 128;

/// A block's content, which has the block's place.
fn block(number: u64, round: u64) -> Vec<u8> {
    let word = (number << 32 | round).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    word.to_le_bytes().repeat(BLOCK as usize / 8)
}

fn write_and_read_back(daemon: &Daemon, options: &BlkOptions, round: u64) {
    let mut disk = daemon.driver(options).expect("starts");
    assert_eq!(disk.config().capacity, DISK_BYTES / 512);
    let queues = disk.queues_mut().len() as u64;
    let sectors = u64::from(BLOCK) / 512;
    for queue in disk.queues_mut() {
        let mine = (u64::from(queue.index())..BLOCKS).step_by(queues as usize);
        for number in mine {
            let slot = match queue.reserve() {
                Some(slot) => slot,
                None => done(queue.next_done()),
            };
            queue.data(slot).copy_from(&block(number, round));
            let request = BlkRequest::Write { sector: number * sectors, bytes: BLOCK };
            queue.submit(slot, request).expect("has room");
            queue.publish().expect("kicks");
        }
        while queue.outstanding() > 0 {
            let slot = done(queue.next_done());
            queue.release(slot);
        }
    }
    let mut read = vec![0; BLOCK as usize];
    for number in 0..BLOCKS {
        disk.read(number * sectors, &mut read).expect("is there");
        assert!(read == block(number, round), "block {number} with {options:?}");
    }
    let file = daemon.disk();
    for (number, found) in (0..BLOCKS).zip(file.chunks_exact(BLOCK as usize)) {
        assert!(found == block(number, round), "block {number} of the file with {options:?}");
    }
}

fn done(done: Result<kiln_vdev::frontend::blk::Done, FrontendError>) -> Slot {
    let done = done.expect("comes back");
    assert_eq!(done.status, BlkStatus::Ok);
    assert!(!done.is_short(), "{done:?}");
    done.slot
}

#[test]
fn blocks_come_back_as_they_were_written_in_every_kind_of_ring() {
    let daemon = Daemon::start(DISK_BYTES, 1);
    let ways = [(false, false), (false, true), (true, false), (true, true)];
    for (round, (indirect, event_idx)) in (0..).zip(ways) {
        for (more, segment_bytes) in [(0, 0), (10, 1000)] {
            let options = BlkOptions { indirect, event_idx, segment_bytes, ..BlkOptions::default() };
            write_and_read_back(&daemon, &BlkOptions { depth: 5, ..options }, round + more);
        }
    }
}

#[test]
fn blocks_come_back_through_many_queues() {
    let daemon = Daemon::start(DISK_BYTES, 3);
    write_and_read_back(&daemon, &BlkOptions { queues: 8, ..BlkOptions::default() }, 0);
}

#[test]
fn blocks_come_back_from_our_backend_in_every_kind_of_ring() {
    let daemon = Daemon::start_own(DISK_BYTES, 2);
    let mut round = 0;
    for packed in [false, true] {
        for (indirect, event_idx) in [(false, false), (false, true), (true, false), (true, true)] {
            for (queues, segment_bytes) in [(1, 1000), (2, 0)] {
                let options =
                    BlkOptions { packed, indirect, event_idx, segment_bytes, queues, ..BlkOptions::default() };
                write_and_read_back(&daemon, &BlkOptions { depth: 5, ..options }, round);
                round += 1;
            }
        }
    }
}

#[test]
fn packed_rings_are_used_where_they_are_offered_and_else_refused_by_name() {
    let daemon = Daemon::start(DISK_BYTES, 1);
    let error = daemon.driver(&BlkOptions { packed: true, ..BlkOptions::default() }).expect_err("has none");
    assert!(error.to_string().contains("RING_PACKED"), "{error}");
}

#[test]
fn a_ring_that_is_small_takes_as_many_requests_as_fit() {
    let daemon = Daemon::start(DISK_BYTES, 1);
    let options = BlkOptions { queue_size: 8, depth: 8, indirect: false, ..BlkOptions::default() };
    let mut disk = daemon.driver(&options).expect("starts");
    let queue = &mut disk.queues_mut()[0];
    for _ in 0..2 {
        let slot = queue.reserve().expect("is free");
        queue.submit(slot, BlkRequest::Read { sector: 0, bytes: 512 }).expect("has room");
    }
    let third = queue.reserve().expect("is free");
    let full = queue.submit(third, BlkRequest::Read { sector: 0, bytes: 512 });
    assert!(full.expect_err("3 and 3 and 3 are 9").to_string().contains("ring 0 is full"));
    queue.publish().expect("kicks");
    for _ in 0..2 {
        let slot = done(queue.next_done());
        queue.release(slot);
    }
    queue.submit(third, BlkRequest::Read { sector: 0, bytes: 512 }).expect("has room now");
    queue.publish().expect("kicks");
    done(queue.next_done());
}

#[test]
fn other_requests_do_what_they_say() {
    let daemon = Daemon::start(DISK_BYTES, 1);
    let mut disk = daemon.driver(&BlkOptions::default()).expect("starts");
    disk.write(8, &[7; 4096]).expect("is written");
    disk.flush().expect("is flushed");
    assert!(disk.id().expect("has one").len() <= 20);
    assert!(disk.has(feature::blk::DISCARD | feature::blk::WRITE_ZEROES));
    disk.write_zeroes(8, 4, false).expect("is done");
    disk.discard(100, 8).expect("is done");
    let mut read = [1; 4096];
    disk.read(8, &mut read).expect("is there");
    assert!(read[..2048].iter().all(|byte| *byte == 0) && read[2048..].iter().all(|byte| *byte == 7));
    let beyond = disk.read(DISK_BYTES / 512, &mut read).expect_err("is beyond the end");
    assert!(matches!(beyond, FrontendError::Device { ring: 0, request: "read", .. }), "{beyond}");
    let huge = disk.write(0, &vec![0; 2 << 20]).expect_err("is more than a slot has");
    assert!(matches!(huge, FrontendError::NoRequest { request: "write", .. }), "{huge}");
    disk.read(8, &mut read).expect("still works");
}
