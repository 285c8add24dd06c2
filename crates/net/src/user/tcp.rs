//! Connections: the guest's side is a socket of smoltcp, the other side a socket of the host.
//!
//! ```text
//!              SYN of the guest                         accept of a published port
//!                     │                                            │
//!                     ▼                                            ▼
//!    Connecting: the host connects, the guest waits      Inbound: the guest is asked
//!       │ connected            │ refused                    │ accepted        │ refused
//!       ▼                      ▼                            ▼                 ▼
//!     Open ◀──────────────── RST ─────────────────────────Open              RST
//!       │  both sides have ended, or one has sent RST
//!       ▼
//!     gone
//! ```
//!
//! smoltcp looks at all sockets of a set for each segment. So each connection has a set of its own, and is found by its
//! ports and address here: a segment costs the same with one connection and with many.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpCidr};

use super::device::Device;
use super::link::Link;
use super::slab::{Key, Slab};
use super::stack::Admitted;
use crate::inner::{GATEWAY, GUEST, PREFIX};

/// Connections of one VM at the same time. More get RST.
pub const CONNECTIONS_MAX: usize = 512;

/// Bytes from the guest that wait for the host's socket. The guest is not offered more.
pub const RECEIVE_BYTES: usize = 128 << 10;

/// Bytes for the guest that it has not confirmed. The host's socket is not read beyond that.
pub const SEND_BYTES: usize = 256 << 10;

/// How long a guest has to answer a connection to a published port.
const INBOUND_TIME: Duration = Duration::from_secs(10);

/// How long a segment may wait to be confirmed together with the next one.
const ACK_DELAY: Duration = Duration::from_millis(5);

/// A timer that is due but has nothing to send is looked at again after this time.
const TIMER_PAUSE: Duration = Duration::from_millis(1);

/// Ports of the gateway for connections to published ports.
const INBOUND_PORTS: std::ops::RangeInclusive<u16> = 32_768..=60_999;

/// One connection, or one pair for datagrams: the guest's port and the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) port: u16,
    pub(super) to: SocketAddrV4,
}

/// The link, as each call needs it.
pub(super) struct Wire<'a> {
    pub(super) link: &'a mut Link,
    pub(super) guest_mac: [u8; 6],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Inbound,
    Open,
}

struct Connection {
    flow: Flow,
    /// `None` for a connection to a published port: no policy is about it.
    admitted: Option<Admitted>,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    host: OwnedFd,
    phase: Phase,
    /// What the host's socket reported last, until a call has shown otherwise.
    readable: bool,
    writable: bool,
    host_ended: bool,
    guest_ended: bool,
    deadline: Option<StackInstant>,
    is_queued: bool,
}

/// All connections of a VM.
pub(super) struct Connections {
    interface: Interface,
    table: Slab<Connection>,
    flows: HashMap<Flow, Key>,
    /// Connections that have something to do.
    queue: Vec<Key>,
    /// Connections that wait for room on the link.
    blocked: Vec<Key>,
    /// No timer is due before this.
    next_timer: Option<StackInstant>,
    start: Instant,
    mtu: usize,
    inbound_port: u16,
}

