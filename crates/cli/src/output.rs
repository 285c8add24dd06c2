//! What kiln prints: results on stdout; messages, the log and progress on stderr.
//!
//! Any of it may contain text of a guest: a title, an error, a row of its console. So every function here escapes
//! characters that control a terminal or hide text ([`kiln_wire::is_hidden`]), even if the caller has done so already:
//!
//! ```text
//!   print, say, console_row ── guarded: escapes, except kiln's own colors ──▶ anstream ──▶ stdout, stderr
//!   the log                 ── the same, further lines indented           ──────────────▶ stderr
//!   print_json              ── \u202e                                     ──────────────▶ stdout
//! ```
//!
//! The output of a command in a guest is passed on unchanged, since it is not kiln's.

use std::fmt::{Display, Write as _};
use std::io::{self, ErrorKind, IsTerminal as _, Write as _, stderr};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use kiln_wire::{is_hidden, shown};
use owo_colors::OwoColorize as _;
use serde::Serialize;
use tracing_subscriber::EnvFilter;

/// Most bytes of a text that may come from a guest.
const TEXT_BYTES_MAX: usize = 16 << 10;

/// Prints a line of a result on stdout. A closed stdout is not a failure.
pub fn print(line: impl Display) -> anyhow::Result<()> {
    written(writeln!(anstream::stdout(), "{}", guarded(&line.to_string(), Colors::Kept)))
}

/// Prints a result as one line of JSON.
pub fn print_json(result: &impl Serialize) -> anyhow::Result<()> {
    let mut line = Vec::new();
    write_json(&mut line, result)?;
    let mut stdout = io::stdout().lock();
    written(stdout.write_all(&line).and_then(|()| stdout.flush()))
}

/// Whether a line of JSON was printed.
static HAS_PRINTED_JSON: AtomicBool = AtomicBool::new(false);

/// Whether a result was printed as JSON, all or some of it.
pub fn has_printed_json() -> bool {
    HAS_PRINTED_JSON.load(Ordering::Relaxed)
}

/// Writes one line of JSON, in which hidden characters are escapes.
pub fn write_json(out: &mut impl io::Write, what: &impl Serialize) -> io::Result<()> {
    HAS_PRINTED_JSON.store(true, Ordering::Relaxed);
    what.serialize(&mut serde_json::Serializer::with_formatter(&mut *out, Escaped))?;
    out.write_all(b"\n")
}

/// A formatter whose JSON is safe to show on a terminal: JSON itself does not escape DEL, C1 and bidirectional marks.
struct Escaped;

