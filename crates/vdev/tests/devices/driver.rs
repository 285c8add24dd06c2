//! A driver with a receive ring and a transmit ring, over a session of its own with a server of its own.

use std::collections::VecDeque;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kiln_vdev::backend::{self, Device, Server};
use kiln_vdev::frontend::{Frontend, Options, SharedRegion, Wish};
use kiln_vdev::memory::Area;
use kiln_vdev::queue::{Arena, Buffer, DriverRing, RingKind, RingLayout};
use kiln_vdev::socket::{Event, Listener};

pub const DEADLINE: Duration = Duration::from_secs(10);
const RING: u16 = 64;
pub const BUFFER_BYTES: usize = 4096;

/// A device that is served until this is dropped.
pub struct Served {
    stop: Event,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    pub fn new(device: impl Device + 'static, socket: &Path) -> Self {
        let listener = Listener::bind(socket).expect("listens");
        let stop = Event::new().expect("an eventfd");
        let stopped = stop.try_clone().expect("clones");
        let server = Server::new(Arc::new(device), backend::Options::default()).expect("a server");
        let thread = std::thread::spawn(move || {
            server.serve(&listener, &stopped).expect("serves");
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.signal().expect("is told");
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panic");
        }
    }
}

struct Ring {
    ring: DriverRing,
    kick: Event,
    call: Event,
}

/// A driver with two rings.
pub struct Driver {
    _frontend: Frontend,
    receive: Ring,
    transmit: Ring,
    buffers: Vec<Area>,
    outgoing: Area,
    received: VecDeque<Vec<u8>>,
    arena: Arena,
}

impl Driver {
    pub fn new(socket: &Path) -> Self {
        Self::with(socket, RING)
    }

    /// With so many buffers to receive into.
    pub fn with(socket: &Path, buffers: u16) -> Self {
        Self::on(socket, buffers, 0)
    }

    /// On the rings of this pair.
    pub fn on(socket: &Path, buffers: u16, pair: u32) -> Self {
        let mut frontend = Frontend::connect(socket, &Options::default()).expect("connects");
        frontend.handshake(&Wish::default()).expect("is agreed");
        let (mut arena, file) = Arena::new(0, 4 << 20).expect("memory");
        let region = *arena.region().description();
        frontend.share_memory(vec![SharedRegion { region, file }]).expect("is shared");
        let mut rings = [2 * pair, 2 * pair + 1].map(|index| {
            let layout = RingLayout { kind: RingKind::Split, size: RING, event_idx: true, indirect: true };
            let ring = DriverRing::create(index, layout, &mut arena).expect("a ring");
            let (kick, call) = (Event::new().expect("an eventfd"), Event::new().expect("an eventfd"));
            frontend.set_vring_num(index, RING.into()).expect("is set");
            frontend.set_vring_addr(&ring.address()).expect("is set");
            frontend.set_vring_base(index, 0).expect("is set");
            frontend.set_vring_call(index, Some(call.as_fd())).expect("is set");
            frontend.set_vring_kick(index, Some(kick.as_fd())).expect("is set");
            frontend.set_vring_enable(index, true).expect("is set");
            Some(Ring { ring, kick, call })
        });
        let [receive, transmit] = rings.each_mut().map(|ring| ring.take().expect("was made"));
        let buffers = (0..buffers).map(|_| arena.allocate(BUFFER_BYTES, 64).expect("has room")).collect();
        let outgoing = arena.allocate(128 << 10, 64).expect("has room");
        let mut driver =
            Self { _frontend: frontend, receive, transmit, buffers, outgoing, received: VecDeque::new(), arena };
        for token in 0..driver.buffers.len() {
            driver.offer(token);
        }
        driver.kick_receive();
        driver
    }

    fn offer(&mut self, token: usize) {
        let buffer = Buffer { guest_address: self.buffers[token].guest_address(), bytes: BUFFER_BYTES as u32 };
        self.receive.ring.add(&[], &[buffer], token as u64).expect("has room");
    }

    /// One buffer more to receive into.
    pub fn give_buffer(&mut self) {
        self.buffers.push(self.arena.allocate(BUFFER_BYTES, 64).expect("has room"));
        self.offer(self.buffers.len() - 1);
        self.kick_receive();
    }

    fn kick_receive(&mut self) {
        if self.receive.ring.publish() {
            self.receive.kick.signal().expect("is told");
        }
    }

    /// Sends bytes as so many buffers, and waits until the device has taken them.
    pub fn send(&mut self, bytes: &[u8], pieces: usize) {
        self.outgoing.slice(0, bytes.len()).copy_from(bytes);
        let piece = bytes.len().div_ceil(pieces);
        let start = self.outgoing.guest_address();
        let places = (0..bytes.len()).step_by(piece);
        let buffers: Vec<_> = places
            .map(|at| Buffer { guest_address: start + at as u64, bytes: piece.min(bytes.len() - at) as u32 })
            .collect();
        self.transmit.ring.add(&buffers, &[], 0).expect("has room");
        if self.transmit.ring.publish() {
            self.transmit.kick.signal().expect("is told");
        }
        let deadline = Instant::now() + DEADLINE;
        while self.transmit.ring.take_used().expect("an honest ring").is_none() {
            assert!(Instant::now() < deadline, "the device takes what is sent");
            self.transmit.ring.enable_calls();
            self.transmit.call.wait(Duration::from_millis(20)).expect("can be waited for");
        }
    }

    /// The next bytes that the device has given, if they come within a time.
    pub fn receive(&mut self, within: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + within;
        loop {
            self.collect();
            if let Some(bytes) = self.received.pop_front() {
                return Some(bytes);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            self.receive.ring.enable_calls();
            self.receive.call.wait(left.min(Duration::from_millis(20))).expect("can be waited for");
        }
    }

    fn collect(&mut self) {
        let mut any = false;
        while let Some(used) = self.receive.ring.take_used().expect("an honest ring") {
            let token = usize::try_from(used.token).expect("is ours");
            let mut bytes = vec![0; used.written as usize];
            self.buffers[token].slice(0, bytes.len()).copy_to(&mut bytes);
            self.received.push_back(bytes);
            self.offer(token);
            any = true;
        }
        if any {
            self.kick_receive();
        }
    }
}
