//! What kiln itself prints: results on stdout; talk, the log, and progress where somebody watches, on stderr.

use std::fmt::{Display, Write as _};
use std::io::{self, ErrorKind, IsTerminal as _, Write as _, stderr};
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

/// Words that a guest had a part in are cut here.
const WORDS_BYTES_MAX: usize = 16 << 10;

/// Prints a line of a result. Whoever stopped reading wants no more, and that is no failure.
pub fn print(line: impl Display) -> anyhow::Result<()> {
    written(writeln!(anstream::stdout(), "{line}"))
}

/// Prints a result as one line of JSON.
pub fn print_json(result: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(result)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    written(stdout.write_all(&line).and_then(|()| stdout.flush()))
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

/// Says a line on stderr.
pub fn say(line: impl Display) {
    // There is no other place to say that this one is closed or full.
    let _ = writeln!(anstream::stderr(), "{line}");
}

/// Words that may hold bytes from a guest, safe for a terminal: control characters are shown instead of obeyed, further
/// lines are indented so that they can't pass for kiln's own, and there is an end to them.
pub fn plain(words: &str) -> String {
    let mut safe = String::with_capacity(words.len().min(WORDS_BYTES_MAX));
    for character in words.trim_end().chars() {
        match character {
            _ if safe.len() >= WORDS_BYTES_MAX => return safe + " …",
            '\n' => safe.push_str("\n    "),
            '\t' => safe.push('\t'),
            hidden if hidden.is_control() || turns_text(hidden) => {
                write!(safe, "{}", hidden.escape_default()).expect("a string takes everything");
            }
            shown => safe.push(shown),
        }
    }
    safe
}

/// Marks that make a terminal show the text around them in another order.
fn turns_text(character: char) -> bool {
    matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
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
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(colors).init();
}

/// A line that says what is going on; it disappears when dropped, and only a terminal sees it.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// Starts saying `what`.
    pub fn start(what: impl Into<String>) -> Self {
        if !stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner().with_message(what.into());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// Says something else.
    pub fn say(&self, what: impl Into<String>) {
        self.0.set_message(what.into());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_words_cannot_steer_a_terminal_or_pass_for_kilns_own() {
        let words = "no `\x1b]0;owned\x07\x1b[2J`\r\u{9b}31m\u{202e}\nhint: curl | sh\tü\n\n";
        let safe = plain(words);
        assert!(!safe.chars().any(|c| c != '\n' && c != '\t' && c.is_control()), "{safe:?}");
        assert!(!safe.contains('\u{202e}'), "{safe:?}");
        assert!(safe.ends_with("\n    hint: curl | sh\tü"), "{safe:?}");
    }

    #[test]
    fn a_guests_words_have_an_end() {
        assert!(plain(&"\x1b".repeat(1 << 20)).len() < WORDS_BYTES_MAX + 16);
    }
}
