//! Errors of sockets, with what the user can do about them.

use std::io::ErrorKind;
use std::path::Path;

use kiln_vdev::frontend::FrontendError;
use kiln_vdev::socket::SocketError;

use crate::failure::Failure;

/// A failure with a hint where the cause is a usual one.
pub fn of_socket(path: &Path, error: SocketError) -> Failure {
    let hint = hint(path, &error);
    Failure::new(1, error).maybe_hint(hint)
}

/// A failure of our frontend's, with the hint that its cause has.
pub fn of_frontend(error: FrontendError) -> Failure {
    let error = anyhow::Error::new(error);
    let is_absent = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref().is_some_and(|error: &std::io::Error| error.kind() == ErrorKind::NotFound)
    };
    let hint = error.chain().any(is_absent).then(|| "start the backend first; it makes the socket".to_owned());
    Failure::new(1, error).maybe_hint(hint)
}

fn hint(path: &Path, error: &SocketError) -> Option<String> {
    match error {
        SocketError::Connect { source, .. } => match source.kind() {
            ErrorKind::NotFound => Some("start the backend first; it makes the socket".into()),
            ErrorKind::ConnectionRefused if path.exists() => {
                Some("the socket is there and nobody listens: the backend has ended, or is not a listening one".into())
            }
            ErrorKind::PermissionDenied => Some("this user may not write to the socket".into()),
            ErrorKind::WouldBlock => Some("the backend takes no more connections: another client has it".into()),
            _ => None,
        },
        SocketError::Listen { source, .. } => match source.kind() {
            ErrorKind::AddrInUse => Some("somebody listens there already".into()),
            ErrorKind::InvalidInput => Some("the path of a socket has at most 107 bytes".into()),
            _ => None,
        },
        error if error.is_timeout() => {
            Some("another client may have the backend; most serve one at a time. --timeout waits longer".into())
        }
        _ => None,
    }
}
