//! Shared by the targets of whole sessions: numbers made of bytes, descriptors of every kind, servers under attack, and
//! a count of the open descriptors and threads of this process.
//!
//! ```text
//!   input ──▶ Plan: messages with descriptors, and acts before one of them (memory, kicks, truncated files, the host)
//!                │ all messages are written to one end of a socket pair, which is then closed for writing
//!                ▼
//!             Server::serve_client on the other end, until it returns; `Stage` does the acts
//! ```
#![allow(dead_code, reason = "each target uses its part")]

pub mod input;
pub mod plan;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kiln_vdev::backend::{Device, Observer, Options, Refusal, Server, SessionError, SessionEvent, WorkerError};
use kiln_vdev::devices::blk::{Backing, Blk, BlkOptions};
use kiln_vdev::devices::net::{Behind, Net, NetOptions};
use kiln_vdev::devices::vsock::Vsock;
use kiln_vdev::memory::SharedFile;
use kiln_vdev::protocol::Flags;
use kiln_vdev::socket::{Channel, Event};
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, memfd_create};

use plan::Plan;

/// A session that takes longer hangs, even on a busy machine.
const SESSION_BOUND: Duration = Duration::from_secs(4);
/// Open descriptors and threads are counted once in this many runs.
const RUNS_PER_COUNT: usize = 128;
/// How many more than in the first runs may be open.
const SLACK: usize = 4;

pub const GUEST: u64 = 0x1_0000;
pub const USER: u64 = 0x7f00_0000;
pub const MEMORY_BYTES: u64 = 0x1_0000;
/// Size of a ring in memory: descriptors, then the driver's area, then the device's. Ring `n` starts at `n` times this.
pub const RING_BYTES: u64 = 0x800;
pub const GUEST_CID: u64 = 52;
/// The host's port that accepts connections of the guest.
pub const HOST_PORT: u32 = 7;
pub const EVENTS: usize = 12;

/// An act that is done just before a message is handled.
#[derive(Debug)]
pub enum Act {
    Poke(u64, Vec<u8>),
    Cut(u64),
    Signal(usize),
    /// Fills an eventfd and makes it blocking, so that a write to it blocks.
    Clog(usize),
    /// The host connects to the guest, accepts a connection, or sends bytes.
    Host(Vec<u8>),
    Pause,
}

#[derive(Default)]
struct Acts {
    due: VecDeque<(usize, Act)>,
    received: usize,
}

/// Descriptors to send, of every kind that a peer could send.
pub struct Descriptors {
    pub memory: File,
    pub events: Vec<OwnedFd>,
    pub others: Vec<OwnedFd>,
}

impl Descriptors {
    fn new() -> Self {
        let memory = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).expect("a file"));
        let small = SharedFile::new(4096).expect("a file").as_fd().try_clone_to_owned().expect("clones");
        let large = SharedFile::new(1 << 32).expect("a file").as_fd().try_clone_to_owned().expect("clones");
        let (pipe_read, pipe_write) = std::io::pipe().expect("a pipe");
        let (read_of_closed, _) = std::io::pipe().expect("a pipe");
        let (_, write_of_closed) = std::io::pipe().expect("a pipe");
        let (socket, peer) = UnixStream::pair().expect("sockets");
        let open = |path: &str| OwnedFd::from(File::open(path).expect("is there"));
        let others = vec![
            small,
            large,
            pipe_read.into(),
            pipe_write.into(),
            read_of_closed.into(),
            write_of_closed.into(),
            socket.into(),
            peer.into(),
            open("/dev/null"),
            open("/dev/zero"),
            open("/"),
            open("/proc/self/exe"),
        ];
        Self { memory, events: (0..EVENTS).map(|_| event()).collect(), others }
    }

    /// The descriptor of this index: memory, then eventfds, then useless ones.
    pub fn get(&self, place: usize) -> BorrowedFd<'_> {
        match place % (1 + EVENTS + self.others.len()) {
            0 => self.memory.as_fd(),
            place @ 1..=EVENTS => self.events[place - 1].as_fd(),
            place => self.others[place - 1 - EVENTS].as_fd(),
        }
    }

    /// Restores the state from before the first run.
    fn restore(&self) {
        self.memory.set_len(0).expect("shrinks");
        self.memory.set_len(MEMORY_BYTES).expect("grows");
        for event in &self.events {
            fcntl_setfl(event, OFlags::RDWR | OFlags::NONBLOCK).expect("is set");
            let _ = rustix::io::read(event, &mut [0; 8]);
        }
        for other in &self.others {
            let flags = fcntl_getfl(other).expect("is open");
            let _ = fcntl_setfl(other, flags | OFlags::NONBLOCK);
        }
        while rustix::io::read(&self.others[2], &mut [0; 4096]).is_ok_and(|read| read > 0) {}
    }
}

