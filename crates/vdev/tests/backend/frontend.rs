//! A frontend made of raw messages, and a server to talk to that ends with its test.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kiln_vdev::backend::{Device, NoObserver, Observer, Options, Server, SessionEvent};
use kiln_vdev::memory::{Area, SharedFile};
use kiln_vdev::protocol::frontend::*;
use kiln_vdev::protocol::{Empty, Flags, MemoryTable, ProtocolFeatures, VringFile, VringState};
use kiln_vdev::queue::{Arena, Buffer, DriverRing, RingKind, RingLayout, Used};
use kiln_vdev::socket::{Channel, Event, Listener, SocketError};
use kiln_vdev::virtio::feature;

pub const TIMEOUT: Duration = Duration::from_secs(10);

/// A device that is served until this is dropped.
pub struct Served {
    pub directory: tempfile::TempDir,
    stop: Event,
    pub config_changed: Event,
    pub events: Arc<Events>,
    thread: Option<JoinHandle<u64>>,
}

/// What a server has reported, as text.
pub struct Events {
    seen: Mutex<Vec<String>>,
    kicks: AtomicU64,
    also: Arc<dyn Observer>,
}

impl Default for Events {
    fn default() -> Self {
        Self { seen: Mutex::default(), kicks: AtomicU64::new(0), also: Arc::new(NoObserver) }
    }
}

impl Observer for Events {
    fn event(&self, event: &SessionEvent<'_>) {
        self.also.event(event);
        let text = match event {
            SessionEvent::Refused { request, refusal, told } => format!("refused {request} ({told}): {refusal}"),
            SessionEvent::Ended { error: Some(error), .. } => format!("ended: {error}"),
            SessionEvent::Ended { error: None, .. } => "ended".to_owned(),
            SessionEvent::RingBroke { queue, error } => format!("ring {queue} broke: {error}"),
            SessionEvent::Kicked { .. } => {
                self.kicks.fetch_add(1, Ordering::Relaxed);
                return;
            }
            SessionEvent::RingStopped { queue, base } => format!("ring {queue} stopped at {base}"),
            _ => return,
        };
        self.seen.lock().expect("no panic").push(text);
    }
}

impl Events {
    /// How many kicks workers have taken.
    pub fn kicks(&self) -> u64 {
        self.kicks.load(Ordering::Relaxed)
    }

