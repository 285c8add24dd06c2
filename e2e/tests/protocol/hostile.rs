//! Hosts that break the rules: the agent reports it, and continues if it can.

use std::time::Duration;

use kiln_e2e::{Agent, RawLink};
use kiln_wire::{
    Channel, ErrorCode, ExecRequest, GoodbyeReason, Kind, LENGTH_MAX, Message, Resize, SessionsRequest, Signal, Stdin,
};

use crate::common::sh;
use crate::streams::assert_runs;

/// The memory that a link may cost if the host does not read it: queues are bounded.
const RSS_GROWTH_MAX_BYTES: u64 = 8 << 20;
/// The host stops sending after the agent has read nothing for this long.
const PATIENCE: Duration = Duration::from_millis(200);

#[test]
fn a_kind_without_a_name_is_unsupported_and_the_link_continues() {
    let (_agent, mut raw) = Agent::greeted();
    for (kind, stream) in [(0x00, 1), (0x1f, 3), (0x7f, 0), (0xff, 5), (0x2f, 2)] {
        raw.send_frame(stream, Kind(kind), b"\xffanything");
        let frame = raw.frame_of(stream);
        assert_eq!(frame.fault().code, ErrorCode::Unsupported);
    }
    assert_runs(&mut raw, 1);
}

#[test]
fn an_unknown_kind_on_a_running_stream_ends_that_stream() {
    let (_agent, mut raw) = Agent::greeted();
    raw.send(1, &Message::Exec(Box::new(sh("sleep 1000"))));
    raw.send_frame(1, Kind(0x7f), b"");
    assert_eq!(raw.fault_of(1).code, ErrorCode::Unsupported);
    assert_runs(&mut raw, 3);
}

#[test]
fn a_request_that_is_not_json_is_invalid_and_the_link_continues() {
    let (_agent, mut raw) = Agent::greeted();
    let payloads = [&b""[..], b"{", b"null", b"[]", b"{\"argv\":7}", b"{\"argv\":[],\"what\":1}", b"\xff\xfe"];
    for kind in [Kind::EXEC, Kind::ATTACH, Kind::FILES, Kind::FORWARD, Kind::WATCH, Kind::LOGS, Kind::SESSIONS] {
        for payload in payloads {
            raw.send_frame(1, kind, payload);
            assert_eq!(raw.fault_of(1).code, ErrorCode::InvalidRequest, "{kind:?}");
        }
    }
    assert_runs(&mut raw, 1);
}

#[test]
fn a_fault_about_a_name_of_a_mebibyte_still_arrives() {
    let (_agent, mut raw) = Agent::greeted();
    let payload = format!("{{\"argv\":[],\"{}\":1}}", "x".repeat(LENGTH_MAX as usize - 100));
    raw.send_frame(1, Kind::EXEC, payload.as_bytes());
    assert_eq!(raw.fault_of(1).code, ErrorCode::InvalidRequest);
    let program = "/".repeat(LENGTH_MAX as usize - 100);
    raw.send_frame(1, Kind::EXEC, format!("{{\"argv\":[\"{program}\"]}}").as_bytes());
    raw.fault_of(1);
    let path = "\\u0001".repeat(LENGTH_MAX as usize / 6 - 100);
    raw.send_frame(1, Kind::FILES, format!("{{\"op\":\"stat\",\"path\":\"/{path}\"}}").as_bytes());
    assert_eq!(raw.fault_of(1).code, ErrorCode::NameTooLong);
    assert_runs(&mut raw, 1);
}

#[test]
fn a_length_out_of_bounds_ends_the_link_with_a_reason() {
    for length in [0, 4, LENGTH_MAX + 1, u32::MAX] {
        let (mut agent, mut raw) = Agent::greeted();
        raw.write(&length.to_be_bytes());
        let frame = raw.frame();
        let Message::Goodbye(goodbye) = frame.message() else { panic!("{frame:?}") };
        assert!(
            matches!(&goodbye.reason, GoodbyeReason::Protocol(why) if why.contains(&length.to_string())),
            "{goodbye}"
        );
        assert_eq!(raw.frame_or_end(), None);
        agent.wait_exit();
    }
}

#[test]
fn a_link_that_ends_inside_a_frame_ends_the_agent_in_order() {
    for bytes in [&[0][..], &[0, 0, 0, 9], &[0, 0, 0, 9, 0x10, 0, 0, 0, 1, b'{']] {
        let (mut agent, mut raw) = Agent::greeted();
        raw.write(bytes);
        raw.close();
        assert!(agent.wait_exit().success());
    }
}

