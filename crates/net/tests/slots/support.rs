//! A host, an internet and guests, each in a network namespace of the test. The real host is never touched.
//!
//! ```text
//!   guest (kernel) ── tap ═ relay ═ tap0 │ slot │ kiln-ID ── host (this thread) ── veth ── internet
//! ```
//! The thread of a test moves to a new network namespace, which is the host for it, and to a new mount namespace. Both
//! end with the thread, also if the test panics. The guest is a namespace with a TAP device of its own. A thread copies
//! frames between the two devices, so the guest's side is a real network stack.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use kiln_net::policy::Policy;
use kiln_net::slots::{Member, Slot, SlotTap, Slots, SlotsConfig};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// The host's address and its gateway, on the way to the internet.
pub const HOST: &str = "203.0.113.5";
/// Addresses of the internet.
pub const PUBLIC: &str = "198.51.100.7";
pub const OTHER: &str = "198.51.100.8";
pub const ELSEWHERE: &str = "10.9.9.9";
pub const METADATA: &str = "169.254.169.254";
/// Every wait of a test ends.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The host of a test, with an internet behind it.
pub struct World {
    directory: tempfile::TempDir,
    pub internet: Space,
}

impl World {
    /// Makes this thread the host.
    pub fn new() -> Self {
        #[expect(unsafe_code, reason = "rustix marks every unshare as unsafe, because some share memory no more")]
        // SAFETY: this thread gets other namespaces. It shares all memory and descriptors still.
        unsafe {
            unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS).expect("needs root");
        }
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("needs root");
        let internet = Space::new();
        let pid = internet.holder.id();
        sh(&format!(
            "ip link set lo up; ip link add wan0 type veth peer name lan0 netns {pid}
             ip addr add {HOST}/24 dev wan0; ip link set wan0 up mtu 1400; ip route add default via 203.0.113.1"
        ));
        internet.sh(&format!(
            "ip link set lan0 up mtu 1400; ip addr add 203.0.113.1/24 dev lan0
             for address in {PUBLIC} {OTHER} {ELSEWHERE} {METADATA}; do ip addr add $address/32 dev lo; done"
        ));
        Self { directory: tempfile::tempdir().expect("a directory"), internet }
    }

    pub fn config(&self) -> SlotsConfig {
        let directory = Utf8PathBuf::from_path_buf(self.directory.path().into()).expect("UTF-8");
        SlotsConfig { shared: directory.join("shared"), ..SlotsConfig::new(directory.join("net")) }
    }

    pub fn slots(&self) -> Slots {
        Slots::open(self.config()).expect("opens")
    }

    /// What a user sees of the host's network, and the mounts.
    pub fn listings(&self) -> String {
        sh(
            "ip -o link; ip route; ip rule; ip netns; nft list ruleset; sysctl -a 2>/dev/null | grep forwarding; cat /proc/mounts",
        )
    }

    /// A slot with a guest.
    pub fn guest(&self, slots: &Slots, policy: &str) -> (Slot, Guest) {
        let slot = slots.acquire("test", &self::policy(policy)).expect("is made");
        let guest = Guest::on(&slot);
        (slot, guest)
    }
}

pub fn policy(json: &str) -> Policy {
    serde_json::from_str(json).expect("is a policy")
}

/// Runs a script on the host. Returns its output.
pub fn sh(script: &str) -> String {
    text(Command::new("sh").args(["-ec", script]).output().expect("runs"), script)
}

fn text(output: Output, script: &str) -> String {
    assert!(output.status.success(), "`{script}`: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A network namespace that lives as long as this value. Its one process ends when its input does.
pub struct Space {
    holder: Child,
}

impl Space {
    pub fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo made && exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("`unshare` of util-linux");
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().expect("piped")).read_line(&mut line).expect("reads");
        assert_eq!(line, "made\n", "a network namespace needs root");
        Self { holder }
    }

    fn file(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    pub fn sh(&self, script: &str) -> String {
        let namespace = format!("--net={}", self.file());
        text(Command::new("nsenter").args([&namespace, "sh", "-ec", script]).output().expect("runs"), script)
    }

    /// Does something in the namespace. Sockets stay there.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        in_namespace(self.file(), work)
    }

    /// Serves its word to each client, and then what the client sends, as an echo.
    pub fn serve(&self, at: &str, word: &'static str) {
        serve(self.run_bind(at), word);
    }

    fn run_bind(&self, at: &str) -> TcpListener {
        let at: SocketAddr = at.parse().expect("an address");
        self.run(move || TcpListener::bind(at).expect("is free"))
    }

    /// Sends back each datagram.
    pub fn serve_udp(&self, at: &str) {
        let at: SocketAddr = at.parse().expect("an address");
        let socket = self.run(move || UdpSocket::bind(at).expect("is free"));
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((bytes, from)) = socket.recv_from(&mut buffer) {
                drop(socket.send_to(&buffer[..bytes], from));
            }
        });
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        drop(self.holder.kill().and_then(|()| self.holder.wait()));
    }
}

