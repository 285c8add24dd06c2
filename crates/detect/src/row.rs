//! A row of a saved log in any of the usual forms: `dmesg` with any option, a journal, syslog, a console with or
//! without times of the host before each row.
//!
//! ```text
//!   <4>Nov  1 12:00:00 host kernel: [   12.345678][  T1] text
//!   └─┘└─────────────┘ └──┘ └─────┘ └────────────────┘   └─ what the scanner reads
//!  level  time of day  host   tag    the kernel's prefix
//! ```
//!
//! Each part but the text may be absent. A live console has only the kernel's prefix and is not read by this module:
//! there a guest can print text that looks like any of these forms.

use std::time::Duration;

use crate::clock;
use crate::console::{Caller, KernelLine, caller, decimal, level, stamp};

/// Names of facilities, in the spelling of `dmesg -x` and busybox's syslogd. The first is the kernel's.
const FACILITIES: [&str; 12] =
    ["kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"];
/// Names of levels, in the same spelling.
const LEVELS: [&str; 10] = ["emerg", "alert", "crit", "err", "warn", "notice", "info", "debug", "error", "warning"];
/// The kernel's tag.
const KERNEL: &str = "kernel:";

/// A row, by its author.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Row<'a> {
    /// The kernel, according to the program that saved the log.
    Kernel {
        /// The host's clock, if the row has no stamp of the kernel.
        time: Option<Duration>,
        line: KernelLine<'a>,
    },
    /// Unknown, since anything can write to a console. It is the kernel if the row has the kernel's stamp.
    Console { time: Option<Duration>, rest: &'a str },
    /// Another program.
    Program,
}

/// The form of a log, as far as its rows so far show it.
#[derive(Debug, Default)]
pub(crate) struct Form {
    /// The name of the host before the kernel's tag; empty if only the tag is there.
    host: Option<String>,
    /// A row that begins with the kernel's stamp came before any tag.
    is_console: bool,
}

impl Form {
    /// Whether a daemon saved the log. Such a log lacks the last lines of a machine that shuts down, because the daemon
    /// is stopped before the kernel prints them.
    pub(crate) fn is_tagged(&self) -> bool {
        self.host.is_some() && !self.is_console
    }

    /// Whether the log is a console, and no row had a tag.
    pub(crate) fn is_plain_console(&self) -> bool {
        self.is_console && self.host.is_none()
    }