fn event() -> OwnedFd {
    Event::new().expect("an event").as_fd().try_clone_to_owned().expect("clones")
}

/// Does the acts of a run, and checks how the session ends.
pub struct Stage {
    acts: Mutex<Acts>,
    pub descriptors: Descriptors,
    host: Mutex<Vec<UnixStream>>,
    host_listener: UnixListener,
    vsock_path: PathBuf,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    fn act(&self, act: &Act) {
        match act {
            Act::Poke(at, bytes) => drop(self.descriptors.memory.write_all_at(bytes, *at)),
            Act::Cut(bytes) => drop(self.descriptors.memory.set_len(*bytes)),
            Act::Signal(place) => {
                let event = &self.descriptors.events[place % EVENTS];
                // A blocking write here would never return, so the eventfd is made non-blocking first.
                let _ = fcntl_setfl(event, OFlags::RDWR | OFlags::NONBLOCK);
                let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
            }
            Act::Clog(place) => {
                let event = &self.descriptors.events[place % EVENTS];
                let _ = fcntl_setfl(event, OFlags::RDWR | OFlags::NONBLOCK);
                let _ = rustix::io::write(event, &(u64::MAX - 1).to_ne_bytes());
                let _ = fcntl_setfl(event, OFlags::RDWR);
            }
            Act::Host(bytes) => self.host_acts(bytes),
            Act::Pause => std::thread::sleep(Duration::from_micros(200)),
        }
    }

