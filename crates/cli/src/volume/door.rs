//! The socket in the directory of a volume, at which the process that lets a VM write to it answers: a line of JSON each
//! way.
//!
//! Only the user of the home reaches it. The process holds the volume alone, so it is the only one that binds the socket,
//! and one that a killed process has left has no owner any more.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

/// How long a change may take: the guest's driver has to see the disk's new size, and the filesystem writes its tables.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// The longest line.
pub const LINE_BYTES_MAX: u64 = 64 << 10;

/// A request.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Make the volume and its filesystem larger.
    Grow {
        /// The new size.
        bytes: u64,
    },
}

/// The reply.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// To `Grow`.
    Grown {
        /// The size before.
        bytes_before: u64,
        /// The size now.
        bytes: u64,
    },
    /// It was refused.
    Refused {
        /// Why.
        error: String,
        /// What the user can do about it.
        hint: Option<String>,
    },
}

/// Asks the process that holds a volume. `None` if none answers there.
pub fn ask(path: &Utf8Path, request: &Request) -> io::Result<Option<Reply>> {
    let connected = named(path).and_then(|(_directory, address)| UnixStream::connect(address));
    let mut stream = match connected {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        stream => stream?,
    };
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut reply = Vec::new();
    BufReader::new(stream.take(LINE_BYTES_MAX)).read_until(b'\n', &mut reply)?;
    if reply.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(serde_json::from_slice(&reply)?))
}

/// Binds the socket. Only the one user of a volume with write access may do so.
pub fn bind(path: &Utf8Path) -> io::Result<UnixListener> {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (_directory, address) = named(path)?;
    let listener = UnixListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// A socket's address has at most 107 bytes, and a home may have a longer path, so the directory is named by its
/// descriptor, which has to stay open.
fn named(path: &Utf8Path) -> io::Result<(fs_err::File, String)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let directory = fs_err::File::open(parent)?;
    let address = format!("/proc/self/fd/{}/{name}", directory.file().as_raw_fd());
    Ok((directory, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_also_below_a_long_path_and_after_a_killed_process() {
        let guard = tempfile::tempdir().expect("a directory");
        let directory = Utf8Path::from_path(guard.path()).expect("UTF-8").join("x".repeat(200));
        fs_err::create_dir(&directory).expect("made");
        let path = directory.join("control");
        let request = Request::Grow { bytes: 7 };
        assert_eq!(ask(&path, &request).expect("no process is there"), None);
        drop(bind(&path).expect("binds"));
        assert_eq!(ask(&path, &request).expect("its process was killed"), None);
        let listener = bind(&path).expect("binds again");
        listener.set_nonblocking(false).expect("waits");
        let answers = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).expect("a line");
            stream.write_all(b"{\"grown\":{\"bytes_before\":1,\"bytes\":7}}\n").expect("written");
            // The next client gets no reply.
            let (stream, _) = listener.accept().expect("a client");
            BufReader::new(&stream).read_line(&mut String::new()).expect("a line");
            line
        });
        let reply = ask(&path, &request).expect("is answered");
        assert_eq!(reply, Some(Reply::Grown { bytes_before: 1, bytes: 7 }));
        assert_eq!(ask(&path, &request).expect_err("no reply").kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(answers.join().expect("ends"), "{\"grow\":{\"bytes\":7}}\n");
    }
}