    /// Parses a row.
    pub(crate) fn read<'a>(&mut self, row: &'a str) -> Row<'a> {
        let (row_level, rest) = level(row).map_or((None, row), |(level, rest)| (Some(level), rest));
        if let Some((kernel_stamp, after)) = stamp(rest) {
            return match self.tag_of_monotonic(after.strip_prefix(' ').unwrap_or(after)) {
                Some(text) => tagged_row(text, |text| message(text, Some(kernel_stamp), row_level), None),
                None => {
                    self.is_console |= self.host.is_none();
                    Row::Console { time: None, rest: row }
                }
            };
        }
        if let Some(row) = dmesg(rest, row_level) {
            return row;
        }
        let version = rest.strip_prefix("1 ").filter(|_| row_level.is_some());
        if let Some((time, rest)) = split_at_time(version.unwrap_or(rest)) {
            let tagged = if version.is_some() { self.rfc5424(rest) } else { self.tag(rest) };
            return match tagged {
                Some(text) => tagged_row(text, |text| message(text, None, row_level), Some(time)),
                None => Row::Console { time: Some(time), rest },
            };
        }
        // syslogd broadcasts urgent messages to every terminal in this form.
        if let Some(text) = rest.trim_start_matches(' ').strip_prefix(KERNEL) {
            return Row::Kernel { time: None, line: message(text.trim_start(), None, row_level) };
        }
        Row::Console { time: None, rest: row }
    }

    /// `host kernel: text` and its variants: all that can be between a time and a text.
    fn tag<'a>(&mut self, rest: &'a str) -> Option<Tagged<'a>> {
        let (host, after) = match rest.strip_prefix(KERNEL) {
            Some(_) => ("", rest),
            None => rest.split_once(' ')?,
        };
        // Busybox's syslogd writes `host kern.err kernel: text`.
        let after = match after.split_once(' ') {
            Some((priority, rest)) if is_priority(priority) => rest,
            _ => after,
        };
        if let Some(text) = after.strip_prefix(KERNEL)
            && !host.ends_with(':')
        {
            self.remember(host);
            return Some(Tagged::Kernel(text.strip_prefix(' ').unwrap_or(text)));
        }
        let with_pid = after.split_once(": ").is_some_and(|(tag, _)| {
            let pid = tag.strip_suffix(']').and_then(|tag| tag.split_once('['));
            pid.is_some_and(|(name, pid)| !name.contains(' ') && decimal::<u32>(pid).is_some())
        });
        let is_ours = self.host.as_deref().is_some_and(|known| known.is_empty() || known == host);
        (is_ours || (with_pid && !host.ends_with(':'))).then_some(Tagged::Program)
    }

    /// The tag of `journalctl -o short-monotonic`, which has a stamp like the kernel's before the host.
    fn tag_of_monotonic<'a>(&mut self, text: &'a str) -> Option<Tagged<'a>> {
        let (host, after) = text.split_once(' ')?;
        let known = self.host.as_deref().is_some_and(|known| !known.is_empty() && known == host);
        if known || (after.starts_with(KERNEL) && !host.ends_with(':')) { self.tag(text) } else { None }
    }

    /// `host kernel - - - text`: the rest of a row after the time in RFC 5424.
    fn rfc5424<'a>(&mut self, rest: &'a str) -> Option<Tagged<'a>> {
        let mut fields = rest.splitn(5, ' ');
        let (host, program) = (fields.next()?, fields.next()?);
        let (_process, _message, rest) = (fields.next()?, fields.next()?, fields.next()?);
        let text = match rest.strip_prefix("- ") {
            Some(text) => text,
            None => rest.strip_prefix('[').and_then(|data| data.split_once("] "))?.1,
        };
        if program != "kernel" {
            return Some(Tagged::Program);
        }
        self.remember(host);
        Some(Tagged::Kernel(text.strip_prefix('\u{feff}').unwrap_or(text)))
    }

    /// Remembers the host of the kernel's rows.
    fn remember(&mut self, host: &str) {
        if self.host.is_none() {
            self.host = Some(host.to_owned());
        }
    }
}

/// Whether the text after a stamp begins like a tag of the kernel: `host kernel: text`.
pub(crate) fn begins_tag(text: &str) -> bool {
    let text = text.strip_prefix(' ').unwrap_or(text);
    text.split_once(' ').is_some_and(|(_, after)| after.starts_with(KERNEL))
}

/// The author that a tag names, and the kernel's text after it.
#[derive(Clone, Copy)]
enum Tagged<'a> {
    Kernel(&'a str),
    Program,
}

fn tagged_row<'a>(tagged: Tagged<'a>, line: impl Fn(&'a str) -> KernelLine<'a>, time: Option<Duration>) -> Row<'a> {
    match tagged {
        Tagged::Kernel(text) => Row::Kernel { time, line: line(text) },
        Tagged::Program => Row::Program,
    }
}

/// A time of day, bare or in brackets, and the rest of the row.
fn split_at_time(row: &str) -> Option<(Duration, &str)> {
    match row.strip_prefix('[').and_then(|row| row.split_once(']')) {
        Some((inner, rest)) => {
            let (time, _) = clock::iso(inner).filter(|(_, rest)| rest.is_empty())?;
            Some((time, rest.strip_prefix(' ').unwrap_or(rest)))
        }
        None => clock::time(row),
    }
}

