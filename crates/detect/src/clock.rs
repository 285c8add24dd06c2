//! Times of day, in the forms in which programs write them before a row of a log. The kernel's own stamp is not one of
//! them.
//!
//! Only differences of these times are used: to find out whether a report is quiet, and to recognise a boot. So time
//! zones are skipped, every month has 31 days, and a month whose name is in another language counts as January.

use std::time::Duration;

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAY_SECONDS: u64 = 86_400;
/// The longest name of a day or month that is read.
const WORD_BYTES_MAX: usize = 16;
/// A number with this many digits before its point is in seconds since 1970; no kernel has run for that many seconds.
const UNIX_DIGITS: usize = 9;

/// Reads the time at the start of a row. Returns it, and the rest of the row after the space.
///
/// `Nov  1 12:00:00` (syslog, `journalctl -o short` and `short-precise`), `2026-11-01T12:00:00.123456+01:00`
/// (`short-iso`, rsyslog, `dmesg --time-format iso`), `Sun 2026-11-01 12:00:00 UTC` (`short-full`), `1793534400.123456`
/// (`short-unix`).
pub(crate) fn time(row: &str) -> Option<(Duration, &str)> {
    match row.as_bytes().first()? {
        b'0'..=b'9' => iso(row).or_else(|| unix(row)),
        byte if byte.is_ascii_alphabetic() || !byte.is_ascii() => month_day(row).or_else(|| weekday_iso(row)),
        _ => None,
    }
    .and_then(|(time, rest)| Some((time, if rest.is_empty() { rest } else { rest.strip_prefix(' ')? })))
}

/// `[Sun Nov  1 12:00:00 2026]`; `inner` is all the text between the brackets.
pub(crate) fn ctime(inner: &str) -> Option<Duration> {
    let (_, rest) = word(inner)?;
    let (seconds, rest) = month_day(rest)?;
    let (year, rest) = digits(rest.trim_start(), 4, 4)?;
    rest.is_empty().then(|| seconds + Duration::from_secs(year * 372 * DAY_SECONDS))
}

/// `2026-11-01T12:00:00.123456+01:00`, or with a space instead of the `T`.
pub(crate) fn iso(text: &str) -> Option<(Duration, &str)> {
    let (year, rest) = digits(text, 4, 4)?;
    let (month, rest) = digits(rest.strip_prefix('-')?, 2, 2)?;
    let (day, rest) = digits(rest.strip_prefix('-')?, 2, 2)?;
    let (clock, rest) = clock(rest.strip_prefix(['T', ' '])?)?;
    let days = (year * 12 + month.min(12)) * 31 + day.min(31);
    let rest = rest.strip_prefix('Z').or_else(|| offset(rest)).unwrap_or(rest);
    Some((Duration::from_secs(days * DAY_SECONDS) + clock, rest))
}

/// `Nov  1 12:00:00.123456`
fn month_day(text: &str) -> Option<(Duration, &str)> {
    let (name, rest) = word(text)?;
    let (day, rest) = digits(rest.trim_start_matches(' '), 1, 2)?;
    let (clock, rest) = clock(rest.strip_prefix(' ')?)?;
    let month = MONTHS.iter().position(|month| name.len() >= 3 && name[..3].eq_ignore_ascii_case(month)).unwrap_or(0);
    let days = u64::try_from(month).unwrap_or(0) * 31 + day.min(31);
    Some((Duration::from_secs(days * DAY_SECONDS) + clock, rest))
}

/// `Sun 2026-11-01 12:00:00 UTC`
fn weekday_iso(text: &str) -> Option<(Duration, &str)> {
    let (_, rest) = word(text)?;
    let (time, rest) = iso(rest)?;
    let zone = rest.strip_prefix(' ').map(|rest| rest.split(' ').next().unwrap_or(rest));
    let is_zone = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"+-:".contains(&byte);
    match zone.filter(|zone| !zone.is_empty() && zone.bytes().all(is_zone)) {
        Some(zone) => Some((time, &rest[1 + zone.len()..])),
        None => Some((time, rest)),
    }
}

/// `1793534400.123456`
fn unix(text: &str) -> Option<(Duration, &str)> {
    let (seconds, rest) = digits(text, UNIX_DIGITS, 11)?;
    let (micros, rest) = digits(rest.strip_prefix('.')?, 6, 6)?;
    Some((Duration::from_secs(seconds) + Duration::from_micros(micros), rest))
}