impl serde_json::ser::Formatter for Escaped {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((start, hidden)) = rest.char_indices().find(|(_, character)| is_hidden(*character)) {
            writer.write_all(&rest.as_bytes()[..start])?;
            for unit in hidden.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = &rest[start + hidden.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

fn written(outcome: io::Result<()>) -> anyhow::Result<()> {
    match outcome {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("failed to write to stdout"),
        _ => Ok(()),
    }
}

/// An age in the largest unit that fits.
pub fn age(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [(86_400, "d"), (3600, "h"), (60, "min")];
    match units.into_iter().find(|(unit, _)| seconds >= *unit) {
        Some((unit, name)) => format!("{} {name} ago", seconds / unit),
        None => format!("{seconds} s ago"),
    }
}

/// A size in MiB, as text.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Prints a line on stderr.
pub fn say(line: impl Display) {
    // If stderr is closed or full, there is no other place for a report.
    let _ = writeln!(anstream::stderr(), "{}", guarded(&line.to_string(), Colors::Kept));
}

/// Prints a row of the guest's console on stderr. Its prefix distinguishes it from kiln's messages.
pub fn console_row(text: &str) {
    say(console_line(text));
}

fn console_line(text: &str) -> String {
    format!("{} {}", "console|".dimmed(), shown(text))
}

/// Makes text that may come from a guest safe for a terminal: escapes hidden characters, indents further lines so that
/// they can't be taken for kiln's own, and cuts a long text.
pub fn plain(text: &str) -> String {
    let mut safe = String::with_capacity(text.len().min(TEXT_BYTES_MAX));
    for (number, line) in text.trim_end().split('\n').enumerate() {
        if number > 0 {
            safe.push_str("\n    ");
        }
        write!(safe, "{}", shown(line)).expect("writing to a string does not fail");
        if safe.len() > TEXT_BYTES_MAX {
            safe.truncate((0..=TEXT_BYTES_MAX).rev().find(|end| safe.is_char_boundary(*end)).unwrap_or(0));
            return safe + " …";
        }
    }
    safe
}

/// What becomes of color sequences in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Colors {
    Kept,
    None,
}

/// The last step before a terminal: escapes all hidden characters except newlines and, with [`Colors::Kept`], color
/// sequences. If a caller has forgotten [`plain`], a guest can choose colors, but no more.
fn guarded(text: &str, colors: Colors) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_hidden) {
        safe.push_str(&rest[..start]);
        rest = &rest[start..];
        let kept = match color_length(rest) {
            Some(length) if colors == Colors::Kept => length,
            _ => usize::from(rest.starts_with('\n')),
        };
        safe.push_str(&rest[..kept]);
        rest = &rest[kept..];
        if kept == 0 {
            let length = rest.chars().next().map_or(0, char::len_utf8);
            write!(safe, "{}", shown(&rest[..length])).expect("writing to a string does not fail");
            rest = &rest[length..];
        }
    }
    safe + rest
}

/// The length of a color sequence (`ESC [ 1;31 m`) that `text` begins with.
fn color_length(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|byte: char| !byte.is_ascii_digit() && byte != ';')?;
    parameters[end..].starts_with('m').then_some("\x1b[".len() + end + 1)
}

/// Writes log lines to stderr. `tracing` writes each event with one call, so each write is one line.
struct LogWriter(Colors);

impl io::Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        stderr().write_all(log_lines(&text, self.0).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        stderr().flush()
    }
}

/// A log event as it is printed. A newline within a field must not start a line that looks like another event.
fn log_lines(event: &str, colors: Colors) -> String {
    let (line, end) = event.strip_suffix('\n').map_or((event, ""), |line| (line, "\n"));
    guarded(line, colors).replace('\n', "\n    ") + end
}

/// Sends the log to stderr: warnings, more with `-v`, or as `KILN_LOG` specifies.
pub fn start_log(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("KILN_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colors = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let writer = move || LogWriter(if colors { Colors::Kept } else { Colors::None });
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(colors).init();
}

/// Shows the current step on stderr, as a line of the terminal that disappears when this is dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    /// The lines instead of the bar, if stderr is not a terminal and the work is long.
    lines: Option<Mutex<Lines>>,
}

/// When the last line was written, and the time until the next one.
#[derive(Debug)]
struct Lines {
    last: Instant,
    pause: Duration,
}

/// Time between two lines about long work if stderr is not a terminal, at first and at most. A log of CI does not need a
/// line for each step, but a job without output for minutes looks as if it hangs.
const LINE_EVERY: Duration = Duration::from_secs(2);
const LINE_EVERY_MAX: Duration = Duration::from_secs(30);

