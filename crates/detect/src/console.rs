//! The prefix of a kernel message: level, time stamp, and the task or CPU that printed it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Digits after the point of a time stamp.
const STAMP_FRACTION_DIGITS: usize = 6;
/// Digits before it: enough for a century.
const STAMP_SECONDS_DIGITS_MAX: usize = 10;

/// One row of a console, and when it arrived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleLine {
    /// The row as [`Lines`](crate::Lines) returns it.
    pub text: String,
    /// Time since the machine was started, by the host's clock.
    pub at: Duration,
}

impl ConsoleLine {
    /// A row of a saved log, which has no arrival times. Its time is the kernel's last stamp on it, or else `before`,
    /// the time of the row before.
    #[must_use]
    pub fn saved(text: String, before: Duration) -> Self {
        let at = KernelLine::split(&text).filter_map(|line| line.stamp).last().unwrap_or(before);
        Self { text, at }
    }
}

/// The task or CPU that printed a kernel line, on kernels that print it (`CONFIG_PRINTK_CALLER`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Caller {
    /// `T123`: the task with this id.
    Task(u32),
    /// `C0`: an interrupt on this CPU.
    Cpu(u32),
}

/// A row, or a part of one, split into prefix and message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelLine<'a> {
    /// Syslog level and facility, as in `<6>`.
    pub level: Option<u8>,
    /// The kernel's clock: time since it booted.
    pub stamp: Option<Duration>,
    /// The task or CPU that printed it.
    pub caller: Option<Caller>,
    /// The message without its prefix. Leading spaces of the message are kept.
    pub text: &'a str,
}

impl<'a> KernelLine<'a> {
    /// Splits a row at its time stamps.
    ///
    /// Rows run together if a writer begins before another has ended its row, so each stamp starts a line. Text before
    /// the first stamp is a line without a stamp.
    pub fn split(row: &'a str) -> impl Iterator<Item = KernelLine<'a>> {
        let mut rest = Some(row);
        std::iter::from_fn(move || {
            let row = rest.take()?;
            let (mut line, after) = Self::prefix(row);
            if let Some(next) = next_prefix(after) {
                line.text = &after[..next];
                rest = Some(&after[next..]);
            }
            Some(line)
        })
    }

    /// Reads the prefix at the start of `row`. Returns the line, whose text is all that follows, and that text again.
    fn prefix(row: &'a str) -> (Self, &'a str) {
        let (level, rest) = level(row).map_or((None, row), |(level, rest)| (Some(level), rest));
        let Some((stamp, rest)) = stamp(rest) else {
            return (Self { level, stamp: None, caller: None, text: rest }, rest);
        };
        let (caller, rest) = caller(rest).map_or((None, rest), |(caller, rest)| (Some(caller), rest));
        let text = rest.strip_prefix(' ').unwrap_or(rest);
        (Self { level, stamp: Some(stamp), caller, text }, text)
    }
}

/// The index in `text` at which the next prefix with a stamp begins.
pub(crate) fn next_prefix(text: &str) -> Option<usize> {
    let stamped = text.match_indices('[').map(|(start, _)| start).find(|&start| stamp(&text[start..]).is_some())?;
    let before = &text[..stamped];
    let with_level =
        before.rfind('<').filter(|&start| level(&before[start..]).is_some_and(|(_, rest)| rest.is_empty()));
    Some(with_level.unwrap_or(stamped))
}

/// `<6>`
pub(crate) fn level(text: &str) -> Option<(u8, &str)> {
    let (digits, rest) = text.strip_prefix('<')?.split_once('>')?;
    Some((decimal(digits)?, rest))
}

/// `[   12.345678]`
pub(crate) fn stamp(text: &str) -> Option<(Duration, &str)> {
    let inner = text.strip_prefix('[')?.trim_start_matches(' ');
    let (seconds, rest) = number(inner, STAMP_SECONDS_DIGITS_MAX);
    let seconds = seconds.filter(|seconds| *seconds <= u32::MAX.into())?;
    let fraction = rest.strip_prefix('.')?;
    let (micros, rest) = number(fraction, STAMP_FRACTION_DIGITS);
    let stamp = Duration::from_micros(seconds * 1_000_000 + micros?);
    (fraction.len() - rest.len() == STAMP_FRACTION_DIGITS).then_some(())?;
    Some((stamp, rest.strip_prefix(']')?))
}

/// The digits at the start of a text, at most `digits_max`, and the text after them.
fn number(text: &str, digits_max: usize) -> (Option<u64>, &str) {
    let length = text.bytes().take(digits_max).take_while(u8::is_ascii_digit).count();
    let value = text.bytes().take(length).fold(0, |value, digit| value * 10 + u64::from(digit - b'0'));
    ((length > 0).then_some(value), &text[length..])
}

/// `[  T123]` or `[    C0]`, directly after the stamp.
pub(crate) fn caller(text: &str) -> Option<(Caller, &str)> {
    let (inner, rest) = text.strip_prefix('[')?.split_once(']')?;
    let inner = inner.trim_start_matches(' ');
    let caller = match inner.strip_prefix('T') {
        Some(task) => Caller::Task(decimal(task)?),
        None => Caller::Cpu(decimal(inner.strip_prefix('C')?)?),
    };
    Some((caller, rest))
}

/// Digits only: `parse` would accept a sign too.
pub(crate) fn decimal<Number: std::str::FromStr>(digits: &str) -> Option<Number> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(row: &str) -> KernelLine<'_> {
        let lines: Vec<_> = KernelLine::split(row).collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0]
    }

    #[test]
    fn a_prefix_is_read_as_level_stamp_and_caller() {
        let line = only("<6>[   12.345678][  T123]  dump_stack+0x1/0x2");
        assert_eq!(line.level, Some(6));
        assert_eq!(line.stamp, Some(Duration::from_micros(12_345_678)));
        assert_eq!(line.caller, Some(Caller::Task(123)));
        assert_eq!(line.text, " dump_stack+0x1/0x2");
        assert_eq!(only("[ 1992.224966][    C1] x").caller, Some(Caller::Cpu(1)));
        assert_eq!(only("[   12.345678][T10420]").text, "");
    }

    #[test]
    fn text_that_only_looks_like_a_prefix_is_text() {
        for row in
            ["[pid  3610] exit", "[  1.5] short", "[ +1.000000] sign", "[a.000000]", "<x>y", "[   1.000000", "[é.]"]
        {
            assert_eq!(only(row), KernelLine { level: None, stamp: None, caller: None, text: row });
        }
        assert_eq!(only("[    1.000000] [Txy] [C] z").text, "[Txy] [C] z");
    }

    #[test]
    fn a_row_of_two_writers_becomes_two_lines() {
        let lines: Vec<_> = KernelLine::split("/ # <0>[    4.000001] Kernel panic[    4.000002][ T7] next").collect();
        assert_eq!(lines.iter().map(|line| line.text).collect::<Vec<_>>(), ["/ # ", "Kernel panic", "next"]);
        assert_eq!(lines.iter().map(|line| line.stamp.is_some()).collect::<Vec<_>>(), [false, true, true]);
        assert_eq!(lines[1].level, Some(0));
    }

    #[test]
    fn a_saved_line_has_the_time_of_its_stamp() {
        let before = Duration::from_secs(3);
        assert_eq!(ConsoleLine::saved("x".to_owned(), before).at, before);
        assert_eq!(ConsoleLine::saved("[    9.000000] x".to_owned(), before).at, Duration::from_secs(9));
    }
}
