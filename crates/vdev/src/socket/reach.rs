//! What is certain about a socket without connecting to it.
//!
//! Waiting is right for a backend that does not listen yet. It is wrong for a socket that is not there, that this user may
//! not use, or whose name is too long: that stays so. And to connect would be a client, after which some backends end.

use std::io;
use std::path::Path;

use rustix::fs::{Access, access};
use rustix::io::Errno;

use super::error::SocketError;

/// The longest path of a Unix socket: `sun_path` has 108 bytes, and the last is a NUL.
pub(super) const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why this socket can't be connected to, if that is certain. `will_be_made` is for a backend that is about to be started:
/// its socket need not be there, but the folder must.
pub fn unreachable(path: &Path, will_be_made: bool) -> Option<SocketError> {
    let failed = |source: io::Error| SocketError::Connect { socket: path.display().to_string(), source };
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Some(failed(Errno::NAMETOOLONG.into()));
    }
    let refused = match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) if will_be_made => access(folder, Access::WRITE_OK | Access::EXEC_OK),
        _ if will_be_made => Ok(()),
        _ => access(path, Access::WRITE_OK),
    };
    refused.err().map(|error| failed(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_is_not_there_or_has_too_long_a_name_is_unreachable() {
        let folder = tempfile::tempdir().expect("a folder");
        let kind = |path: &Path, will_be_made| {
            unreachable(path, will_be_made).map(|error| match error {
                SocketError::Connect { source, .. } => source.kind(),
                other => panic!("{other}"),
            })
        };
        let absent = folder.path().join("s");
        assert_eq!(kind(&absent, false), Some(io::ErrorKind::NotFound));
        assert_eq!(kind(&absent, true), None);
        assert_eq!(kind(&folder.path().join("no/s"), true), Some(io::ErrorKind::NotFound));
        let longest = folder.path().join("x".repeat(SOCKET_PATH_BYTES_MAX - folder.path().as_os_str().len() - 1));
        assert_eq!(kind(&longest, true), None);
        let longer = longest.with_added_extension("y");
        assert_eq!(kind(&longer, true), Some(io::ErrorKind::InvalidFilename));
        let _listener = std::os::unix::net::UnixListener::bind(&longest).expect("the longest path can be bound to");
        assert_eq!(kind(&longest, false), None);
    }
}
