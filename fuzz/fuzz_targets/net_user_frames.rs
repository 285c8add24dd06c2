//! Any frames of a guest: no panic, tables within their bounds, and sockets only for what the policy allows.
#![no_main]

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_net::gate::Gate;
use kiln_net::inner::{GATEWAY_MAC, GUEST, GUEST_MAC};
use kiln_net::policy::{Class, Policy, PolicyDefault};
use kiln_net::user::{CONNECTIONS_MAX, DATAGRAM_FLOWS_MAX, ECHO_FLOWS_MAX, Host, Stack};
use libfuzzer_sys::fuzz_target;
use rustix::event::{EventfdFlags, eventfd};

/// A host whose sockets lead to the target. It keeps their other ends, so that they stay open.
struct Fake {
    streams: Arc<Mutex<Vec<UnixStream>>>,
    queries: u8,
}

impl Fake {
    fn stream(&mut self) -> io::Result<OwnedFd> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        self.streams.lock().expect("no panic").push(theirs);
        Ok(ours.into())
    }
}

fn check(to: Ipv4Addr) {
    // The policy below has exactly this network beside the public ones that it denies.
    assert!(to.octets()[..2] == [10, 1] || Class::of(to.into()) == Class::Public, "a socket to {to}");
    assert!(to.octets()[0] != 9, "a socket to {to}, which is denied");
}

impl Host for Fake {
    fn tcp(&mut self, to: SocketAddrV4) -> io::Result<OwnedFd> {
        check(*to.ip());
        assert!(to.port() != 25);
        self.stream()
    }

    fn udp(&mut self, to: SocketAddrV4) -> io::Result<OwnedFd> {
        check(*to.ip());
        let (ours, _) = UnixDatagram::pair()?;
        ours.set_nonblocking(true)?;
        Ok(ours.into())
    }

    fn echo(&mut self, to: Ipv4Addr) -> io::Result<OwnedFd> {
        check(to);
        self.stream()
    }

    fn resolver(&mut self) -> io::Result<OwnedFd> {
        self.stream()
    }

    fn query(&mut self, _: u16, _: &[u8]) {
        self.queries = self.queries.saturating_add(1);
    }

    fn answer(&mut self) -> Option<(u16, Vec<u8>)> {
        self.queries = self.queries.checked_sub(1)?;
        Some((1, vec![0x5a; 600]))
    }

    fn is_own(&mut self, address: Ipv4Addr) -> bool {
        address.octets()[3] == 77
    }
}

fn policy() -> Policy {
    let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a rule")).collect();
    Policy::new(PolicyDefault::Public, false, rules(&["10.1.0.0/16"]), rules(&["*:25", "9.0.0.0/8"])).expect("a policy")
}

/// A frame from a recipe: a packet that is nearly right.
fn frame(recipe: &[u8]) -> Vec<u8> {
    let Some((kind, payload)) = recipe.split_first() else { return Vec::new() };
    let protocol = [6, 6, 17, 1][usize::from(kind & 3)];
    let to = match kind >> 2 & 7 {
        0 => [10, 1, 0, 1],
        1 => [169, 254, 0, 22],
        2 => [10, 0, 0, 1],
        3 => [127, 0, 0, 1],
        4 => [9, 1, 1, 1],
        _ => [203, 0, 113, payload.first().copied().unwrap_or(1)],
    };
    let mut header = vec![0x45, 0];
    header.extend((20 + payload.len() as u16).to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(GUEST.octets());
    header.extend(to);
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&GATEWAY_MAC[..], &GUEST_MAC, &[8, 0], &header, payload].concat()
}

// The input is a list of frames: a length, and that many bytes. With a high bit in the length the bytes are a recipe.
fuzz_target!(|input: &[u8]| {
    let (ours, peer) = UnixStream::pair().expect("a socket pair");
    peer.set_nonblocking(true).expect("it does not block");
    let gate = Arc::new(Gate::new(policy()));
    let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd"));
    let streams = Arc::new(Mutex::new(Vec::new()));
    let fake = Fake { streams: Arc::clone(&streams), queries: 0 };
    let mut stack = Stack::new(ours.into(), fake, gate, wake, vec![], 1500).expect("a network");
    let mut rest = input;
    while let Some((length, after)) = rest.split_first() {
        let (bytes, after) = after.split_at(usize::from(length & 0x7f).min(after.len()));
        rest = after;
        if length & 0x80 == 0 {
            stack.frame(bytes);
        } else {
            stack.frame(&frame(bytes));
        }
        stack.turn(Duration::ZERO).expect("the network runs");
        let mut received = [0; 4096];
        while io::Read::read(&mut &peer, &mut received).is_ok_and(|length| length > 0) {}
        for stream in &*streams.lock().expect("no panic") {
            let _ = io::Read::read(&mut &*stream, &mut received);
            let _ = io::Write::write(&mut &*stream, &[length | 1]);
        }
    }
    let open = stack.counts().open.load(Ordering::Relaxed);
    assert!(open <= (CONNECTIONS_MAX + DATAGRAM_FLOWS_MAX + ECHO_FLOWS_MAX) as u64);
});
