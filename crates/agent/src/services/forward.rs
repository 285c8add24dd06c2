//! A connection to a socket inside the guest.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use kiln_wire::{Channel, Done, ErrorCode, Fault, ForwardRequest, HEADER_BYTES, Message, Reply, Text};
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::link::{CHUNK_BYTES, Control, Gone, Outlet, Stream, cancelled, frame_buffer};
use crate::relay::{self, ShortRead};
use crate::tally::Tally;
use crate::watched::{Watched, watch};

/// How long connecting may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes of a hosts file that are read.
const HOSTS_BYTES_MAX: usize = 256 << 10;

/// The state that all forwarded connections share.
#[derive(Debug)]
pub struct Forwards {
    open: Tally,
    /// A buffer for one frame. It is used only between two awaits.
    scratch: RefCell<Vec<u8>>,
}

impl Default for Forwards {
    fn default() -> Self {
        Self { open: Tally::default(), scratch: RefCell::new(frame_buffer()) }
    }
}

impl Forwards {
    /// The number of open connections.
    pub fn count(&self) -> u32 {
        self.open.count()
    }
}

/// Serves the stream to its end.
pub async fn serve(forwards: Rc<Forwards>, stream: Stream, request: ForwardRequest) {
    let _open = forwards.open.one();
    let connected = tokio::select! {
        biased;
        end = stream.inbox.ended() => Err(end.into_fault()),
        connected = timeout(CONNECT_DEADLINE, connect(&request)) => connected.unwrap_or_else(|_| {
            Err(Fault::new(ErrorCode::TimedOut, format!("no connection to {} within {CONNECT_DEADLINE:?}", name(&request))))
        }),
    };
    let socket = match connected {
        Ok(socket) => socket,
        Err(fault) => return stream.outlet.fail(fault),
    };
    if stream.outlet.send(&Message::Reply(Box::new(Reply::Connected))).await.is_err() {
        return;
    }
    match copy(&forwards, &stream, &socket).await {
        Ok(bytes) => stream.outlet.end(&Message::Done(Done { bytes, ..Done::default() })),
        Err(fault) => stream.outlet.fail(fault),
    }
}

async fn connect(request: &ForwardRequest) -> Result<Watched, Fault> {
    let failed = |error: io::Error| {
        let code = match Errno::from_io_error(&error) {
            Some(Errno::CONNREFUSED) => ErrorCode::ConnectionRefused,
            Some(Errno::HOSTUNREACH | Errno::NETUNREACH) => ErrorCode::Unreachable,
            Some(Errno::TIMEDOUT) => ErrorCode::TimedOut,
            Some(Errno::NOENT) => ErrorCode::NotFound,
            Some(Errno::ACCESS | Errno::PERM) => ErrorCode::PermissionDenied,
            _ => ErrorCode::Io,
        };
        Fault::new(code, format!("can't connect to {}: {error}", name(request)))
    };
    let socket: OwnedFd = match request {
        ForwardRequest::Tcp { host, port } => {
            if *port == 0 {
                return Err(Fault::new(ErrorCode::InvalidRequest, "port 0 can't be connected to"));
            }
            let mut result = Err(Errno::HOSTUNREACH.into());
            for address in resolve(host)? {
                result = TcpStream::connect(SocketAddr::new(address, *port)).await;
                if result.is_ok() {
                    break;
                }
            }
            let socket = result.map_err(failed)?;
            // Data from the host is already cut into frames, so waiting for more only adds delay.
            socket.set_nodelay(true).and_then(|()| socket.into_std()).map_err(failed)?.into()
        }
        ForwardRequest::Unix { path } => {
            check_socket_path(path)?;
            let socket = UnixStream::connect(path.as_path()).await.map_err(failed)?;
            socket.into_std().map_err(failed)?.into()
        }
    };
    watch(socket).map_err(failed)
}

/// Refuses paths that the kernel would interpret as another kind of address, or can't hold.
fn check_socket_path(path: &Text) -> Result<(), Fault> {
    /// `sun_path` with its ending zero.
    const PATH_BYTES_MAX: usize = 107;
    let bytes = path.as_bytes();
    if bytes.is_empty() || bytes.contains(&0) {
        return Err(Fault::new(ErrorCode::InvalidRequest, format!("`{path}` is not a path of a socket")));
    }
    if bytes.len() > PATH_BYTES_MAX {
        let message = format!("`{path}` has {} bytes, and a socket's path may have {PATH_BYTES_MAX}", bytes.len());
        return Err(Fault::new(ErrorCode::NameTooLong, message));
    }
    Ok(())
}

