//! The sockets of the host that flows end in.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use tokio::runtime::Handle;

use crate::names::{IN_FLIGHT_MAX, Resolver, Transport, serve_stream};

/// Queries whose answers are on their way to the guest. More are dropped, and the guest asks again.
const ANSWERS_MAX: usize = 2 * IN_FLIGHT_MAX;

const FLAGS: SocketFlags = SocketFlags::NONBLOCK.union(SocketFlags::CLOEXEC);

/// Makes sockets for flows that the policy allows. All of them return at once and never block.
pub trait Host: Send {
    /// Starts a connection.
    fn tcp(&mut self, to: SocketAddrV4) -> io::Result<OwnedFd>;
    /// A socket for datagrams that is connected.
    fn udp(&mut self, to: SocketAddrV4) -> io::Result<OwnedFd>;
    /// A socket for echo that is connected. It sends and receives whole messages of ICMP.
    fn echo(&mut self, to: Ipv4Addr) -> io::Result<OwnedFd>;
    /// A connection to the VM's resolver.
    fn resolver(&mut self) -> io::Result<OwnedFd>;
    /// Asks the VM's resolver for the guest's port. The answer comes from [`Host::answer`].
    fn query(&mut self, port: u16, query: &[u8]);
    /// The next answer of the resolver, with the guest's port.
    fn answer(&mut self) -> Option<(u16, Vec<u8>)>;
    /// Whether an address is one of this host's own.
    fn is_own(&mut self, address: Ipv4Addr) -> bool;
}

/// The real sockets, in the network of this process.
#[derive(Debug)]
pub struct HostSockets {
    runtime: Handle,
    resolver: Arc<Resolver>,
    wake: Arc<OwnedFd>,
    sender: SyncSender<(u16, Vec<u8>)>,
    receiver: Receiver<(u16, Vec<u8>)>,
}

impl HostSockets {
    /// Sockets of this process, and a resolver that runs on this runtime. `wake` is an eventfd that is written when an
    /// answer has come.
    pub fn new(runtime: Handle, resolver: Arc<Resolver>, wake: Arc<OwnedFd>) -> Self {
        let (sender, receiver) = sync_channel(ANSWERS_MAX);
        Self { runtime, resolver, wake, sender, receiver }
    }
}

impl Host for HostSockets {
    fn tcp(&mut self, to: SocketAddrV4) -> io::Result<OwnedFd> {
        let socket = net::socket_with(AddressFamily::INET, SocketType::STREAM, FLAGS, Some(ipproto::TCP))?;
        // The kernel finds out if the other side is gone, so no connection stays forever.
        sockopt::set_socket_keepalive(&socket, true)?;
        // The guest's own stack has already decided what to send together.
        sockopt::set_tcp_nodelay(&socket, true)?;
        match net::connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    }

    fn udp(&mut self, to: SocketAddrV4) -> io::Result<OwnedFd> {
        let socket = net::socket_with(AddressFamily::INET, SocketType::DGRAM, FLAGS, Some(ipproto::UDP))?;
        net::connect(&socket, &to)?;
        Ok(socket)
    }

    fn echo(&mut self, to: Ipv4Addr) -> io::Result<OwnedFd> {
        let socket = net::socket_with(AddressFamily::INET, SocketType::DGRAM, FLAGS, Some(ipproto::ICMP))?;
        net::connect(&socket, &SocketAddrV4::new(to, 0))?;
        Ok(socket)
    }

    fn resolver(&mut self) -> io::Result<OwnedFd> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let resolver = Arc::clone(&self.resolver);
        self.runtime.spawn(async move {
            let Ok(stream) = tokio::net::UnixStream::from_std(theirs) else { return };
            // The guest sees the end of its connection, which is all that it can know.
            let _ = serve_stream(&resolver, stream).await;
        });
        Ok(ours.into())
    }

    fn query(&mut self, port: u16, query: &[u8]) {
        let (resolver, sender, wake) = (Arc::clone(&self.resolver), self.sender.clone(), Arc::clone(&self.wake));
        let query = query.to_vec();
        self.runtime.spawn(async move {
            let Some(answer) = resolver.answer(&query, Transport::Udp).await else { return };
            if sender.try_send((port, answer)).is_ok() {
                // A counter that is full wakes the thread as well.
                let _ = rustix::io::write(&*wake, &1_u64.to_ne_bytes());
            }
        });
    }

    fn answer(&mut self) -> Option<(u16, Vec<u8>)> {
        self.receiver.try_recv().ok()
    }

    /// A socket that is connected to an address of this host has the same address itself. This holds at the moment of
    /// the question, which a list of addresses would not. Nothing is sent.
    fn is_own(&mut self, address: Ipv4Addr) -> bool {
        const ANY_PORT: u16 = 9;
        let Ok(socket) = self.udp(SocketAddrV4::new(address, ANY_PORT)) else { return false };
        let name = net::getsockname(&socket).ok().and_then(|name| SocketAddr::try_from(name).ok());
        name.is_some_and(|name| name.ip() == IpAddr::V4(address))
    }
}
