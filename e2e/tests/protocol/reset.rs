//! The reset marker starts a new link on the same byte stream. The agent accepts it on Unix sockets too, so the tests
//! use one.

use std::thread;
use std::time::Duration;

use kiln_e2e::{Agent, RawLink, until};
use kiln_wire::reset::{MAGIC, MARKER_BYTES, NONCE_BYTES, marker};
use kiln_wire::{Channel, ExecRequest, Kind, Message, Reply, SessionSpec, SessionState, SessionsRequest, Stdin};

use crate::common::{runs, sh};
use crate::streams::assert_runs;

const FIRST: [u8; NONCE_BYTES] = [0x11; NONCE_BYTES];
const SECOND: [u8; NONCE_BYTES] = [0x22; NONCE_BYTES];

/// A link that was started with the marker.
fn started_with_marker() -> (Agent, RawLink) {
    let (agent, stream) = Agent::serving_one();
    let mut raw = RawLink::new(stream);
    raw.write(&marker(&FIRST));
    assert_eq!(raw.read_exact(MARKER_BYTES), marker(&FIRST));
    raw.greet();
    (agent, raw)
}

/// Sends a marker and skips everything before the agent's reply, like a host does.
fn reset(raw: &mut RawLink, nonce: &[u8; NONCE_BYTES]) {
    raw.write(&marker(nonce));
    raw.skip_to(&marker(nonce));
}

fn start(raw: &mut RawLink, stream: u32, request: ExecRequest) -> u32 {
    raw.send(stream, &Message::Exec(Box::new(request)));
    match raw.frame_of(stream).message() {
        Message::Started(started) => started.pid,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_link_may_start_with_a_marker() {
    let (_agent, mut raw) = started_with_marker();
    assert_runs(&mut raw, 1);
}

#[test]
fn a_marker_that_arrives_byte_by_byte_is_found() {
    let (_agent, stream) = Agent::serving_one();
    let mut raw = RawLink::new(stream);
    for byte in marker(&FIRST) {
        raw.write(&[byte]);
        // Only spreads the bytes over several reads; the outcome does not depend on it.
        thread::sleep(Duration::from_micros(200));
    }
    assert_eq!(raw.read_exact(MARKER_BYTES), marker(&FIRST));
    raw.greet();
    assert_runs(&mut raw, 1);
}

#[test]
fn a_marker_after_stale_bytes_starts_a_link() {
    let (_agent, mut raw) = started_with_marker();
    // The old host was killed inside a frame, and its last bytes are still in the stream.
    let mut stale = Vec::new();
    Message::Data(Channel::In, &[7; 500]).encode(kiln_wire::StreamId(1), &mut stale).expect("small");
    raw.write(&stale[..200]);
    reset(&mut raw, &SECOND);
    raw.greet();
    assert_runs(&mut raw, 1);
}

#[test]
fn a_marker_ends_commands() {
    let (agent, mut raw) = started_with_marker();
    let pid = start(&mut raw, 1, sh("trap '' HUP TERM; sleep 1000"));
    reset(&mut raw, &SECOND);
    raw.greet();
    until("the end of the old link's command", || (!runs(pid)).then_some(()));
    until("its reaping", || agent.children().is_empty().then_some(()));
    assert_runs(&mut raw, 1);
}

#[test]
fn a_marker_does_not_end_sessions() {
    let (_agent, mut raw) = started_with_marker();
    let session = Some(SessionSpec { name: Some("kept".into()), ..SessionSpec::default() });
    let pid = start(&mut raw, 1, ExecRequest { session, ..sh("sleep 1000") });
    reset(&mut raw, &SECOND);
    raw.greet();
    assert!(runs(pid));
    raw.send(1, &Message::Sessions(SessionsRequest::List));
    let frame = raw.frame_of(1);
    let Message::Reply(reply) = frame.message() else { panic!("{frame:?}") };
    let Reply::Sessions(sessions) = *reply else { panic!("{reply:?}") };
    assert_eq!((sessions[0].name.as_str(), sessions[0].pid, sessions[0].state), ("kept", pid, SessionState::Running));
    assert_eq!(sessions[0].attached, 0);
}

#[test]
fn nothing_of_the_old_link_follows_the_reply_to_a_marker() {
    let (_agent, mut raw) = started_with_marker();
    start(&mut raw, 1, sh("yes"));
    start(&mut raw, 3, ExecRequest { stdin: Stdin::Stream, ..sh("cat") });
    raw.send(3, &Message::Data(Channel::In, b"old"));
    reset(&mut raw, &SECOND);
    // The new link starts with its Hello, and nothing follows.
    raw.greet();
    raw.send(0, &Message::Ping(b"x"));
    let frame = raw.frame();
    assert_eq!((frame.kind, frame.stream), (Kind::PONG, 0), "{frame:?}");
}

#[test]
fn a_repeated_marker_is_answered_once() {
    let (_agent, stream) = Agent::serving_one();
    let mut raw = RawLink::new(stream);
    raw.write(&[marker(&FIRST), marker(&FIRST), marker(&FIRST)].concat());
    assert_eq!(raw.read_exact(MARKER_BYTES), marker(&FIRST));
    // The next bytes are a frame, not another marker.
    raw.greet();
    raw.write(&marker(&FIRST));
    let pid = start(&mut raw, 1, sh("sleep 1000"));
    raw.write(&marker(&FIRST));
    raw.ping();
    assert!(runs(pid), "a marker that was late ends nothing");
}

#[test]
fn links_follow_each_other_by_marker() {
    let (_agent, mut raw) = started_with_marker();
    for number in 0..20 {
        reset(&mut raw, &[0x80 | number; NONCE_BYTES]);
        raw.greet();
        assert_runs(&mut raw, 1);
    }
}

#[test]
fn part_of_a_magic_and_then_a_whole_marker_starts_a_link() {
    let (_agent, mut raw) = started_with_marker();
    for cut in 1..MAGIC.len() as u8 {
        // It is inside a frame, so the part before the marker belongs to that frame.
        raw.write(&[0, 0, 0x10, 0, 0x30, 0, 0, 0, 1]);
        raw.write(&MAGIC[..usize::from(cut)]);
        reset(&mut raw, &[cut; NONCE_BYTES]);
        raw.greet();
        assert_runs(&mut raw, 1);
    }
}
