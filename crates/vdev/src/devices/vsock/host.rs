//! Connections of the host that have not sent their port yet: `CONNECT port\n`.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The longest line there is: `CONNECT 4294967295\n`, with room for blanks.
const LINE_BYTES_MAX: usize = 32;
/// How long that may take.
pub(super) const LINE_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection of the host that has not sent its port yet.
#[derive(Debug)]
pub(super) struct Caller {
    pub stream: UnixStream,
    pub token: u64,
    pub since: Instant,
    line: Vec<u8>,
}

/// What a caller has sent so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// Not enough.
    Nothing,
    /// The port.
    Port(u32),
    /// The line is wrong, or the caller has disconnected.
    Nonsense,
}

impl Caller {
    pub(super) fn new(stream: UnixStream, token: u64) -> Self {
        Self { stream, token, since: Instant::now(), line: Vec::with_capacity(LINE_BYTES_MAX) }
    }

    /// Reads on. Not a byte beyond the line is read: it is the guest's.
    pub(super) fn listen(&mut self) -> Said {
        loop {
            let mut byte = [0];
            match (&self.stream).read(&mut byte) {
                Ok(1) if byte == [b'\n'] => return port(&self.line).map_or(Said::Nonsense, Said::Port),
                Ok(1) if self.line.len() < LINE_BYTES_MAX => self.line.extend_from_slice(&byte),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Said::Nothing,
                _ => return Said::Nonsense,
            }
        }
    }
}

fn port(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let (verb, port) = line.trim().split_once(' ')?;
    if verb.eq_ignore_ascii_case("connect") { port.trim().parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_caller_says_its_port_in_any_number_of_pieces() {
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
        ours.set_nonblocking(true).expect("is set");
        let mut caller = Caller::new(ours, 1);
        theirs.write_all(b"CONN").expect("is sent");
        assert_eq!(caller.listen(), Said::Nothing);
        theirs.write_all(b"ECT 52\nafter").expect("is sent");
        assert_eq!(caller.listen(), Said::Port(52));
        let mut rest = [0; 5];
        caller.stream.read_exact(&mut rest).expect("is still there");
        assert_eq!(&rest, b"after");
    }

    #[test]
    fn what_is_no_wish_is_none() {
        for line in ["", "CONNECT", "CONNECT ", "CONNECT x", "CONNECT -1", "CONNECT 4294967296", "GET / HTTP/1.1"] {
            assert_eq!(port(line.as_bytes()), None, "{line}");
        }
        assert_eq!(port(b"connect 7\r"), Some(7));
        let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
        theirs.write_all(&[b'x'; 100]).expect("is sent");
        assert_eq!(Caller::new(ours, 1).listen(), Said::Nonsense);
    }
}
