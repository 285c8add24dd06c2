//! Measuring and stressing a real backend.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use kiln_vdev::bench::{BenchError, BenchOptions, Pattern};
use kiln_vdev::stress::{Concurrency, CycleKind, StressOptions};

use crate::daemon::{Daemon, session};

const DISK_BYTES: u64 = 4 << 20;

fn bench(daemon: &Daemon) -> BenchOptions {
    BenchOptions {
        session: session(),
        depths: vec![1, 8],
        time: Duration::from_millis(150),
        warm_up: Duration::from_millis(20),
        handshakes: 5,
        round_trips: 20,
        seed: 7,
        ..BenchOptions::new(daemon.socket())
    }
}

#[test]
fn a_bench_reports_handshakes_round_trips_and_each_load_and_reads_alone() {
    let daemon = Daemon::start(DISK_BYTES, 2);
    let mut options = bench(&daemon);
    options.rings.queues = 2;
    let mut seen = Vec::new();
    let stop = AtomicBool::new(false);
    let report = kiln_vdev::bench::run(&options, &stop, |load| seen.push(load.clone())).expect("runs");
    assert_eq!((report.handshake.latency.n, report.round_trip.n, report.seed), (5, 20, 7));
    assert_eq!(report.disk.as_ref().map(|disk| (disk.capacity_bytes, disk.queues)), Some((DISK_BYTES, 2)));
    assert_eq!(report.loads, seen);
    assert_eq!(report.loads.iter().map(|load| load.depth).collect::<Vec<_>>(), [1, 8]);
    for load in &report.loads {
        assert!(load.requests > 0 && load.writes == 0 && load.latency.p50_ns > 0, "{load:?}");
        assert_eq!((load.requests, load.queues), (load.latency.n, 2));
    }
    assert!(!report.stopped && report.notes.is_empty(), "{:?}", report.notes);
    assert!(daemon.disk().iter().all(|byte| *byte == 0), "nothing was written");
    let json = serde_json::to_string(&report).expect("serializes");
    assert!(serde_json::from_str::<kiln_vdev::bench::Report>(&json).is_ok());
}

#[test]
fn a_bench_writes_when_it_is_told_to_and_stops_when_it_is_told_to() {
    let daemon = Daemon::start(DISK_BYTES, 1);
    let options = BenchOptions { pattern: Pattern::RandRw, ..bench(&daemon) };
    let report = kiln_vdev::bench::run(&options, &AtomicBool::new(false), |_| {}).expect("runs");
    assert!(report.loads.iter().all(|load| load.writes > 0 && load.writes < load.requests));
    assert!(daemon.disk().iter().any(|byte| *byte != 0));
    let stopped = kiln_vdev::bench::run(&options, &AtomicBool::new(true), |_| {}).expect("reports");
    assert!(stopped.stopped && stopped.loads.is_empty());
}

#[test]
fn a_load_that_a_disk_can_not_take_is_refused_by_name() {
    let daemon = Daemon::start(DISK_BYTES, 1);
    let refused = |options: &BenchOptions| {
        kiln_vdev::bench::run(options, &AtomicBool::new(false), |_| {}).expect_err("can't be had")
    };
    let small = BenchOptions { block_bytes: 100, ..bench(&daemon) };
    assert!(matches!(refused(&small), BenchError::BlockSize { bytes: 100 }));
    let large = BenchOptions { block_bytes: 8 << 20, depths: vec![1], ..bench(&daemon) };
    assert!(matches!(refused(&large), BenchError::TooSmall { capacity: DISK_BYTES, .. }));
    let none = BenchOptions { depths: vec![0], ..bench(&daemon) };
    assert!(matches!(refused(&none), BenchError::Depth { depth: 0, .. }));
}

#[test]
fn clients_that_come_and_go_leave_a_backend_that_serves() {
    let daemon = Daemon::start(DISK_BYTES, 1);
    let kinds = CycleKind::ALL.into_iter().filter(|kind| *kind != CycleKind::ManyDescriptors).collect();
    let options = StressOptions {
        session: session(),
        clients: 4,
        cycles: 25,
        seed: 11,
        kinds,
        time: Duration::from_secs(20),
        ..StressOptions::new(daemon.socket())
    };
    let report = kiln_vdev::stress::run(&options, &AtomicBool::new(false)).expect("answers");
    assert_eq!((report.failed(), &report.dead, report.stopped), (0, &None, false), "{:#?}", report.failures);
    assert_eq!(report.kinds.iter().map(|kind| kind.cycles).sum::<u64>(), 100);
    assert_eq!(report.concurrency, Concurrency::OneOthersWait);
    assert!(report.handshake.n > 0);
    let process = report.process.expect("is ours to look at");
    let after = process.after.expect("is alive");
    assert_eq!(process.pid, daemon.pid());
    assert!(after.fds <= process.before.fds, "{process:?}");
}

#[test]
fn descriptors_that_a_backend_keeps_forever_are_seen() {
    // The storage daemon never closes descriptors of messages that have none.
    let daemon = Daemon::start(DISK_BYTES, 1);
    let options = StressOptions {
        session: session(),
        clients: 1,
        cycles: 4,
        seed: 3,
        kinds: vec![CycleKind::ManyDescriptors],
        ..StressOptions::new(daemon.socket())
    };
    let report = kiln_vdev::stress::run(&options, &AtomicBool::new(false)).expect("answers");
    let process = report.process.expect("is ours to look at");
    let after = process.after.expect("is alive");
    assert!(after.fds > process.before.fds, "{process:?}");
}