    pub fn wait_for(&self, part: &str) -> String {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let seen = self.seen.lock().expect("no panic").clone();
            if let Some(found) = seen.iter().find(|text| text.contains(part)) {
                return found.clone();
            }
            assert!(Instant::now() < deadline, "`{part}` is not among {seen:#?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Served {
    pub fn new(device: impl Device + 'static) -> Self {
        Self::of(Options::default(), Arc::new(device))
    }

    /// A server with these options, but shorter timeouts; an observer of theirs gets the events, too.
    pub fn of(options: Options, device: Arc<dyn Device>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = Listener::bind(&directory.path().join("s")).expect("listens");
        let stop = Event::new().expect("an event");
        let events = Arc::new(Events { also: options.observer, ..Events::default() });
        let observer = Arc::clone(&events) as Arc<dyn Observer>;
        let options = Options { message_timeout: Duration::from_millis(700), observer, ..options };
        let server = Server::new(device, options).expect("a server");
        let config_changed = server.config_changed().expect("an event");
        let stopped = stop.try_clone().expect("clones");
        let thread = std::thread::spawn(move || server.serve(&listener, &stopped).expect("serves"));
        Self { directory, stop, config_changed, events, thread: Some(thread) }
    }

    pub fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("s")
    }

    pub fn connect(&self) -> Channel {
        Channel::connect(&self.socket(), TIMEOUT).expect("connects")
    }

    pub fn frontend(&self) -> Frontend {
        Frontend::new(self.connect())
    }

    /// The next frontend, after this one has left.
    pub fn connect_after(&self, before: Frontend) -> Frontend {
        drop(before);
        self.frontend()
    }

    /// Ends it, and returns how many frontends it has served.
    pub fn stop(self) -> u64 {
        self.stop_keeping_directory().1
    }

    pub fn stop_keeping_directory(mut self) -> (tempfile::TempDir, u64) {
        self.stop.signal().expect("is told");
        let served = self.thread.take().expect("runs").join().expect("no panic");
        let empty = tempfile::tempdir().expect("a directory");
        (std::mem::replace(&mut self.directory, empty), served)
    }

    /// Whether the last frontend has disconnected.
    pub fn is_idle(&self) -> bool {
        self.events.seen.lock().expect("no panic").last().is_some_and(|text| text.starts_with("ended"))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.stop.signal();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A frontend made of raw messages, with memory of its own.
pub struct Frontend {
    pub channel: Channel,
    pub arena: Arena,
    pub file: SharedFile,
    pub features: u64,
}

pub const ARENA_START: u64 = 0x10_0000;

impl Frontend {
    pub fn new(channel: Channel) -> Self {
        let (arena, file) = Arena::new(ARENA_START, 16 << 20).expect("memory");
        Self { channel, arena, file, features: 0 }
    }

    /// Negotiates all but packed rings, which tests choose themselves, and in-band notifications.
    pub fn negotiate(&mut self) -> u64 {
        let without = ProtocolFeatures::INBAND_NOTIFICATIONS | ProtocolFeatures::GPA_ADDRESSES;
        self.negotiate_as(!feature::RING_PACKED & !feature::LOG_ALL, ProtocolFeatures::ALL.difference(without))
    }

    pub fn negotiate_as(&mut self, features: u64, protocol: ProtocolFeatures) -> u64 {
        self.ask(&SetOwner(Empty));
        let offered = self.get(&GetFeatures(Empty));
        let protocol_offered = ProtocolFeatures::from_bits(self.get(&GetProtocolFeatures(Empty)));
        self.ask(&SetProtocolFeatures(protocol_offered.intersection(protocol).bits()));
        self.features = offered & features;
        self.ask(&SetFeatures(self.features));
        self.features
    }

    pub fn ask<M: kiln_vdev::protocol::Message>(&mut self, message: &M) {
        self.channel.send(message, &[]).expect("is sent");
    }

    pub fn get<M: kiln_vdev::protocol::Message<Reply = u64>>(&mut self, message: &M) -> u64 {
        self.channel.call(message, &[]).expect("is answered").0
    }

    /// Sends a message that must be acknowledged.
    pub fn must<M: kiln_vdev::protocol::Message>(&mut self, message: &M, fds: &[BorrowedFd<'_>]) {
        self.channel.call_acknowledged(message, fds).unwrap_or_else(|error| panic!("is done: {error}"));
    }

    /// Sends a message that is refused, and the session goes on.
    pub fn refused<M: kiln_vdev::protocol::Message>(&mut self, message: &M, fds: &[BorrowedFd<'_>]) {
        let error = self.channel.call_acknowledged(message, fds).expect_err("is refused");
        assert!(matches!(error, SocketError::Refused { code: 1.., .. }), "{} {error}", M::REQUEST);
        assert_ne!(self.get(&GetFeatures(Empty)), 0, "goes on");
    }

    /// Sends anything at all, after which the session ends.
    pub fn ends(&mut self, request: u32, flags: Flags, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        self.channel.send_raw(request, flags, payload, fds).expect("is sent");
        let end = self.channel.receive().expect_err("it ends");
        assert!(end.is_closed(), "message {request}: {end}");
    }

    pub fn share_memory(&mut self) {
        let region = *self.arena.region().description();
        let file = self.file.try_clone().expect("clones");
        self.must(&SetMemTable(MemoryTable(vec![region])), &[file.as_fd()]);
    }

    pub fn layout(&self, size: u16) -> RingLayout {
        RingLayout {
            kind: if self.features & feature::RING_PACKED != 0 { RingKind::Packed } else { RingKind::Split },
            size,
            event_idx: self.features & feature::RING_EVENT_IDX != 0,
            indirect: self.features & feature::RING_INDIRECT_DESC != 0,
        }
    }

    /// A ring that is set up, not started.
    pub fn prepare(&mut self, index: u32, size: u16) -> Ring {
        let layout = self.layout(size);
        let driver = DriverRing::create(index, layout, &mut self.arena).expect("a ring");
        let [kick, call, error] = [(); 3].map(|()| Event::new().expect("an event"));
        self.must(&SetVringNum(VringState { index, num: size.into() }), &[]);
        self.must(&SetVringAddr(driver.address()), &[]);
        self.must(&SetVringBase(VringState { index, num: driver.base() }), &[]);
        let file = VringFile::with_descriptor(index as u8);
        self.must(&SetVringCall(file), &[call.as_fd()]);
        self.must(&SetVringErr(file), &[error.as_fd()]);
        let data = self.arena.allocate(1 << 20, 4096).expect("has room");
        Ring { index, driver, kick, call, error, data }
    }

    pub fn start(&mut self, ring: &Ring) {
        let index = ring.index;
        self.must(&SetVringKick(VringFile::with_descriptor(index as u8)), &[ring.kick.as_fd()]);
        self.must(&SetVringEnable(VringState { index, num: 1 }), &[]);
    }

    /// A ring that runs.
    pub fn ring(&mut self, index: u32, size: u16) -> Ring {
        let ring = self.prepare(index, size);
        self.start(&ring);
        ring
    }

    /// A ring that is kicked and calls by message.
    pub fn in_band_ring(&mut self, index: u32, size: u16) -> Ring {
        let layout = self.layout(size);
        let driver = DriverRing::create(index, layout, &mut self.arena).expect("a ring");
        let [kick, call, error] = [(); 3].map(|()| Event::new().expect("an event"));
        self.must(&SetVringNum(VringState { index, num: size.into() }), &[]);
        self.must(&SetVringAddr(driver.address()), &[]);
        self.must(&SetVringBase(VringState { index, num: driver.base() }), &[]);
        self.must(&SetVringEnable(VringState { index, num: 1 }), &[]);
        let data = self.arena.allocate(1 << 20, 4096).expect("has room");
        Ring { index, driver, kick, call, error, data }
    }

    pub fn kick_in_band(&mut self, index: u32) {
        self.must(&VringKick(VringState { index, num: 0 }), &[]);
    }

    pub fn base(&mut self, index: u32) -> u32 {
        self.channel.call(&GetVringBase(VringState { index, num: 0 }), &[]).expect("is answered").0.num
    }
}

/// A ring with its events and a MiB of memory for data.
pub struct Ring {
    pub index: u32,
    pub driver: DriverRing,
    pub kick: Event,
    pub call: Event,
    pub error: Event,
    pub data: Area,
}

impl Ring {
    pub fn buffer(&self, at: u64, bytes: u32) -> Buffer {
        Buffer { guest_address: self.data.guest_address() + at, bytes }
    }

    pub fn put(&self, at: usize, bytes: &[u8]) {
        self.data.slice(at, bytes.len()).copy_from(bytes);
    }

    pub fn take(&self, at: usize, bytes: usize) -> Vec<u8> {
        let mut taken = vec![0; bytes];
        self.data.slice(at, bytes).copy_to(&mut taken);
        taken
    }

    pub fn submit(&mut self, readable: &[Buffer], writable: &[Buffer], token: u64) {
        self.driver.add(readable, writable, token).expect("has room");
        if self.driver.publish() {
            self.kick.signal().expect("kicks");
        }
    }

    /// The next request that comes back, which must come in time.
    pub fn wait(&mut self) -> Used {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(used) = self.driver.take_used().expect("is true") {
                return used;
            }
            assert!(Instant::now() < deadline, "nothing comes back on ring {}", self.index);
            if !self.driver.enable_calls() {
                self.call.wait(Duration::from_millis(200)).expect("waits");
            }
        }
    }

    /// A request of a disk with its header at 0, data from 4096 on, status at 64: its status.
    pub fn request(&mut self, kind: u32, sector: u64, readable: u32, writable: u32) -> (u8, u32) {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        self.put(0, &header);
        self.put(64, &[0xee]);
        let data = self.buffer(4096, readable.max(writable));
        let mut outgoing = vec![self.buffer(0, 16)];
        let mut incoming = Vec::new();
        if readable > 0 {
            outgoing.push(data);
        }
        if writable > 0 {
            incoming.push(data);
        }
        incoming.push(self.buffer(64, 1));
        self.submit(&outgoing, &incoming, 1);
        let used = self.wait();
        (self.take(64, 1)[0], used.written)
    }
}

/// How many descriptors this process has open.
pub fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("is there").count()
}

/// Waits until something is true.
pub fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !is_true() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A test of this program again, in a process of its own that is killed with the test that started it.
pub struct Killed(Child);

impl Killed {
    /// Starts the test of this name with these variables, by which it finds out what it is.
    pub fn start(test: &str, variables: &[(&str, &Path)]) -> Self {
        let child = Command::new(std::env::current_exe().expect("is there"))
            .args(["--exact", test])
            .envs(variables.iter().copied())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("starts"))
    }

    /// How it has exited on its own, which it must in time.
    pub fn ended(mut self) -> ExitStatus {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(status) = self.0.try_wait().expect("is ours") {
                return status;
            }
            assert!(Instant::now() < deadline, "it goes on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have exited on its own.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a server accepts connections there. The file is there a moment before.
pub fn wait_until_it_listens(socket: &Path) {
    eventually("it listens", || std::os::unix::net::UnixStream::connect(socket).is_ok());
}
