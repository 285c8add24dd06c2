//! Flows of datagrams: UDP and echo. Each has a socket of the host that is connected to its other end.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::packet;
use super::slab::{Key, Slab};
use super::stack::Admitted;
use super::tcp::Flow;

/// Flows of UDP of one VM. If more are needed, the one that was silent longest ends.
pub const DATAGRAM_FLOWS_MAX: usize = 256;

/// Flows of echo of one VM.
pub const ECHO_FLOWS_MAX: usize = 32;

/// How long a flow of UDP may be silent.
const UDP_IDLE: Duration = Duration::from_secs(120);
const ECHO_IDLE: Duration = Duration::from_secs(30);

/// Datagrams that are received for one event, so that one flow does not hold up others.
const RECEIVED_MAX: usize = 64;
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// Where an echo request came from and went to: the other end, and the number that the guest gave to its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct EchoFlow {
    pub(super) to: Ipv4Addr,
    pub(super) program: [u8; 2],
}

/// Flows of one protocol.
pub(super) struct Datagrams<F> {
    table: Slab<Entry<F>>,
    keys: HashMap<F, Key>,
    flows_max: usize,
    idle: Duration,
}

struct Entry<F> {
    flow: F,
    admitted: Admitted,
    socket: OwnedFd,
    used: Instant,
}

impl Datagrams<Flow> {
    pub(super) fn udp() -> Self {
        Self::new(DATAGRAM_FLOWS_MAX, UDP_IDLE)
    }
}

impl Datagrams<EchoFlow> {
    pub(super) fn echo() -> Self {
        Self::new(ECHO_FLOWS_MAX, ECHO_IDLE)
    }
}

impl<F: Copy + Eq + Hash> Datagrams<F> {
    fn new(flows_max: usize, idle: Duration) -> Self {
        Self { table: Slab::new(), keys: HashMap::new(), flows_max, idle }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Sends for a flow that is known. Like a network, it does not report what is lost.
    pub(super) fn send(&mut self, flow: F, bytes: &[u8]) -> bool {
        let Some(entry) = self.keys.get(&flow).copied().and_then(|key| self.table.get_mut(key)) else { return false };
        entry.used = Instant::now();
        let _ = send(&entry.socket, bytes, SendFlags::NOSIGNAL);
        true
    }

    /// Adds a flow.
    pub(super) fn open(&mut self, flow: F, socket: OwnedFd, admitted: Admitted) -> Key {
        if self.table.len() >= self.flows_max {
            let oldest = self.table.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key);
            if let Some(oldest) = oldest {
                self.remove(oldest);
            }
        }
        let key = self.table.insert(Entry { flow, admitted, socket, used: Instant::now() });
        self.keys.insert(flow, key);
        key
    }

    pub(super) fn host(&mut self, key: Key) -> Option<BorrowedFd<'_>> {
        self.table.get_mut(key).map(|entry| entry.socket.as_fd())
    }

    /// Receives what has come for a flow.
    pub(super) fn receive(&mut self, key: Key, mut take: impl FnMut(F, &[u8])) {
        let Some(entry) = self.table.get_mut(key) else { return };
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        for _ in 0..RECEIVED_MAX {
            // An error is one of an earlier datagram, such as a port that is closed. Reading it clears it.
            let Ok((length, _)) = recv(&entry.socket, buffer.as_mut_slice(), RecvFlags::empty()) else { return };
            entry.used = Instant::now();
            take(entry.flow, &buffer[..length]);
        }
    }

    /// Ends all flows that are not kept, and those that were silent for too long.
    pub(super) fn recheck(&mut self, now: Instant, is_kept: impl Fn(&Admitted) -> bool) {
        let is_lost =
            |entry: &Entry<F>| now.saturating_duration_since(entry.used) > self.idle || !is_kept(&entry.admitted);
        let lost: Vec<Key> = self.table.iter().filter(|(_, entry)| is_lost(entry)).map(|(key, _)| key).collect();
        for key in lost {
            self.remove(key);
        }
    }

    pub(super) fn admitted(&self) -> impl Iterator<Item = &Admitted> {
        self.table.iter().map(|(_, entry)| &entry.admitted)
    }

    fn remove(&mut self, key: Key) {
        if let Some(entry) = self.table.remove(key) {
            self.keys.remove(&entry.flow);
        }
    }
}

impl EchoFlow {
    /// The flow of a request.
    pub(super) fn of(to: Ipv4Addr, message: &[u8]) -> Option<Self> {
        Some(Self { to, program: [*message.get(4)?, *message.get(5)?] })
    }

    /// The reply for the guest: the kernel has put its own number in the place of the program's.
    pub(super) fn reply(self, message: &[u8]) -> Option<Vec<u8>> {
        let mut message = message.to_vec();
        (message.first() == Some(&packet::ICMP_ECHO_REPLY)).then_some(())?;
        message.get_mut(4..6)?.copy_from_slice(&self.program);
        Some(message)
    }
}
