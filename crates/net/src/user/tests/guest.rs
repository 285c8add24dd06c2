//! A guest: smoltcp on the other end of the link, with Ethernet headers of its own.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpCidr};

use crate::inner::{GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC, PREFIX};

const BUFFER_BYTES: usize = 256 << 10;
const FIRST_PORT: u16 = 40_000;

pub struct Guest {
    wire: Wire,
    interface: Interface,
    pub sockets: SocketSet<'static>,
    start: Instant,
    port: u16,
}

/// Bytes of frames in both directions.
pub struct Wire {
    link: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
    received: Option<Vec<u8>>,
    /// Packets that are not TCP, for the test to look at.
    pub others: Vec<Vec<u8>>,
    /// Segments with RST.
    pub resets: usize,
}

impl Guest {
    pub fn new(link: OwnedFd) -> Self {
        rustix::io::ioctl_fionbio(&link, true).expect("it does not block");
        let mut wire = Wire { link, input: vec![], output: vec![], received: None, others: vec![], resets: 0 };
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut wire, StackInstant::ZERO);
        interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(GUEST.into(), PREFIX)).expect("room"));
        interface.routes_mut().add_default_ipv4_route(GATEWAY).expect("room");
        Self { wire, interface, sockets: SocketSet::new(vec![]), start: Instant::now(), port: FIRST_PORT }
    }

    pub fn poll(&mut self) {
        let now = StackInstant::from_micros(self.start.elapsed().as_micros() as i64);
        self.wire.pull();
        while self.wire.take() {
            self.interface.poll(now, &mut self.wire, &mut self.sockets);
        }
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        self.wire.push();
    }

    pub fn connect(&mut self, to: &str) -> SocketHandle {
        let to: SocketAddrV4 = to.parse().expect("an address");
        let handle = self.sockets.add(socket());
        self.port += 1;
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        socket.connect(self.interface.context(), (*to.ip(), to.port()), (GUEST, self.port)).expect("it connects");
        handle
    }

    /// The next connection has the ports of the first one.
    pub fn forget_ports(&mut self) {
        self.port = FIRST_PORT;
    }

    pub fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.sockets.add(socket());
        self.sockets.get_mut::<Socket<'_>>(handle).listen(port).expect("it listens");
        handle
    }

    pub fn tcp(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    pub fn state(&mut self, handle: SocketHandle) -> State {
        self.tcp(handle).state()
    }

    pub fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }
}

fn socket() -> Socket<'static> {
    Socket::new(SocketBuffer::new(vec![0; BUFFER_BYTES]), SocketBuffer::new(vec![0; BUFFER_BYTES]))
}

impl Wire {
    /// Sends any bytes as a frame.
    pub fn frame(&mut self, frame: &[u8]) {
        self.output.extend((frame.len() as u32).to_be_bytes());
        self.output.extend_from_slice(frame);
    }

    /// Sends bytes without a length before them.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.output.extend_from_slice(bytes);
    }

    /// Sends a packet of IPv4 from the guest's address.
    pub fn ipv4(&mut self, protocol: u8, to: [u8; 4], payload: &[u8]) {
        self.frame(&frame(GUEST.octets(), protocol, to, payload));
    }

    fn pull(&mut self) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            match recv(&self.link, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((0, _)) | Err(Errno::AGAIN) => return,
                Ok((length, _)) => self.input.extend_from_slice(&buffer[..length]),
                Err(error) => panic!("the link is broken: {error}"),
            }
        }
    }

    pub fn push(&mut self) {
        while !self.output.is_empty() {
            match send(&self.link, &self.output, SendFlags::NOSIGNAL) {
                Ok(length) => drop(self.output.drain(..length)),
                Err(Errno::AGAIN) => return,
                Err(error) => panic!("the link is broken: {error}"),
            }
        }
    }

    /// Takes the next packet of IPv4 with TCP. All others are kept for the test.
    fn take(&mut self) -> bool {
        while let Some((length, rest)) = self.input.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            let Some(frame) = rest.get(..length).map(<[u8]>::to_vec) else { return false };
            self.input.drain(..4 + length);
            assert_eq!((&frame[..6], &frame[6..12]), (&GUEST_MAC[..], &GATEWAY_MAC[..]));
            if frame[12..14] == [8, 0] && frame[23] == 6 {
                self.resets += usize::from(frame[14 + 20 + 13] & 4 != 0);
                self.received = Some(frame[14..].to_vec());
                return true;
            }
            self.others.push(frame[12..].to_vec());
        }
        false
    }
}

/// A frame with IPv4, from any address.
pub fn frame(from: [u8; 4], protocol: u8, to: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend((20 + payload.len() as u16).to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(from);
    header.extend(to);
    let sum = super::super::packet::checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&GATEWAY_MAC[..], &GUEST_MAC, &[8, 0], &header, payload].concat()
}

/// A datagram of UDP without a checksum.
pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        [from, to, 8 + payload.len() as u16, 0].iter().flat_map(|field| field.to_be_bytes()).collect();
    bytes.extend_from_slice(payload);
    bytes
}

/// The first segment of a connection.
pub fn syn(from: u16, to: u16) -> Vec<u8> {
    let mut bytes: Vec<u8> = [from, to].iter().flat_map(|field| field.to_be_bytes()).collect();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    bytes
}

/// A request for an echo.
pub fn echo(program: [u8; 2], data: &[u8]) -> Vec<u8> {
    let mut bytes = [&[8, 0, 0, 0, program[0], program[1], 0, 1], data].concat();
    let sum = super::super::packet::checksum(&[&bytes]);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

pub struct Received(Vec<u8>);
pub struct Sender<'a>(&'a mut Vec<u8>);

impl phy::Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Received, Sender<'_>)> {
        Some((Received(self.received.take()?), Sender(&mut self.output)))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Sender<'_>> {
        (self.output.len() < BUFFER_BYTES).then_some(Sender(&mut self.output))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl phy::TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        let mut packet = vec![0; length];
        let result = write(&mut packet);
        self.0.extend((length as u32 + 14).to_be_bytes());
        self.0.extend([&GATEWAY_MAC[..], &GUEST_MAC, &[8, 0], &packet].concat());
        result
    }
}
