//! Deadlines of the protocol that take whole seconds. They have their own suite, so that `protocol` stays fast.

use std::time::{Duration, Instant};

use kiln_e2e::Agent;
use kiln_wire::{AUTH_DEADLINE, AttachRequest, Auth, ErrorCode, GoodbyeReason, Kind, Message, SessionSpec};

/// A deadline may pass a little late on a busy machine, never early.
const EARLY: Duration = Duration::from_millis(50);

#[test]
fn a_link_without_a_token_is_ended_at_the_deadline() {
    let agent = Agent::listening_with_token("s3cret");
    let mut raw = agent.raw();
    let start = Instant::now();
    let frame = raw.frame();
    assert!(start.elapsed() + EARLY >= AUTH_DEADLINE, "{:?}", start.elapsed());
    let Message::Goodbye(goodbye) = frame.message() else { panic!("{frame:?}") };
    assert_eq!(goodbye.reason, GoodbyeReason::Unauthorized);
    assert_eq!(raw.frame_or_end(), None);
}

#[test]
fn a_link_with_its_token_outlives_the_deadline() {
    let agent = Agent::listening_with_token("s3cret");
    let mut raw = agent.raw();
    raw.send(1, &Message::Auth(Auth { token: "s3cret".into() }));
    assert_eq!(raw.frame().kind, Kind::DONE);
    std::thread::sleep(AUTH_DEADLINE + Duration::from_millis(300));
    raw.ping();
}

#[test]
fn soak_a_session_that_ended_is_forgotten_after_half_a_minute() {
    let (_agent, mut raw) = Agent::greeted();
    let session = Some(SessionSpec { name: Some("done".into()), ..SessionSpec::default() });
    let request = kiln_wire::ExecRequest { argv: vec!["true".into()], session, ..Default::default() };
    raw.send(1, &Message::Exec(Box::new(request)));
    raw.to_the_end_of(1);
    let attach = || Message::Attach(AttachRequest { session: "done".into(), offset: None, write: false, steal: false });
    let mut attached = |stream: u32| {
        raw.send(stream, &attach());
        raw.to_the_end_of(stream).pop().expect("a last frame")
    };
    assert_eq!(attached(3).kind, Kind::EXITED);
    std::thread::sleep(Duration::from_secs(25));
    assert_eq!(attached(5).kind, Kind::EXITED);
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(attached(7).fault().code, ErrorCode::SessionNotFound);
}
