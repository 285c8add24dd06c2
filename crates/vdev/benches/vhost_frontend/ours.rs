//! Our side.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use kiln_vdev::bench::{Load, Pattern, run_load};
use kiln_vdev::frontend::Options;
use kiln_vdev::frontend::blk::{BlkDriver, BlkOptions};

use crate::{BLOCK_BYTES, QUEUE_SIZE, SPIN, TIME, WARM_UP};

fn options(depth: u16) -> BlkOptions {
    BlkOptions { queue_size: QUEUE_SIZE, depth, request_bytes: BLOCK_BYTES, spin: SPIN, ..BlkOptions::default() }
}

/// From connecting until the device works on its ring; either each message is acknowledged, or only the last is answered.
pub fn handshake(socket: &Path, acknowledged: bool) -> Duration {
    let started = Instant::now();
    let session = Options { need_reply: acknowledged, ..Options::default() };
    let mut driver = BlkDriver::connect(socket, &session, &options(1)).expect("starts");
    if !acknowledged {
        driver.frontend_mut().get_features().expect("is answered");
    }
    let took = started.elapsed();
    drop(driver);
    took
}

pub fn reads(socket: &Path, depth: u16, seed: u64) -> (f64, String) {
    let mut driver = BlkDriver::connect(socket, &Options::default(), &options(depth)).expect("starts");
    let load = Load { pattern: Pattern::RandRead, block_bytes: BLOCK_BYTES, depth, time: TIME, warm_up: WARM_UP, seed };
    let report = run_load(&mut driver, &load, &AtomicBool::new(false)).expect("reads");
    let [p50, p95, p99] =
        [report.latency.p50_ns, report.latency.p95_ns, report.latency.p99_ns].map(|nanos| nanos as f64 / 1e3);
    (report.iops, format!("p50 {p50:.1} µs, p95 {p95:.1}, p99 {p99:.1}, n {}", report.requests))
}
