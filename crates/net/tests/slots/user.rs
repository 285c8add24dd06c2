//! The network without root, with the kernel's own network stack as the guest.
//!
//! ```text
//!   guest (kernel) ── tap ═ relay ═ socket pair ═ UserNetwork ── host (this thread) ── veth ── internet
//! ```

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use kiln_net::gate::Gate;
use kiln_net::inner::MTU;
use kiln_net::names::{NoSink, Resolver, Upstream};
use kiln_net::policy::Domain;
use kiln_net::user::{Published, UserNetwork};
use tokio::runtime::Runtime;

use crate::support::{ELSEWHERE, HOST, METADATA, OTHER, PATIENCE, PUBLIC, Space, World, echo, policy, sh, wait_until};

/// Bytes of the large transfers.
const LARGE_BYTES: usize = 64 << 20;

/// A guest with its network.
struct UserGuest {
    space: Space,
    network: Option<UserNetwork>,
    gate: Arc<Gate>,
    _runtime: Runtime,
    relay: Option<thread::JoinHandle<()>>,
}

impl UserGuest {
    fn new(rules: &str, published: Vec<Published>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("starts");
        let gate = Arc::new(Gate::new(policy(rules)));
        let upstream = Upstream::Servers(vec![format!("{PUBLIC}:53").parse().expect("an address")]);
        let resolver = Arc::new(Resolver::new(Arc::clone(&gate), Arc::new(NoSink), upstream));
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        let handle = runtime.handle().clone();
        let network = UserNetwork::start(ours.into(), Arc::clone(&gate), resolver, published, MTU, handle);
        let space = Space::new();
        let tap = space.run(open_tap);
        let relay = thread::spawn(move || relay(&tap, theirs));
        space
            .sh("ip link set eth0 address 02:6b:69:6c:6e:15; ip addr add 169.254.0.21/30 dev eth0; ip link set eth0 up
             ip route add default via 169.254.0.22");
        Self { space, network: Some(network.expect("starts")), gate, _runtime: runtime, relay: Some(relay) }
    }

    fn connect(&self, to: &str) -> std::io::Result<TcpStream> {
        let to: SocketAddr = to.parse().expect("an address");
        self.space.run(move || {
            let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Ok(stream)
        })
    }

    fn fetch(&self, to: &str) -> std::io::Result<String> {
        let mut word = [0; 16];
        let bytes = self.connect(to)?.read(&mut word)?;
        Ok(String::from_utf8_lossy(&word[..bytes]).into_owned())
    }

    /// Sends a datagram and waits for one.
    fn ask(&self, to: &str, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        let to: SocketAddr = to.parse().expect("an address");
        let bytes = bytes.to_vec();
        self.space.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            socket.send(&bytes)?;
            let mut buffer = [0; 2048];
            let length = socket.recv(&mut buffer)?;
            Ok(buffer[..length].to_vec())
        })
    }
}

impl Drop for UserGuest {
    fn drop(&mut self) {
        // The relay ends when the network has closed its end.
        self.network = None;
        let _ = self.relay.take().map(thread::JoinHandle::join);
    }
}

/// A query for the address of `example.org`.
const QUERY: &[u8] = b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01";

