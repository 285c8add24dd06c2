//! `kiln vhost replay`: the frontend's part again, to another backend.

use std::fmt::{self, Write as _};

use kiln_vdev::tap::{Recording, RecordingError, Replay, ReplayOptions, ReplayReport};
use owo_colors::OwoColorize as _;

use super::FAILED;
use super::failure::of_socket;
use super::show;
use crate::args::vhost::ReplayArgs;
use crate::failure::Failure;
use crate::output::{Progress, plain, print, print_json, say};

/// Plays a recording; exit code 100 where an answer differs.
pub fn run(args: &ReplayArgs) -> Result<u8, Failure> {
    let recording = Recording::open(&args.recording)?;
    let progress = Progress::start("playing");
    let options = ReplayOptions {
        connect: args.connect.clone(),
        timeout: args.timeout,
        session: args.session,
        device: args.device.or_else(|| show::guess(&args.recording)),
    };
    let mut replay = Replay::new(options);
    for entry in recording {
        match entry {
            Ok(entry) => replay.play(&entry).map_err(|error| of_socket(&args.connect, error))?,
            Err(error @ (RecordingError::Line { .. } | RecordingError::Cut { .. })) => {
                say(format_args!("{} {}", "kiln:".yellow().bold(), plain(&error.to_string())));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let report = replay.end();
    drop(progress);
    if report.sessions == 0 {
        return Err(
            Failure::words(1, "the recording has no session to play").hint("list its sessions with kiln vhost show")
        );
    }
    match args.json {
        true => print_json(&report)?,
        false => print(text(&report)?.trim_end())?,
    }
    Ok(if report.differences.is_empty() { 0 } else { FAILED })
}

/// What people read.
fn text(report: &ReplayReport) -> Result<String, fmt::Error> {
    let mut text = String::new();
    let ReplayReport { sessions, sent, same, not_compared, differences, more_differences } = report;
    for difference in differences {
        let (seconds, micros) = (difference.time_us / 1_000_000, difference.time_us % 1_000_000);
        let name = plain(&difference.request);
        let times = if difference.count == 1 { String::new() } else { format!(", {} times", difference.count) };
        writeln!(text, "{} session {}, {seconds}.{micros:06}{times}", name.bold(), difference.session)?;
        writeln!(text, "  recorded: {}", plain(&difference.recorded))?;
        writeln!(text, "  now:      {}", plain(&difference.replayed))?;
    }
    if *more_differences > 0 {
        writeln!(text, "and {more_differences} more")?;
    }
    let count = *more_differences + differences.iter().map(|difference| difference.count).sum::<u64>();
    writeln!(
        text,
        "{sessions} sessions, {sent} messages sent: {same} replies are the same, {count} differ, \
         {not_compared} depend on data"
    )?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use kiln_vdev::tap::Difference;

    use super::*;

    #[test]
    fn differences_are_listed_before_the_counts() {
        let difference = Difference {
            session: 1,
            time_us: 1_000_250,
            request: "GET_QUEUE_NUM".into(),
            recorded: "queues 4".into(),
            replayed: "queues 1".into(),
            count: 2,
        };
        let report = ReplayReport {
            sessions: 1,
            sent: 31,
            same: 9,
            not_compared: 2,
            differences: vec![difference],
            more_differences: 3,
        };
        let text = text(&report).expect("can be formatted");
        insta::assert_snapshot!(anstream::adapter::strip_str(&text));
    }
}
