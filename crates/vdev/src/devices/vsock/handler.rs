//! Moves packets between the rings and the Unix sockets, on one thread.
//!
//! Everything that a guest is to get is a fact of a connection ([`Owed`], readable bytes), not a message in a queue.
//! So a guest that offers no buffers makes nothing grow: connections wait in one list, each at most once, and their
//! streams are not read meanwhile.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

use super::connection::{Connection, Owed, Written};
use super::device::{BUFFER_BYTES, CONNECTIONS_MAX, HOST_CID, RECEIVE, TRANSMIT};
use super::host::{Caller, LINE_TIMEOUT, Said};
use super::packet::{HEADER_BYTES, Header, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, STREAM, op};
use crate::backend::{EventFlags, Queue, QueueHandler, Queues, Work};
use crate::queue::{Chain, QueueError};
use crate::socket::Listener;

/// Packets that one look at a ring moves, so that the other ring has its turn.
const PACKETS_AT_ONCE: usize = 64;
/// The longest packet, as Linux has it.
const PACKET_BYTES_MAX: usize = 64 << 10;
/// Resets of unknown connections that are to be sent; beyond that, packets of a guest get no reset.
const RESETS_MAX: usize = 256;
/// Callers that have not sent their port yet.
const CALLERS_MAX: usize = 64;
/// Ports of the host's side for connections that the host begins.
const HOST_PORTS: u32 = 1 << 30;
/// The token of the listener; connections have those after it.
const LISTENER: u64 = 0;

/// The ports of a connection: the host's and the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Ports {
    host: u32,
    guest: u32,
}

pub(super) struct Handler {
    guest_cid: u64,
    path: PathBuf,
    listener: Listener,
    is_listening: bool,
    connections: HashMap<Ports, Connection>,
    by_token: HashMap<u64, Ports>,
    callers: Vec<Caller>,
    /// Connections that have packets for the guest, each once.
    waiting: VecDeque<Ports>,
    /// Unknown connections for which the guest gets a reset.
    resets: VecDeque<Ports>,
    /// There was more to be given to the guest than one look gives.
    has_more: bool,
    next_token: u64,
    next_port: u32,
    chain: Chain,
    bytes: Vec<u8>,
}

impl Handler {
    pub(super) fn new(guest_cid: u64, path: PathBuf, listener: Listener) -> Self {
        Self {
            guest_cid,
            path,
            listener,
            is_listening: false,
            connections: HashMap::new(),
            by_token: HashMap::new(),
            callers: Vec::new(),
            waiting: VecDeque::new(),
            resets: VecDeque::new(),
            has_more: false,
            next_token: LISTENER + 1,
            next_port: HOST_PORTS,
            chain: Chain::new(),
            bytes: Vec::new(),
        }
    }

    /// Takes packets from the guest.
    fn transmit(&mut self, queues: &mut Queues) -> Result<Work, QueueError> {
        for _ in 0..PACKETS_AT_ONCE {
            let Some(queue) = queues.get(TRANSMIT) else { return Ok(Work::Left) };
            if !queue.pop(&mut self.chain)? {
                return Ok(Work::Drained);
            }
            let mut header = [0; HEADER_BYTES];
            let is_whole = self.chain.read_into(0, &mut header) == HEADER_BYTES;
            let header = Header::decode(&header);
            let length = header.len as usize;
            let fits = length <= PACKET_BYTES_MAX && self.chain.readable_bytes() >= (HEADER_BYTES + length) as u64;
            if is_whole && fits {
                self.bytes.resize(length, 0);
                let read = self.chain.read_into(HEADER_BYTES as u64, &mut self.bytes);
                self.bytes.truncate(read);
            }
            queue.complete(&self.chain, 0);
            // A malformed packet, or one that is not from this guest to the host, is dropped.
            if is_whole && fits && header.src_cid == self.guest_cid && header.dst_cid == HOST_CID {
                self.take(queues, &header);
            }
        }
        Ok(Work::More)
    }