    fn host_acts(&self, bytes: &[u8]) {
        let mut host = lock(&self.host);
        let wanted = bytes.first().copied().unwrap_or(0);
        if host.len() < 8 && wanted & 1 != 0 {
            let new = match wanted & 2 {
                0 => UnixStream::connect(&self.vsock_path),
                _ => self.host_listener.accept().map(|(stream, _)| stream),
            };
            if let Ok(stream) = new {
                let _ = stream.set_nonblocking(true);
                host.push(stream);
            }
        }
        let place = usize::from(wanted >> 4) % host.len().max(1);
        if let Some(mut stream) = host.get(place) {
            let _ = stream.write(bytes.get(1..).unwrap_or_default());
            let _ = stream.read(&mut [0; 512]);
            if wanted & 4 != 0 {
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        }
    }

    fn begin(&self, plan: &mut Plan) {
        *lock(&self.acts) = Acts { due: std::mem::take(&mut plan.acts), received: 0 };
        self.descriptors.restore();
    }

    fn end(&self) {
        lock(&self.host).clear();
        while self.host_listener.accept().is_ok() {}
    }
}

impl Observer for Stage {
    fn event(&self, event: &SessionEvent<'_>) {
        match event {
            SessionEvent::Received { .. } => {
                loop {
                    let mut acts = lock(&self.acts);
                    let received = acts.received;
                    let Some((_, act)) = acts.due.pop_front_if(|(at, _)| *at <= received) else { break };
                    drop(acts);
                    self.act(&act);
                }
                lock(&self.acts).received += 1;
            }
            SessionEvent::Ended {
                error:
                    Some(SessionError::Refused {
                        source: Refusal::Worker(error @ (WorkerError::Stuck { .. } | WorkerError::Gone)),
                        request,
                        ..
                    }),
                ..
            } => panic!("message {request}: {error}"),
            event if std::env::var_os("KILN_FUZZ_EVENTS").is_some() => eprintln!("{event:?}"),
            _ => {}
        }
    }
}

/// The servers under attack: a disk without data, a disk in a file, two network cards, a vsock device.
pub struct Servers {
    pub stage: Arc<Stage>,
    servers: Vec<Server>,
    stop: Event,
    _directory: tempfile::TempDir,
}

impl Servers {
    pub fn new() -> Self {
        ignore_broken_pipes();
        let directory = tempfile::tempdir().expect("a directory");
        let vsock_path = directory.path().join("v");
        let host_listener = UnixListener::bind(directory.path().join(format!("v_{HOST_PORT}"))).expect("listens");
        host_listener.set_nonblocking(true).expect("is set");
        let disk = directory.path().join("disk");
        File::create(&disk).and_then(|file| file.set_len(1 << 16)).expect("a disk");
        let net = NetOptions { behind: Behind::Host(std::net::Ipv4Addr::new(10, 0, 2, 1)), ..NetOptions::default() };
        let devices: [Arc<dyn Device>; 5] = [
            Arc::new(Blk::open(&BlkOptions::new(Backing::Null { bytes: 1 << 20 })).expect("a disk")),
            Arc::new(Blk::open(&BlkOptions::new(Backing::File(disk))).expect("a disk")),
            Arc::new(Net::new(NetOptions::default()).expect("a card")),
            Arc::new(Net::new(net).expect("a card")),
            Arc::new(Vsock::new(GUEST_CID, &vsock_path).expect("a socket device")),
        ];
        let stage = Arc::new(Stage {
            acts: Mutex::default(),
            descriptors: Descriptors::new(),
            host: Mutex::default(),
            host_listener,
            vsock_path,
        });
        let options = Options {
            message_timeout: Duration::from_millis(5),
            stop_timeout: SESSION_BOUND,
            observer: Arc::clone(&stage) as Arc<dyn Observer>,
            ..Options::default()
        };
        let server = |device| Server::new(device, options.clone()).expect("a server");
        let servers = devices.into_iter().map(server).collect();
        Self { stage, servers, stop: Event::new().expect("an event"), _directory: directory }
    }

    /// Number of servers.
    pub const DEVICES: usize = 5;

    /// Runs a plan on a server, and checks that the session ends in time.
    pub fn run(&self, device: usize, plan: &mut Plan) {
        let server = &self.servers[device % self.servers.len()];
        self.stage.begin(plan);
        let (mut ours, theirs) = Channel::pair(Duration::from_millis(200)).expect("sockets");
        for message in &plan.messages {
            let fds: Vec<_> = message.fds.iter().map(|place| self.stage.descriptors.get(*place)).collect();
            let flags = Flags::from_bits(message.flags);
            if ours.send_raw(message.number, flags, &message.payload, &fds).is_err() {
                break;
            }
        }
        let _ = ours.stream().shutdown(std::net::Shutdown::Write);
        let started = Instant::now();
        server.serve_client(theirs, 1, &self.stop);
        let took = started.elapsed();
        assert!(took < SESSION_BOUND, "the session took {took:?}");
        self.stage.end();
    }
}

/// Ignores SIGPIPE like Rust's own start code, which a fuzzer's `main` does not run.
fn ignore_broken_pipes() {
    // SAFETY: no handler is installed; the signal is only ignored.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
    }
}

/// Counts the open descriptors and threads of this process now and then. Their number must not grow.
pub fn count_open() {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    static MOST: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    let runs = RUNS.fetch_add(1, Ordering::Relaxed);
    if runs % RUNS_PER_COUNT != RUNS_PER_COUNT - 1 {
        return;
    }
    for (what, most) in ["fd", "task"].into_iter().zip(&MOST) {
        let open = std::fs::read_dir(format!("/proc/self/{what}")).expect("is there").count();
        if runs < RUNS_PER_COUNT * 4 {
            most.fetch_max(open, Ordering::Relaxed);
            continue;
        }
        let before = most.load(Ordering::Relaxed);
        assert!(open <= before + SLACK, "{open} in /proc/self/{what}, {before} before");
    }
}
