//! What kiln itself prints: results on stdout; messages, the log, and progress on stderr.
//!
//! Text of a guest may be in any of it: a title, an error, a row of its console. So every way out of here escapes what
//! steers a terminal or hides text ([`kiln_wire::is_hidden`]), whatever the caller did with it before:
//!
//! ```text
//!   print, say, console_row ── guarded: escapes, but for kiln's own colors ──▶ anstream ──▶ stdout, stderr
//!   the log                 ── the same, further lines indented            ──────────────▶ stderr
//!   print_json              ── \u202e                                      ──────────────▶ stdout
//! ```
//!
//! What a command in a guest writes to its own stdout and stderr is not kiln's, and is passed on as it is.

use std::fmt::{Display, Write as _};
use std::io::{self, ErrorKind, IsTerminal as _, Write as _, stderr};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use kiln_wire::{is_hidden, shown};
use owo_colors::OwoColorize as _;
use serde::Serialize;
use tracing_subscriber::EnvFilter;

/// Words that a guest had a part in are cut here.
const WORDS_BYTES_MAX: usize = 16 << 10;

/// Prints a line of a result. A reader that went away is no failure.
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

/// JSON that is safe to show: the standard leaves DEL, C1 and bidirectional marks as they are.
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

/// A size for people.
pub fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Prints a line on stderr.
pub fn say(line: impl Display) {
    // There is no other place to report that this one is closed or full.
    let _ = writeln!(anstream::stderr(), "{}", guarded(&line.to_string(), Colors::Kept));
}

/// Prints a row of the guest's console on stderr, marked as the guest's so that it can't pass for kiln's own words.
pub fn console_row(text: &str) {
    say(console_line(text));
}

fn console_line(text: &str) -> String {
    format!("{} {}", "console|".dimmed(), shown(text))
}

/// Words that may hold bytes from a guest, safe for a terminal: hidden characters are shown instead of obeyed, further
/// lines are indented so that they can't pass for kiln's own, and there is an end to them.
pub fn plain(words: &str) -> String {
    let mut safe = String::with_capacity(words.len().min(WORDS_BYTES_MAX));
    for (number, line) in words.trim_end().split('\n').enumerate() {
        if number > 0 {
            safe.push_str("\n    ");
        }
        write!(safe, "{}", shown(line)).expect("a string takes everything");
        if safe.len() > WORDS_BYTES_MAX {
            safe.truncate((0..=WORDS_BYTES_MAX).rev().find(|end| safe.is_char_boundary(*end)).unwrap_or(0));
            return safe + " …";
        }
    }
    safe
}

/// Whether text has colors of kiln's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Colors {
    Kept,
    None,
}

/// The last step before a terminal: everything hidden becomes an escape, except ends of lines and, where they are
/// kept, color sequences. A caller that forgot [`plain`] lets a guest choose a color at most.
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
            write!(safe, "{}", shown(&rest[..length])).expect("a string takes everything");
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

/// A way for log lines to stderr. `tracing` writes an event at once, so each write is one line.
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

/// An event as it is printed: an end of line within a field must not begin a line that passes for another event.
fn log_lines(event: &str, colors: Colors) -> String {
    let (line, end) = event.strip_suffix('\n').map_or((event, ""), |line| (line, "\n"));
    guarded(line, colors).replace('\n', "\n    ") + end
}

/// Sends log lines to stderr: warnings, more with `-v`, or what `KILN_LOG` says.
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

/// What is going on, on stderr: a line of a terminal that disappears when this is dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    /// If stderr is no terminal and the work is long: when the last line was written.
    lines: Option<Instant>,
}

/// How often a line about long work is written to what is no terminal: a log of CI is read later, and nobody counts cases in
/// it, but a job that shows nothing for minutes is taken for one that hangs.
const LINE_EVERY: Duration = Duration::from_secs(2);

impl Progress {
    /// Starts saying `what`, to a terminal only.
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

    /// As [`start`](Self::start), for work that takes long: what is no terminal gets a line now and then. With `json`, nothing
    /// is written where the result goes too.
    pub fn long(what: impl Into<String>, json: bool) -> Self {
        if json && goes_where_stdout_goes() {
            return Self { bar: ProgressBar::hidden(), lines: None };
        }
        let mut progress = Self::start(what);
        progress.lines = (!stderr().is_terminal()).then(Instant::now);
        progress
    }

    /// Says something else.
    pub fn say(&self, what: impl Into<String>) {
        self.bar.set_message(what.into());
    }

    /// As [`say`](Self::say), after a step of long work.
    pub fn step(&mut self, what: String) {
        match &mut self.lines {
            Some(last) if last.elapsed() < LINE_EVERY => {}
            Some(last) => {
                *last = Instant::now();
                say(what);
            }
            None => self.say(what),
        }
    }
}

/// Whether stderr and stdout are the same file, pipe or terminal (`2>&1`): whoever reads JSON there would read lines between.
fn goes_where_stdout_goes() -> bool {
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
            write_json(&mut line, value).expect("a vector takes everything");
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
    fn a_guests_words_cannot_pass_for_kilns_own() {
        for safe in [plain("no\nhint: curl | sh\tü\n\n"), log_lines("no\nhint: curl | sh\tü\n", Colors::None)] {
            assert!(safe.trim_end().ends_with("\n    hint: curl | sh\tü"), "{safe:?}");
        }
        assert!(!console_line("a\nb").contains('\n'));
    }

    #[test]
    fn a_guests_words_have_an_end() {
        assert!(plain(&"\x1b".repeat(1 << 20)).len() < WORDS_BYTES_MAX + 16);
        assert!(plain(&"ü\n".repeat(1 << 20)).len() < WORDS_BYTES_MAX + 16);
    }

    #[test]
    fn colors_are_all_that_passes() {
        let colored = format!("{} and {}", "red".red(), "bold".bold());
        assert_eq!(guarded(&colored, Colors::Kept), colored);
        for steers in ["\x1b[2J", "\x1b[31", "\x1b]0;x\x07", "\x1b[?25l", "\x1b", "\x1b[31mred\x1b[H"] {
            assert!(guarded(steers, Colors::Kept).contains("\\u{1b}"), "{steers:?}");
        }
    }
}
