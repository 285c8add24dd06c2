//! Times and sizes on the command line.

use std::time::Duration;

/// Ten years. A later deadline may overflow a clock.
const TIME_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A time over zero: `500ms`, `30s`, `2m`, `1h30m`. A number without a unit is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    match parse_grace(text)? {
        Duration::ZERO => Err(format!("`{text}` is not more than zero")),
        time => Ok(time),
    }
}

/// Like [`parse_duration`], but 0 is allowed.
pub fn parse_grace(text: &str) -> Result<Duration, String> {
    let number_alone = text.bytes().all(|byte| byte.is_ascii_digit());
    let parsed =
        if number_alone { text.parse().ok().map(Duration::from_secs) } else { humantime::parse_duration(text).ok() };
    match parsed {
        None => Err(format!("`{text}` is not a time: write 500ms, 30s, 2m or 1h30m")),
        Some(time) if time > TIME_MAX => {
            Err(format!("`{text}` is too long: the longest is {} h", TIME_MAX.as_secs() / 3600))
        }
        Some(time) => Ok(time),
    }
}

/// A size in bytes. K, M, G and T are powers of 1024.
pub fn parse_size_bytes(text: &str) -> Result<u64, String> {
    parse_size(text, parse_size::Config::new())
}

/// A whole number of MiB. A number without a unit is MiB.
pub fn parse_memory_mib(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text, parse_size::Config::new().with_default_factor(1 << 20))?;
    if bytes % (1 << 20) == 0 { Ok(bytes >> 20) } else { Err(format!("`{text}` is not a whole number of MiB")) }
}

fn parse_size(text: &str, config: parse_size::Config) -> Result<u64, String> {
    config.with_binary().parse_size(text).map_err(|error| match error {
        parse_size::Error::PosOverflow => format!("`{text}` is larger than any machine"),
        _ => format!("`{text}` is not a size: write 512, 512M or 2G"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_parsed_with_units() {
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("7"), Ok(Duration::from_secs(7)));
        for bad in ["", "0", "-1s", "5x", "s", "99999999999999999999s", "9999999999999999h", "87601h", "1.5"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_parsed_with_units() {
        assert_eq!(parse_memory_mib("512"), Ok(512));
        assert_eq!(parse_memory_mib("2G"), Ok(2048));
        assert_eq!(parse_memory_mib("1.5G"), Ok(1536));
        assert_eq!(parse_size_bytes("4KiB"), Ok(4096));
        for bad in ["", "x", "-1", "0.3M", "5X", "99999999999999T"] {
            assert!(parse_memory_mib(bad).is_err(), "{bad}");
        }
        assert!(parse_memory_mib("5K").is_err());
    }
}
