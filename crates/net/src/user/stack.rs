//! The network of one VM: takes frames, asks the gate, and keeps the flows.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::{SocketFlags, accept_with};

use super::datagrams::{Datagrams, EchoFlow};
use super::host::Host;
use super::link::{Filled, Link};
use super::network::Published;
use super::packet::{self, Frame, Packet};
use super::slab::Key;
use super::tcp::{Connections, Flow, Wire};
use crate::gate::{Denied, Gate};
use crate::inner::{GATEWAY, GUEST_MAC, RESOLVER_PORT};
use crate::policy::{DecidedBy, Destination, Domain};

/// The smallest MTU of IPv4 hosts (RFC 791, 3.1).
const MTU_MIN: u16 = 576;
/// Reads of the link before sockets get a turn.
const FILLS_MAX: usize = 8;
/// Events that are taken at once.
const EVENTS_MAX: usize = 128;
/// Connections that are accepted from one published port before others get a turn.
const ACCEPTS_MAX: usize = 16;
/// How often silent flows are looked for, and openings that are in use are renewed.
const TICK: Duration = Duration::from_secs(1);
const RENEW: Duration = Duration::from_secs(20);

/// A flow that was allowed, and the name that allowed it.
#[derive(Debug, Clone)]
pub(super) struct Admitted {
    pub(super) to: Destination,
    pub(super) name: Option<Domain>,
}

/// Counters that others read while the network runs.
#[derive(Debug, Default)]
pub struct Counts {
    /// Frames of the guest.
    pub frames: AtomicU64,
    /// Frames that were dropped, because they are not understood or nothing may answer them.
    pub ignored: AtomicU64,
    /// Connections that were made.
    pub connections: AtomicU64,
    /// Connections that were refused because there are too many, or the host could not make a socket.
    pub refused: AtomicU64,
    /// Flows that are open now.
    pub open: AtomicU64,
}

/// The network of one VM.
pub struct Stack<H> {
    link: Link,
    epoll: OwnedFd,
    wake: Arc<OwnedFd>,
    host: H,
    gate: Arc<Gate>,
    /// The gate's policy that the flows were judged by.
    version: u64,
    guest_mac: [u8; 6],
    mtu: usize,
    connections: Connections,
    udp: Datagrams<Flow>,
    echo: Datagrams<EchoFlow>,
    published: Vec<Published>,
    counts: Arc<Counts>,
    is_readable: bool,
    ticked: Instant,
    renewed: Instant,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Link,
    Wake,
    Published(usize),
    Tcp(Key),
    Udp(Key),
    Echo(Key),
}

