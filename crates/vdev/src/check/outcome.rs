//! How a case ends before its end, and what a backend did with a message.

use std::fmt;

use crate::memory::MemoryError;
use crate::socket::SocketError;

/// What the function of a case returns.
pub(super) type Outcome<T = ()> = Result<T, Stop>;

/// Why a case ends before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The rule is broken.
    Fail(String),
    /// The rule does not apply.
    Skip(String),
    /// The backend closed the connection although it must not; perhaps it crashed.
    Closed(String),
    /// The backend does not answer.
    Hang(String),
}

impl Stop {
    /// The rule is broken.
    pub(super) fn fail<T>(because: impl Into<String>) -> Outcome<T> {
        Err(Self::Fail(because.into()))
    }

    /// The rule does not apply.
    pub(super) fn skip<T>(because: impl Into<String>) -> Outcome<T> {
        Err(Self::Skip(because.into()))
    }
}

impl From<SocketError> for Stop {
    fn from(error: SocketError) -> Self {
        let words = match &error {
            SocketError::Closed { doing, .. } => format!("closed the connection while {doing}"),
            SocketError::Timeout { doing, waited, .. } => format!("no reply within {waited:?} while {doing}"),
            SocketError::Io { doing, .. } if error.is_closed() => format!("closed the connection while {doing}"),
            other => with_sources(other),
        };
        if error.is_closed() {
            Self::Closed(words)
        } else if error.is_timeout() {
            Self::Hang(words)
        } else {
            Self::Fail(words)
        }
    }
}

impl From<MemoryError> for Stop {
    fn from(error: MemoryError) -> Self {
        Self::Skip(format!("this host: {}", with_sources(&error)))
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Skip(format!("this host: {error}"))
    }
}

/// An error with all that caused it, in a line.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words.push_str(": ");
        words.push_str(&cause.to_string());
        source = cause.source();
    }
    words
}

/// What a backend did with a message that it may refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    /// What it acknowledged with, if it did.
    pub code: Option<u64>,
    /// Whether it closed the connection after that.
    pub closed: bool,
}

impl Answer {
    /// Whether it acknowledged the request.
    pub(super) const fn is_accepted(self) -> bool {
        !self.closed && matches!(self.code, Some(0) | None)
    }

    /// Whether it refused the request: by an error, or by the end of the connection.
    pub(super) const fn is_refused(self) -> bool {
        match self.code {
            Some(code) => code != 0,
            None => self.closed,
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(0) => f.write_str("acknowledged success (0)")?,
            Some(code) => write!(f, "acknowledged the error {code:#x}")?,
            None if self.closed => return f.write_str("closed the connection"),
            None => f.write_str("sent no reply")?,
        }
        if self.closed { f.write_str(" and then closed the connection") } else { Ok(()) }
    }
}