impl Connections {
    pub(super) fn new(mtu: usize, seed: u64, link: &mut Link) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut device = Device { link, received: None, guest_mac: [0; 6], mtu };
        let mut interface = Interface::new(config, &mut device, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(GATEWAY.into(), PREFIX)).expect("an interface has room for one address");
        });
        interface.set_any_ip(true);
        Self {
            interface,
            table: Slab::new(),
            flows: HashMap::new(),
            queue: Vec::new(),
            blocked: Vec::new(),
            next_timer: None,
            start: Instant::now(),
            mtu,
            inbound_port: *INBOUND_PORTS.start(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.table.len() >= CONNECTIONS_MAX
    }

    /// Takes a segment of a connection that is known.
    ///
    /// A first segment that comes after the connection was made is not late, because the link keeps the order. The guest
    /// has forgotten the connection, as after a reset of the machine, and makes another one with the same ports. The old
    /// one ends, or the new one would get no answer.
    pub(super) fn segment(&mut self, wire: &mut Wire<'_>, flow: Flow, is_new: bool, ipv4: &[u8]) -> bool {
        let Some(key) = self.flows.get(&flow).copied() else { return false };
        let now = self.now();
        let Some(connection) = self.table.get_mut(key) else { return false };
        let is_waiting = matches!(connection.socket().state(), State::Listen | State::SynReceived | State::SynSent);
        if is_new && !is_waiting {
            self.remove(key);
            return false;
        }
        let mut device = device(wire, Some(ipv4), self.mtu);
        self.interface.poll_ingress_single(now, &mut device, &mut connection.sockets);
        self.enqueue(key);
        true
    }

    /// Answers a segment that belongs to no connection: with RST, unless it is one.
    pub(super) fn reset(&mut self, wire: &mut Wire<'_>, ipv4: &[u8]) {
        let mut none = SocketSet::new(Vec::new());
        let now = self.now();
        self.interface.poll_ingress_single(now, &mut device(wire, Some(ipv4), self.mtu), &mut none);
    }

    /// Takes the first segment of a connection, whose other side is on its way. The guest gets no answer yet.
    pub(super) fn open(
        &mut self,
        wire: &mut Wire<'_>,
        flow: Flow,
        ipv4: &[u8],
        host: OwnedFd,
        admitted: Admitted,
    ) -> Option<Key> {
        let mut socket = socket();
        socket.pause_synack(true);
        socket.listen((*flow.to.ip(), flow.to.port())).ok()?;
        let key = self.insert(flow, socket, host, Some(admitted), Phase::Connecting);
        self.segment(wire, flow, true, ipv4);
        let connection = self.table.get_mut(key)?;
        if connection.socket().state() == State::SynReceived {
            return Some(key);
        }
        // smoltcp did not like the segment.
        self.remove(key);
        None
    }

    /// Asks the guest for a connection to one of its ports.
    pub(super) fn connect(&mut self, port: u16, host: OwnedFd) -> Option<Key> {
        let flow = self.inbound_flow(port)?;
        let mut socket = socket();
        socket.set_timeout(Some(INBOUND_TIME.into()));
        socket.connect(self.interface.context(), (GUEST, port), (GATEWAY, flow.to.port())).ok()?;
        let key = self.insert(flow, socket, host, None, Phase::Inbound);
        self.enqueue(key);
        Some(key)
    }

    pub(super) fn host(&mut self, key: Key) -> Option<BorrowedFd<'_>> {
        self.table.get_mut(key).map(|connection| connection.host.as_fd())
    }

    /// The host's socket reported something.
    pub(super) fn event(&mut self, key: Key, readable: bool, writable: bool) {
        let Some(connection) = self.table.get_mut(key) else { return };
        connection.readable |= readable;
        connection.writable |= writable;
        self.enqueue(key);
    }

    /// Resets all connections that are not kept.
    pub(super) fn recheck(&mut self, is_kept: impl Fn(&Admitted) -> bool) {
        let is_lost = |connection: &Connection| connection.admitted.as_ref().is_some_and(|admitted| !is_kept(admitted));
        let lost: Vec<Key> =
            self.table.iter().filter(|(_, connection)| is_lost(connection)).map(|(key, _)| key).collect();
        for key in lost {
            if let Some(connection) = self.table.get_mut(key) {
                connection.abort();
            }
            self.enqueue(key);
        }
    }

    pub(super) fn admitted(&self) -> impl Iterator<Item = &Admitted> {
        self.table.iter().filter_map(|(_, connection)| connection.admitted.as_ref())
    }

    /// How long nothing has to be done, if no event comes.
    pub(super) fn wait(&self) -> Option<Duration> {
        if !self.queue.is_empty() {
            return Some(Duration::ZERO);
        }
        let now = self.now();
        self.next_timer.map(|timer| if timer > now { (timer - now).into() } else { Duration::ZERO })
    }

    /// Gives the connections that waited for room on the link another turn.
    pub(super) fn unblock(&mut self) {
        for key in std::mem::take(&mut self.blocked) {
            self.enqueue(key);
        }
    }

    /// Moves bytes of all connections that have something to do.
    pub(super) fn serve(&mut self, wire: &mut Wire<'_>) {
        self.enqueue_timers();
        for key in std::mem::take(&mut self.queue) {
            if !self.serve_one(wire, key) {
                self.remove(key);
            }
        }
    }

    /// Returns whether the connection goes on.
    fn serve_one(&mut self, wire: &mut Wire<'_>, key: Key) -> bool {
        let now = self.now();
        let Some(connection) = self.table.get_mut(key) else { return false };
        connection.is_queued = false;
        connection.advance();
        let mut device = device(wire, None, self.mtu);
        while self.interface.poll_egress(now, &mut device, &mut connection.sockets) != PollResult::None {}
        if !device.link.has_room() {
            self.blocked.push(key);
            return true;
        }
        // After its last segment a socket would wait for late ones. There are none: the link keeps the order.
        if matches!(connection.socket().state(), State::Closed | State::TimeWait) {
            return false;
        }
        connection.deadline = match connection.phase {
            // smoltcp would like to answer the guest, and is not allowed to.
            Phase::Connecting => None,
            Phase::Inbound | Phase::Open => self.interface.poll_at(now, &connection.sockets),
        };
        connection.deadline = connection.deadline.map(|deadline| deadline.max(now + TIMER_PAUSE.into()));
        self.next_timer = [self.next_timer, connection.deadline].into_iter().flatten().min();
        true
    }

    fn enqueue_timers(&mut self) {
        let now = self.now();
        if self.next_timer.is_none_or(|timer| timer > now) {
            return;
        }
        let deadlines = || self.table.iter().filter_map(|(key, connection)| Some((key, connection.deadline?)));
        let due: Vec<Key> = deadlines().filter(|(_, deadline)| *deadline <= now).map(|(key, _)| key).collect();
        self.next_timer = deadlines().map(|(_, deadline)| deadline).filter(|deadline| *deadline > now).min();
        for key in due {
            self.enqueue(key);
        }
    }

    fn enqueue(&mut self, key: Key) {
        if let Some(connection) = self.table.get_mut(key)
            && !std::mem::replace(&mut connection.is_queued, true)
        {
            self.queue.push(key);
        }
    }

    fn insert(
        &mut self,
        flow: Flow,
        socket: Socket<'static>,
        host: OwnedFd,
        admitted: Option<Admitted>,
        phase: Phase,
    ) -> Key {
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let key = self.table.insert(Connection {
            flow,
            admitted,
            sockets,
            handle,
            host,
            phase,
            readable: false,
            writable: false,
            host_ended: false,
            guest_ended: false,
            deadline: None,
            is_queued: false,
        });
        self.flows.insert(flow, key);
        key
    }

    fn remove(&mut self, key: Key) {
        let Some(connection) = self.table.remove(key) else { return };
        self.flows.remove(&connection.flow);
        if !(connection.host_ended && connection.guest_ended) {
            // The guest's RST becomes one for the other side. It is closed in any case.
            let _ = sockopt::set_socket_linger(&connection.host, Some(Duration::ZERO));
        }
    }

    /// A port of the gateway that has no connection to this port of the guest.
    fn inbound_flow(&mut self, port: u16) -> Option<Flow> {
        for _ in 0..=CONNECTIONS_MAX {
            let from = self.inbound_port;
            self.inbound_port = if from == *INBOUND_PORTS.end() { *INBOUND_PORTS.start() } else { from + 1 };
            let flow = Flow { port, to: SocketAddrV4::new(GATEWAY, from) };
            if !self.flows.contains_key(&flow) {
                return Some(flow);
            }
        }
        None
    }

    fn now(&self) -> StackInstant {
        // The clock of a machine does not run for so long.
        StackInstant::from_micros(self.start.elapsed().as_micros() as i64)
    }
}