impl Progress {
    /// Shows `what`, on a terminal only.
    pub fn start(what: impl Into<String>) -> Self {
        if !stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden(), lines: None };
        }
        let bar = ProgressBar::new_spinner().with_message(what.into());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar, lines: None }
    }

    /// Shows nothing, for work beside which something else is shown.
    pub fn silent() -> Self {
        Self { bar: ProgressBar::hidden(), lines: None }
    }

    /// Like [`start`](Self::start), for long work: if stderr is not a terminal, prints a line now and then, less and
    /// less often. With `json`, prints nothing if stdout and stderr are the same file.
    pub fn long(what: impl Into<String>, json: bool) -> Self {
        if json && stderr_is_stdout() {
            return Self { bar: ProgressBar::hidden(), lines: None };
        }
        let mut progress = Self::start(what);
        progress.lines =
            (!stderr().is_terminal()).then(|| Mutex::new(Lines { last: Instant::now(), pause: LINE_EVERY }));
        progress
    }

    /// Shows another step.
    pub fn say(&self, what: impl Into<String>) {
        let Some(lines) = &self.lines else { return self.bar.set_message(what.into()) };
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.last.elapsed() >= lines.pause {
            *lines = Lines { last: Instant::now(), pause: (lines.pause * 2).min(LINE_EVERY_MAX) };
            say(what.into());
        }
    }
}

/// Whether stderr and stdout are the same file, pipe or terminal (`2>&1`). A program that parses JSON from it would
/// also get the lines of the progress.
fn stderr_is_stdout() -> bool {
    let of = |fd: std::os::fd::BorrowedFd<'_>| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    of(stderr().as_fd()).is_ok_and(|ours| of(io::stdout().as_fd()) == Ok(ours))
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What must not reach a terminal: ESC sequences, C1, DEL, bidirectional marks, zero widths, tags, ends of lines.
    const HOSTILE: &str =
        "no \x1b]0;owned\x07\x1b[2J\r\u{9b}31m\u{7f}\u{202e}evil\u{2066}\u{200b}\u{feff}\u{e0041}\nhint: x";

    fn is_harmless(text: &str) -> bool {
        !text.chars().any(|character| is_hidden(character) && character != '\n')
    }

    #[test]
    fn hostile_text_is_harmless_on_every_way_out() {
        let json = |value: &serde_json::Value| {
            let mut line = Vec::new();
            write_json(&mut line, value).expect("writing to a vector does not fail");
            String::from_utf8(line).expect("JSON is text")
        };
        let object = serde_json::json!({ HOSTILE: [HOSTILE] });
        let ways = [
            plain(HOSTILE),
            guarded(HOSTILE, Colors::Kept),
            guarded(HOSTILE, Colors::None),
            guarded(&HOSTILE.bold().to_string(), Colors::None),
            console_line(HOSTILE).replace("\x1b[2m", "").replace("\x1b[0m", ""),
            log_lines(HOSTILE, Colors::Kept),
            json(&object),
        ];
        for way in &ways {
            assert!(is_harmless(way), "{way:?}");
        }
        let parsed: serde_json::Value = serde_json::from_str(&json(&object)).expect("JSON");
        assert_eq!(parsed, object, "a program reads what the guest wrote");
        insta::assert_snapshot!(ways.join("\n---\n"));
    }

    #[test]
    fn a_guests_text_cannot_be_taken_for_kilns_own() {
        for safe in [plain("no\nhint: curl | sh\tü\n\n"), log_lines("no\nhint: curl | sh\tü\n", Colors::None)] {
            assert!(safe.trim_end().ends_with("\n    hint: curl | sh\tü"), "{safe:?}");
        }
        assert!(!console_line("a\nb").contains('\n'));
    }

    #[test]
    fn a_long_text_of_a_guest_is_cut() {
        assert!(plain(&"\x1b".repeat(1 << 20)).len() < TEXT_BYTES_MAX + 16);
        assert!(plain(&"ü\n".repeat(1 << 20)).len() < TEXT_BYTES_MAX + 16);
    }

    #[test]
    fn only_color_sequences_are_kept() {
        let colored = format!("{} and {}", "red".red(), "bold".bold());
        assert_eq!(guarded(&colored, Colors::Kept), colored);
        for steers in ["\x1b[2J", "\x1b[31", "\x1b]0;x\x07", "\x1b[?25l", "\x1b", "\x1b[31mred\x1b[H"] {
            assert!(guarded(steers, Colors::Kept).contains("\\u{1b}"), "{steers:?}");
        }
    }
}