    fn take(&mut self, queues: &Queues, header: &Header) {
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        if header.op == op::REQUEST && header.kind == STREAM && !self.connections.contains_key(&ports) {
            self.connect(queues, ports, header);
            return;
        }
        let Some(connection) = self.connections.get_mut(&ports) else {
            if header.op != op::RST && self.resets.len() < RESETS_MAX {
                self.resets.push_back(ports);
            }
            return;
        };
        connection.take_credit(header.buf_alloc, header.fwd_cnt);
        let mut over = header.kind != STREAM;
        match header.op {
            op::RESPONSE if connection.is_asked => {
                connection.is_asked = false;
                let answer = format!("OK {}\n", ports.host);
                // The socket is new and empty: it does not take the line only if the host has disconnected.
                over |= (&connection.stream).write_all(answer.as_bytes()).is_err();
            }
            op::RW if connection.has_room(self.bytes.len()) && !connection.is_asked => {
                let written = connection.write(&self.bytes);
                over |= self.after_write(queues, ports, written);
            }
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => connection.owed.credit = true,
            op::SHUTDOWN => over |= connection.shut_down(header.flags),
            op::RST => {
                self.forget(queues, ports);
                return;
            }
            // An answer to nothing, or more than there is room for: the guest does not keep to the rules.
            _ => over = true,
        }
        if over {
            self.reset(queues, ports);
        }
        self.list(ports);
    }

    /// Connects a guest to the Unix socket of its port.
    fn connect(&mut self, queues: &Queues, ports: Ports, header: &Header) {
        let mut name = self.path.clone().into_os_string();
        name.push(format!("_{}", ports.host));
        let stream = if self.connections.len() < CONNECTIONS_MAX { connect_now(name.as_ref()) } else { None };
        let token = self.token();
        let Some(stream) = stream else {
            if self.resets.len() < RESETS_MAX {
                self.resets.push_back(ports);
            }
            return;
        };
        let mut connection = Connection::new(stream, token, false);
        connection.take_credit(header.buf_alloc, header.fwd_cnt);
        connection.owed.response = true;
        rewatch(queues, &mut connection);
        self.insert(ports, connection);
    }

    fn insert(&mut self, ports: Ports, connection: Connection) {
        self.by_token.insert(connection.token, ports);
        self.connections.insert(ports, connection);
        self.list(ports);
    }

    /// Puts a connection into the list of those that have packets for the guest, if it has any.
    fn list(&mut self, ports: Ports) {
        let Some(connection) = self.connections.get_mut(&ports) else { return };
        let has_news = connection.owed != Owed::default() || connection.can_send();
        if has_news && !connection.is_listed {
            connection.is_listed = true;
            self.waiting.push_back(ports);
        }
    }

    /// What follows when a stream has taken some of the guest's bytes. Returns whether the connection is over.
    fn after_write(&mut self, queues: &Queues, ports: Ports, written: Written) -> bool {
        let Some(connection) = self.connections.get_mut(&ports) else { return false };
        connection.waits_to_write = written == Written::Waits;
        if written == Written::Closed || connection.is_over() {
            return true;
        }
        rewatch(queues, connection);
        false
    }

    /// Ends a connection: the guest gets a reset, then it is forgotten.
    fn reset(&mut self, queues: &Queues, ports: Ports) {
        if let Some(connection) = self.connections.get_mut(&ports) {
            queues.unwatch(&connection.stream);
            connection.is_watched = false;
            connection.owed = Owed { reset: true, ..Owed::default() };
            connection.sent_all = true;
        }
        self.list(ports);
    }

    fn forget(&mut self, queues: &Queues, ports: Ports) {
        if let Some(connection) = self.connections.remove(&ports) {
            queues.unwatch(&connection.stream);
            self.by_token.remove(&connection.token);
            // A guest that calls, hangs up and calls again would be listed once for each call.
            if connection.is_listed {
                self.waiting.retain(|waiting| *waiting != ports);
            }
        }
    }

    /// Gives packets to the guest while there are any and it has room: afterwards either there is no packet left, or
    /// the driver will kick when it has room.
    fn serve_receive(&mut self, queues: &mut Queues) -> Result<(), QueueError> {
        self.has_more = false;
        let mut left = PACKETS_AT_ONCE;
        loop {
            let starved = self.receive(queues, &mut left)?;
            let Some(queue) = queues.get(RECEIVE) else { return Ok(()) };
            queue.flush();
            // A guest that takes them as fast as they come must not keep this thread from its other work: this is
            // called again.
            self.has_more = left == 0;
            if !starved || left == 0 {
                queue.disable_kicks();
                return Ok(());
            }
            if !queue.enable_kicks() {
                return Ok(());
            }
        }
    }