impl Connection {
    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    fn abort(&mut self) {
        self.socket().abort();
    }

    /// Does what can be done between the two sides now.
    fn advance(&mut self) {
        let may_send = self.socket().may_send();
        match self.phase {
            Phase::Connecting if self.readable || self.writable => match sockopt::socket_error(&self.host) {
                Ok(Ok(())) => {
                    self.phase = Phase::Open;
                    self.socket().pause_synack(false);
                }
                Ok(Err(_)) | Err(_) => self.abort(),
            },
            Phase::Inbound if may_send => {
                self.phase = Phase::Open;
                self.socket().set_timeout(None);
            }
            Phase::Connecting | Phase::Inbound | Phase::Open => {}
        }
        let state = self.socket().state();
        let is_open = self.phase == Phase::Open && !matches!(state, State::SynReceived | State::Closed);
        if is_open && (self.move_to_host().is_err() || self.move_to_guest().is_err()) {
            self.abort();
        }
    }

    fn move_to_host(&mut self) -> Result<(), Errno> {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
        while self.writable && socket.can_recv() {
            let host = &self.host;
            let result = socket.recv(|bytes| match send(host, bytes, SendFlags::NOSIGNAL) {
                Ok(length) => (length, Ok(())),
                Err(error) => (0, Err(error)),
            });
            match result.expect("the socket can receive") {
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(error) => return Err(error),
            }
        }
        // All that the guest has sent before its end was taken.
        if !socket.may_recv() && !self.guest_ended {
            self.guest_ended = true;
            match shutdown(&self.host, Shutdown::Write) {
                Ok(()) | Err(Errno::NOTCONN) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn move_to_guest(&mut self) -> Result<(), Errno> {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
        while self.readable && !self.host_ended && socket.can_send() {
            let host = &self.host;
            let result = socket.send(|space| match recv(host, space, RecvFlags::empty()) {
                Ok((length, _)) => (length, Ok(length)),
                Err(error) => (0, Err(error)),
            });
            match result.expect("the socket can send") {
                Ok(0) => {
                    self.host_ended = true;
                    socket.close();
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.readable = false,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn socket() -> Socket<'static> {
    let mut socket = Socket::new(SocketBuffer::new(vec![0; RECEIVE_BYTES]), SocketBuffer::new(vec![0; SEND_BYTES]));
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(Some(ACK_DELAY.into()));
    socket
}

fn device<'a>(wire: &'a mut Wire<'_>, received: Option<&'a [u8]>, mtu: usize) -> Device<'a> {
    Device { link: wire.link, received, guest_mac: wire.guest_mac, mtu }
}
