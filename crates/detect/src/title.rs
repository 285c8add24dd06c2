//! Titles that are the same on every boot: numbers, addresses and offsets in them become words.

/// Bytes of a title. Lines of a corrupted log can be very long.
pub(crate) const TITLE_BYTES_MAX: usize = 120;

/// Shorter hexadecimal numbers may be words or counts.
const ADDRESS_DIGITS_MIN: usize = 6;
/// Digits at the end of a name are a part of the name (`cfg80211`), unless there are this many.
const NAME_DIGITS_MAX: usize = 6;
/// Names of processes that end in a number: of workers of a fuzzer.
const NUMBERED: [&str; 2] = ["syz-executor", "syzkaller"];

/// Replaces what changes from boot to boot, and bounds the length.
///
/// | in the log | in the title |
/// |---|---|
/// | `ffff88003e1f7f40`, `0xdeadbeef` | `ADDR` |
/// | `10.0.0.1` | `IP` |
/// | `a.c:12` | `a.c:LINE` |
/// | `foo+0x1/0x2`, `foo.part.1+0x1/0x2` | `foo` |
/// | `CPU#1` | `CPU` |
/// | `12`, and 7 digits or more anywhere | `NUM` |
pub(crate) fn generalise(text: &str) -> String {
    let mut general = String::with_capacity(text.len().min(TITLE_BYTES_MAX * 2));
    let mut rest = text;
    // Everything after four times the bound can't be seen in the title, whatever it is replaced by.
    while let Some(next) = rest.chars().next().filter(|_| general.len() < TITLE_BYTES_MAX * 4) {
        let before = general.chars().next_back();
        match replacement(before, rest) {
            Some((words, length)) => {
                if rest.starts_with('+') {
                    general.truncate(without_suffixes(&general));
                }
                general.push_str(words);
                rest = &rest[length..];
            }
            None => {
                general.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
    }
    tidy(&general)
}

/// What the start of `rest` is replaced by, and its length.
fn replacement(before: Option<char>, rest: &str) -> Option<(&'static str, usize)> {
    let first = rest.as_bytes()[0];
    let in_number = before.is_some_and(|before| before.is_ascii_alphanumeric());
    // A word character in the sense of identifiers: `foo_12` keeps its number.
    let in_word = in_number || before == Some('_');
    match first {
        b'0'..=b'9' | b'a'..=b'f' if before.is_some() && !in_number && address(rest).is_some() => {
            return address(rest).map(|length| ("ADDR", length));
        }
        b'0'..=b'9' => {}
        b'+' if in_word => return offset(rest).map(|length| ("", length)),
        b':' => return line_number(before, rest),
        b'#' if before == Some('U') => return None,
        b'C' if !in_word => {
            let digits = rest.strip_prefix("CPU#").map(count_digits)?;
            return (digits > 0).then_some(("CPU", 4 + digits));
        }
        b's' => {
            let name = NUMBERED.into_iter().find(|name| rest.starts_with(name))?;
            let after = &rest[name.len()..];
            let dot = usize::from(name.contains('-') && after.starts_with('.'));
            let digits = count_digits(&after[dot..]);
            let more = after[dot + digits..].strip_prefix(['/', ':']).map_or(0, count_digits);
            let extra = dot + digits + if more > 0 { more + 1 } else { 0 };
            return (digits > 0).then_some((name, name.len() + extra));
        }
        _ => return None,
    }
    if let Some(length) = ip(rest).filter(|_| !in_number) {
        return Some(("IP", length));
    }
    let digits = count_digits(rest);
    if digits > NAME_DIGITS_MAX {
        return Some(("NUM", digits));
    }
    let ends = rest[digits..].chars().next().is_none_or(|after| !after.is_alphanumeric() && after != '_');
    if before.is_some() && !in_word && ends {
        return Some(("NUM", digits));
    }
    // The number is a part of a name. It must be taken whole, or its end would be seen as a number.
    None
}

/// The length of `text` without the suffixes that a compiler gave to the function at its end.
fn without_suffixes(text: &str) -> usize {
    let start = text
        .rfind(|byte: char| !byte.is_ascii_alphanumeric() && !"_.$".contains(byte))
        .map_or(0, |at| at + text[at..].chars().next().map_or(1, char::len_utf8));
    text[start..].find('.').filter(|dot| *dot > 0).map_or(text.len(), |dot| start + dot)
}

/// `0xdeadbeef`, `ffff8800`
fn address(text: &str) -> Option<usize> {
    let (start, digits) = text.strip_prefix("0x").map_or((0, text), |digits| (2, digits));
    let length = digits.bytes().take_while(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')).count();
    (length >= ADDRESS_DIGITS_MIN).then_some(start + length)
}

/// `+0x1/0x2`
fn offset(text: &str) -> Option<usize> {
    let hex = |text: &str| text.bytes().take_while(u8::is_ascii_alphanumeric).count();
    let first = hex(text.strip_prefix("+0x")?);
    let second = hex(text[3 + first..].strip_prefix("/0x")?);
    (first > 0 && second > 0).then_some(6 + first + second)
}

/// `:12` and `:12:3` after the name of a file.
fn line_number(before: Option<char>, text: &str) -> Option<(&'static str, usize)> {
    let mut length = 0;
    while text[length..].starts_with(':') {
        let digits = count_digits(&text[length + 1..]);
        if digits == 0 {
            break;
        }
        length += 1 + digits;
    }
    // `.c:12`; after other text it is a number like any other.
    (length > 0 && before.is_some_and(|before| before.is_ascii_lowercase())).then_some((":LINE", length))
}

fn ip(text: &str) -> Option<usize> {
    let mut length = 0;
    for part in 0..4 {
        if part > 0 {
            length += text[length..].starts_with('.').then_some(1)?;
        }
        let digits = count_digits(&text[length..]);
        length += (1..=3).contains(&digits).then_some(digits)?;
    }
    Some(length)
}

fn count_digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// Printable ASCII with single spaces, within the bound.
fn tidy(text: &str) -> String {
    let mut tidy = String::with_capacity(TITLE_BYTES_MAX);
    for byte in text.bytes().take(TITLE_BYTES_MAX) {
        let byte = if byte == b'\t' { b' ' } else { byte };
        let doubled = byte == b' ' && (tidy.is_empty() || tidy.ends_with(' '));
        if (b' '..=b'~').contains(&byte) && !doubled {
            tidy.push(char::from(byte));
        }
    }
    tidy.truncate(tidy.trim_end().len());
    tidy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_addresses_are_replaced() {
        for (text, title) in [
            ("root fs on unknown-block(0,12) ", "root fs on unknown-block(NUM,NUM)"),
            ("bad at 0xdeadbeef, ffff88003e1f7f40 ...", "bad at ADDR, ADDR ..."),
            ("in cfg80211_dev, ext4 N_TTY 5s", "in cfg80211_dev, ext4 N_TTY 5s"),
            ("from 10.0.0.1 at fs/a.c:12 and b.h:3:4", "from IP at fs/a.c:LINE and b.h:LINE"),
            ("race in f+0x1/0x2 / g.part.0+0x10/0x20", "race in f / g"),
            ("stuck on CPU#12 for 3", "stuck on CPU for NUM"),
            ("dir264563108: x", "dirNUM: x"),
            ("of syz-executor.3/123 and syzkaller12", "of syz-executor and syzkaller"),
            ("é 1€\t\t2", "NUM NUM"),
            ("a facade added", "a ADDR added"),
        ] {
            assert_eq!(generalise(text), title);
        }
    }

    #[test]
    fn a_long_title_is_cut_to_the_bound() {
        assert_eq!(generalise(&"x".repeat(5000)).len(), TITLE_BYTES_MAX);
        assert_eq!(generalise(&"é1".repeat(5000)), "1".repeat(TITLE_BYTES_MAX / 3));
    }
}
