//! The resolver on sockets: those of a VM's network, which the caller has bound there.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::limits::IN_FLIGHT_MAX;
use super::message::QUERY_BYTES_MAX;
use super::resolver::{Resolver, Transport};

/// Connections of one guest. More wait in the queue of the kernel.
const CONNECTIONS_MAX: usize = 16;
/// How long a connection may be silent, and how long an answer may take to be sent.
const IDLE_TIME: Duration = Duration::from_secs(10);
/// Queries on one connection.
const QUERIES_MAX: usize = 1000;
/// The pause after an error of a socket, such as a lack of descriptors.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Answers datagrams, until the future is dropped.
pub async fn serve_udp(resolver: Arc<Resolver>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; QUERY_BYTES_MAX + 1];
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            sleep(ERROR_PAUSE).await;
            continue;
        };
        if tasks.len() >= IN_FLIGHT_MAX {
            tasks.join_next().await;
        }
        let query = buffer[..length].to_vec();
        tasks.spawn(answer(Arc::clone(&resolver), Arc::clone(&socket), query, from));
    }
}

/// Answers connections, until the future is dropped.
pub async fn serve_tcp(resolver: Arc<Resolver>, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ERROR_PAUSE).await;
            continue;
        };
        let resolver = Arc::clone(&resolver);
        tasks.spawn(async move {
            // The guest sees the end of its connection, which is all that it can know.
            let _ = serve_stream(&resolver, stream).await;
            drop(permit);
        });
    }
}

/// Answers one connection: each message has its length before it (RFC 1035, 4.2.2).
pub async fn serve_stream(resolver: &Resolver, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    for _ in 0..QUERIES_MAX {
        let length = usize::from(timeout(IDLE_TIME, stream.read_u16()).await??);
        if length > QUERY_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut query = vec![0; length];
        timeout(IDLE_TIME, stream.read_exact(&mut query)).await??;
        let Some(answer) = resolver.answer(&query, Transport::Tcp).await else { continue };
        let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        let message = [&length.to_be_bytes()[..], &answer].concat();
        timeout(IDLE_TIME, stream.write_all(&message)).await??;
    }
    Ok(())
}

async fn answer(resolver: Arc<Resolver>, socket: Arc<UdpSocket>, query: Vec<u8>, to: SocketAddr) {
    if let Some(answer) = resolver.answer(&query, Transport::Udp).await {
        // A guest that does not receive asks again.
        let _ = socket.send_to(&answer, to).await;
    }
}
