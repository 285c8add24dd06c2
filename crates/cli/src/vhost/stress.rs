//! `kiln vhost stress`: clients that come, go, stop half-way and say too much.

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
        false => show(&report)?,
    }
    Ok(match stop.code() {
        Some(code) => code,
        None if report.dead.is_some() || report.failed() > 0 => FAILED,
        None => 0,
    })
}

fn show(report: &StressReport) -> anyhow::Result<()> {
    let serves = match report.concurrency {
        Concurrency::Many => "serves all clients at the same time",
        Concurrency::OneOthersWait => "serves one client at a time; others wait",
        Concurrency::OneOthersRefused => "serves one client at a time; others are refused",
    };
    print(format_args!(
        "{}: {} clients, {} cycles each in {:.1} s, seed {}; {serves}",
        plain(&report.socket),
        report.clients,
        report.cycles,
        report.seconds,
        report.seed
    ))?;
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
    print(table)?;
    let micros = |nanos: u64| nanos as f64 / 1e3;
    let handshake = report.handshake;
    print(format_args!(
        "handshake p50 {:.0} µs, p99 {:.0} µs, including the wait for a turn",
        micros(handshake.p50_ns),
        micros(handshake.p99_ns)
    ))?;
    if let Some(process) = report.process {
        let words = |facts: ProcessFacts| format!("{} descriptors, {} KiB", facts.fds, facts.rss_kib);
        let after = process.after.map_or_else(|| "it has exited".to_owned(), words);
        print(format_args!("process {}: {} before, after: {after}", process.pid, words(process.before)))?;
    }
    for failure in &report.failures {
        print(format_args!("client {}, cycle {}: {}", failure.client, failure.cycle, plain(&failure.error)))?;
    }
    if let Some(dead) = &report.dead {
        print(format_args!("the backend does not serve any more: {}", plain(dead)))?;
    }
    if report.stopped { print("stopped early: these are the results until then") } else { Ok(()) }
}
