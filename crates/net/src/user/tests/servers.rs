//! The host's side: addresses of the internet lead to sockets on loopback that the test holds.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};

use crate::user::Host;

/// What the test and the network share.
#[derive(Default)]
pub struct Shared(Mutex<State>);

#[derive(Default)]
pub struct State {
    /// Where addresses really lead. A connection to any other one is refused.
    pub servers: HashMap<SocketAddrV4, SocketAddr>,
    /// All sockets that were asked for.
    pub asked: Vec<String>,
    pub own: Vec<Ipv4Addr>,
    pub answers: VecDeque<(u16, Vec<u8>)>,
    pub resolver: Option<UnixStream>,
    pub echo: Option<UnixStream>,
}

pub struct TestHost(pub Arc<Shared>);

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic")
    }

    /// A server of TCP on loopback that has this address for the guest.
    pub fn listen(&self, address: &str) -> TcpListener {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        listener.set_nonblocking(true).expect("it does not block");
        let to = listener.local_addr().expect("its address");
        self.lock().servers.insert(address.parse().expect("an address"), to);
        listener
    }

    /// The same for UDP.
    pub fn bind(&self, address: &str) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_nonblocking(true).expect("it does not block");
        self.lock().servers.insert(address.parse().expect("an address"), socket.local_addr().expect("its address"));
        socket
    }

    fn socket(&self, to: SocketAddrV4, kind: SocketType) -> io::Result<OwnedFd> {
        let mut state = self.lock();
        state.asked.push(format!("{}/{to}", if kind == SocketType::STREAM { "tcp" } else { "udp" }));
        let closed = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let to = state.servers.get(&to).copied().unwrap_or(closed);
        let socket = net::socket_with(AddressFamily::INET, kind, SocketFlags::NONBLOCK, None)?;
        match net::connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    }
}

impl Host for TestHost {
    fn tcp(&mut self, to: SocketAddrV4) -> io::Result<OwnedFd> {
        self.0.socket(to, SocketType::STREAM)
    }

    fn udp(&mut self, to: SocketAddrV4) -> io::Result<OwnedFd> {
        self.0.socket(to, SocketType::DGRAM)
    }

    fn echo(&mut self, to: Ipv4Addr) -> io::Result<OwnedFd> {
        let mut state = self.0.lock();
        state.asked.push(format!("icmp/{to}"));
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        state.echo = Some(theirs);
        Ok(ours.into())
    }

    fn resolver(&mut self) -> io::Result<OwnedFd> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        self.0.lock().resolver = Some(theirs);
        Ok(ours.into())
    }

    fn query(&mut self, port: u16, query: &[u8]) {
        let answer = [b"answer to ", query].concat();
        self.0.lock().answers.push_back((port, answer));
    }

    fn answer(&mut self) -> Option<(u16, Vec<u8>)> {
        self.0.lock().answers.pop_front()
    }

    fn is_own(&mut self, address: Ipv4Addr) -> bool {
        self.0.lock().own.contains(&address)
    }
}
