//! `kiln lab list`: what a plan runs, cell by cell.

use comfy_table::{Table, presets};
use kiln_lab::plan::{Plan, SuiteKind};
use kiln_lab::{events::RunRecord, run};
use serde::Serialize;

use super::plan_file;
use super::run::options;
use crate::args::lab::LabListArgs;
use crate::failure::Failure;
use crate::output::{plain, print, print_json};

/// A suite in a cell, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Row {
    cell: kiln_lab::Cell,
    suite: String,
    kind: SuiteKind,
    level: u8,
    timeout_ms: u64,
}

/// Runs `kiln lab list`.
pub(super) fn list(args: &LabListArgs) -> Result<u8, Failure> {
    let file = plan_file::read(&args.plan)?;
    let rows = rows(&file.plan, &options(&args.select, &file.plan));
    if args.json {
        print_json(&rows)?;
    } else {
        print(table(&rows))?;
    }
    Ok(0)
}

fn rows(plan: &Plan, options: &run::Options) -> Vec<Row> {
    let cells = run::due(plan, options, &RunRecord::default());
    let rows = cells.into_iter().flat_map(|(cell, suites)| {
        suites.into_iter().map(move |index| {
            let suite = &plan.suites[index];
            Row {
                cell: cell.clone(),
                suite: suite.name.clone(),
                kind: suite.kind,
                level: suite.level,
                timeout_ms: u64::try_from(suite.timeout.as_millis()).unwrap_or(u64::MAX),
            }
        })
    });
    rows.collect()
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["CELL", "SUITE", "KIND", "LEVEL"]);
    for row in rows {
        let kind = format!("{:?}", row.kind).to_lowercase();
        table.add_row([plain(&row.cell.to_string()), plain(&row.suite), kind, row.level.to_string()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::lab::SelectArgs;

    #[test]
    fn a_list_has_a_row_for_each_suite_of_each_cell() {
        let plan = "[plan]\nname = 'x'\n[matrix]\nfs = ['a', 'b']\n[[suite]]\nkind = 'tap'\nname = 'all'\nrun = 'x'\n\
                    [[suite]]\nkind = 'command'\nname = 'one'\nrun = 'x'\nonly = { fs = ['b'] }\nlevel = 2\n";
        let plan = Plan::parse(plan).expect("is right");
        let shown = |level| {
            let select = SelectArgs { level, filter: Vec::new(), shard: None };
            let rows = rows(&plan, &options(&select, &plan));
            format!("{}\n{}", table(&rows), serde_json::to_string(&rows).expect("plain data"))
        };
        insta::assert_snapshot!(format!("{}\n\n{}", shown(None), shown(Some(2))));
    }
}
