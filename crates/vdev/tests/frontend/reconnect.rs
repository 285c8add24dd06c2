//! A backend that is killed under load and comes back: nothing is lost, nothing is torn.

use std::time::{Duration, Instant};

use kiln_vdev::frontend::FrontendError;
use kiln_vdev::frontend::blk::{BlkDriver, BlkOptions, BlkRequest, BlkStatus};

use crate::daemon::Daemon;

const BLOCK: u32 = 64 << 10;
const BLOCKS: u64 = 64;
const DISK_BYTES: u64 = BLOCKS * BLOCK as u64;
const KILLS: u32 = 5;
const WRITES_BETWEEN_KILLS: u64 = 300;

/// What is in a block: in each of its words the number of the write that wrote it.
fn fill(driver: &mut BlkDriver, block: u64, write: u64) {
    let queue = &mut driver.queues_mut()[0];
    let slot = queue.reserve().expect("is free");
    queue.data(slot).copy_from(&word(block, write).to_le_bytes().repeat(BLOCK as usize / 8));
    let sector = block * u64::from(BLOCK) / 512;
    queue.submit(slot, BlkRequest::Write { sector, bytes: BLOCK }).expect("has room");
    queue.publish().expect("kicks");
}

const fn word(block: u64, write: u64) -> u64 {
    block << 48 | write
}

fn options() -> BlkOptions {
    BlkOptions { depth: 16, request_bytes: BLOCK, ..BlkOptions::default() }
}

#[test]
fn a_storage_daemon_that_is_killed_under_load_loses_and_tears_no_write() {
    survive(Daemon::start(DISK_BYTES, 1), &options(), false);
}

#[test]
fn our_backend_killed_under_load_finds_what_was_under_way_in_a_split_ring() {
    survive(Daemon::start_own(DISK_BYTES, 1), &options(), true);
}

#[test]
fn our_backend_killed_under_load_finds_what_was_under_way_in_a_packed_ring() {
    survive(Daemon::start_own(DISK_BYTES, 1), &BlkOptions { packed: true, ..options() }, true);
}

#[test]
fn our_backend_killed_under_load_is_told_again_in_a_packed_ring_without_an_inflight_region() {
    survive(Daemon::start_own(DISK_BYTES, 1), &BlkOptions { packed: true, inflight: false, ..options() }, false);
}

fn survive(mut daemon: Daemon, options: &BlkOptions, by_region: bool) {
    let mut driver = daemon.driver(options).expect("starts");
    assert_eq!(driver.frontend().inflight().is_some(), by_region);
    // Of each block, the last write that came back, and the one that is under way.
    let mut written = vec![0; BLOCKS as usize];
    let mut under_way = vec![None; BLOCKS as usize];
    let (mut number, mut kills, mut lost) = (0, 0, 0);
    let deadline = Instant::now() + Duration::from_secs(25);
    while kills < KILLS {
        number += 1;
        let block = number * 37 % BLOCKS;
        while under_way[block as usize].is_some() || driver.queues_mut()[0].outstanding() == options.depth {
            lost += u32::from(take(&mut driver, &mut written, &mut under_way));
        }
        fill(&mut driver, block, number);
        under_way[block as usize] = Some(number);
        if number % WRITES_BETWEEN_KILLS == 0 {
            daemon.kill_and_restart();
            kills += 1;
        }
        assert!(Instant::now() < deadline, "{number} writes, {kills} kills");
    }
    while driver.queues_mut()[0].outstanding() > 0 {
        lost += u32::from(take(&mut driver, &mut written, &mut under_way));
    }
    driver.flush().expect("is flushed");
    assert!(lost > 0, "no kill met a request under way");
    let disk = daemon.disk();
    for (block, bytes) in disk.chunks_exact(BLOCK as usize).enumerate() {
        let expected = match written[block] {
            0 => 0,
            write => word(block as u64, write),
        };
        let found = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")));
        assert!(found.into_iter().all(|found| found == expected), "block {block}");
    }
}

/// Takes a write that completed; returns whether the backend was lost meanwhile.
fn take(driver: &mut BlkDriver, written: &mut [u64], under_way: &mut [Option<u64>]) -> bool {
    let (done, lost) = match driver.queues_mut()[0].next_done() {
        Err(FrontendError::RingLost { .. }) => {
            driver.recover().expect("comes back");
            (driver.next_done(0).expect("is done again"), true)
        }
        done => (done.expect("comes back"), false),
    };
    assert_eq!(done.status, BlkStatus::Ok);
    let BlkRequest::Write { sector, .. } = done.request else { panic!("only writes were submitted") };
    let block = (sector * 512 / u64::from(BLOCK)) as usize;
    written[block] = under_way[block].take().expect("was under way");
    driver.queues_mut()[0].release(done.slot);
    lost
}
