//! Errors of sockets, with what the user can do about them.

use std::io::ErrorKind;
use std::path::Path;

use kiln_vdev::frontend::FrontendError;
use kiln_vdev::socket::{SocketError, unreachable};

use crate::failure::Failure;

/// Refuses a socket that can't be connected to, before anything waits for it.
pub fn reachable(path: &Path) -> Result<(), Failure> {
    unreachable(path, false).map_or(Ok(()), |error| Err(of_socket(path, error)))
}

/// A failure with a hint where the cause is a usual one.
pub fn of_socket(path: &Path, error: SocketError) -> Failure {
    let hint = hint(path, &error);
    Failure::new(1, error).maybe_hint(hint)
}

/// A failure of our frontend's, with the hint that its cause has.
pub fn of_frontend(path: &Path, error: FrontendError) -> Failure {
    let error = anyhow::Error::new(error);
    let hint = error.chain().find_map(|cause| match (cause.downcast_ref(), cause.downcast_ref()) {
        (Some(error), _) => hint(path, error),
        (None, Some(error)) => of_connecting(path, error),
        (None, None) => None,
    });
    Failure::new(1, error).maybe_hint(hint)
}

fn hint(path: &Path, error: &SocketError) -> Option<String> {
    match error {
        SocketError::Connect { source, .. } => of_connecting(path, source),
        SocketError::Listen { source, .. } => match source.kind() {
            ErrorKind::AddrInUse => Some("another program already listens on this socket".into()),
            ErrorKind::InvalidInput | ErrorKind::InvalidFilename => Some(TOO_LONG.into()),
            _ => None,
        },
        error if error.is_timeout() => Some(
            "most backends serve one client at a time: disconnect the other one, or wait longer with --timeout".into(),
        ),
        _ => None,
    }
}

const TOO_LONG: &str = "use a shorter path: a socket's path has at most 107 bytes";

fn of_connecting(path: &Path, error: &std::io::Error) -> Option<String> {
    match error.kind() {
        ErrorKind::NotFound => Some("start the backend first; it creates the socket".into()),
        ErrorKind::ConnectionRefused if path.exists() => {
            Some("start the backend again: the socket exists, but no program listens on it".into())
        }
        ErrorKind::PermissionDenied => Some("this user may not write to the socket, or not enter its folder".into()),
        ErrorKind::WouldBlock => Some("the backend accepts no more connections: disconnect its other clients".into()),
        ErrorKind::InvalidInput | ErrorKind::InvalidFilename => Some(TOO_LONG.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_usual_cause_has_a_hint() {
        let socket = || "disk.sock".to_owned();
        let connect = |kind: ErrorKind| SocketError::Connect { socket: socket(), source: io::Error::from(kind) };
        let listen = |kind: ErrorKind| SocketError::Listen { socket: socket(), source: io::Error::from(kind) };
        let timeout = SocketError::Timeout {
            socket: socket(),
            doing: "waiting for the reply to GET_FEATURES".into(),
            waited: Duration::from_secs(5),
        };
        let errors = [
            connect(ErrorKind::NotFound),
            connect(ErrorKind::ConnectionRefused),
            connect(ErrorKind::PermissionDenied),
            connect(ErrorKind::WouldBlock),
            connect(ErrorKind::InvalidInput),
            listen(ErrorKind::AddrInUse),
            listen(ErrorKind::InvalidInput),
            timeout,
        ];
        // The root folder exists, as a socket without a listener does.
        let lines = errors.iter().map(|error| {
            let hint = hint(Path::new("/"), error).expect("a usual cause has a hint");
            let source = std::error::Error::source(error).map_or(String::new(), |source| format!(": {source}"));
            format!("{error}{source}\nhint: {hint}\n")
        });
        insta::assert_snapshot!(lines.collect::<String>());
    }
}
