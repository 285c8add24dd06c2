//! How a link starts and ends on a Unix socket.

use std::fs;

use kiln_e2e::{Agent, RawFrame, RawLink, bounded, until};
use kiln_engine::link::LinkError;
use kiln_wire::{Auth, Capability, ErrorCode, Goodbye, GoodbyeReason, Kind, Message, PAYLOAD_MAX, Sync, VERSION};

use crate::common::{run, runs, sh};
use crate::streams::assert_runs;

/// The reason of a Goodbye, which must be the last frame.
fn goodbye(raw: &mut RawLink) -> GoodbyeReason {
    let frame = raw.frame();
    let Message::Goodbye(Goodbye { reason }) = frame.message() else { panic!("expected Goodbye, got {frame:?}") };
    assert_eq!(raw.frame_or_end(), None, "the last frame of a side");
    reason
}

fn auth(token: &str) -> Message<'static> {
    Message::Auth(Auth { token: token.into() })
}

#[test]
fn an_agent_sends_its_version_and_capabilities() {
    let (_agent, stream) = Agent::serving_one();
    let hello = RawLink::new(stream).greet();
    assert_eq!(hello.version, VERSION);
    assert!(hello.agent.starts_with("kiln-agent "), "{}", hello.agent);
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("Linux has one");
    assert_eq!(hello.boot_id, boot_id.trim());
    assert_eq!(
        hello.capabilities,
        [Capability::Grace, Capability::StopSignal],
        "an ordinary process can't do what PID 1 can"
    );
}

#[test]
fn an_agent_of_another_version_is_refused_with_both_named() {
    for version in [0, VERSION + 1, u16::MAX] {
        let (mut agent, stream) = Agent::serving_one();
        let mut raw = RawLink::new(stream);
        raw.send(0, &RawLink::hello(version));
        assert_eq!(goodbye(&mut raw), GoodbyeReason::Version { ours: VERSION, theirs: version });
        agent.wait_exit();
    }
}

#[test]
fn a_later_hello_is_understood_well_enough_to_be_refused() {
    let (_agent, stream) = Agent::serving_one();
    let mut raw = RawLink::new(stream);
    raw.send_frame(0, Kind::HELLO, br#"{"version":7,"agent":"x","capabilities":["teleport"],"new":{"field":[1]}}"#);
    assert_eq!(goodbye(&mut raw), GoodbyeReason::Version { ours: VERSION, theirs: 7 });
}

#[test]
fn a_link_that_does_not_start_with_hello_is_ended() {
    for message in [sh_message(), Message::Ping(b""), Message::Cancel, auth("x")] {
        let (_agent, stream) = Agent::serving_one();
        let mut raw = RawLink::new(stream);
        raw.send(1, &message);
        let reason = goodbye(&mut raw);
        assert!(matches!(&reason, GoodbyeReason::Protocol(why) if why.contains("Hello")), "{reason}");
    }
}

fn sh_message() -> Message<'static> {
    Message::Exec(Box::new(sh("echo no")))
}

#[test]
fn a_link_without_a_hello_is_ended() {
    for payload in [&b""[..], b"{", b"{}", b"\xff\xff", br#"{"version":-1,"agent":""}"#] {
        let (_agent, stream) = Agent::serving_one();
        let mut raw = RawLink::new(stream);
        raw.send_frame(0, Kind::HELLO, payload);
        assert!(matches!(goodbye(&mut raw), GoodbyeReason::Protocol(_)));
    }
}

#[test]
fn another_protocol_is_ended_with_a_reason() {
    let (mut agent, stream) = Agent::serving_one();
    let mut raw = RawLink::new(stream);
    raw.write(b"GET / HTTP/1.1\r\nHost: guest\r\n\r\n");
    let reason = goodbye(&mut raw);
    assert!(matches!(&reason, GoodbyeReason::Protocol(why) if why.contains("length")), "{reason}");
    agent.wait_exit();
}

#[test]
fn a_link_that_is_closed_before_hello_ends_the_agent_of_one_link() {
    let (mut agent, stream) = Agent::serving_one();
    drop(stream);
    assert!(agent.wait_exit().success());
}

#[test]
fn ping_is_answered_with_its_bytes() {
    let (_agent, mut raw) = Agent::greeted();
    for payload in [vec![], vec![0xff; 3], vec![7; PAYLOAD_MAX]] {
        raw.send(0, &Message::Ping(&payload));
        assert_eq!(raw.frame(), RawFrame { kind: Kind::PONG, stream: 0, payload });
    }
}

#[test]
fn the_right_token_opens_the_link() {
    bounded(async {
        let agent = Agent::listening_with_token("s3cret");
        let link = agent.link_with_token(Some("s3cret")).await.expect("the token is right");
        assert!(link.hello().capabilities.contains(&Capability::Auth));
        assert_eq!(run(&link, sh("echo in")).await.stdout, b"in\n");
    });
}