/// The forms that only `dmesg` and `/dev/kmsg` have.
fn dmesg(rest: &str, row_level: Option<u8>) -> Option<Row<'_>> {
    let kernel = |time, line| Some(Row::Kernel { time, line });
    match rest.as_bytes().first()? {
        // -T, -e and -d: `[Sun Nov  1 12:00:00 2026]`, `[Nov 1 12:00]`, `[  +0.000012]`, `[   12.345678 <
        // 0.000001>]`.
        b'[' => {
            let (inner, after) = rest[1..].split_once(']')?;
            let after = after.strip_prefix(' ').unwrap_or(after);
            if let Some(time) = clock::ctime(inner) {
                return kernel(Some(time), message(after, None, row_level));
            }
            if let Some((stamped, _)) = inner.split_once(" <").filter(|_| inner.ends_with('>')) {
                let (stamp, _) = bare_stamp(stamped)?;
                return kernel(None, message(after, Some(stamp), row_level));
            }
            let is_relative = inner.trim_start().strip_prefix('+').is_some_and(|rest| bare_stamp(rest).is_some());
            let is_minute = clock::time(&format!("{inner}:00")).is_some();
            if is_relative || is_minute { kernel(None, message(after, None, row_level)) } else { None }
        }
        // `6,339,5140900,-;text`
        b'0'..=b'9' => {
            let (header, text) = rest.split_once(';')?;
            let mut fields = header.split(',');
            let (priority, _, micros) =
                (decimal::<u32>(fields.next()?)?, decimal::<u64>(fields.next()?)?, fields.next()?);
            let stamp = Duration::from_micros(decimal(micros)?);
            let caller =
                fields.find_map(|field| caller(&format!("[{}]", field.strip_prefix("caller=")?)).map(|found| found.0));
            // The lowest three bits are the level, the others the facility. The kernel replaces facility 0 in records
            // that programs write to `/dev/kmsg`, so a record with facility 0 is the kernel's own.
            if priority >> 3 == 0 {
                kernel(None, KernelLine { level: row_level, stamp: Some(stamp), caller, text })
            } else {
                Some(Row::Program)
            }
        }
        // -x: `kern  :info  : [    0.000000] text`
        byte if byte.is_ascii_lowercase() => {
            let (facility, after) = rest.split_once(':')?;
            let (level_name, after) = after.split_once(':')?;
            if !FACILITIES.contains(&facility.trim_end()) || !LEVELS.contains(&level_name.trim_end()) {
                return None;
            }
            let after = after.strip_prefix(' ').unwrap_or(after);
            if facility.trim_end() != FACILITIES[0] {
                return Some(Row::Program);
            }
            let (time, after) = clock::time(after).map_or((None, after), |(time, rest)| (Some(time), rest));
            dmesg(after, row_level).or_else(|| kernel(time, message(after, None, row_level)))
        }
        _ => None,
    }
}

/// `kern.err`
fn is_priority(word: &str) -> bool {
    word.split_once('.').is_some_and(|(facility, level)| FACILITIES.contains(&facility) && LEVELS.contains(&level))
}

/// Reads what is left of the kernel's own prefix, and its text. `before` is a stamp from further left; it counts if
/// `rest` has no stamp.
pub(crate) fn message<'a>(rest: &'a str, before: Option<Duration>, row_level: Option<u8>) -> KernelLine<'a> {
    let (own_level, rest) = level(rest).map_or((None, rest), |(level, rest)| (Some(level), rest));
    let row_level = own_level.or(row_level);
    match stamp(rest) {
        Some((own, after)) => text(after.strip_prefix(' ').unwrap_or(after), Some(own), row_level, None),
        None => match bare_stamp(rest) {
            // Output of `dmesg` that has lost its brackets: `12.345678] text`, `12.345678: text`.
            Some((own, after)) if before.is_none() => {
                let after = after.strip_prefix([']', ':']).unwrap_or(after);
                text(after.strip_prefix(' ').unwrap_or(after), Some(own), row_level, None)
            }
            _ => text(rest, before, row_level, None),
        },
    }
}

/// Reads what follows a stamp: the caller, which `dmesg` puts after a space, and the text.
pub(crate) fn text<'a>(
    rest: &'a str,
    stamp: Option<Duration>,
    level: Option<u8>,
    known_caller: Option<Caller>,
) -> KernelLine<'a> {
    let plain = KernelLine { level, stamp, caller: known_caller, text: rest };
    match caller(rest) {
        Some((caller, text)) if known_caller.is_none() => {
            KernelLine { caller: Some(caller), text: text.strip_prefix(' ').unwrap_or(text), ..plain }
        }
        _ => plain,
    }
}

/// `   12.345678`, and after it the end of the text or a character that can't continue a number.
fn bare_stamp(text: &str) -> Option<(Duration, &str)> {
    let text = text.trim_start_matches(' ');
    let (seconds, rest) = text.split_once('.')?;
    let (fraction, rest) = rest.split_at_checked(6)?;
    let ends = rest.is_empty() || rest.starts_with([' ', ']', ':']);
    let stamp = Duration::from_secs(decimal::<u32>(seconds).filter(|_| !seconds.is_empty())?.into());
    ends.then_some(stamp + Duration::from_micros(decimal(fraction)?)).map(|stamp| (stamp, rest))
}
