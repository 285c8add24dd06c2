//! No step of a link's start exceeds its deadline, whether the agent stalls or sends a byte now and then. Tests of
//! `kiln run` do the same for the later steps of a run.

use std::time::{Duration, Instant};

use kiln_engine::link::{GuestLink, LinkError, LinkOptions, Renewal};
use kiln_wire::reset::MARKER_BYTES;
use kiln_wire::{Capability, Hello, Message, StreamId, VERSION};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

const DEADLINE: Duration = Duration::from_secs(1);
/// How far a deadline may be missed.
const SLACK: Duration = Duration::from_secs(1);
/// Pause between two bytes of a slow agent.
const DRIBBLE: Duration = Duration::from_millis(50);

/// What an agent does at the step at which it stops.
#[derive(Debug, Clone, Copy)]
enum Then {
    Stall,
    Dribble,
}

/// The last step that an agent completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum After {
    Nothing,
    Marker,
    Hello,
}

/// The agent, which never ends on its own.
async fn agent(mut stream: UnixStream, after: After, capabilities: Vec<Capability>, then: Then) -> std::io::Result<()> {
    if after >= After::Marker {
        let mut marker = [0; MARKER_BYTES];
        stream.read_exact(&mut marker).await?;
        stream.write_all(&marker).await?;
    }
    if after >= After::Hello {
        let hello = Hello { version: VERSION, agent: "hostile".into(), capabilities, boot_id: "b".into() };
        let mut bytes = Vec::new();
        Message::Hello(hello).encode(StreamId::LINK, &mut bytes).expect("small");
        stream.write_all(&bytes).await?;
    }
    let (mut read, mut write) = stream.into_split();
    let dribble = async {
        // The start of a frame of 256 bytes that is never completed.
        let mut byte = [0, 0, 1, 0, 4].into_iter().chain(std::iter::repeat(0));
        loop {
            match then {
                Then::Stall => std::future::pending().await,
                Then::Dribble => write.write_all(&[byte.next().expect("it is endless")]).await?,
            }
            tokio::time::sleep(DRIBBLE).await;
        }
    };
    let mut sink = tokio::io::sink();
    tokio::select! {
        end = dribble => end,
        end = tokio::io::copy(&mut read, &mut sink) => end.map(drop),
    }
}

async fn late(after: After, capabilities: &[Capability], options: LinkOptions, waiting: &str) {
    for then in [Then::Stall, Then::Dribble] {
        let (host, guest) = UnixStream::pair().expect("a socket pair");
        let agent = tokio::spawn(agent(guest, after, capabilities.to_vec(), then));
        let from = Instant::now();
        let linked = GuestLink::connect(host, options.clone()).await;
        let took = from.elapsed();
        agent.abort();
        match linked {
            Err(LinkError::TimedOut { waiting_for, .. }) => assert_eq!(waiting_for, waiting),
            other => panic!("after {after:?}, {then:?}: {other:?}"),
        }
        assert!(took >= DEADLINE && took < DEADLINE + SLACK, "after {after:?}, {then:?}: {took:?}");
    }
}

#[tokio::test]
async fn an_agent_that_does_not_return_the_marker_is_late() {
    late(After::Nothing, &[], LinkOptions::virtio_serial(DEADLINE), "answer").await;
}

#[tokio::test]
async fn an_agent_that_does_not_send_hello_is_late() {
    late(After::Marker, &[], LinkOptions::virtio_serial(DEADLINE), "hello").await;
}

#[tokio::test]
async fn an_agent_that_does_not_answer_a_token_is_late() {
    let options = LinkOptions { token: Some("t".into()), ..LinkOptions::virtio_serial(DEADLINE) };
    late(After::Hello, &[Capability::Auth], options, "answer to the token").await;
}

#[tokio::test]
async fn an_agent_that_does_not_sync_is_late() {
    let options = LinkOptions { renewal: Some(Renewal::default()), ..LinkOptions::virtio_serial(DEADLINE) };
    late(After::Hello, &[], options, "answer to sync").await;
}
