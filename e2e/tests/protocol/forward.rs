//! Connections from the host to sockets in the guest.

use std::time::Duration;

use kiln_e2e::{Agent, bounded};
use kiln_engine::link::{Event, GuestLink, StreamError, StreamReceiver, StreamSender};
use kiln_wire::{ErrorCode, ForwardRequest, Message, Reply};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::time::timeout;

use crate::common::{code, run, sh};

struct Forward {
    sender: StreamSender,
    receiver: StreamReceiver,
}

async fn forward(link: &GuestLink, request: ForwardRequest) -> Result<Forward, StreamError> {
    let (sender, mut receiver) = link.open(&Message::Forward(request))?;
    match receiver.next().await? {
        Event::Reply(reply) if *reply == Reply::Connected => Ok(Forward { sender, receiver }),
        other => panic!("{other:?} before Connected"),
    }
}

/// Opens a port, forwards to it and returns both ends.
async fn tcp(link: &GuestLink, host: &str) -> (Forward, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port is free");
    let port = listener.local_addr().expect("bound").port();
    let request = ForwardRequest::Tcp { host: host.into(), port };
    let (forward, accepted) = tokio::join!(forward(link, request), listener.accept());
    (forward.expect("the server listens"), accepted.expect("the agent connects").0)
}

impl Forward {
    /// Takes bytes until there are `count` or the guest has no more.
    async fn take(&mut self, count: usize) -> Vec<u8> {
        let mut taken = Vec::new();
        while taken.len() < count {
            match self.receiver.next().await.expect("bytes") {
                Event::Data(_, bytes) => taken.extend_from_slice(&bytes),
                Event::Eof => break,
                other => panic!("{other:?}"),
            }
        }
        taken
    }

    async fn done(mut self) {
        self.receiver.done().await.expect("both directions have ended");
    }
}

#[test]
fn bytes_pass_both_ways() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        for host in ["127.0.0.1", "localhost"] {
            let (mut forward, mut server) = tcp(&link, host).await;
            forward.sender.send(b"question\xf8").await.expect("open");
            let mut question = [0; 9];
            server.read_exact(&mut question).await.expect("it comes, whatever its last byte is");
            assert_eq!(&question, b"question\xf8");
            server.write_all(b"answer").await.expect("open");
            assert_eq!(forward.take(6).await, b"answer");
        }
    });
}

#[test]
fn either_side_may_end_its_direction_first() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let (mut forward, mut server) = tcp(&link, "127.0.0.1").await;
        forward.sender.send(b"last words").await.expect("open");
        forward.sender.eof().await.expect("open");
        let mut heard = Vec::new();
        server.read_to_end(&mut heard).await.expect("to the end");
        assert_eq!(heard, b"last words");
        server.write_all(b"late answer").await.expect("this direction is open");
        server.shutdown().await.expect("open");
        assert_eq!(forward.take(usize::MAX).await, b"late answer");
        forward.done().await;

        let (mut forward, mut server) = tcp(&link, "127.0.0.1").await;
        server.shutdown().await.expect("open");
        assert_eq!(forward.take(1).await, b"");
        forward.sender.send(b"still listening?").await.expect("this direction is open");
        forward.sender.eof().await.expect("open");
        let mut heard = Vec::new();
        server.read_to_end(&mut heard).await.expect("to the end");
        assert_eq!(heard, b"still listening?");
        forward.done().await;
    });
}

#[test]
fn megabytes_pass_both_ways_at_once_unchanged() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let (mut forward, server) = tcp(&link, "127.0.0.1").await;
        let content: Vec<u8> = (0..4_000_000_u32).map(|number| (number % 251) as u8).collect();
        let (mut read, mut write) = server.into_split();
        let echo = tokio::spawn(async move { tokio::io::copy(&mut read, &mut write).await });
        let sender = forward.sender.clone();
        let sent = content.clone();
        let send = tokio::spawn(async move { sender.send(&sent).await });
        assert!(forward.take(content.len()).await == content);
        send.await.expect("no panic").expect("sent");
        drop(forward);
        echo.abort();
    });
}

#[test]
fn a_unix_socket_is_reached_like_a_port() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let path = agent.path("socket");
        let listener = UnixListener::bind(&path).expect("ours");
        let request = ForwardRequest::Unix { path: path.as_str().into() };
        let (forward, accepted) = tokio::join!(forward(&link, request), listener.accept());
        let (mut forward, mut server) = (forward.expect("the server listens"), accepted.expect("the agent connects").0);
        forward.sender.send(b"in").await.expect("open");
        forward.sender.eof().await.expect("open");
        let mut heard = Vec::new();
        server.read_to_end(&mut heard).await.expect("to the end");
        assert_eq!(heard, b"in");
        server.write_all(b"out").await.expect("open");
        drop(server);
        assert_eq!(forward.take(usize::MAX).await, b"out");
        forward.done().await;
    });
}

#[test]
fn a_connection_without_a_listener_is_refused() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port is free");
        let port = listener.local_addr().expect("bound").port();
        drop(listener);
        let tcp = ForwardRequest::Tcp { host: "127.0.0.1".into(), port };
        assert_eq!(code(forward(&link, tcp).await.map(drop)), ErrorCode::ConnectionRefused);

        let path = agent.path("socket");
        drop(UnixListener::bind(&path).expect("ours"));
        let unix = ForwardRequest::Unix { path: path.as_str().into() };
        assert_eq!(code(forward(&link, unix).await.map(drop)), ErrorCode::ConnectionRefused);
        let unix = ForwardRequest::Unix { path: agent.path("missing").as_str().into() };
        assert_eq!(code(forward(&link, unix).await.map(drop)), ErrorCode::NotFound);
    });
}

#[test]
fn a_path_that_is_not_a_socket_address_is_refused_by_name() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let long = ForwardRequest::Unix { path: agent.path(&"n".repeat(200)).as_str().into() };
        let refused = code(forward(&link, long).await.map(drop));
        assert!(matches!(refused, ErrorCode::NameTooLong | ErrorCode::InvalidRequest), "{refused:?}");
        let zero = ForwardRequest::Unix { path: "/tmp/a\0b".into() };
        assert_eq!(code(forward(&link, zero).await.map(drop)), ErrorCode::InvalidRequest);
        let empty = ForwardRequest::Unix { path: "".into() };
        assert_eq!(code(forward(&link, empty).await.map(drop)), ErrorCode::InvalidRequest);
    });
}

#[test]
fn a_cancelled_forward_closes_its_socket() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let (forward, mut server) = tcp(&link, "127.0.0.1").await;
        drop(forward);
        let mut heard = Vec::new();
        // Closed in order or reset: either way it ends.
        let _ = timeout(Duration::from_secs(10), server.read_to_end(&mut heard)).await.expect("the socket is closed");
        assert_eq!(heard, b"");
    });
}

#[test]
fn a_server_that_does_not_read_does_not_stop_others() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let (forward, _server) = tcp(&link, "127.0.0.1").await;
        let feeder = tokio::spawn(async move { forward.sender.send(&vec![0; 64 << 20]).await });
        for _ in 0..3 {
            assert_eq!(run(&link, sh("head -c 300000 /dev/zero")).await.stdout.len(), 300_000);
        }
        assert!(!feeder.is_finished());
        feeder.abort();
    });
}
