//! A socket that others connect to.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::channel::Channel;
use super::error::SocketError;
use super::event::wait_readable;

/// A socket that others connect to. It is removed when this is dropped.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens on a new socket. A socket file without a listener is replaced.
    ///
    /// # Errors
    /// If another process listens there, or the path can't be a socket.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Listen { socket: path.display().to_string(), source };
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(path) => {
                std::fs::remove_file(path).map_err(failed)?;
                UnixListener::bind(path).map_err(failed)?
            }
            bound => bound.map_err(failed)?,
        };
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The same socket under another descriptor, which is not removed when this one is dropped.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { listener: self.listener.try_clone()?, path: PathBuf::new() })
    }

    /// The next connection, if there is one now.
    ///
    /// # Errors
    /// If the process has no descriptors left.
    pub(crate) fn accept_stream(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The next connection, if one comes in time. `timeout` is also that of the channel.
    ///
    /// # Errors
    /// If the socket can't be polled or has no more descriptors.
    pub fn accept(&self, wait: Option<Duration>, timeout: Duration) -> Result<Option<Channel>, SocketError> {
        let name = self.path.display().to_string();
        let failed = |source: io::Error| SocketError::Listen { socket: name.clone(), source };
        let [ready] = wait_readable([self.listener.as_fd()], wait).map_err(failed)?;
        if !ready {
            return Ok(None);
        }
        match self.listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).map_err(failed)?;
                Ok(Some(Channel::new(stream, name, timeout)))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // Another process may have removed it; there is nothing left to do then.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Whether there is a socket file without a listener.
fn is_abandoned(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    #[test]
    fn a_socket_without_a_listener_is_replaced_and_one_in_use_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        drop(UnixListener::bind(&path).expect("listens"));
        let listener = Listener::bind(&path).expect("replaces it");
        assert!(matches!(Listener::bind(&path), Err(SocketError::Listen { .. })));
        drop(listener);
        assert!(!path.exists());
        assert!(matches!(Channel::connect(&path, TIMEOUT), Err(SocketError::Connect { .. })));
    }
}