#[test]
fn frames_of_unknown_streams_are_ignored() {
    let (_agent, mut raw) = Agent::greeted();
    raw.send(9, &Message::Data(Channel::In, b"late"));
    raw.send(9, &Message::Eof);
    raw.send(9, &Message::Credit(1));
    raw.send(9, &Message::Cancel);
    raw.send(9, &Message::Signal(Signal { signal: 9 }));
    raw.send(9, &Message::Resize(Resize { rows: 1, cols: 1 }));
    raw.send(0, &Message::Ping(b""));
    assert_eq!(raw.frame().kind, Kind::PONG, "none is answered");
    assert_runs(&mut raw, 9);
}

#[test]
fn frames_that_only_an_agent_sends_are_invalid_from_a_host() {
    let (_agent, mut raw) = Agent::greeted();
    for message in [Message::Data(Channel::Out, b"x"), Message::Data(Channel::Err, b"x")] {
        raw.send(1, &Message::Exec(Box::new(sh("sleep 1000"))));
        assert_eq!(raw.frame_of(1).kind, Kind::STARTED);
        raw.send(1, &message);
        assert_eq!(raw.fault_of(1).code, ErrorCode::InvalidRequest);
    }
    assert_runs(&mut raw, 1);
}

#[test]
fn data_after_the_end_of_data_harms_only_its_stream() {
    let (_agent, mut raw) = Agent::greeted();
    raw.send(1, &Message::Exec(Box::new(ExecRequest { stdin: Stdin::Stream, ..sh("cat; echo end") })));
    raw.send(1, &Message::Eof);
    raw.send(1, &Message::Data(Channel::In, b"late"));
    raw.send(1, &Message::Eof);
    raw.to_the_end_of(1);
    assert_runs(&mut raw, 1);
}

#[test]
fn data_for_a_command_without_stdin_never_stops_the_link() {
    let (_agent, mut raw) = Agent::greeted();
    raw.send(1, &Message::Exec(Box::new(sh("sleep 1000"))));
    for _ in 0..32 {
        raw.send(1, &Message::Data(Channel::In, &[0; 64 << 10]));
    }
    assert_runs(&mut raw, 3);
}

#[test]
fn credit_of_any_size_harms_nothing() {
    let (_agent, mut raw) = Agent::greeted();
    raw.send(0, &Message::Credit(u32::MAX));
    raw.send(1, &Message::Exec(Box::new(sh("sleep 1000"))));
    for payload in [&b""[..], b"\0\0\0", b"\0\0\0\0\0"] {
        raw.send(3, &Message::Exec(Box::new(sh("sleep 1000"))));
        raw.send_frame(3, Kind::CREDIT, payload);
        assert_eq!(raw.fault_of(3).code, ErrorCode::InvalidRequest);
    }
    assert_runs(&mut raw, 5);
}

#[test]
fn pings_whose_replies_are_not_read_do_not_grow_the_agent() {
    let (agent, mut raw) = Agent::greeted();
    raw.ping();
    let before = agent.rss_peak_bytes();
    let mut question = Vec::new();
    Message::Ping(&[0; 32 << 10]).encode(kiln_wire::StreamId::LINK, &mut question).expect("small");
    let taken = raw.write_while_taken(&question, 64 << 20, PATIENCE);
    assert!(taken < 64 << 20, "the agent stops reading");
    assert!(agent.rss_peak_bytes() - before < RSS_GROWTH_MAX_BYTES);
}

#[test]
fn requests_whose_replies_are_not_read_do_not_grow_the_agent() {
    let (agent, mut raw) = Agent::greeted();
    raw.ping();
    let before = agent.rss_peak_bytes();
    let mut request = Vec::new();
    Message::Sessions(SessionsRequest::List).encode(kiln_wire::StreamId(1), &mut request).expect("small");
    raw.write_while_taken(&request.repeat(100), 16 << 20, PATIENCE);
    assert!(agent.rss_peak_bytes() - before < RSS_GROWTH_MAX_BYTES);
}

#[test]
fn noise_behind_a_hello_never_stops_an_agent_that_listens() {
    let agent = Agent::listening();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..30 {
        let mut raw: RawLink = agent.raw();
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        };
        let payload: Vec<u8> = (0..64).map(|_| noise()).collect();
        let kind = Kind(noise());
        raw.send_frame(u32::from(noise()), kind, &payload);
        raw.write_while_taken(&payload, payload.len(), PATIENCE);
    }
    assert_runs(&mut agent.raw(), 1);
}