/// A resolver that gives all names the address of the server.
fn resolve(internet: &Space) {
    let socket = internet.run(|| UdpSocket::bind(format!("{PUBLIC}:53")).expect("is free"));
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            let head = [&query[..2], &[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]].concat();
            let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 198, 51, 100, 7];
            drop(socket.send_to(&[&head, &query[12..length], &record].concat(), from));
        }
    });
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn without_root_a_guest_reaches_what_its_policy_opens_and_is_refused_the_rest_at_once() {
    let world = World::new();
    for (at, word) in [(PUBLIC, "public"), (ELSEWHERE, "private"), (METADATA, "metadata")] {
        world.internet.serve(&format!("{at}:80"), word);
    }
    world.internet.serve_udp(&format!("{PUBLIC}:99"));
    let _host = TcpListener::bind("0.0.0.0:80").expect("is free");
    let guest = UserGuest::new(r#"{"default":"public"}"#, vec![]);
    assert_eq!(guest.fetch(&format!("{PUBLIC}:80")).expect("is open"), "public");
    assert_eq!(guest.ask(&format!("{PUBLIC}:99"), b"ping").expect("is open"), b"ping");
    guest.space.sh("busybox ping -c 1 -W 20 169.254.0.22");
    sh("sysctl -q net.ipv4.ping_group_range='0 2147483647'");
    guest.space.sh(&format!("busybox ping -c 1 -W 20 {PUBLIC}"));
    // The server of the host listens on all of its addresses. None of them is open.
    for closed in [ELSEWHERE, METADATA, HOST, "127.0.0.1", "169.254.0.22"] {
        let error = guest.fetch(&format!("{closed}:80")).expect_err("is closed");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{closed}: {error}");
    }
    let error = guest.ask(&format!("{ELSEWHERE}:99"), b"ping").expect_err("is closed");
    assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH), "{error}");
    let last: Vec<String> = guest.gate.denials().last.iter().map(|denial| denial.what.to_string()).collect();
    assert!(last.contains(&format!("tcp/{HOST}:80")) && last.contains(&format!("udp/{ELSEWHERE}:99")), "{last:?}");
    let error = guest.fetch(&format!("{PUBLIC}:81")).expect_err("no server listens");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn without_root_a_name_opens_its_ports_when_it_was_asked_for() {
    let world = World::new();
    world.internet.serve(&format!("{PUBLIC}:80"), "public");
    world.internet.serve(&format!("{PUBLIC}:81"), "no");
    resolve(&world.internet);
    let guest = UserGuest::new(r#"{"default":"deny","allow":["example.org:80"]}"#, vec![]);
    guest.fetch(&format!("{PUBLIC}:80")).expect_err("is closed before");
    let answer = guest.ask("169.254.0.22:53", QUERY).expect("is answered");
    assert_eq!(answer[answer.len() - 4..], [198, 51, 100, 7]);
    let mut stream = guest.connect(&format!("{PUBLIC}:80")).expect("is open");
    assert_eq!(stream.read(&mut [0; 6]).expect("reads"), 6);
    guest.fetch(&format!("{PUBLIC}:81")).expect_err("is another port");
    let direct = guest.ask(&format!("{PUBLIC}:53"), QUERY).expect_err("is another resolver");
    assert_eq!(direct.raw_os_error(), Some(libc::EHOSTUNREACH), "{direct}");
    let known = guest.gate.learned().addresses(&Domain::new("example.org").expect("a name"), Instant::now());
    assert_eq!(known.len(), 1);

    echo(&mut stream).expect("goes on");
    guest.network.as_ref().expect("runs").set_policy(policy(r#"{"default":"deny"}"#));
    let error = echo(&mut stream).and_then(|()| echo(&mut stream)).expect_err("is reset");
    assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{error}");
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn without_root_large_transfers_arrive_whole_in_both_directions() {
    let world = World::new();
    let listener = world.internet.run(|| TcpListener::bind(format!("{OTHER}:80")).expect("is free"));
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut received = vec![];
        stream.read_to_end(&mut received).expect("reads");
        stream.write_all(&received).expect("writes");
        received.len()
    });
    let guest = UserGuest::new(r#"{"default":"public"}"#, vec![]);
    let stream = guest.connect(&format!("{OTHER}:80")).expect("is open");
    let sent: Vec<u8> = (0..LARGE_BYTES).map(|index| (index * 31 + index / 251) as u8).collect();
    let started = Instant::now();
    (&stream).write_all(&sent).expect("writes");
    stream.shutdown(std::net::Shutdown::Write).expect("ends");
    let mut received = Vec::with_capacity(LARGE_BYTES);
    let mut buffer = vec![0; 1 << 16];
    let mut turned = None;
    while let Ok(bytes @ 1..) = (&stream).read(&mut buffer) {
        turned.get_or_insert_with(Instant::now);
        received.extend_from_slice(&buffer[..bytes]);
    }
    assert_eq!(server.join().expect("no panic"), LARGE_BYTES);
    assert!(received == sent, "the bytes differ");
    let turned = turned.expect("bytes came");
    let rate = |time: std::time::Duration| (LARGE_BYTES >> 20) as f64 / time.as_secs_f64();
    println!("up {:.0} MiB/s, down {:.0} MiB/s", rate(turned - started), rate(turned.elapsed()));
}

#[test]
#[ignore = "needs root, /dev/net/tun and network namespaces; `make test` runs it where it finds them"]
fn without_root_a_published_port_leads_to_the_guest_and_ends_with_its_network() {
    let _world = World::new();
    let listener = TcpListener::bind("127.0.0.1:8080").expect("is free");
    let mut guest = UserGuest::new("{}", vec![Published { listener, guest_port: 80 }]);
    guest.space.serve("169.254.0.21:80", "guest");
    let mut client = TcpStream::connect("127.0.0.1:8080").expect("connects");
    client.set_read_timeout(Some(PATIENCE)).expect("is set");
    let mut word = [0; 5];
    client.read_exact(&mut word).expect("reads");
    assert_eq!(&word, b"guest");
    echo(&mut client).expect("goes on");
    guest.network = None;
    assert!(matches!(client.read(&mut word), Ok(0) | Err(_)), "it is closed");
    wait_until("the port is free", || TcpListener::bind("127.0.0.1:8080").is_ok());
}

/// Opens a TAP device without headers for offloads: QEMU's backend for sockets has none either.
fn open_tap() -> OwnedFd {
    let tun = File::options().read(true).write(true).open("/dev/net/tun").expect("opens");
    let mut request = [0_u8; 40];
    request[..4].copy_from_slice(b"eth0");
    let flags = u16::try_from(libc::IFF_TAP | libc::IFF_NO_PI).expect("is small");
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    #[expect(unsafe_code, reason = "ioctls of TAP devices have no safe wrapper")]
    // SAFETY: the descriptor is open, and the buffer has the size of an `ifreq` whose name ends with zero.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    rustix::io::ioctl_fionbio(&tun, true).expect("does not block");
    tun.into()
}

/// Does what QEMU does: copies frames between a card and the socket pair, each with its length before it.
fn relay(tap: &OwnedFd, mut link: UnixStream) {
    use rustix::event::{PollFd, PollFlags, poll};
    let (mut frame, mut input, mut buffer) = (vec![0; 70_000], vec![], vec![0; 1 << 18]);
    loop {
        let mut watched = [PollFd::new(tap, PollFlags::IN), PollFd::new(&link, PollFlags::IN)];
        if poll(&mut watched, None).is_err() {
            continue;
        }
        let ready = watched.each_ref().map(|one| !one.revents().is_empty());
        if ready[0] {
            let mut frames = vec![];
            while frames.len() < 1 << 17
                && let Ok(bytes) = rustix::io::read(tap, &mut frame)
            {
                frames.extend((bytes as u32).to_be_bytes());
                frames.extend_from_slice(&frame[..bytes]);
            }
            if link.write_all(&frames).is_err() {
                return;
            }
        }
        if ready[1] {
            let Ok(bytes @ 1..) = link.read(&mut buffer) else { return };
            input.extend_from_slice(&buffer[..bytes]);
            let mut rest = input.as_slice();
            while let Some((length, after)) = rest.split_first_chunk::<4>()
                && let Some(bytes) = after.get(..u32::from_be_bytes(*length) as usize)
            {
                // A device that is down drops its frames, as a card does.
                let _ = rustix::io::write(tap, bytes);
                rest = &after[bytes.len()..];
            }
            let taken = input.len() - rest.len();
            input.drain(..taken);
        }
    }
}
