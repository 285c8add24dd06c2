//! Agents that break one rule each: they send wrong data, stall or close the link.

use std::time::Duration;

use kiln_engine::link::{Event, GuestLink, LinkError, LinkOptions, REPLIES_MAX, Renewal, StreamError};
use kiln_wire::credit::WINDOW_BYTES;
use kiln_wire::reset::{MAGIC, MARKER_BYTES};
use kiln_wire::{
    Channel, Done, ErrorCode, ExecRequest, Goodbye, GoodbyeReason, Hello, Identity, Kind, Message, MetricsRequest,
    Reply, Started, StreamId, Sync, VERSION, encode,
};
use tokio::io::AsyncReadExt;

use crate::peer::{DEADLINE, Peer, hello, linked, options, pair};

fn started() -> Message<'static> {
    Message::Started(Started { pid: 1, session: None })
}

#[tokio::test]
async fn another_version_is_refused_with_both_named() {
    let (host, mut peer) = pair();
    peer.send(0, hello(VERSION + 6)).await;
    let refused = GuestLink::connect(host, options()).await;
    let theirs = VERSION + 6;
    assert!(
        matches!(refused, Err(LinkError::Version { ours: VERSION, theirs: found }) if found == theirs),
        "{refused:?}"
    );
}

#[tokio::test]
async fn an_agent_that_refuses_this_version_is_reported() {
    let (host, mut peer) = pair();
    let reason = GoodbyeReason::Version { ours: 9, theirs: VERSION };
    peer.send(0, Message::Goodbye(Goodbye { reason })).await;
    let refused = GuestLink::connect(host, options()).await;
    assert!(matches!(refused, Err(LinkError::Version { theirs: 9, .. })), "{refused:?}");
}