/// `12:00:00`, with a fraction after a point or a comma.
fn clock(text: &str) -> Option<(Duration, &str)> {
    let (hours, rest) = digits(text, 2, 2)?;
    let (minutes, rest) = digits(rest.strip_prefix(':')?, 2, 2)?;
    let (seconds, rest) = digits(rest.strip_prefix(':')?, 2, 2)?;
    let whole = Duration::from_secs(hours * 3600 + minutes * 60 + seconds);
    let Some((fraction, rest)) = rest.strip_prefix(['.', ',']).and_then(|rest| {
        let length = rest.bytes().take_while(u8::is_ascii_digit).count();
        (1..=9).contains(&length).then(|| rest.split_at(length))
    }) else {
        return Some((whole, rest));
    };
    let unit = 10_u64.pow(9 - u32::try_from(fraction.len()).ok()?);
    Some((whole + Duration::from_nanos(fraction.parse::<u64>().ok()? * unit), rest))
}

/// `+01:00`, `-0500`
fn offset(text: &str) -> Option<&str> {
    let (hours, rest) = text.strip_prefix(['+', '-'])?.split_at_checked(2)?;
    let (minutes, rest) = rest.strip_prefix(':').unwrap_or(rest).split_at_checked(2)?;
    hours.bytes().chain(minutes.bytes()).all(|byte| byte.is_ascii_digit()).then_some(rest)
}

/// Letters up to a space, and the text after the space. Names of days may end in a point.
fn word(text: &str) -> Option<(&str, &str)> {
    let end = text.bytes().take(WORD_BYTES_MAX + 1).position(|byte| byte == b' ')?;
    let (name, rest) = (text.get(..end)?, &text[end + 1..]);
    let letters = name.strip_suffix('.').unwrap_or(name);
    (!letters.is_empty() && letters.chars().all(char::is_alphabetic)).then_some((name, rest))
}

fn digits(text: &str, least: usize, most: usize) -> Option<(u64, &str)> {
    let length = text.bytes().take(most + 1).take_while(u8::is_ascii_digit).count();
    if !(least..=most).contains(&length) {
        return None;
    }
    Some((text[..length].parse().ok()?, &text[length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_read_to_its_end() {
        for form in [
            "Nov  1 12:00:07",
            "Nov 01 12:00:07.123456",
            "déc. 31 12:00:07",
            "2026-11-01T12:00:07+0100",
            "2026-11-01T12:00:07.123456+01:00",
            "2026-11-01T12:00:07,123456-05:00",
            "2026-11-01T12:00:07Z",
            "2026-11-01 12:00:07",
            "Sun 2026-11-01 12:00:07 UTC",
            "Sun 2026-11-01 12:00:07.123456 +0545",
            "1793534407.123456",
        ] {
            assert_eq!(time(&format!("{form} rest")).map(|(_, rest)| rest), Some("rest"), "{form}");
            assert!(time(form).is_some_and(|(_, rest)| rest.is_empty()), "{form}");
        }
        assert!(ctime("Sun Nov  1 12:00:07 2026").is_some());
    }

    #[test]
    fn a_later_time_is_greater() {
        let of = |row: &str| time(row).expect("a time").0;
        assert_eq!(of("Nov  1 12:00:07.5 x") - of("Nov  1 11:59:59 x"), Duration::from_millis(8500));
        assert!(of("Dec  1 00:00:00 x") > of("Nov 30 23:59:59 x"));
        assert_eq!(of("2026-11-01T12:00:07.25Z x") - of("2026-11-01T12:00:07Z x"), Duration::from_millis(250));
        assert!(ctime("Fri Jan  1 00:00:00 2027") > ctime("Thu Dec 31 23:59:59 2026"));
    }

    #[test]
    fn other_text_is_not_a_time() {
        for row in [
            "",
            "CPU: 0 PID: 1",
            "Nov 1",
            "Nov  1 12:00",
            "usb 1-1: x",
            "2026-11-01",
            "12.345678 x",
            "é 1:1:1",
            "12:00:07 x",
        ] {
            assert_eq!(time(row), None, "{row}");
        }
        assert_eq!(time("Nov  1 12:00:07x"), None, "a time ends with a space");
    }
}