    /// Gives the guest so many packets at most. Returns whether room is what is missing.
    fn receive(&mut self, queues: &mut Queues, left: &mut usize) -> Result<bool, QueueError> {
        while *left > 0 && (!self.resets.is_empty() || !self.waiting.is_empty()) {
            *left -= 1;
            let Some(queue) = queues.get(RECEIVE) else { return Ok(false) };
            if !queue.is_enabled() {
                return Ok(false);
            }
            if !queue.pop(&mut self.chain)? {
                return Ok(true);
            }
            // Less has no room for a packet; the driver sees that nothing was written.
            let room = usize::try_from(self.chain.writable_bytes()).unwrap_or(usize::MAX);
            let Some(room) = room.checked_sub(HEADER_BYTES) else {
                queue.complete(&self.chain, 0);
                continue;
            };
            match self.next_packet(queues, room) {
                Some(header) => {
                    let Some(queue) = queues.get(RECEIVE) else { return Ok(false) };
                    self.put(queue, &header);
                }
                None => {
                    if let Some(queue) = queues.get(RECEIVE) {
                        queue.unpop(&self.chain);
                    }
                }
            }
        }
        Ok(false)
    }

    fn put(&self, queue: &mut Queue, header: &Header) {
        let written =
            self.chain.write_from(0, &header.encode()) + self.chain.write_from(HEADER_BYTES as u64, &self.bytes);
        queue.complete(&self.chain, u32::try_from(written).unwrap_or(u32::MAX));
    }

    /// The next packet for the guest, its bytes in `bytes`. A connection with nothing to send is taken off the list.
    fn next_packet(&mut self, queues: &Queues, room: usize) -> Option<Header> {
        self.bytes.clear();
        if let Some(ports) = self.resets.pop_front() {
            return Some(self.header(ports, op::RST));
        }
        let ports = self.waiting.pop_front()?;
        let mut header = self.header(ports, 0);
        let connection = self.connections.get_mut(&ports)?;
        connection.is_listed = false;
        let owed = &mut connection.owed;
        if owed.reset {
            self.forget(queues, ports);
            return Some(Header { op: op::RST, ..header });
        } else if std::mem::take(&mut owed.request) {
            header.op = op::REQUEST;
        } else if std::mem::take(&mut owed.response) {
            header.op = op::RESPONSE;
        } else if connection.can_send() && room == 0 {
            // No byte fits beside the header: some packet must be sent, otherwise the same buffer comes again.
            connection.owed.credit = true;
        } else if connection.can_send() {
            header.op = op::RW;
            let most = room.min(PACKET_BYTES_MAX).min(connection.credit() as usize);
            self.bytes.resize(most, 0);
            match connection.read(&mut self.bytes) {
                Ok(read @ 1..) => self.bytes.truncate(read),
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock || error.kind() == io::ErrorKind::Interrupted =>
                {
                    self.bytes.clear();
                    connection.is_readable = false;
                    rewatch(queues, connection);
                    header.op = 0;
                }
                Ok(_) => {
                    // The host sends no more; it may still read.
                    self.bytes.clear();
                    connection.sent_all = true;
                    connection.owed.shutdown = true;
                    header.op = 0;
                }
                Err(_) => {
                    self.bytes.clear();
                    connection.owed = Owed { reset: true, ..Owed::default() };
                    header.op = 0;
                }
            }
        }
        if header.op == 0 && std::mem::take(&mut connection.owed.shutdown) {
            header.op = op::SHUTDOWN;
            header.flags = if connection.is_over() { SHUTDOWN_SEND | SHUTDOWN_RECEIVE } else { SHUTDOWN_SEND };
        }
        if header.op == 0 && connection.owed.credit {
            header.op = op::CREDIT_UPDATE;
        }
        header.len = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        header.fwd_cnt = connection.tell_read();
        if connection.is_over() && !connection.owed.shutdown {
            connection.owed.reset = true;
        }
        self.list(ports);
        if header.op == 0 { None } else { Some(header) }
    }

