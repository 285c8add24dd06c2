//! Numbers as archives write them: octal or big-endian in headers, decimal in pax records and maps.

/// A header's number: octal, or big-endian after a byte of 0x80 or 0xff. `None` if it is neither or does not fit.
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(0x80) => {
            field[1..].iter().try_fold(0_i64, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
        }
        Some(0xff) => {
            field[1..].iter().try_fold(-1_i64, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
        }
        _ => {
            let is_filler = |byte: &u8| matches!(byte, 0 | b' ');
            let digits = field.iter().skip_while(|byte| is_filler(byte)).take_while(|byte| !is_filler(byte));
            digits.copied().try_fold(0_i64, |value, byte| {
                let digit = byte.checked_sub(b'0').filter(|digit| *digit < 8)?;
                value.checked_mul(8)?.checked_add(i64::from(digit))
            })
        }
    }
}

/// A decimal number without a sign.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_number)?.parse().ok()
}

/// A decimal number that may have a minus.
pub(crate) fn signed(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    decimal(digits)?;
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with a fraction, rounded down to nanoseconds.
pub(crate) fn time(text: &[u8]) -> Option<(i64, i64)> {
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let (whole, fraction) = (parts.next()?, parts.next().unwrap_or_default());
    let seconds = signed(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0_i64, |value, digit| value * 10 + i64::from(digit - b'0'));
    if !whole.starts_with(b"-") {
        return Some((seconds, nanoseconds));
    }
    // -1.25 is a quarter before second -1: second -2 and three quarters. Digits after the ninth count downwards too.
    let rest = fraction.get(9..).is_some_and(|rest| rest.iter().any(|digit| *digit != b'0'));
    let below = nanoseconds + i64::from(rest);
    if below == 0 { Some((seconds, 0)) } else { Some((seconds.checked_sub(1)?, 1_000_000_000 - below)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_octal_and_big_endian_numbers() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"    644 ", Some(0o644)),
            (b"644\0rest", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"\x80\0\0\0\xb2\xd0\x5e\0", Some(3_000_000_000)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"0000688\0", None),
            (b"-000001\0", None),
            (b"+000001\0", None),
            (b"\x81\0\0\0\0\0\0\0", None),
            (b"\x80\x80\0\0\0\0\0\0\0\0\0\0", None),
            (b"777777777777777777777777", None),
        ] {
            assert_eq!(number(field), value, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn decimal_numbers_have_digits_only() {
        assert_eq!((decimal(b"0"), decimal(b"18446744073709551615")), (Some(0), Some(u64::MAX)));
        for text in [&b""[..], b"+1", b"-1", b" 1", b"1 ", b"0x1", b"1_0", b"18446744073709551616"] {
            assert_eq!(decimal(text), None, "{}", text.escape_ascii());
        }
        assert_eq!((signed(b"-7"), signed(b"7"), signed(b"--7"), signed(b"+7")), (Some(-7), Some(7), None, None));
    }

    #[test]
    fn times_have_fractions_and_may_be_before_1970() {
        for (text, value) in [
            (&b"1000.25"[..], Some((1000, 250_000_000))),
            (b"1000", Some((1000, 0))),
            (b"1000.", Some((1000, 0))),
            (b"1.0000000019", Some((1, 1))),
            (b"-1.25", Some((-2, 750_000_000))),
            (b"-0.5", Some((-1, 500_000_000))),
            (b"-1.000000000", Some((-1, 0))),
            (b"-1.0000000001", Some((-2, 999_999_999))),
            (b"-1.9999999999", Some((-2, 0))),
            (b"1.-5", None),
            (b"1.+5", None),
            (b".5", None),
            (b"1e-5", None),
            (b"-9223372036854775808.5", None),
        ] {
            assert_eq!(time(text), value, "{}", text.escape_ascii());
        }
    }
}
