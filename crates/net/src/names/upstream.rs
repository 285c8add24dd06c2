//! The host's resolvers: each query is asked from a socket of its own, in the host's network.
//!
//! A forged answer must hit the port of that socket, which the kernel draws, and a random number of 16 bits. All other
//! datagrams are ignored.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use std::{fs, io};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::answer::{self, Answer, AnswerFault};
use super::message::Query;

/// Resolvers that are asked, as in the C library.
pub const SERVERS_MAX: usize = 3;

/// How long one resolver has for an answer over UDP, and how often all are asked.
const UDP_TIME: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;
/// How long one resolver has for a connection and an answer over TCP.
const TCP_TIME: Duration = Duration::from_secs(3);
/// Datagrams that are read while waiting for one answer.
const DATAGRAMS_MAX: usize = 64;
const DATAGRAM_BYTES_MAX: usize = 65_535;
const PORT: u16 = 53;
const CONFIGURATION_BYTES_MAX: usize = 64 << 10;

/// Where to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// The resolvers in this file, which is read for each query: hosts change their networks.
    File(PathBuf),
    /// These.
    Servers(Vec<SocketAddr>),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpstreamError {
    #[error("the host has no resolvers")]
    NoServers,
    #[error("failed to ask a resolver")]
    Socket(#[source] io::Error),
    #[error("no resolver answered")]
    NoAnswer,
}

impl Default for Upstream {
    /// The host's own.
    fn default() -> Self {
        Self::File("/etc/resolv.conf".into())
    }
}

impl Upstream {
    /// Asks one resolver after the other until one has an answer.
    pub(super) async fn ask(&self, query: &Query) -> Result<Answer, UpstreamError> {
        let servers = self.servers();
        if servers.is_empty() {
            return Err(UpstreamError::NoServers);
        }
        let mut error = UpstreamError::NoAnswer;
        for server in std::iter::repeat_n(&servers, ROUNDS).flatten() {
            match timeout(UDP_TIME, ask_udp(*server, query)).await {
                Ok(Ok(Ok(answer))) => return Ok(answer),
                Ok(Ok(Err(AnswerFault::Truncated))) => match timeout(TCP_TIME, ask_tcp(*server, query)).await {
                    Ok(Ok(Ok(answer))) => return Ok(answer),
                    Ok(Err(source)) => error = UpstreamError::Socket(source),
                    Ok(Ok(Err(_))) | Err(_) => {}
                },
                Ok(Err(source)) => error = UpstreamError::Socket(source),
                Ok(Ok(Err(_))) | Err(_) => {}
            }
        }
        Err(error)
    }

    fn servers(&self) -> Vec<SocketAddr> {
        match self {
            Self::Servers(servers) => servers.iter().copied().take(SERVERS_MAX).collect(),
            Self::File(path) => fs::read_to_string(path).map(|text| servers(&text)).unwrap_or_default(),
        }
    }
}

/// The resolvers of a configuration (resolv.conf(5)).
pub(super) fn servers(text: &str) -> Vec<SocketAddr> {
    let lines = text.get(..CONFIGURATION_BYTES_MAX).unwrap_or(text).lines();
    let addresses = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        let is_server = words.next() == Some("nameserver");
        words.next().filter(|_| is_server)?.parse::<IpAddr>().ok()
    });
    addresses.map(|address| SocketAddr::new(address, PORT)).take(SERVERS_MAX).collect()
}

async fn ask_udp(server: SocketAddr, query: &Query) -> io::Result<Result<Answer, AnswerFault>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    let id = random()?;
    socket.send(&query.upstream(id)).await?;
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    for _ in 0..DATAGRAMS_MAX {
        let length = socket.recv(&mut buffer).await?;
        match answer::read(query, id, &buffer[..length]) {
            Err(AnswerFault::NotOurs) => {}
            result => return Ok(result),
        }
    }
    Ok(Err(AnswerFault::Failed))
}

async fn ask_tcp(server: SocketAddr, query: &Query) -> io::Result<Result<Answer, AnswerFault>> {
    let mut stream = TcpStream::connect(server).await?;
    let id = random()?;
    let message = query.upstream(id);
    // A query has up to 271 bytes.
    stream.write_u16(message.len() as u16).await?;
    stream.write_all(&message).await?;
    let mut buffer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buffer).await?;
    Ok(answer::read(query, id, &buffer))
}

fn random() -> io::Result<u16> {
    let mut bytes = [0; 2];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u16::from_ne_bytes(bytes))
}
