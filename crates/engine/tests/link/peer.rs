//! An agent's end of the byte stream, frame by frame, without an agent.

use std::time::Duration;

use kiln_engine::link::{GuestLink, LinkOptions};
use kiln_wire::{Decoder, Hello, Kind, Message, StreamId, VERSION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// No step of these tests takes this long, unless it hangs.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// The agent's end, frame by frame.
pub struct Peer {
    pub stream: UnixStream,
    pub decoder: Decoder,
}

impl Peer {
    pub async fn send(&mut self, stream: u32, message: Message<'_>) {
        let mut bytes = Vec::new();
        message.encode(StreamId(stream), &mut bytes).expect("test messages fit");
        self.send_raw(&bytes).await;
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("the host reads");
    }

    pub async fn next(&mut self) -> (Kind, u32, Vec<u8>) {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next().expect("the host sends frames") {
                return (frame.kind, frame.stream.0, frame.payload.to_vec());
            }
            let read = tokio::time::timeout(DEADLINE, self.stream.read(&mut buffer)).await;
            let count = read.expect("the host sends in time").expect("the socket reads");
            assert!(count > 0, "the host closed the link");
            self.decoder.push(&buffer[..count]);
        }
    }

    /// Skips frames up to one of this kind.
    pub async fn next_of(&mut self, kind: Kind) -> (u32, Vec<u8>) {
        loop {
            let (found, stream, payload) = self.next().await;
            if found == kind {
                return (stream, payload);
            }
        }
    }

    /// Reads up to the echo of this ping. If the host has closed the link, waits forever.
    pub async fn until_echo(&mut self, bytes: &[u8]) {
        let mut buffer = [0; 4096];
        loop {
            while let Some(frame) = self.decoder.next().expect("the host sends frames") {
                if frame.kind == Kind::PONG && frame.payload == bytes {
                    return;
                }
            }
            match self.stream.read(&mut buffer).await {
                Ok(count @ 1..) => self.decoder.push(&buffer[..count]),
                _ => std::future::pending().await,
            }
        }
    }
}

pub fn pair() -> (UnixStream, Peer) {
    let (host, guest) = UnixStream::pair().expect("a socket pair");
    (host, Peer { stream: guest, decoder: Decoder::new() })
}

pub fn hello(version: u16) -> Message<'static> {
    Message::Hello(Hello { version, agent: "peer".into(), capabilities: vec![], boot_id: "b".into() })
}

pub fn options() -> LinkOptions {
    LinkOptions::unix_socket(DEADLINE)
}

pub async fn linked() -> (GuestLink, Peer) {
    let (host, mut peer) = pair();
    peer.send(0, hello(VERSION)).await;
    let link = GuestLink::connect(host, options()).await.expect("the peer greets");
    assert_eq!(peer.next().await.0, Kind::HELLO);
    (link, peer)
}
