//! `kiln lab report` and `kiln lab runs`: what is known of runs.

use std::io::Write as _;

use camino::Utf8Path;
use comfy_table::{Table, presets};
use kiln_engine::home::Home;
use kiln_lab::events::{Journal, RunId, RunRecord};
use kiln_lab::report;
use serde::Serialize;

use super::place::Place;
use crate::args::lab::{LabReportArgs, LabRunsArgs, ReportFormat};
use crate::failure::{Failure, HOST};
use crate::image;
use crate::output::{plain, print, print_json, say};

/// Runs `kiln lab report`.
pub(super) fn report(args: &LabReportArgs) -> Result<u8, Failure> {
    let place = Place::find(&image::home()?, &args.run)?;
    let record = place.record()?;
    let text = render(&record, args.format, &place.directory, record.exit_code())?;
    match &args.out {
        None => print_report(&text)?,
        Some(path) => write(path, &text)?,
    }
    Ok(0)
}

/// Writes reports into the directory of a run, and says where.
pub(super) fn write_all(
    record: &RunRecord,
    formats: &[ReportFormat],
    directory: &Utf8Path,
    code: u8,
) -> Result<(), Failure> {
    for format in formats {
        let path = directory.join(file_name(*format));
        write(&path, &render(record, *format, directory, code)?)?;
        say(format_args!("report {path}"));
    }
    Ok(())
}

fn render(record: &RunRecord, format: ReportFormat, directory: &Utf8Path, code: u8) -> Result<String, Failure> {
    Ok(match format {
        ReportFormat::Text => report::text(record, directory) + "\n",
        ReportFormat::Md => report::markdown(record),
        ReportFormat::Junit => report::junit(record),
        ReportFormat::Csv => report::csv(record),
        ReportFormat::Json => {
            let mut line = Vec::new();
            crate::output::write_json(&mut line, &report::json(record, code))?;
            String::from_utf8(line).expect("JSON is text")
        }
    })
}

/// The name of a report in the directory of its run.
fn file_name(format: ReportFormat) -> &'static str {
    match format {
        ReportFormat::Text => "report.txt",
        ReportFormat::Md => "report.md",
        ReportFormat::Junit => "junit.xml",
        ReportFormat::Json => "report.json",
        ReportFormat::Csv => "report.csv",
    }
}

/// Prints a report as it is: it has escaped what guests wrote in the way of its format.
fn print_report(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::from(anyhow::Error::new(error).context("failed to write to stdout")))
        }
        _ => Ok(()),
    }
}

fn write(path: &Utf8Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| {
        Failure::new(HOST, anyhow::Error::new(error).context(format!("failed to write the report `{path}`")))
    })
}

/// A run as `--json` prints it.
#[derive(Debug, Serialize)]
struct Row {
    run: RunId,
    plan: Option<String>,
    state: State,
    stopped: Option<String>,
    exit_code: u8,
    cases: usize,
    counts: std::collections::BTreeMap<&'static str, usize>,
    findings: usize,
    dir: camino::Utf8PathBuf,
}

/// Whether a run has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    /// All that was due was run.
    Ended,
    /// It was stopped before, and can be resumed.
    Stopped,
    /// A process runs it.
    Running,
    /// Its process was killed. It can be resumed.
    Killed,
}

/// Runs `kiln lab runs`.
pub(super) fn runs(args: &LabRunsArgs) -> Result<u8, Failure> {
    let rows = rows(&image::home()?)?;
    if args.json {
        print_json(&rows)?;
    } else if rows.is_empty() {
        say("no runs yet: kiln lab run PLAN");
    } else {
        print(table(&rows))?;
    }
    Ok(0)
}

/// All runs, the newest first.
fn rows(home: &Home) -> Result<Vec<Row>, Failure> {
    let rows = Place::all(home)?.into_iter().rev().map(|place| {
        let record = place.record()?;
        let state = match (&record.ended_unix, &record.stopped) {
            _ if Journal::is_open_elsewhere(&place.directory) => State::Running,
            (None, _) => State::Killed,
            (Some(_), Some(_)) => State::Stopped,
            (Some(_), None) => State::Ended,
        };
        Ok(Row {
            run: place.id,
            plan: record.head.as_ref().map(|head| head.plan.clone()),
            state,
            exit_code: record.exit_code(),
            cases: record.cases.len(),
            counts: record.counts(),
            findings: record.findings.len(),
            stopped: record.stopped,
            dir: place.directory,
        })
    });
    rows.collect()
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["RUN", "PLAN", "STATE", "CASES", "VERDICTS", "FINDINGS"]);
    for row in rows {
        let counts: Vec<_> = row.counts.iter().map(|(verdict, count)| format!("{count} {verdict}")).collect();
        table.add_row([
            row.run.to_string(),
            plain(row.plan.as_deref().unwrap_or_default()),
            format!("{:?}", row.state).to_lowercase(),
            row.cases.to_string(),
            counts.join(", "),
            row.findings.to_string(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::place::Request;

    #[test]
    fn runs_are_listed_with_their_state() {
        let guard = tempfile::tempdir().expect("a directory");
        let home = Home::at(Utf8Path::from_path(guard.path()).expect("UTF-8"));
        let request = Request {
            directory: "/".into(),
            jobs: 1,
            level: 1,
            filter: Vec::new(),
            shard: None,
            attempts: None,
            fail_fast: false,
            keep_all: false,
            accel: kiln_engine::AccelerationRequest::Auto,
        };
        let ended = "{\"event\":\"run_ended\",\"at_unix\":5}\n";
        let stopped = "{\"event\":\"run_ended\",\"at_unix\":5,\"stopped\":\"interrupted\"}\n";
        for (second, events) in [(1, ""), (2, ended), (3, stopped), (4, "")] {
            let place = Place::create(&home, RunId::new(second, 1), "", &request).expect("is made");
            std::fs::write(place.directory.join(kiln_lab::events::EVENTS_FILE), events).expect("is written");
        }
        let running = Place::find(&home, "last").expect("is there");
        let journal = Journal::open(&running.directory).expect("opens");
        let rows = rows(&home).expect("are listed");
        let states: Vec<_> = rows.iter().map(|row| row.state).collect();
        assert_eq!(states, [State::Running, State::Stopped, State::Ended, State::Killed]);
        insta::assert_snapshot!(table(&rows));
        drop(journal);
    }
}
