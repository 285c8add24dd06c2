//! Runs the resolver of a VM's network on sockets of the guest's gateway.

use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;

use kiln_net::names::{Resolver, serve_tcp, serve_udp};
use tokio::task::JoinSet;

use super::error::NetworkError;

/// Serves both sockets until the set is dropped.
pub(super) fn serve(
    resolver: &Arc<Resolver>,
    (udp, tcp): (UdpSocket, TcpListener),
    tasks: &mut JoinSet<()>,
) -> Result<(), NetworkError> {
    let udp = udp.set_nonblocking(true).and_then(|()| tokio::net::UdpSocket::from_std(udp));
    let tcp = tcp.set_nonblocking(true).and_then(|()| tokio::net::TcpListener::from_std(tcp));
    tasks.spawn(serve_udp(Arc::clone(resolver), udp.map_err(NetworkError::Resolver)?));
    tasks.spawn(serve_tcp(Arc::clone(resolver), tcp.map_err(NetworkError::Resolver)?));
    Ok(())
}
