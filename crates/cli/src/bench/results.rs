//! The results of a bench: what `--out` writes, and the table for people.

use comfy_table::{CellAlignment, Table, presets};
use owo_colors::OwoColorize as _;
use serde::Serialize;

use super::machine::Machine;
use super::samples::{Promise, Series};

/// The results of a whole run.
#[derive(Debug, Serialize)]
pub(super) struct Results {
    pub(super) machine: Machine,
    pub(super) series: Vec<Series>,
    pub(super) promises: Vec<Promise>,
}

/// A line about the machine, a table of the series, and a line for each promise.
pub(super) fn text(results: &Results) -> String {
    let machine = &results.machine;
    let mut lines = vec![format!(
        "{} × {}, {} MiB, Linux {}, load {} · {} ({}) · guest: Linux {}, {} CPU, {} MiB",
        machine.cpus,
        machine.cpu,
        machine.memory_mib,
        machine.kernel,
        machine.load,
        machine.vmm,
        machine.accel,
        machine.guest_kernel,
        machine.guest_cpus,
        machine.guest_memory_mib
    )];
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["", "p50", "p95", "p99", "max", "unit", "n"]);
    for series in &results.series {
        let figures = [50.0, 95.0, 99.0, 100.0].map(|percent| format!("{:.2}", series.percentile(percent)));
        let [p50, p95, p99, max] = figures;
        let n = series.samples.len().to_string();
        table.add_row([series.name.into(), p50, p95, p99, max, series.unit.label().into(), n]);
    }
    for column in [1, 2, 3, 4, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    lines.push(table.to_string());
    for promise in &results.promises {
        let verdict = if promise.kept() { "kept".green().to_string() } else { "broken".red().to_string() };
        lines.push(format!("{verdict}: {}: {:.2} (bound {:.2})", promise.claim, promise.seen, promise.bound));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::samples::{Sense, Unit};

    #[test]
    fn results_are_a_machine_a_table_and_promises() {
        let machine = Machine {
            kiln: "0.1.0",
            unix_time_s: 1_000_000,
            cpu: "A CPU".into(),
            cpus: 2,
            memory_mib: 8192,
            kernel: "6.1.0".into(),
            load: "0.10 0.20 0.30".into(),
            vmm: "QEMU 7.2.0".into(),
            accel: "tcg".into(),
            guest_kernel: "6.1.0-1-cloud-amd64".into(),
            guest_cpus: 1,
            guest_memory_mib: 256,
        };
        let series = |name, unit, samples: &[f64]| Series { name, unit, samples: samples.to_vec() };
        let series = vec![
            series("exec true", Unit::Ms, &[1.0, 2.0, 3.0, 40.0]),
            series("file write, 16 MiB", Unit::MibPerS, &[100.0]),
        ];
        let promise = |claim, seen, sense| Promise { claim, seen, bound: 2.0, sense };
        let promises =
            vec![promise("exec `true` p50 ≤ 2", 1.5, Sense::AtMost), promise("file write ≥ 2", 1.5, Sense::AtLeast)];
        let results = Results { machine, series, promises };
        let json = serde_json::to_string_pretty(&results).expect("plain data");
        insta::assert_snapshot!(format!("{}\n\n{json}", anstream::adapter::strip_str(&text(&results))));
    }
}
