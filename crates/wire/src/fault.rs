//! Errors that one side reports to the other.

use serde::{Deserialize, Deserializer, Serialize};

/// Why a stream failed; ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({})", code.name())]
pub struct Fault {
    /// For programs.
    pub code: ErrorCode,
    /// For people: lower case, names the thing. Cut on both sides, by the sender and on arrival.
    #[serde(deserialize_with = "cut_words")]
    pub message: String,
}

/// Text for people is cut after this many bytes: it may quote the peer, whose names can fill a whole frame.
pub const WORDS_BYTES_MAX: usize = 2 << 10;

impl Fault {
    /// A fault with its message. A very long message is cut, so that a fault always fits into a frame.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: cut(message.into()) }
    }
}

/// The text, cut after [`WORDS_BYTES_MAX`] bytes and marked with an ellipsis if it was longer.
#[must_use]
pub fn cut(mut words: String) -> String {
    if words.len() > WORDS_BYTES_MAX {
        words.truncate((0..=WORDS_BYTES_MAX).rev().find(|end| words.is_char_boundary(*end)).unwrap_or(0));
        words.push('…');
        // An error may be kept for long; without this it would keep the memory of the whole frame.
        words.shrink_to_fit();
    }
    words
}

/// Reads text of the peer and cuts it.
pub(crate) fn cut_words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(cut)
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a stream failed. File errors carry the meaning of their errno.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum ErrorCode {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
            /// A code that this version does not have.
            #[serde(other, rename = "other")]
            Other,
        }

        impl ErrorCode {
            /// Every code of this version.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)* Self::Other];

            /// The code's name in JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* Self::Other => "other" }
            }
        }
    };
}

codes! {
    /// The peer does not support this kind of frame or request, or can't serve it in this guest.
    Unsupported = "unsupported",
    /// The request can't be parsed or contradicts itself.
    InvalidRequest = "invalid_request",
    /// A stream id of the wrong side, in use, or over the number of streams.
    StreamRefused = "stream_refused",
    /// More data than the window allowed.
    FlowControl = "flow_control",
    /// The token is wrong or missing.
    Unauthorized = "unauthorized",
    /// Ended by `Cancel`.
    Cancelled = "cancelled",
    /// A deadline passed.
    TimedOut = "timed_out",
    /// A bound of the agent or of a request was reached.
    LimitExceeded = "limit_exceeded",
    /// The command does not exist (a shell's 127).
    CommandNotFound = "command_not_found",
    /// The command exists and can't be executed (a shell's 126).
    NotExecutable = "not_executable",
    /// No such user in the guest.
    UnknownUser = "unknown_user",
    /// No such session.
    SessionNotFound = "session_not_found",
    /// The session's name is taken.
    SessionExists = "session_exists",
    /// Another attachment may write to this session.
    SessionBusy = "session_busy",
    /// ENOENT.
    NotFound = "not_found",
    /// EEXIST.
    AlreadyExists = "already_exists",
    /// EACCES, EPERM.
    PermissionDenied = "permission_denied",
    /// EISDIR.
    IsADirectory = "is_a_directory",
    /// ENOTDIR.
    NotADirectory = "not_a_directory",
    /// ENOTEMPTY.
    NotEmpty = "not_empty",
    /// ENOSPC, EDQUOT.
    NoSpace = "no_space",
    /// EROFS.
    ReadOnly = "read_only",
    /// ENAMETOOLONG.
    NameTooLong = "name_too_long",
    /// ELOOP.
    TooManyLinks = "too_many_links",
    /// EXDEV.
    CrossDevice = "cross_device",
    /// EBUSY, ETXTBSY.
    Busy = "busy",
    /// EMFILE, ENFILE.
    TooManyFiles = "too_many_files",
    /// ECONNREFUSED.
    ConnectionRefused = "connection_refused",
    /// EHOSTUNREACH, ENETUNREACH.
    Unreachable = "unreachable",
    /// A device, FIFO or socket, but the request needs a plain file.
    NotAFile = "not_a_file",
    /// A path that leaves its jail.
    OutsideJail = "outside_jail",
    /// EIO and every error without a better name; the message has the error.
    Io = "io",
    /// A bug in the agent.
    Internal = "internal",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_of_a_later_version_is_still_an_error() {
        let fault: Fault = serde_json::from_str(r#"{"code":"sun_spots","message":"m"}"#).expect("unknown codes parse");
        assert_eq!(fault.code, ErrorCode::Other);
    }

    #[test]
    fn code_names_match_their_json() {
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_string(code).expect("a code is JSON"), format!("\"{}\"", code.name()));
        }
    }

    #[test]
    fn text_of_the_peer_is_cut_on_arrival() {
        let long = "ü".repeat(WORDS_BYTES_MAX);
        let sent = format!(r#"{{"code":"io","message":"{long}"}}"#);
        let arrived: Fault = serde_json::from_str(&sent).expect("is a fault");
        assert!((WORDS_BYTES_MAX..WORDS_BYTES_MAX + 4).contains(&arrived.message.len()), "{}", arrived.message.len());
        assert_eq!(arrived, Fault::new(ErrorCode::Io, long));
        assert_eq!(cut(arrived.message.clone()), arrived.message, "text is cut only once");
    }
}
