//! `kiln vhost show`: a recording, field by field.

use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::Path;

use comfy_table::{CellAlignment, Table, presets};
use kiln_vdev::tap::{Descriptor, Recording, RecordingError, Shown, Side, Story, Summary, TapChannel, Told, ToldWhat};
use kiln_vdev::virtio::DeviceKind;
use owo_colors::OwoColorize as _;
use serde::Serialize;

use crate::args::vhost::ShowArgs;
use crate::failure::Failure;
use crate::output::{plain, say, write_json};

/// Where the fields of a message begin.
const INDENT: usize = 17;

/// Tells a recording; exit code 1 where parts of it can't be read.
pub fn run(args: &ShowArgs) -> Result<u8, Failure> {
    let recording = Recording::open(&args.recording)?;
    let colors = anstream::AutoStream::choice(&io::stdout()) != anstream::ColorChoice::Never;
    let mut out = BufWriter::new(anstream::stdout().lock());
    match show(recording, args, colors, &mut out) {
        // The reader closed the pipe, for example `head`.
        Err(Broken::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(0),
        Err(Broken::Output(error)) => Err(anyhow::Error::new(error).context("failed to write to stdout").into()),
        Err(Broken::Recording(error)) => Err(error.into()),
        Ok(code) => Ok(code),
    }
}

enum Broken {
    Output(io::Error),
    Recording(RecordingError),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

fn show(recording: Recording, args: &ShowArgs, colors: bool, out: &mut impl Write) -> Result<u8, Broken> {
    let mut story = Story::new(args.device.or_else(|| guess(&args.recording)));
    let mut code = 0;
    for entry in recording {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error @ (RecordingError::Line { .. } | RecordingError::Cut { .. })) => {
                // A last line that is cut is what a tap leaves that was killed.
                code = if matches!(error, RecordingError::Cut { .. }) { code } else { 1 };
                say(format_args!("{} {}", "kiln:".yellow().bold(), plain(&error.to_string())));
                continue;
            }
            Err(error) => return Err(Broken::Recording(error)),
        };
        if args.session.is_some_and(|wanted| wanted != entry.session) {
            continue;
        }
        let told = story.tell(entry);
        match (args.summary, args.json) {
            (true, _) => {}
            (false, true) => json(&told, out)?,
            (false, false) => out.write_all(lines(&told, colors).as_bytes())?,
        }
    }
    #[derive(Serialize)]
    struct Last<'a> {
        summary: &'a Summary,
    }
    let summary = story.end();
    match args.json {
        true => json(&Last { summary: &summary }, out)?,
        false => out.write_all(summary_lines(&summary, !args.summary).as_bytes())?,
    }
    out.flush()?;
    Ok(code)
}

/// The kind of device in a recording, so that features have names from the first message on.
pub fn guess(path: &Path) -> Option<DeviceKind> {
    if !path.is_file() {
        return None;
    }
    let mut story = Story::new(None);
    for entry in Recording::open(path).ok()?.flatten() {
        story.tell(entry);
    }
    story.end().device?.parse().ok()
}

fn json(what: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    write_json(out, what)
}

/// `   0.001234  1  → SET_FEATURES …` and, below, lists and what is wrong.
fn lines(told: &Told, colors: bool) -> String {
    let seconds = told.time_us / 1_000_000;
    let arrow = told.from.map_or("·", Side::arrow);
    let channel = if told.channel == Some(TapChannel::Backend) { "backend channel: " } else { "" };
    let mut text = format!("{seconds:>4}.{:06} {:>2} {arrow} {channel}", told.time_us % 1_000_000, told.session);
    let (name, what) = words(told);
    text.push_str(&if colors { name.bold().to_string() } else { name });
    text.push_str(what);
    if told.need_reply {
        text.push_str(" need_reply");
    }
    let fields = match (told.what, told.fields.0.as_slice()) {
        (ToldWhat::Ended, [(_, how)]) => how.to_string(),
        _ => plain(&told.fields.to_string()).replace('\n', " "),
    };
    if !fields.is_empty() {
        text.push_str("  ");
        text.push_str(&fields);
    }
    if !told.fds.is_empty() {
        text.push_str(&format!("  [{}]", descriptors(&told.fds)));
    }
    if let Some(latency) = told.latency_us {
        let latency = format!("  {latency} µs");
        text.push_str(&if colors { latency.dimmed().to_string() } else { latency });
    }
    text.push('\n');
    for (_, value) in &told.fields.0 {
        if let Shown::List(list) = value {
            for (place, fields) in list.iter().enumerate() {
                text.push_str(&format!("{:INDENT$}{place}: {fields}\n", ""));
            }
        }
    }
    for violation in &told.violations {
        let what = plain(&violation.what).replace('\n', " ");
        let line = format!("{:INDENT$}✗ {}: {what} ({})", "", violation.by.name(), violation.section);
        text.push_str(&if colors { line.red().to_string() } else { line });
        text.push('\n');
    }
    text
}