#[test]
fn a_wrong_token_is_reported_and_ends_the_link() {
    for token in ["", "s3cre", "s3crets", "S3CRET"] {
        let agent = Agent::listening_with_token("s3cret");
        let mut raw = agent.raw();
        raw.send(7, &auth(token));
        assert_eq!(raw.frame_of(7).fault().code, ErrorCode::Unauthorized);
        assert_eq!(goodbye(&mut raw), GoodbyeReason::Unauthorized);
    }
}

#[test]
fn the_host_distinguishes_a_wrong_token_from_a_missing_one() {
    bounded(async {
        let agent = Agent::listening_with_token("s3cret");
        assert!(matches!(agent.link_with_token(Some("guess")).await, Err(LinkError::Unauthorized)));
        assert!(matches!(agent.link_with_token(None).await, Err(LinkError::NoToken)));
        agent.link_with_token(Some("s3cret")).await.expect("the agent still serves hosts with the token");
    });
}

#[test]
fn nothing_is_served_before_the_token() {
    let agent = Agent::listening_with_token("s3cret");
    let marker = agent.path("marker");
    let mut raw = agent.raw();
    raw.send(1, &Message::Exec(Box::new(sh(&format!("touch {marker}")))));
    assert_eq!(goodbye(&mut raw), GoodbyeReason::Unauthorized);
    assert!(!fs::exists(&marker).expect("the directory is ours"));
}

#[test]
fn the_environment_of_a_command_does_not_contain_the_token() {
    bounded(async {
        let agent = Agent::listening_with_token("s3cret-that-is-not-sent");
        let link = agent.link_with_token(Some("s3cret-that-is-not-sent")).await.expect("the token is right");
        let output = run(&link, sh("env; cat /proc/$PPID/cmdline")).await;
        assert!(!String::from_utf8_lossy(&output.stdout).contains("that-is-not-sent"));
    });
}

#[test]
fn a_second_hello_harms_nothing() {
    let (_agent, mut raw) = Agent::greeted();
    raw.send(0, &RawLink::hello(VERSION));
    assert_eq!(raw.frame().fault().code, ErrorCode::InvalidRequest);
    assert_runs(&mut raw, 1);
}

#[test]
fn a_goodbye_ends_the_link_and_its_commands() {
    let (mut agent, mut raw) = Agent::greeted();
    raw.send(1, &Message::Exec(Box::new(sh("echo $$; sleep 1000"))));
    let pid = loop {
        let frame = raw.frame();
        if frame.kind == Kind::DATA_OUT {
            break String::from_utf8(frame.payload).expect("UTF-8").trim().parse().expect("a pid");
        }
    };
    raw.send(0, &Message::Goodbye(Goodbye { reason: GoodbyeReason::Shutdown }));
    while raw.frame_or_end().is_some() {}
    agent.wait_exit();
    until("the end of the command", || (!runs(pid)).then_some(()));
}

#[test]
fn a_newer_link_replaces_the_older() {
    let agent = Agent::listening();
    let mut old = agent.raw();
    old.send(1, &Message::Exec(Box::new(sh("sleep 1000"))));
    let Message::Started(started) = old.frame().message() else { panic!("no start") };
    let mut new = agent.raw();
    assert_runs(&mut new, 1);
    let reason = loop {
        let frame = old.frame();
        if let Message::Goodbye(goodbye) = frame.message() {
            break goodbye.reason;
        }
    };
    assert_eq!(reason, GoodbyeReason::Replaced);
    assert_eq!(old.frame_or_end(), None);
    until("the end of the old link's command", || (!runs(started.pid)).then_some(()));
    assert_runs(&mut new, 1);
}

#[test]
fn the_host_reports_that_its_link_was_replaced() {
    bounded(async {
        let agent = Agent::listening();
        let old = agent.link().await.expect("the agent answers");
        let _new = agent.link().await.expect("the agent answers");
        let why = old.closed().await;
        assert!(why.contains("replaced"), "{why}");
    });
}

#[test]
fn a_replaced_link_that_does_not_read_does_not_delay_the_newer() {
    let agent = Agent::listening();
    let mut old = agent.raw();
    old.send(1, &Message::Exec(Box::new(sh("yes"))));
    old.send(3, &Message::Exec(Box::new(sh("yes"))));
    assert_eq!(old.frame().kind, Kind::STARTED);
    let mut new = agent.raw();
    assert_runs(&mut new, 1);
    old.close();
    assert_runs(&mut new, 1);
}

#[test]
fn an_agent_that_listens_serves_one_link_after_the_other() {
    let agent = Agent::listening();
    for _ in 0..5 {
        assert_runs(&mut agent.raw(), 1);
    }
}

#[test]
fn an_agent_that_is_not_init_refuses_a_sync() {
    let (_agent, mut raw) = Agent::greeted();
    let seed = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".into();
    let sync = Message::Sync(Sync { host_time_ns: 1, seed, identity: None, network: None, mounts: vec![] });
    raw.send(5, &sync);
    assert_eq!(raw.frame_of(5).fault().code, ErrorCode::Unsupported, "and the clock is not touched");
    raw.send(0, &sync);
    assert_eq!(raw.frame_of(0).fault().code, ErrorCode::StreamRefused, "an answer needs a stream of its own");
    assert_runs(&mut raw, 1);
}