#[tokio::test]
async fn garbage_instead_of_hello_is_an_error() {
    for garbage in [&b"\xff\xff\xff\xff garbage"[..], b"GET / HTTP/1.1\r\n\r\n"] {
        let (host, mut peer) = pair();
        peer.send_raw(garbage).await;
        let refused = GuestLink::connect(host, options()).await;
        assert!(matches!(refused, Err(LinkError::Frame(_) | LinkError::Garbage(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn a_silent_agent_is_an_error_at_the_deadline_with_the_missing_step() {
    let (host, _peer) = pair();
    let options = LinkOptions { deadline: Duration::from_millis(50), ..options() };
    let late = GuestLink::connect(host, options).await;
    assert!(matches!(late, Err(LinkError::TimedOut { waiting_for: "hello", .. })), "{late:?}");
}

#[tokio::test]
async fn a_guest_that_closes_before_hello_is_an_error() {
    let (host, peer) = pair();
    drop(peer);
    let closed = GuestLink::connect(host, options()).await;
    assert!(matches!(closed, Err(LinkError::Closed { .. } | LinkError::Io(_))), "{closed:?}");
}

#[tokio::test]
async fn the_marker_is_repeated_until_it_comes_back_and_stale_bytes_are_skipped() {
    let (host, mut peer) = pair();
    let link = tokio::spawn(GuestLink::connect(host, LinkOptions::virtio_serial(DEADLINE)));
    let (mut first, mut second) = ([0; MARKER_BYTES], [0; MARKER_BYTES]);
    peer.stream.read_exact(&mut first).await.expect("a marker comes");
    peer.stream.read_exact(&mut second).await.expect("it comes again");
    assert_eq!(first, second);
    assert!(first.starts_with(&MAGIC));
    peer.send_raw(b"\x00\x00\x10\x00half a frame of an older link").await;
    peer.send_raw(&first).await;
    peer.send(0, hello(VERSION)).await;
    let link = link.await.expect("no panic").expect("the link starts");
    assert_eq!(link.hello().agent, "peer");
}

#[tokio::test]
async fn an_agent_that_requires_a_token_refuses_a_missing_or_wrong_one() {
    let capabilities = vec![kiln_wire::Capability::Auth];
    let hello =
        || Hello { version: VERSION, agent: "p".into(), capabilities: capabilities.clone(), boot_id: "".into() };
    let (host, mut peer) = pair();
    peer.send(0, Message::Hello(hello())).await;
    assert!(matches!(GuestLink::connect(host, options()).await, Err(LinkError::NoToken)));

    let (host, mut peer) = pair();
    peer.send(0, Message::Hello(hello())).await;
    let link = tokio::spawn(GuestLink::connect(host, LinkOptions { token: Some("t".into()), ..options() }));
    let (stream, token) = peer.next_of(Kind::AUTH).await;
    assert_eq!(token, br#"{"token":"t"}"#);
    peer.send(stream, Message::Error(kiln_wire::Fault::new(ErrorCode::Unauthorized, "no"))).await;
    assert!(matches!(link.await.expect("no panic"), Err(LinkError::Unauthorized)));
}

#[tokio::test]
async fn a_port_that_closes_mid_frame_ends_every_stream() {
    let (link, mut peer) = linked().await;
    let (_sender, mut receiver) = link.open(&Message::Exec(Box::default())).expect("the link is up");
    // If a socket is closed with unread bytes in it, the connection is reset and not ended.
    peer.next_of(Kind::EXEC).await;
    let mut frame = Vec::new();
    encode(Kind::DATA_OUT, StreamId(1), b"whole", &mut frame).expect("it fits");
    frame.extend_from_slice(&frame.clone()[..6]);
    peer.send_raw(&frame).await;
    drop(peer);
    assert!(matches!(receiver.next().await, Ok(Event::Data(Channel::Out, bytes)) if bytes == "whole"));
    let lost = receiver.next().await;
    assert!(matches!(&lost, Err(StreamError::LinkLost(why)) if why.contains("unexpected end")), "{lost:?}");
    assert!(matches!(link.open(&Message::Exec(Box::default())), Err(StreamError::LinkLost(_))));
}

#[tokio::test]
async fn a_bad_length_on_a_running_link_ends_it() {
    let (link, mut peer) = linked().await;
    peer.send_raw(&[0xff; 16]).await;
    let why = tokio::time::timeout(DEADLINE, link.closed()).await.expect("it ends");
    assert!(why.contains("over the limit"), "{why}");
}

#[tokio::test]
async fn unknown_frames_and_frames_of_closed_streams_are_ignored() {
    let (link, mut peer) = linked().await;
    let mut unknown = Vec::new();
    encode(Kind(0xee), StreamId::LINK, b"?", &mut unknown).expect("it fits");
    encode(Kind(0xee), StreamId(77), b"?", &mut unknown).expect("it fits");
    peer.send_raw(&unknown).await;
    peer.send(77, Message::Done(Done::default())).await;
    let (link, ping) = (link.clone(), tokio::spawn(async move { link.ping().await }));
    let (_, echo) = peer.next_of(Kind::PING).await;
    peer.send(0, Message::Pong(&echo)).await;
    assert!(ping.await.expect("no panic").is_ok());
    drop(link);
}

#[tokio::test]
async fn data_stops_at_the_window_and_continues_with_credit() {
    let (link, mut peer) = linked().await;
    let (sender, _receiver) = link.open(&Message::Exec(Box::default())).expect("the link is up");
    let total = WINDOW_BYTES as usize + 1000;
    let sending = tokio::spawn(async move { sender.send(&vec![7; total]).await });
    let mut got = 0;
    while got < WINDOW_BYTES as usize {
        got += peer.next_of(Kind::DATA_IN).await.1.len();
    }
    assert_eq!(got, WINDOW_BYTES as usize);
    peer.send(1, Message::Credit(1000)).await;
    assert_eq!(peer.next_of(Kind::DATA_IN).await.1.len(), 1000);
    assert_eq!(sending.await.expect("no panic"), Ok(()));
}

#[tokio::test]
async fn a_stream_that_ends_wakes_a_sender_that_waits_for_credit() {
    let (link, mut peer) = linked().await;
    let (sender, _receiver) = link.open(&Message::Exec(Box::default())).expect("the link is up");
    let sending = tokio::spawn(async move { sender.send(&vec![7; 2 * WINDOW_BYTES as usize]).await });
    peer.next_of(Kind::DATA_IN).await;
    peer.send(1, Message::Done(Done::default())).await;
    assert_eq!(sending.await.expect("no panic"), Err(StreamError::Ended));
}

#[tokio::test]
async fn data_that_looks_like_a_marker_never_leaves_in_one_piece() {
    let (link, mut peer) = linked().await;
    let (sender, _receiver) = link.open(&Message::Exec(Box::default())).expect("the link is up");
    let data = [b"before", &MAGIC[..], b"after"].concat();
    sender.send(&data).await.expect("it is sent");
    let first = peer.next_of(Kind::DATA_IN).await.1;
    let second = peer.next_of(Kind::DATA_IN).await.1;
    assert_eq!([first.clone(), second].concat(), data);
    assert!(!first.windows(MAGIC.len()).any(|window| window == MAGIC));
}

#[tokio::test]
async fn dropping_a_stream_cancels_it_and_dropping_a_finished_one_does_not() {
    let (link, mut peer) = linked().await;
    let finished = link.open(&Message::Exec(Box::default())).expect("the link is up");
    peer.send(1, Message::Done(Done::default())).await;
    let (sender, mut receiver) = finished;
    assert!(matches!(receiver.next().await, Ok(Event::Done(_))));
    drop((sender, receiver));
    let dropped = link.open(&Message::Exec(Box::default())).expect("the link is up");
    drop(dropped);
    let (stream, _) = peer.next_of(Kind::CANCEL).await;
    assert_eq!(stream, 3);
}

#[tokio::test]
async fn output_beyond_the_limit_is_not_kept_even_if_the_agent_sends_it() {
    let (link, mut peer) = linked().await;
    let running = tokio::spawn(async move { link.run(ExecRequest::default(), b"", 5).await });
    peer.next_of(Kind::EXEC).await;
    peer.send(1, started()).await;
    peer.send(1, Message::Data(Channel::Out, b"1234")).await;
    peer.send(1, Message::Data(Channel::Err, b"5678")).await;
    let exited = r#"{"status":{"code":0},"wall_us":1,"user_us":1,"sys_us":1,"max_rss_bytes":1}"#;
    peer.send(1, Message::Exited(serde_json::from_str(exited).expect("a valid payload"))).await;
    let output = running.await.expect("no panic").expect("it ended");
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"1234"[..], &b"5"[..]));
}

#[tokio::test]
async fn a_goodbye_is_the_reason_of_the_end() {
    let (link, mut peer) = linked().await;
    peer.send(0, Message::Goodbye(Goodbye { reason: GoodbyeReason::Replaced })).await;
    assert_eq!(link.closed().await, "replaced by a newer link");
}

#[tokio::test]
async fn a_ping_is_answered_and_one_too_large_to_keep_ends_the_link() {
    let (link, mut peer) = linked().await;
    peer.send(0, Message::Ping(&[7; 1024])).await;
    assert_eq!(peer.next_of(Kind::PONG).await, (0, vec![7; 1024]));
    peer.send(0, Message::Ping(&[7; 1025])).await;
    let why = tokio::time::timeout(DEADLINE, link.closed()).await.expect("ends in time");
    assert!(why.contains("ping of 1025 bytes"), "{why}");
}

#[tokio::test]
async fn one_reply_is_taken_and_a_second_is_an_error() {
    for (replies, good) in [(0, false), (1, true), (2, false)] {
        let (link, mut peer) = linked().await;
        let (_sender, receiver) = link.open(&Message::Metrics(MetricsRequest::default())).expect("opens");
        let (stream, _) = peer.next_of(Kind::METRICS).await;
        for _ in 0..replies {
            peer.send(stream, Message::Reply(Box::new(Reply::Watching))).await;
        }
        peer.send(stream, Message::Done(Done::default())).await;
        let outcome = tokio::time::timeout(DEADLINE, receiver.reply()).await.expect("ends in time");
        assert_eq!(outcome.is_ok(), good, "{replies}: {outcome:?}");
    }
}

#[tokio::test]
async fn replies_without_end_are_an_error() {
    let (link, mut peer) = linked().await;
    let (_sender, receiver) = link.open(&Message::Metrics(MetricsRequest::default())).expect("opens");
    let (stream, _) = peer.next_of(Kind::METRICS).await;
    for _ in 0..=REPLIES_MAX {
        peer.send(stream, Message::Reply(Box::new(Reply::Watching))).await;
    }
    let outcome = tokio::time::timeout(DEADLINE, receiver.replies()).await.expect("ends in time");
    assert!(matches!(outcome, Err(StreamError::Unexpected(_))), "{outcome:?}");
}

/// Answers `Sync`s until `renewed` ends, the first `slow` of them too late for a good clock. Returns all of them.
async fn synced(peer: &mut Peer, slow: usize, renewed: impl Future<Output = Result<(), LinkError>>) -> Vec<Sync> {
    let mut syncs: Vec<Sync> = Vec::new();
    let answers = async {
        loop {
            let (stream, payload) = peer.next_of(Kind::SYNC).await;
            syncs.push(serde_json::from_slice(&payload).expect("a sync"));
            if syncs.len() <= slow {
                tokio::time::sleep(Duration::from_millis(60)).await;
            }
            peer.send(stream, Message::Done(Done::default())).await;
        }
    };
    tokio::select! {
        () = answers => unreachable!("they have no end"),
        renewed = renewed => renewed.expect("the peer does all of it"),
    }
    syncs
}

#[tokio::test]
async fn a_guest_with_a_late_clock_is_synced_again_with_fresh_randomness_and_the_same_names() {
    let (link, mut peer) = linked().await;
    let identity = Identity { hostname: "fork".into(), machine_id: "0".repeat(32), macs: vec![] };
    let renewal = Renewal::of(identity.clone());
    let syncs = synced(&mut peer, 2, link.renew(renewal, DEADLINE)).await;
    assert!(syncs.len() >= 3, "{syncs:?}");
    assert_eq!(syncs[0].identity, Some(identity));
    for pair in syncs.windows(2) {
        assert_eq!(pair[1].identity, None);
        assert!(pair[1].host_time_ns > pair[0].host_time_ns && pair[1].seed != pair[0].seed, "{pair:?}");
    }
}

#[tokio::test]
async fn a_guest_that_is_always_late_is_synced_five_times() {
    let (link, mut peer) = linked().await;
    let syncs = synced(&mut peer, usize::MAX, link.renew(Renewal::default(), DEADLINE)).await;
    assert_eq!(syncs.len(), 5);
}

#[tokio::test]
async fn an_answer_that_comes_too_late_is_not_taken_for_the_next_one() {
    let (link, mut peer) = linked().await;
    let sync = || Sync { host_time_ns: 1, seed: String::new(), identity: None, network: None, mounts: vec![] };
    let given_up = tokio::time::timeout(Duration::from_millis(20), link.sync(sync())).await;
    assert!(given_up.is_err(), "no agent answers");
    let (first, _) = peer.next_of(Kind::SYNC).await;
    let second = tokio::spawn({
        let link = link.clone();
        async move { link.sync(sync()).await }
    });
    let (stream, _) = peer.next_of(Kind::SYNC).await;
    peer.send(first, Message::Done(Done::default())).await;
    peer.send(stream, Message::Error(kiln_wire::Fault::new(ErrorCode::Unsupported, "no"))).await;
    let outcome = tokio::time::timeout(DEADLINE, second).await.expect("ends in time").expect("no panic");
    assert!(matches!(&outcome, Err(StreamError::Fault(fault)) if fault.code == ErrorCode::Unsupported), "{outcome:?}");
}

#[tokio::test]
async fn a_stream_that_the_host_drops_is_cancelled_in_the_guest() {
    let (link, mut peer) = linked().await;
    let (sender, mut receiver) = link.open(&Message::Exec(Box::default())).expect("the link is up");
    peer.send(1, Message::Data(Channel::Out, &vec![7; WINDOW_BYTES as usize + 1])).await;
    let fault = receiver.next().await;
    assert!(matches!(fault, Err(StreamError::Fault(fault)) if fault.code == ErrorCode::FlowControl));
    drop((sender, receiver));
    let (stream, _) = tokio::time::timeout(DEADLINE, peer.next_of(Kind::CANCEL)).await.expect("it is told");
    assert_eq!(stream, 1);
}
