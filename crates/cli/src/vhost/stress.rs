//! `kiln vhost stress`: many clients, well-behaved and faulty.

use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use kiln_vdev::frontend;
use kiln_vdev::stress::{self, Concurrency, ProcessFacts, StressOptions, StressReport};
use kiln_vdev::virtio::DeviceKind;

use super::FAILED;
use super::failure::{of_frontend, reachable};
use super::stop::Stop;
use crate::args::vhost_testing::StressArgs;
use crate::failure::Failure;
use crate::output::{Progress, plain, print, print_json};

/// Sends clients; exit code 100 where the backend did not do what it should.
pub fn run(args: &StressArgs) -> Result<u8, Failure> {
    reachable(&args.socket)?;
    let stop = Stop::new()?;
    let mut options = StressOptions::new(args.socket.clone());
    options.session = frontend::Options { timeout: args.timeout, ..options.session };
    options.clients = args.clients;
    options.cycles = args.cycles;
    options.seed = args.seed.unwrap_or(options.seed);
    options.disk = args.device == DeviceKind::Blk;
    options.time = args.time;
    let progress = Progress::start(format!("{} clients, {} cycles each", args.clients, args.cycles));
    let report = stress::run(&options, &stop.flag()).map_err(|error| of_frontend(&args.socket, error))?;
    drop(progress);
    match args.json {
        true => print_json(&report)?,
        false => print(text(&report)?.trim_end())?,
    }
    Ok(match stop.code() {
        Some(code) => code,
        None if report.dead.is_some() || report.failed() > 0 => FAILED,
        None => 0,
    })
}

/// What people read.
fn text(report: &StressReport) -> anyhow::Result<String> {
    let mut text = String::new();
    let serves = match report.concurrency {
        Concurrency::Many => "serves all clients at the same time",
        Concurrency::OneOthersWait => "serves one client at a time; others wait",
        Concurrency::OneOthersRefused => "serves one client at a time; others are refused",
    };
    writeln!(
        text,
        "{}: {} clients, {} cycles each in {:.1} s, seed {}; {serves}",
        plain(&report.socket),
        report.clients,
        report.cycles,
        report.seconds,
        report.seed
    )?;
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["", "cycles", "not served", "failed"]);
    for kind in &report.kinds {
        let name = serde_json::to_value(kind.kind)?.as_str().unwrap_or_default().replace('_', " ");
        table.add_row([name, kind.cycles.to_string(), kind.not_served.to_string(), kind.failed.to_string()]);
    }
    for column in 1..4 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    writeln!(text, "{table}")?;
    let micros = |nanos: u64| nanos as f64 / 1e3;
    let handshake = report.handshake;
    writeln!(
        text,
        "handshake p50 {:.0} µs, p99 {:.0} µs, including the wait for a turn",
        micros(handshake.p50_ns),
        micros(handshake.p99_ns)
    )?;
    if let Some(process) = report.process {
        let words = |facts: ProcessFacts| format!("{} descriptors, {} KiB", facts.fds, facts.rss_kib);
        let after = process.after.map_or_else(|| "it has exited".to_owned(), words);
        writeln!(text, "process {}: {} before, after: {after}", process.pid, words(process.before))?;
    }
    for failure in &report.failures {
        writeln!(text, "client {}, cycle {}: {}", failure.client, failure.cycle, plain(&failure.error))?;
    }
    if let Some(dead) = &report.dead {
        writeln!(text, "the backend does not serve any more: {}", plain(dead))?;
    }
    if report.stopped {
        text.push_str("stopped early: these are the results until then\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use kiln_vdev::bench::Latency;
    use kiln_vdev::stress::{CycleKind, Failure, KindReport, ProcessReport};

    use super::*;

    #[test]
    fn a_run_is_described_with_its_failures() {
        let kind = CycleKind::HalfMessage;
        let report = StressReport {
            socket: "disk.sock".into(),
            seed: 7,
            clients: 10,
            cycles: 1000,
            seconds: 12.34,
            concurrency: Concurrency::OneOthersWait,
            kinds: vec![KindReport { kind, cycles: 900, not_served: 100, failed: 1 }],
            handshake: Latency { n: 5, p50_ns: 340_000, p99_ns: 900_000, ..Latency::default() },
            failures: vec![Failure { client: 3, cycle: 17, kind, error: "`disk.sock` was closed by its peer".into() }],
            process: Some(ProcessReport { pid: 4711, before: ProcessFacts { fds: 9, rss_kib: 4096 }, after: None }),
            dead: Some("no reply within 5s".into()),
            stopped: true,
        };
        insta::assert_snapshot!(text(&report).expect("can be formatted"));
    }
}