/// Serves on the host, or in the namespace that a listener is of.
pub fn serve(listener: TcpListener, word: &'static str) {
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut stream = stream;
                drop(stream.write_all(word.as_bytes()));
                let mut buffer = [0; 4096];
                while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
                    drop(stream.write_all(&buffer[..bytes]));
                }
            });
        }
    });
}

fn in_namespace<T: Send + 'static>(file: String, work: impl FnOnce() -> T + Send + 'static) -> T {
    let inside = move || {
        let file = File::open(file).expect("is there");
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("needs root");
        work()
    };
    thread::spawn(inside).join().expect("no panic")
}

/// A guest: a network stack behind the TAP device of a slot.
pub struct Guest {
    pub space: Space,
    /// The relay ends when this end of a pipe closes.
    stop: Option<OwnedFd>,
    ended: Receiver<()>,
}

impl Guest {
    /// A guest in a slot, as the agent sets it up.
    pub fn on(slot: &Slot) -> Self {
        Self::behind(slot.tap(), "02:6b:69:6c:6e:15", "169.254.0.21/30", "169.254.0.22")
    }

    /// A guest in a lab network.
    pub fn in_lab(member: &Member) -> Self {
        let (about, (prefix, gateway)) = (member.about(), member.network());
        let mac = about.mac.map(|byte| format!("{byte:02x}")).join(":");
        Self::behind(member.tap(), &mac, &format!("{}/{prefix}", about.address), &gateway.to_string())
    }

    fn behind(tap: SlotTap, mac: &str, address: &str, gateway: &str) -> Self {
        let space = Space::new();
        let outer = in_namespace(tap.namespace.to_string(), move || open_tap(&tap.device));
        let inner = space.run(|| open_tap("eth0"));
        let (stopped, stop) = rustix::pipe::pipe().expect("a pipe");
        let (sender, ended) = sync_channel(1);
        thread::spawn(move || {
            relay(&outer, &inner, &stopped);
            let _ = sender.send(());
        });
        space.sh(&format!(
            "ip link set eth0 address {mac}; ip addr add {address} dev eth0; ip link set eth0 up
             ip route add default via {gateway}"
        ));
        Self { space, stop: Some(stop), ended }
    }

    /// Connects and reads the word. The error is the kernel's, such as `ConnectionRefused`.
    pub fn fetch(&self, to: &str) -> std::io::Result<String> {
        self.connect(to).map(|(_, word)| word)
    }

    /// The same, with the connection.
    pub fn connect(&self, to: &str) -> std::io::Result<(TcpStream, String)> {
        let to: SocketAddr = to.parse().expect("an address");
        self.space.run(move || {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut word = [0; 16];
            let bytes = stream.read(&mut word)?;
            Ok((stream, String::from_utf8_lossy(&word[..bytes]).into_owned()))
        })
    }

    /// Sends a datagram and waits for its echo.
    pub fn datagram(&self, to: &str) -> std::io::Result<()> {
        let to: SocketAddr = to.parse().expect("an address");
        self.space.run(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            socket.send(b"ping")?;
            socket.recv(&mut [0; 16]).map(drop)
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // The relay has the slot's device open, so the slot counts as in use until it ended.
        self.stop = None;
        let _ = self.ended.recv_timeout(PATIENCE);
    }
}

/// Sends a message over a connection and reads it back.
pub fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"again")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"again");
    Ok(())
}

/// Waits for a condition.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Opens a TAP device as the engine does. Creates it if it does not exist.
fn open_tap(name: &str) -> OwnedFd {
    let tun = File::options().read(true).write(true).open("/dev/net/tun").expect("opens");
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = u16::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).expect("is small");
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    #[expect(unsafe_code, reason = "ioctls of TAP devices have no safe wrapper")]
    // SAFETY: the descriptor is open, and the buffer has the size of an `ifreq` whose name ends with zero.
    let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    tun.into()
}

/// Copies frames between two devices until the pipe closes.
fn relay(one: &OwnedFd, other: &OwnedFd, stopped: &OwnedFd) {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut frame = vec![0; 70_000];
    loop {
        let mut watched =
            [PollFd::new(one, PollFlags::IN), PollFd::new(other, PollFlags::IN), PollFd::new(stopped, PollFlags::IN)];
        if poll(&mut watched, None).is_err() {
            continue;
        }
        let ready = watched.each_ref().map(|one| !one.revents().is_empty());
        if ready[2] {
            return;
        }
        for (is_ready, from, to) in [(ready[0], one, other), (ready[1], other, one)] {
            if is_ready && let Ok(bytes) = rustix::io::read(from, &mut frame) {
                // A device that is down drops its frames, as a card does.
                let _ = rustix::io::write(to, &frame[..bytes]);
            }
        }
    }
}
