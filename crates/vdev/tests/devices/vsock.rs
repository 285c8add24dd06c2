//! The socket device, with packets as Linux sends them.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kiln_vdev::devices::vsock::{BUFFER_BYTES, CONNECTIONS_MAX, Vsock};

use crate::driver::{DEADLINE, Driver, Served};

const HEADER: usize = 44;
const CID: u64 = 3;
const ROOM: u32 = 64 << 10;
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;

struct Lab {
    directory: tempfile::TempDir,
    _served: Served,
    driver: Driver,
    /// Bytes that the guest has read, ever.
    read: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Packet {
    host: u32,
    guest: u32,
    op: u16,
    flags: u32,
    fwd_cnt: u32,
    bytes: Vec<u8>,
}

impl Lab {
    fn new() -> Self {
        Self::with_buffers(64)
    }

    fn with_buffers(buffers: u16) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let device = Vsock::new(CID, &directory.path().join("v")).expect("listens");
        let socket = directory.path().join("vsock");
        let served = Served::new(device, &socket);
        let driver = Driver::with(&socket, buffers);
        Self { directory, _served: served, driver, read: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn send(&mut self, host: u32, guest: u32, op: u16, flags: u32, bytes: &[u8], pieces: usize) {
        let mut packet = Vec::new();
        packet.extend_from_slice(&CID.to_le_bytes());
        packet.extend_from_slice(&2_u64.to_le_bytes());
        for number in [guest, host, bytes.len() as u32] {
            packet.extend_from_slice(&number.to_le_bytes());
        }
        packet.extend_from_slice(&1_u16.to_le_bytes());
        packet.extend_from_slice(&op.to_le_bytes());
        for number in [flags, ROOM, self.read] {
            packet.extend_from_slice(&number.to_le_bytes());
        }
        packet.extend_from_slice(bytes);
        self.driver.send(&packet, pieces);
    }

    fn receive(&mut self) -> Packet {
        self.receive_within(DEADLINE).expect("a packet comes")
    }

    fn receive_within(&mut self, within: Duration) -> Option<Packet> {
        let packet = self.driver.receive(within)?;
        let u32_at = |at: usize| u32::from_le_bytes(packet[at..at + 4].try_into().expect("four bytes"));
        assert_eq!(packet[..16], [2_u64.to_le_bytes(), CID.to_le_bytes()].concat());
        assert_eq!(u32_at(24) as usize, packet.len() - HEADER);
        let op = u16::from_le_bytes([packet[30], packet[31]]);
        Some(Packet {
            host: u32_at(16),
            guest: u32_at(20),
            op,
            flags: u32_at(32),
            fwd_cnt: u32_at(40),
            bytes: packet[HEADER..].to_vec(),
        })
    }

    /// A connection that the guest has begun, from its port to the host's.
    fn connect(&mut self, host: u32, guest: u32) -> UnixStream {
        let listener = UnixListener::bind(self.path(&format!("v_{host}"))).expect("listens");
        self.send(host, guest, REQUEST, 0, &[], 1);
        assert_eq!(self.receive().op, RESPONSE);
        listener.accept().expect("was connected to").0
    }
}

#[test]
fn a_guest_talks_to_a_unix_socket_in_packets_of_any_layout() {
    let mut lab = Lab::new();
    let mut host = lab.connect(52, 1024);
    for (round, pieces) in [1, 2, 3, 5].into_iter().enumerate() {
        let bytes: Vec<u8> = (0..64 << 10).map(|at: u32| (at as u8).wrapping_add(round as u8)).collect();
        lab.send(52, 1024, RW, 0, &bytes, pieces);
        let mut got = vec![0; bytes.len()];
        host.read_exact(&mut got).expect("comes over");
        assert!(got == bytes, "round {round}");

        host.write_all(&bytes[..ROOM as usize / 2]).expect("is sent");
        let mut back = Vec::new();
        while back.len() < ROOM as usize / 2 {
            let packet = lab.receive();
            if packet.op == RW {
                back.extend_from_slice(&packet.bytes);
            }
        }
        assert!(back == bytes[..ROOM as usize / 2], "round {round}");
        lab.read += back.len() as u32;
    }
}

#[test]
fn a_host_reaches_a_guests_port_and_is_told_its_own() {
    let mut lab = Lab::new();
    let mut host = UnixStream::connect(lab.path("v")).expect("connects");
    host.write_all(b"CONNECT 7000\nhello").expect("is sent");
    let asked = lab.receive();
    assert_eq!((asked.op, asked.guest), (REQUEST, 7000));
    lab.send(asked.host, 7000, RESPONSE, 0, &[], 1);
    let mut line = vec![0; format!("OK {}\n", asked.host).len()];
    host.read_exact(&mut line).expect("is told");
    assert_eq!(line, format!("OK {}\n", asked.host).into_bytes());
    let said = lab.receive();
    assert_eq!((said.op, said.bytes.as_slice()), (RW, &b"hello"[..]));
}

#[test]
fn who_is_not_there_is_said_so() {
    let mut lab = Lab::new();
    lab.send(99, 1, REQUEST, 0, &[], 1);
    assert_eq!(lab.receive().op, RST);
    lab.send(99, 1, RW, 0, b"to no one", 1);
    assert_eq!(lab.receive().op, RST);

    let mut host = UnixStream::connect(lab.path("v")).expect("connects");
    host.write_all(b"CONNECT 7000\n").expect("is sent");
    let asked = lab.receive();
    lab.send(asked.host, 7000, RST, 0, &[], 1);
    assert_eq!(host.read(&mut [0; 8]).expect("ends"), 0);

    let mut nonsense = UnixStream::connect(lab.path("v")).expect("connects");
    nonsense.write_all(b"GET / HTTP/1.1\r\n").expect("is sent");
    assert_eq!(nonsense.read(&mut [0; 8]).unwrap_or(0), 0);
}

#[test]
fn each_side_ends_on_its_own_and_the_connection_when_both_have() {
    let mut lab = Lab::new();
    let mut host = lab.connect(52, 1024);
    host.write_all(b"last words").expect("is sent");
    host.shutdown(std::net::Shutdown::Write).expect("ends");
    assert_eq!(lab.receive().bytes, b"last words");
    let end = lab.receive();
    assert_eq!((end.op, end.flags), (SHUTDOWN, 2));
    lab.send(52, 1024, RW, 0, b"still here", 1);
    let mut got = [0; 10];
    host.read_exact(&mut got).expect("comes over");
    lab.send(52, 1024, SHUTDOWN, 3, &[], 1);
    assert_eq!(lab.receive().op, RST);
    assert_eq!(host.read(&mut got).expect("ends"), 0);
}

#[test]
fn a_guest_is_sent_no_more_than_it_has_room_for() {
    let mut lab = Lab::new();
    let mut host = lab.connect(52, 1024);
    host.set_nonblocking(true).expect("is set");
    let chunk = [7; 4096];
    let mut given = 0;
    while given < 1 << 20 {
        match host.write(&chunk) {
            Ok(bytes) => given += bytes,
            Err(_) => break,
        }
    }
    assert!(given > ROOM as usize);
    let mut got = 0;
    while let Some(packet) = lab.receive_within(Duration::from_millis(100)) {
        got += packet.bytes.len();
    }
    assert_eq!(got, ROOM as usize);
    lab.read = ROOM;
    lab.send(52, 1024, CREDIT_UPDATE, 0, &[], 1);
    assert_eq!(lab.receive().op, RW);
}

#[test]
fn a_guest_is_told_what_was_read_and_loses_a_connection_on_which_it_sends_too_much() {
    let mut lab = Lab::new();
    let mut host = lab.connect(52, 1024);
    let bytes = vec![7; 64 << 10];
    lab.send(52, 1024, RW, 0, &bytes, 1);
    host.read_exact(&mut vec![0; bytes.len()]).expect("comes over");
    lab.send(52, 1024, CREDIT_REQUEST, 0, &[], 1);
    let told = lab.receive();
    assert_eq!((told.op, told.fwd_cnt), (CREDIT_UPDATE, 64 << 10));

    let deadline = Instant::now() + DEADLINE;
    let mut sent = 0;
    loop {
        assert!(Instant::now() < deadline, "it may send {sent} bytes that are not read");
        lab.send(52, 1024, RW, 0, &bytes, 1);
        sent += bytes.len();
        match lab.receive_within(Duration::from_millis(1)) {
            Some(packet) if packet.op == RST => break,
            _ => {}
        }
    }
    assert!(sent > BUFFER_BYTES as usize);
}

#[test]
fn a_guest_that_receives_nothing_makes_nothing_grow() {
    let mut lab = Lab::with_buffers(1);
    for port in 0..CONNECTIONS_MAX as u32 * 2 {
        lab.send(99, port, REQUEST, 0, &[], 1);
    }
    let mut resets = 0;
    while let Some(packet) = lab.receive_within(Duration::from_millis(100)) {
        assert_eq!(packet.op, RST);
        resets += 1;
    }
    assert!((1..=300).contains(&resets), "{resets} resets waited");
}

#[test]
fn malformed_packets_are_dropped() {
    let mut lab = Lab::new();
    let mut host = lab.connect(52, 1024);
    for bytes in [1, HEADER - 1] {
        lab.driver.send(&vec![0xff; bytes], 1);
    }
    lab.driver.send(&[0xff; HEADER], 1);
    lab.send(52, 1024, 77, 0, &[], 1);
    assert_eq!(lab.receive().op, RST);
    assert_eq!(host.read(&mut [0; 1]).expect("has ended"), 0);
}