    fn header(&self, ports: Ports, op: u16) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            kind: STREAM,
            op,
            buf_alloc: BUFFER_BYTES,
            ..Header::default()
        }
    }

    /// Takes callers of the host's.
    fn accept(&mut self, queues: &Queues) {
        // Those that are left are there to be accepted at once again.
        for _ in 0..CALLERS_MAX {
            let Ok(Some(stream)) = self.listener.accept_stream() else { return };
            // If there is no place, the connection is closed.
            if self.callers.len() >= CALLERS_MAX || self.connections.len() >= CONNECTIONS_MAX {
                continue;
            }
            let token = self.token();
            if stream.set_nonblocking(true).is_ok() && queues.watch(&stream, token, EventFlags::IN).is_ok() {
                self.callers.push(Caller::new(stream, token));
            }
        }
    }

    fn listen_to(&mut self, queues: &Queues, place: usize) {
        let said = self.callers[place].listen();
        if said == Said::Nothing {
            return;
        }
        let caller = self.callers.swap_remove(place);
        let Said::Port(guest) = said else {
            queues.unwatch(&caller.stream);
            return;
        };
        let ports = self.free_ports(guest);
        let mut connection = Connection::new(caller.stream, caller.token, true);
        connection.is_watched = true;
        connection.owed.request = true;
        rewatch(queues, &mut connection);
        self.insert(ports, connection);
    }

    fn free_ports(&mut self, guest: u32) -> Ports {
        loop {
            let host = self.next_port;
            self.next_port = if host == u32::MAX { HOST_PORTS } else { host + 1 };
            let ports = Ports { host, guest };
            // There are far more ports than connections.
            if !self.connections.contains_key(&ports) {
                return ports;
            }
        }
    }

    fn token(&mut self) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        token
    }

    /// A stream can be read, or takes more.
    fn on_stream(&mut self, queues: &Queues, token: u64) {
        if let Some(place) = self.callers.iter().position(|caller| caller.token == token) {
            self.listen_to(queues, place);
            return;
        }
        let Some(ports) = self.by_token.get(&token).copied() else { return };
        let Some(connection) = self.connections.get_mut(&ports) else { return };
        connection.is_readable = true;
        let written = if connection.waits_to_write { connection.write_kept() } else { Written::All };
        if self.after_write(queues, ports, written) {
            self.reset(queues, ports);
        }
        self.list(ports);
    }
}

/// Waits for what a connection needs: for more bytes only if those that are there were read. A connection that needs
/// nothing is not waited for at all, as a stream whose other end is closed is always ready.
fn rewatch(queues: &Queues, connection: &mut Connection) {
    let mut interest = EventFlags::empty();
    if !connection.is_readable && !connection.sent_all {
        interest |= EventFlags::IN;
    }
    if connection.waits_to_write {
        interest |= EventFlags::OUT;
    }
    if connection.is_watched && interest.is_empty() {
        queues.unwatch(&connection.stream);
        connection.is_watched = false;
    } else if connection.is_watched {
        // Nothing can be wrong with a descriptor that is waited for already.
        let _ = queues.rewatch(&connection.stream, connection.token, interest);
    } else if !interest.is_empty() {
        // If the system has no room for it, the stream makes no progress; its guest gives up after its own timeout.
        connection.is_watched = queues.watch(&connection.stream, connection.token, interest).is_ok();
    }
}

/// Connects without waiting: a listener whose queue is full refuses.
fn connect_now(path: &std::path::Path) -> Option<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    connect(&socket, &SocketAddrUnix::new(path).ok()?).ok()?;
    Some(UnixStream::from(socket))
}

impl QueueHandler for Handler {
    fn process(&mut self, queues: &mut Queues, queue: u16) -> Result<Work, QueueError> {
        let work = match queue {
            TRANSMIT => self.transmit(queues)?,
            RECEIVE => Work::Left,
            // Buffers for events stay in the ring until there is an event.
            _ => return Ok(Work::Left),
        };
        self.serve_receive(queues)?;
        Ok(work)
    }

    fn started(&mut self, queues: &mut Queues, queue: u16) -> Result<(), QueueError> {
        if queue == RECEIVE && !self.is_listening {
            // A device that can't listen is one that only its guest can call from.
            self.is_listening = queues.watch(&self.listener, LISTENER, EventFlags::IN).is_ok();
        }
        Ok(())
    }

    fn ready(&mut self, queues: &mut Queues, token: u64) -> Result<(), (u16, QueueError)> {
        if token == LISTENER {
            self.accept(queues);
        } else {
            self.on_stream(queues, token);
        }
        self.serve_receive(queues).map_err(|error| (RECEIVE, error))
    }

    fn deadline(&self) -> Option<Instant> {
        if self.has_more {
            return Some(Instant::now());
        }
        self.callers.iter().map(|caller| caller.since + LINE_TIMEOUT).min()
    }

    fn expired(&mut self, queues: &mut Queues) -> Result<(), (u16, QueueError)> {
        let now = Instant::now();
        self.callers.retain(|caller| {
            let stays = now < caller.since + LINE_TIMEOUT;
            if !stays {
                queues.unwatch(&caller.stream);
            }
            stays
        });
        if self.has_more {
            self.serve_receive(queues).map_err(|error| (RECEIVE, error))?;
        }
        Ok(())
    }
}
