//! Crash detection in a kernel log in memory, compared with only reading its lines.

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::{self, BufRead as _};
use std::time::{Duration, Instant};

use anyhow::ensure;
use kiln_detect::SavedLog;

use super::results::Results;
use super::samples::{Promise, Sense, Series, Unit};
use super::suite::Bench;

const LOG_BYTES: usize = 16 << 20;
const READ_BYTES: usize = 64 << 10;
/// The promised share of the floor's speed. A release build reached 0.33 of it, which was 600 MB/s. It was 0.10 while each
/// row was copied and split.
const RATIO_MIN: f64 = 0.15;
/// The same for a log of nothing but crashes. A release build reached 0.05, which was 65 MB/s.
const CRASHES_RATIO_MIN: f64 = 0.03;
/// Time between two rows.
const STEP: Duration = Duration::from_millis(2);
/// Ordinary rows for each crash.
const ROWS_PER_CRASH: usize = 5000;

#[rustfmt::skip]
const ORDINARY: &[&str] = &[
    "usb 1-1: new high-speed USB device number 7 using xhci_hcd",
    "EXT4-fs (vda1): mounted filesystem with ordered data mode. Quota mode: none.",
    "audit: type=1400 audit(1700000000.123:45): apparmor=\"STATUS\" operation=\"profile_load\" profile=\"unconfined\" name=\"snap\" pid=812",
    "pci 0000:00:1f.2: reg 0x20: [io  0xc040-0xc05f]",
    "ACPI: PCI Interrupt Link [LNKA] (IRQs 5 *10 11)",
    "[UFW BLOCK] IN=eth0 OUT= SRC=10.0.0.1 DST=10.0.0.2 LEN=40 TOS=0x00 PREC=0x00 TTL=244 ID=54321 PROTO=TCP SPT=44444 DPT=8080 WINDOW=65535",
    "br0: port 1(veth0) entered forwarding state",
    "perf: interrupt took too long (2507 > 2500), lowering kernel.perf_event_max_sample_rate to 79750",
];

const CRASH: &[&str] = &[
    "BUG: kernel NULL pointer dereference, address: 0000000000000008",
    "#PF: supervisor write access in kernel mode",
    "Oops: 0002 [#1] PREEMPT SMP NOPTI",
    "CPU: 1 PID: 88 Comm: insmod Tainted: G           OE      6.1.0-56-cloud-amd64 #1  Debian 6.1.192-2",
    "RIP: 0010:crash_null+0x5/0x15 [crasher]",
    "RAX: 0000000000000000 RBX: ffffffffc046f000 RCX: 0000000000000000",
    "Call Trace:",
    " <TASK>",
    " crasher_init+0x3e/0x1000 [crasher]",
    " do_one_initcall+0x59/0x220",
    " do_syscall_64+0x5d/0x90",
    " </TASK>",
    "---[ end trace 0000000000000000 ]---",
];

/// Measures the scanner, which needs no VM.
pub fn measure(bench: &Bench, results: &mut Results) -> anyhow::Result<()> {
    KINDS.iter().try_for_each(|kind| measure_log(bench, results, kind))
}

/// A kind of log, and what is promised for it.
struct Kind {
    rows_per_crash: usize,
    ratio_min: f64,
    claim: &'static str,
    /// The names of the scan, of the floor and of their ratio.
    series: [&'static str; 3],
}

const KINDS: [Kind; 2] = [
    Kind {
        rows_per_crash: ROWS_PER_CRASH,
        ratio_min: RATIO_MIN,
        claim: "crash detection ≥ 15 % of the speed of reading lines (median of the rounds' ratios)",
        series: [
            "crash detection in a kernel log, 16 MiB",
            "reading its lines, 16 MiB",
            "crash detection / reading lines",
        ],
    },
    Kind {
        rows_per_crash: 1,
        ratio_min: CRASHES_RATIO_MIN,
        claim: "crash detection in a log of crashes ≥ 3 % of the speed of reading lines (median of the rounds' ratios)",
        series: [
            "crash detection in a log of crashes, 16 MiB",
            "reading the lines of a log of crashes, 16 MiB",
            "crash detection / reading lines, log of crashes",
        ],
    },
];

fn measure_log(bench: &Bench, results: &mut Results, kind: &Kind) -> anyhow::Result<()> {
    let (log, crashes) = log(kind.rows_per_crash);
    let mut scanned = Series::new(kind.series[0], Unit::MibPerS);
    let mut floor = Series::new(kind.series[1], Unit::MibPerS);
    let mut ratio = Series::new(kind.series[2], Unit::Ratio);
    // The first round is not counted.
    for round in 0..=bench.samples.div_ceil(4) {
        // The order alternates, so that a busy moment of the host affects both of a pair equally.
        let (scan, lines) = if round % 2 == 0 {
            (scan(&log, crashes)?, lines(&log)?)
        } else {
            let lines = lines(&log)?;
            (scan(&log, crashes)?, lines)
        };
        if round > 0 {
            scanned.samples.push(scan);
            floor.samples.push(lines);
            ratio.samples.push(scan / lines);
        }
    }
    results.promises.push(Promise {
        claim: kind.claim,
        seen: ratio.p50(),
        bound: kind.ratio_min,
        sense: Sense::AtLeast,
    });
    results.series.extend([scanned, floor, ratio]);
    Ok(())
}

/// A log, and how many crashes are in it.
fn log(rows_per_crash: usize) -> (String, usize) {
    let mut log = String::with_capacity(LOG_BYTES + 4096);
    let (mut at, mut rows, mut crashes) = (Duration::from_secs(1), 0, 0);
    let mut say = |log: &mut String, text: &str| {
        writeln!(log, "[{:5}.{:06}] {text}", at.as_secs(), at.subsec_micros())
            .expect("writing to a string does not fail");
        at += STEP;
    };
    while log.len() < LOG_BYTES {
        say(&mut log, ORDINARY[rows % ORDINARY.len()]);
        rows += 1;
        if rows % rows_per_crash == 0 {
            CRASH.iter().for_each(|text| say(&mut log, text));
            crashes += 1;
        }
    }
    (log, crashes)
}

fn scan(log: &str, crashes: usize) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut saved = SavedLog::new();
    let mut findings = 0;
    for piece in log.as_bytes().chunks(READ_BYTES) {
        findings += saved.push(piece).len();
    }
    findings += saved.finish().len();
    let rate = mib_per_s(start);
    ensure!(findings == crashes, "{findings} crashes of {crashes} were found");
    Ok(rate)
}

/// Reads lines like std does: each line is checked to be UTF-8 and is allocated.
fn lines(log: &str) -> io::Result<f64> {
    let start = Instant::now();
    for line in log.as_bytes().lines() {
        black_box(line?);
    }
    Ok(mib_per_s(start))
}

fn mib_per_s(start: Instant) -> f64 {
    LOG_BYTES as f64 / f64::from(1 << 20) / start.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_crash_of_the_log_is_found() {
        for rows_per_crash in [1, ROWS_PER_CRASH] {
            let (log, crashes) = log(rows_per_crash);
            assert!(crashes > 10);
            scan(&log, crashes).expect("all are found");
        }
    }
}
