//! The signal that stops an image's program, by name or number, as docker reads it.

use std::fmt;
use std::str::FromStr;

/// The first and last signal for programs' own use, as the C library of Linux numbers them.
const REAL_TIME: (u8, u8) = (34, 64);
/// Signals of Linux on x86-64, from 1.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
const ALIASES: [(&str, u8); 4] = [("IOT", 6), ("CLD", 17), ("POLL", 29), ("UNUSED", 31)];

/// A signal of Linux, from 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(u8);

/// Why a text is not a signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a signal", .0.escape_debug())]
pub struct SignalError(String);

impl Signal {
    /// Its number.
    pub fn number(self) -> u8 {
        self.0
    }
}

impl FromStr for Signal {
    type Err = SignalError;

    fn from_str(text: &str) -> Result<Self, SignalError> {
        let refused = || SignalError(text.chars().take(32).collect());
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            let number = text.parse().ok().filter(|number| (1..=REAL_TIME.1).contains(number));
            return number.map(Self).ok_or_else(refused);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let at = |index: usize| u8::try_from(index + 1).ok();
        let known = NAMES.iter().position(|one| *one == name).and_then(at);
        let alias = || ALIASES.iter().find(|(one, _)| *one == name).map(|(_, number)| *number);
        known.or_else(alias).or_else(|| real_time(name)).map(Self).ok_or_else(refused)
    }
}

/// `RTMIN`, `RTMIN+3`, `RTMAX-1`.
fn real_time(name: &str) -> Option<u8> {
    let (first, last) = REAL_TIME;
    let distance = |text: &str, sign: char| match text {
        "" => Some(0),
        _ => text.strip_prefix(sign).filter(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok(),
    };
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => first.checked_add(distance(rest, '+')?),
        (_, Some(rest)) => last.checked_sub(distance(rest, '-')?),
        _ => None,
    };
    number.filter(|number| (first..=last).contains(number))
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(usize::from(self.0) - 1) {
            Some(name) => write!(f, "SIG{name}"),
            None if self.0 == REAL_TIME.0 => f.write_str("SIGRTMIN"),
            None if self.0 > REAL_TIME.0 => write!(f, "SIGRTMIN+{}", self.0 - REAL_TIME.0),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_read() {
        let numbers = [
            ("SIGTERM", 15),
            ("term", 15),
            ("15", 15),
            ("SIGKILL", 9),
            ("SIGRTMIN+3", 37),
            ("RTMIN", 34),
            ("SIGRTMAX", 64),
            ("SIGRTMAX-1", 63),
            ("SIGSYS", 31),
            ("64", 64),
        ];
        for (text, number) in numbers {
            assert_eq!(text.parse(), Ok(Signal(number)), "{text}");
        }
        for number in 1..=64 {
            assert_eq!(Signal(number).to_string().parse(), Ok(Signal(number)));
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in
            ["", "SIG", "SIGFOO", "-9", "0", "65", "999", "SIGRTMIN+31", "SIGRTMAX-31", "RTMIN+-1", "RTMIN++1", "9\0"]
        {
            assert!(text.parse::<Signal>().is_err(), "{text}");
        }
    }
}
