//! `kiln vhost bench`: how fast a backend is.

use std::fmt::{self, Write as _};

use comfy_table::{CellAlignment, Table, presets};
use kiln_vdev::bench::{self, BenchError, BenchOptions, Latency, Report};
use kiln_vdev::frontend;
use kiln_vdev::frontend::blk::BlkOptions;

use super::failure::{of_frontend, reachable};
use super::stop::Stop;
use crate::args::vhost_testing::BenchArgs;
use crate::failure::{Failure, USAGE};
use crate::output::{Progress, plain, print, print_json};

/// Measures and prints.
pub fn run(args: &BenchArgs) -> Result<u8, Failure> {
    reachable(&args.socket)?;
    let stop = Stop::new()?;
    let mut options = BenchOptions::new(args.socket.clone());
    options.session = frontend::Options { timeout: args.timeout, ..frontend::Options::default() };
    options.device = args.device;
    options.pattern = args.rw;
    options.block_bytes = args.bs;
    options.depths.clone_from(&args.qd);
    options.time = args.time;
    options.handshakes = args.handshakes;
    options.seed = args.seed.unwrap_or(options.seed);
    options.rings = BlkOptions {
        queues: args.queues,
        packed: args.packed,
        indirect: !args.no_indirect,
        event_idx: !args.no_event_idx,
        timeout: args.timeout,
        ..BlkOptions::default()
    };
    let progress = Progress::start("handshakes and round trips");
    let report = bench::run(&options, &stop.flag(), |load| {
        progress.say(format!("{} at depth {}: {:.0} requests/s", load.pattern, load.depth, load.iops));
    });
    drop(progress);
    let report = report.map_err(|error| of_bench(args, error))?;
    match args.json {
        true => print_json(&report)?,
        false => print(text(&report)?.trim_end())?,
    }
    Ok(stop.code().unwrap_or(0))
}

fn of_bench(args: &BenchArgs, error: BenchError) -> Failure {
    match error {
        BenchError::Frontend(error) => of_frontend(&args.socket, error),
        BenchError::UnknownDevice { .. } => Failure::new(USAGE, error).hint("if it is a disk, add --device blk"),
        error => Failure::new(USAGE, error),
    }
}

/// What people read.
fn text(report: &Report) -> Result<String, fmt::Error> {
    let mut text = String::new();
    if let Some(disk) = &report.disk {
        let words = |is: bool, word: &'static str| if is { word } else { "" };
        writeln!(
            text,
            "{}: {:.1} MiB, {} queues of {} descriptors, {}{}{}, seed {}",
            plain(&report.socket),
            disk.capacity_bytes as f64 / f64::from(1 << 20),
            disk.queues,
            disk.queue_size,
            plain(&disk.ring),
            words(disk.indirect, ", indirect"),
            words(disk.event_idx, ", event idx"),
            report.seed
        )?;
    }
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["", "IOPS", "MiB/s", "p50 µs", "p95 µs", "p99 µs", "max µs", "n"]);
    let mut row = |name: String, rate: [String; 2], latency: &Latency| {
        let micros = |nanos: u64| format!("{:.1}", nanos as f64 / 1e3);
        let [iops, rate] = rate;
        let Latency { n, p50_ns, p95_ns, p99_ns, max_ns, .. } = *latency;
        table.add_row([
            name,
            iops,
            rate,
            micros(p50_ns),
            micros(p95_ns),
            micros(p99_ns),
            micros(max_ns),
            n.to_string(),
        ]);
    };
    let none = || [String::new(), String::new()];
    row(format!("handshake, until {}", plain(&report.handshake.until)), none(), &report.handshake.latency);
    row("round trip".into(), none(), &report.round_trip);
    for load in &report.loads {
        let queues = if load.queues == 1 { String::new() } else { format!(" × {}", load.queues) };
        let name = format!("{} {} at depth {}{queues}", size(load.block_bytes), load.pattern, load.depth);
        let rate = [format!("{:.0}", load.iops), format!("{:.1}", load.bytes_per_second / f64::from(1 << 20))];
        row(name, rate, &load.latency);
    }
    for column in 1..8 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    writeln!(text, "{table}")?;
    for load in report.loads.iter().filter(|load| load.short > 0) {
        writeln!(text, "{} requests at depth {} have too small a used length", load.short, load.depth)?;
    }
    report.notes.iter().try_for_each(|note| writeln!(text, "{}", plain(note)))?;
    if report.stopped {
        text.push_str("stopped early: these are the results until then\n");
    }
    Ok(text)
}

fn size(bytes: u32) -> String {
    match bytes {
        bytes if bytes.is_multiple_of(1 << 20) => format!("{}M", bytes >> 20),
        bytes if bytes.is_multiple_of(1 << 10) => format!("{}k", bytes >> 10),
        bytes => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use kiln_vdev::bench::{DiskReport, HandshakeReport, LoadReport, Pattern};

    use super::*;

    fn latency(n: u64) -> Latency {
        Latency { n, min_ns: 9_000, mean_ns: 14_000, p50_ns: 12_300, p95_ns: 20_000, p99_ns: 31_500, max_ns: 900_000 }
    }

    #[test]
    fn a_measurement_is_a_table_with_notes() {
        let load = LoadReport {
            pattern: Pattern::RandRead,
            block_bytes: 4096,
            depth: 32,
            queues: 2,
            requests: 1_000,
            writes: 0,
            seconds: 1.0,
            iops: 123_456.0,
            bytes_per_second: 505_675_776.0,
            short: 1,
            latency: latency(1_000),
        };
        let report = Report {
            socket: "disk.sock".into(),
            seed: 7,
            handshake: HandshakeReport { until: "rings started".into(), latency: latency(100) },
            round_trip: latency(100),
            disk: Some(DiskReport {
                capacity_bytes: 64 << 20,
                queues: 2,
                queue_size: 256,
                ring: "split".into(),
                indirect: true,
                event_idx: true,
            }),
            loads: vec![load],
            stopped: true,
            notes: vec!["failed to stop the rings: timeout".into()],
        };
        insta::assert_snapshot!(text(&report).expect("can be formatted"));
    }
}