fn words(told: &Told) -> (String, &'static str) {
    let name = match (told.name, told.request) {
        ("", Some(number)) => format!("request {number}"),
        (name, _) => name.to_owned(),
    };
    match told.what {
        ToldWhat::Connected => ("connected".into(), ""),
        ToldWhat::Unreachable => ("failed to connect to the backend".into(), ""),
        ToldWhat::Request => (name, ""),
        ToldWhat::Reply => (name, " reply"),
        ToldWhat::Acknowledgement => (name, " acknowledged"),
        ToldWhat::Bytes => ("bytes that are not a message".into(), ""),
        ToldWhat::Ended => (told.from.map_or("a side", Side::name).into(), ""),
        ToldWhat::Over => ("over".into(), ""),
        ToldWhat::Full => ("the recording reached its limit".into(), ""),
        ToldWhat::Unknown => ("an entry that this version of kiln does not know".into(), ""),
    }
}

fn descriptors(fds: &[Descriptor]) -> String {
    let words: Vec<_> = fds.iter().map(Descriptor::words).collect();
    words.join(", ")
}

fn summary_lines(summary: &Summary, with_gap: bool) -> String {
    let mut text = if with_gap { "\n".to_owned() } else { String::new() };
    let device = match (&summary.device, &summary.device_guess) {
        (Some(kind), Some(reason)) => format!(", device {kind} (guessed: {})", plain(reason).replace('\n', " ")),
        (Some(kind), None) => format!(", device {kind}"),
        (None, _) => String::new(),
    };
    let seconds = summary.duration_us as f64 / 1e6;
    text.push_str(&format!("{} sessions, {} messages in {seconds:.3} s{device}\n", summary.sessions, summary.messages));
    if !summary.requests.is_empty() {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["message", "count", "answered", "refused", "p50 µs", "p99 µs"]);
        let number = |number: Option<u64>| number.map_or(String::new(), |number| number.to_string());
        for row in &summary.requests {
            let refused = if row.refused == 0 { String::new() } else { row.refused.to_string() };
            table.add_row([
                row.name.clone(),
                row.count.to_string(),
                row.answered.to_string(),
                refused,
                number(row.p50_us),
                number(row.p99_us),
            ]);
        }
        for column in 1..6 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for line in table.to_string().lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
    if summary.violations.is_empty() {
        text.push_str("no violation of the specification found\n");
    }
    for broken in &summary.violations {
        let message = if broken.message.is_empty() { String::new() } else { format!("{}: ", broken.message) };
        let what = plain(&broken.first.what).replace('\n', " ");
        let (by, section) = (broken.first.by.name(), broken.first.section);
        text.push_str(&format!("✗ {by}, {}×: {message}{what} ({section})\n", broken.count));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// QEMU 7.2 and its storage daemon: the firmware of a VM looks for a disk to boot.
    const FIRMWARE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../vdev/tests/fixtures/qemu-7.2-blk.recording");

    fn told(flags: &[&str], recording: &str) -> String {
        use clap::Parser as _;
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: ShowArgs,
        }
        let Line { args } = Line::parse_from(["show", recording].iter().chain(flags));
        let recording = Recording::open(&args.recording).expect("a recording");
        let mut out = Vec::new();
        assert!(matches!(show(recording, &args, false, &mut out), Ok(0)));
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn the_session_of_a_real_qemu_is_told() {
        insta::assert_snapshot!(told(&[], FIRMWARE));
    }

    #[test]
    fn a_summary_alone_has_no_messages() {
        let text = told(&["--summary"], FIRMWARE);
        assert!(text.starts_with("1 sessions, 31 messages") && !text.contains('→'), "{text}");
    }

    #[test]
    fn a_recording_can_steer_no_terminal() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("f");
        let hostile = "{\"kiln_vhost_recording\":1}\n\
            {\"time_us\":1,\"session\":1,\"event\":\"unreachable\",\"error\":\"\\u001b]0;owned\\u0007\\nkiln: all is well\"}\n";
        std::fs::write(&path, hostile).expect("can be written");
        let text = told(&[], path.to_str().expect("text"));
        assert!(!text.contains('\u{1b}') && !text.contains("\nkiln:"), "{text}");
    }
}