impl<H: Host> Stack<H> {
    /// A network on this end of a socket pair. `wake` is an eventfd that ends a wait.
    pub fn new(
        link: OwnedFd,
        host: H,
        gate: Arc<Gate>,
        wake: Arc<OwnedFd>,
        published: Vec<Published>,
        mtu: u16,
    ) -> io::Result<Self> {
        if mtu < MTU_MIN {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the MTU is too small for IPv4"));
        }
        let mut link = Link::new(link)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let edges = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&epoll, &link, Source::Link.data(), edges)?;
        epoll::add(&epoll, &wake, Source::Wake.data(), EventFlags::IN)?;
        for (index, published) in published.iter().enumerate() {
            published.listener.set_nonblocking(true)?;
            epoll::add(&epoll, &published.listener, Source::Published(index).data(), EventFlags::IN)?;
        }
        let mut seed = [0; 8];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
        let connections = Connections::new(mtu.into(), u64::from_ne_bytes(seed), &mut link);
        Ok(Self {
            link,
            epoll,
            wake,
            host,
            version: gate.version(),
            gate,
            guest_mac: GUEST_MAC,
            mtu: mtu.into(),
            connections,
            udp: Datagrams::udp(),
            echo: Datagrams::echo(),
            published,
            counts: Arc::default(),
            is_readable: true,
            ticked: Instant::now(),
            renewed: Instant::now(),
        })
    }

    /// The counters.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Waits for something to do, at most this long, and does it. Returns `false` when QEMU has closed its end.
    pub fn turn(&mut self, wait_max: Duration) -> io::Result<bool> {
        self.wait(wait_max)?;
        let is_open = self.read()?;
        self.keep();
        self.connections.serve(&mut wire(&mut self.link, self.guest_mac));
        self.link.flush()?;
        if self.link.has_room() {
            self.connections.unblock();
        }
        let open = self.connections.len() + self.udp.len() + self.echo.len();
        self.counts.open.store(open as u64, Ordering::Relaxed);
        Ok(is_open)
    }

    /// Takes one frame of the guest.
    pub fn frame(&mut self, bytes: &[u8]) {
        self.counts.frames.fetch_add(1, Ordering::Relaxed);
        let Some(frame) = Frame::read(bytes) else { return self.ignore() };
        self.guest_mac = frame.from;
        match frame.packet {
            Packet::Arp => self.send(Some(packet::arp_reply(frame.from))),
            Packet::Tcp { port, to, is_new } => self.tcp(Flow { port, to }, is_new, frame.ipv4),
            Packet::Udp { port, to, payload } => self.datagram(Flow { port, to }, payload, frame.ipv4),
            Packet::Echo { to, message } => self.echo(to, message, frame.ipv4),
        }
    }

    fn wait(&mut self, wait_max: Duration) -> io::Result<()> {
        let may_read = self.is_readable && self.link.has_room();
        let wait = if may_read { Duration::ZERO } else { self.connections.wait().unwrap_or(TICK).min(TICK) };
        let wait = Timespec::try_from(wait.min(wait_max)).expect("a second fits");
        let mut events = Vec::with_capacity(EVENTS_MAX);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events {
            // The layout of the kernel's structure may not be aligned, so its fields are copied.
            let (data, flags) = (event.data, event.flags);
            self.event(Source::of(data), flags);
        }
        Ok(())
    }

    fn event(&mut self, source: Source, flags: EventFlags) {
        let has_ended = flags.intersects(EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP);
        match source {
            Source::Link => self.is_readable |= has_ended || flags.contains(EventFlags::IN),
            Source::Wake => self.answers(),
            Source::Published(index) => self.accept(index),
            Source::Tcp(key) => {
                let is_broken = flags.intersects(EventFlags::HUP | EventFlags::ERR);
                let readable = has_ended || flags.contains(EventFlags::IN);
                self.connections.event(key, readable, is_broken || flags.contains(EventFlags::OUT));
            }
            Source::Udp(key) => self.received_udp(key),
            Source::Echo(key) => self.received_echo(key),
        }
    }

    /// Reads frames, as long as there is room for what answers them.
    fn read(&mut self) -> io::Result<bool> {
        let mut frame = Vec::new();
        for _ in 0..FILLS_MAX {
            while self.link.has_room() && self.link.next(&mut frame)? {
                self.frame(&frame);
            }
            if !self.is_readable || !self.link.has_room() {
                break;
            }
            match self.link.fill()? {
                Filled::Some => {}
                Filled::Nothing => self.is_readable = false,
                Filled::End => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Ends flows that a new policy denies and those that are silent, and renews openings that are in use.
    fn keep(&mut self) {
        let (now, version) = (Instant::now(), self.gate.version());
        let has_changed = version != self.version;
        if has_changed {
            self.version = version;
            let gate = &self.gate;
            self.connections.recheck(|admitted| gate.keeps(&admitted.to, admitted.name.as_ref()));
        }
        if has_changed || now.saturating_duration_since(self.ticked) >= TICK {
            self.ticked = now;
            let gate = &self.gate;
            let is_kept = |admitted: &Admitted| !has_changed || gate.keeps(&admitted.to, admitted.name.as_ref());
            self.udp.recheck(now, is_kept);
            self.echo.recheck(now, is_kept);
        }
        if now.saturating_duration_since(self.renewed) >= RENEW {
            self.renewed = now;
            let flows = self.connections.admitted().chain(self.udp.admitted()).chain(self.echo.admitted());
            for admitted in flows.filter(|admitted| admitted.name.is_some()) {
                self.gate.renew(admitted.to.address);
            }
        }
    }

    fn tcp(&mut self, flow: Flow, is_new: bool, ipv4: &[u8]) {
        if is_everyone(*flow.to.ip()) {
            return self.ignore();
        }
        if self.connections.segment(&mut wire(&mut self.link, self.guest_mac), flow, is_new, ipv4) {
            return;
        }
        let admitted = if is_new { self.admit(Destination::tcp(flow.to.into())) } else { None };
        let Some(admitted) = admitted else {
            return self.connections.reset(&mut wire(&mut self.link, self.guest_mac), ipv4);
        };
        let to_resolver = flow.to == SocketAddrV4::new(GATEWAY, RESOLVER_PORT);
        let socket = match (self.connections.is_full(), to_resolver) {
            (true, _) => Err(io::ErrorKind::QuotaExceeded.into()),
            (false, true) => self.host.resolver(),
            (false, false) => self.host.tcp(flow.to),
        };
        let mut wire = wire(&mut self.link, self.guest_mac);
        let Ok(socket) = socket else {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
            return self.connections.reset(&mut wire, ipv4);
        };
        if let Some(key) = self.connections.open(&mut wire, flow, ipv4, socket, admitted) {
            self.counts.connections.fetch_add(1, Ordering::Relaxed);
            self.watch_connection(key);
        }
    }

    fn datagram(&mut self, flow: Flow, payload: &[u8], ipv4: &[u8]) {
        if flow.to == SocketAddrV4::new(GATEWAY, RESOLVER_PORT) {
            return self.host.query(flow.port, payload);
        }
        if is_everyone(*flow.to.ip()) {
            return self.ignore();
        }
        if self.udp.send(flow, payload) {
            return;
        }
        let Some(admitted) = self.admit(Destination::udp(flow.to.into())) else { return self.prohibited(ipv4) };
        let Ok(socket) = self.host.udp(flow.to) else {
            self.counts.refused.fetch_add(1, Ordering::Relaxed);
            return self.prohibited(ipv4);
        };
        let key = self.udp.open(flow, socket, admitted);
        if let Some(socket) = self.udp.host(key) {
            // Without an event the flow only sends, and ends when it is silent.
            let _ = epoll::add(&self.epoll, socket, Source::Udp(key).data(), EventFlags::IN);
        }
        self.udp.send(flow, payload);
    }

    fn echo(&mut self, to: Ipv4Addr, message: &[u8], ipv4: &[u8]) {
        if is_everyone(to) {
            return self.ignore();
        }
        if to == GATEWAY {
            return self.send(packet::icmp(self.guest_mac, to, packet::echo_reply(message), self.mtu));
        }
        let Some(flow) = EchoFlow::of(to, message) else { return self.ignore() };
        if self.echo.send(flow, message) {
            return;
        }
        let Some(admitted) = self.admit(Destination::echo(to.into())) else { return self.prohibited(ipv4) };
        let Ok(socket) = self.host.echo(to) else {
            let by = "the host does not let this user send echo requests (net.ipv4.ping_group_range)";
            self.gate.deny(Denied::Flow(admitted.to), by.into());
            return self.prohibited(ipv4);
        };
        let key = self.echo.open(flow, socket, admitted);
        if let Some(socket) = self.echo.host(key) {
            // See `datagram`.
            let _ = epoll::add(&self.epoll, socket, Source::Echo(key).data(), EventFlags::IN);
        }
        self.echo.send(flow, message);
    }

    /// Asks the gate about a new flow. Whether an address is the host's own is found out only for those that would be
    /// allowed: a flood of denied ones costs no system call.
    fn admit(&mut self, to: Destination) -> Option<Admitted> {
        if let IpAddr::V4(address) = to.address
            && self.gate.decide(&to).is_allowed()
        {
            let is_own = self.host.is_own(address);
            self.gate.learned().note_host_address(to.address, is_own);
        }
        let decision = self.gate.admit(&to);
        let is_allowed = decision.is_allowed();
        let name = match decision.by {
            DecidedBy::AllowName { name, .. } => Some(name),
            _ => None,
        };
        is_allowed.then_some(Admitted { to, name })
    }

    fn accept(&mut self, index: usize) {
        for _ in 0..ACCEPTS_MAX {
            let Some(published) = self.published.get(index) else { return };
            let (listener, port) = (&published.listener, published.guest_port);
            let Ok(socket) = accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) else { return };
            if self.connections.is_full() {
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            if let Some(key) = self.connections.connect(port, socket) {
                self.counts.connections.fetch_add(1, Ordering::Relaxed);
                self.watch_connection(key);
            }
        }
    }

    fn watch_connection(&mut self, key: Key) {
        let edges = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let Some(socket) = self.connections.host(key) else { return };
        if epoll::add(&self.epoll, socket, Source::Tcp(key).data(), edges).is_err() {
            // Without events only calls show how far the socket is. A connection that is not ready then ends.
            self.connections.event(key, true, true);
        }
    }

    fn answers(&mut self) {
        // The counter is read so that it can report again.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        while let Some((port, answer)) = self.host.answer() {
            let from = SocketAddrV4::new(GATEWAY, RESOLVER_PORT);
            self.send(packet::udp(self.guest_mac, from, port, &answer, self.mtu));
        }
    }

    fn received_udp(&mut self, key: Key) {
        let (link, guest_mac, mtu) = (&mut self.link, self.guest_mac, self.mtu);
        self.udp.receive(key, |flow, payload| {
            push(link, packet::udp(guest_mac, flow.to, flow.port, payload, mtu));
        });
    }

    fn received_echo(&mut self, key: Key) {
        let (link, guest_mac, mtu) = (&mut self.link, self.guest_mac, self.mtu);
        self.echo.receive(key, |flow, message| {
            let reply = flow.reply(message).and_then(|reply| packet::icmp(guest_mac, flow.to, reply, mtu));
            push(link, reply);
        });
    }

    fn prohibited(&mut self, ipv4: &[u8]) {
        self.send(packet::icmp(self.guest_mac, GATEWAY, packet::prohibited(ipv4), self.mtu));
    }

    fn send(&mut self, frame: Option<Vec<u8>>) {
        push(&mut self.link, frame);
    }

    fn ignore(&self) {
        self.counts.ignored.fetch_add(1, Ordering::Relaxed);
    }
}

impl Source {
    const KIND_BITS: u32 = 60;

    fn data(self) -> EventData {
        let (kind, bits) = match self {
            Self::Link => (0, 0),
            Self::Wake => (1, 0),
            Self::Published(index) => (2, index as u64),
            Self::Tcp(key) => (3, key.bits()),
            Self::Udp(key) => (4, key.bits()),
            Self::Echo(key) => (5, key.bits()),
        };
        EventData::new_u64(kind << Self::KIND_BITS | bits)
    }

    fn of(data: EventData) -> Self {
        let bits = data.u64() & ((1 << Self::KIND_BITS) - 1);
        match data.u64() >> Self::KIND_BITS {
            0 => Self::Link,
            1 => Self::Wake,
            2 => Self::Published(bits as usize),
            3 => Self::Tcp(Key::of_bits(bits)),
            4 => Self::Udp(Key::of_bits(bits)),
            _ => Self::Echo(Key::of_bits(bits)),
        }
    }
}

/// Whether packets to the address are for all machines of a network. A guest sends such on its own, and nothing answers.
fn is_everyone(address: Ipv4Addr) -> bool {
    address.is_multicast() || address.is_broadcast()
}

/// Adds a frame that may be dropped.
fn push(link: &mut Link, frame: Option<Vec<u8>>) {
    if let Some(frame) = frame.filter(|_| link.has_room()) {
        link.push(frame.len(), |bytes| bytes.copy_from_slice(&frame));
    }
}

fn wire(link: &mut Link, guest_mac: [u8; 6]) -> Wire<'_> {
    Wire { link, guest_mac }
}
