//! The response to a refused or failed request: an HTTP status and an [`ErrorBody`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a request failed, for programs. The names on the wire are in snake case. Their meaning never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request can't be parsed, or is impossible.
    InvalidRequest,
    /// The request has no credential, or an unknown one.
    Unauthorized,
    /// The credential does not permit the request.
    Forbidden,
    /// The path names something that does not exist, or that this user may not see.
    NotFound,
    /// The request does not fit the state of what it names.
    Conflict,
    /// The body is larger than the server accepts.
    TooLarge,
    /// A limit of this user is reached.
    LimitReached,
    /// A bug of the server.
    Internal,
    /// The guest crashed, powered off or broke the protocol.
    GuestFailed,
    /// The server can't serve the request now: it is starting, stopping or out of resources.
    Unavailable,
    /// The request took longer than allowed.
    Timeout,
    /// A code that a later version of the server sent.
    #[serde(other)]
    Unknown,
}

impl ErrorCode {
    /// The HTTP status that goes with the code.
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::LimitReached => 429,
            Self::Internal | Self::Unknown => 500,
            Self::GuestFailed => 502,
            Self::Unavailable => 503,
            Self::Timeout => 504,
        }
    }
}

/// The JSON body of every response whose status is 400 or more.
///
/// ```
/// use kiln_api::{ErrorBody, ErrorCode};
///
/// let body = ErrorBody {
///     code: ErrorCode::NotFound,
///     message: "no sandbox `s1`".to_owned(),
///     hint: Some("list them with `kiln ls`".to_owned()),
///     request_id: "r-7".to_owned(),
/// };
/// assert_eq!(body.code.status(), 404);
/// assert_eq!(body.to_string(), "no sandbox `s1`");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Why the request failed, for programs.
    pub code: ErrorCode,
    /// Why the request failed, for people: one line in lower case, with names in backticks.
    pub message: String,
    /// What the user can do, if there is a remedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Identifies the request in the server's log.
    pub request_id: String,
}

impl fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ErrorBody {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_read_as_it_was_written() {
        let body = ErrorBody {
            code: ErrorCode::LimitReached,
            message: "8 sandboxes run".to_owned(),
            hint: None,
            request_id: "r-1".to_owned(),
        };
        let json = serde_json::to_string(&body).expect("strings are JSON");
        assert_eq!(json, r#"{"code":"limit_reached","message":"8 sandboxes run","request_id":"r-1"}"#);
        assert_eq!(serde_json::from_str::<ErrorBody>(&json).expect("it was just written"), body);
    }

    #[test]
    fn a_code_of_a_later_version_is_unknown() {
        let code: ErrorCode = serde_json::from_str(r#""quantum_decoherence""#).expect("every name is a code");
        assert_eq!(code, ErrorCode::Unknown);
    }

    #[test]
    fn a_body_of_a_later_version_is_read() {
        let json = r#"{"code":"conflict","message":"it is stopped","request_id":"r","retry_after_ms":5}"#;
        assert_eq!(
            serde_json::from_str::<ErrorBody>(json).expect("unknown fields are ignored").code,
            ErrorCode::Conflict
        );
    }

    #[test]
    fn client_errors_are_4xx_and_server_errors_5xx() {
        assert_eq!(ErrorCode::InvalidRequest.status() / 100, 4);
        assert_eq!(ErrorCode::LimitReached.status() / 100, 4);
        assert_eq!(ErrorCode::GuestFailed.status() / 100, 5);
        assert_eq!(ErrorCode::Unknown.status(), ErrorCode::Internal.status());
    }
}
