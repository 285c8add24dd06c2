//! `kiln vhost check`: a backend against the specification.

use std::path::Path;

use kiln_vdev::check::{self, CheckError, ExpectedFailures, Options, Report};
use owo_colors::OwoColorize as _;

use super::FAILED;
use super::failure::of_socket;
use super::stop::Stop;
use crate::args::vhost_testing::CheckArgs;
use crate::failure::{Failure, USAGE};
use crate::output::{Progress, plain, print, print_json, say};

/// Runs the cases; exit code 100 where one fails that was not expected to.
pub fn run(args: &CheckArgs) -> Result<u8, Failure> {
    let stop = Stop::new()?;
    let is_known = |id: &str| check::cases().any(|case| case.id == id);
    let expected = match &args.expect_failures {
        Some(path) => {
            ExpectedFailures::read(path, &mut |id| is_known(id)).map_err(|error| Failure::new(USAGE, error))?
        }
        None => ExpectedFailures::default(),
    };
    let options = Options {
        socket: args.socket.clone(),
        spawn: args.spawn.clone(),
        device: args.device,
        level: args.level,
        only: args.cases.clone(),
        expected,
        timeout: args.timeout,
        writes: !args.no_writes,
        gentle: args.gentle,
        stop: Some(stop.flag()),
        jobs: args.jobs,
        repeat: args.repeat,
    };
    let count = check::selected(&options).count();
    if count == 0 {
        return Err(Failure::words(USAGE, "no case matches").hint("list the cases with kiln vhost check --list"));
    }
    if args.list {
        return list(&options, args.json);
    }
    let count = count * args.repeat as usize;
    let progress = Progress::long(format!("{count} cases"), args.json);
    let (mut done, mut failed) = (0, 0);
    let report = check::run(&options, &mut |case| {
        done += 1;
        failed += usize::from(case.is_unexpected_failure());
        progress.say(format!("{done} of {count} cases, {failed} failed: {}", case.id));
    });
    drop(progress);
    let report = report.map_err(|error| of_check(args, error))?;
    write_reports(args, &options, &report)?;
    match args.json {
        true => print_json(&report.to_json())?,
        false => print(plain_lines(&report.to_text()).trim_end())?,
    }
    Ok(match stop.code() {
        Some(code) => code,
        None if report.is_as_expected(args.strict) => 0,
        None => FAILED,
    })
}

fn write_reports(args: &CheckArgs, options: &Options, report: &Report) -> anyhow::Result<()> {
    if let Some(path) = &args.junit {
        fs_err::write(path, report.to_junit())?;
    }
    if let Some(path) = &args.write_failures {
        fs_err::write(path, options.expected.write(report))?;
    }
    Ok(())
}

/// Cleans each line on its own, so that a peer's words end at the end of their line.
pub fn plain_lines(text: &str) -> String {
    text.lines().map(|line| plain(line) + "\n").collect()
}

fn list(options: &Options, json: bool) -> Result<u8, Failure> {
    for case in check::selected(options) {
        if json {
            print_json(&serde_json::json!({
                "id": case.id, "level": case.level, "section": case.section, "reason": case.reason
            }))?;
        } else {
            print(format_args!("{:<6}  {:<44}  {}", case.level, case.id.bold(), case.reason))?;
        }
    }
    Ok(0)
}

fn of_check(args: &CheckArgs, error: CheckError) -> Failure {
    if let CheckError::NoFacts { last_words, .. } = &error {
        for line in last_words {
            say(format_args!("{} {}", "backend:".dimmed(), plain(line)));
        }
    }
    match error {
        CheckError::Unreachable { source } => of_socket(args.socket.as_deref().unwrap_or(Path::new("")), source),
        CheckError::UnknownDevice { .. } => Failure::new(USAGE, error).hint("give the kind of device with --device"),
        CheckError::NoTarget => Failure::new(1, error).hint("give a socket, or a command with --spawn"),
        CheckError::NoFacts { .. } => Failure::new(1, error)
            .hint("run kiln vhost probe on it; in the command of --spawn, {socket} is the path to listen on"),
    }
}