fn name(request: &ForwardRequest) -> String {
    match request {
        ForwardRequest::Tcp { host, port } => format!("`{host}:{port}`"),
        ForwardRequest::Unix { path } => format!("`{path}`"),
    }
}

/// The addresses of a host, from the guest's own files: a static program can't load the C library's resolver.
fn resolve(host: &str) -> Result<Vec<IpAddr>, Fault> {
    if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(vec![address]);
    }
    if host == "localhost" {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let mut hosts = std::fs::read("/etc/hosts").unwrap_or_default();
    hosts.truncate(HOSTS_BYTES_MAX);
    let found = look_up(host, &String::from_utf8_lossy(&hosts));
    if found.is_empty() {
        let message = format!("`{host}` is not an address, and the guest's `/etc/hosts` does not contain it");
        return Err(Fault::new(ErrorCode::NotFound, message));
    }
    Ok(found)
}

fn look_up(host: &str, hosts: &str) -> Vec<IpAddr> {
    let address = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(host)).then_some(address)
    };
    hosts.lines().filter_map(address).collect()
}

/// Copies bytes both ways until both sides have ended. Returns the number of bytes to the host.
async fn copy(forwards: &Forwards, stream: &Stream, socket: &Watched) -> Result<u64, Fault> {
    let (mut receiving, mut sending, mut bytes) = (true, true, 0);
    let failed = |error: io::Error| Fault::new(ErrorCode::Io, format!("the connection failed: {error}"));
    while receiving || sending {
        tokio::select! {
            biased;
            control = stream.inbox.control() => if let Control::End(end) = control { return Err(end.into_fault()) },
            fed = relay::feed(socket, &stream.inbox), if sending => {
                fed.map_err(failed)?;
                if stream.inbox.is_drained() {
                    sending = false;
                    // This fails if the peer is gone, and then it needs no end.
                    let _ = shutdown(socket, Shutdown::Write);
                }
            }
            read = receive(forwards, &stream.outlet, socket), if receiving => match read {
                Err(Gone) => return Err(cancelled()),
                Ok(Ok(0)) => {
                    receiving = false;
                    stream.outlet.send(&Message::Eof).await.map_err(|Gone| cancelled())?;
                }
                Ok(Ok(count)) => bytes += count as u64,
                Ok(Err(error)) => return Err(failed(error.into())),
            },
        }
    }
    Ok(bytes)
}

async fn receive(forwards: &Forwards, outlet: &Outlet, socket: &Watched) -> Result<Result<usize, Errno>, Gone> {
    let room = outlet.room().await?.min(CHUNK_BYTES);
    let read = |context: &mut std::task::Context<'_>| {
        let mut frame = forwards.scratch.borrow_mut();
        let result = relay::poll_read(socket, context, &mut frame, room, ShortRead::Empties);
        if frame.len() > HEADER_BYTES {
            outlet.data(Channel::Out, &mut frame);
        }
        result
    };
    Ok(poll_fn(read).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_localhost_are_resolved_without_files() {
        assert_eq!(resolve("127.0.0.2"), Ok(vec![IpAddr::from([127, 0, 0, 2])]));
        assert_eq!(resolve("[::1]"), Ok(vec![Ipv6Addr::LOCALHOST.into()]));
        assert_eq!(resolve("localhost").map(|found| found.len()), Ok(2));
    }

    #[test]
    fn a_host_is_found_by_each_of_its_names() {
        let hosts = "10.0.0.1 db db.local # main\n10.0.0.2 dbx\nbad db\n::5 DB\n";
        assert_eq!(look_up("db", hosts), [IpAddr::from([10, 0, 0, 1]), "::5".parse().expect("an address")]);
        assert_eq!(look_up("main", hosts), Vec::<IpAddr>::new());
    }

    #[tokio::test]
    async fn refusals_of_addresses_read_like_this() {
        let tcp = |host: &str, port| ForwardRequest::Tcp { host: host.into(), port };
        let unix = |path: &str| ForwardRequest::Unix { path: path.into() };
        let requests =
            [tcp("127.0.0.1", 0), tcp("no.such.host", 80), unix(""), unix(&"p".repeat(108)), unix("/no/such/socket")];
        let mut lines = String::new();
        for request in requests {
            lines += &format!("{}\n", connect(&request).await.expect_err("refused"));
        }
        insta::assert_snapshot!(lines);
    }
}
