//! Sessions: commands that outlive the stream and the link that started them.

use kiln_e2e::{Agent, bounded, until};
use kiln_engine::link::{Event, Exec, GuestLink};
use kiln_wire::{
    ErrorCode, ExecRequest, ExitStatus, Message, OnDetach, Reply, SESSION_RING_BYTES_MAX, SessionInfo, SessionSpec,
    SessionState, SessionsRequest, Stdin, Tty,
};

use crate::common::{code, runs, sh};

/// A script as a session.
pub fn session(name: &str, script: &str) -> ExecRequest {
    with_spec(script, SessionSpec { name: Some(name.into()), ..SessionSpec::default() })
}

/// A script as a session of any kind; its input can be written.
pub fn with_spec(script: &str, spec: SessionSpec) -> ExecRequest {
    ExecRequest { session: Some(spec), stdin: Stdin::Stream, ..sh(script) }
}

/// Sends a request about sessions.
pub async fn ask(link: &GuestLink, request: SessionsRequest) -> Result<Vec<Reply>, kiln_engine::link::StreamError> {
    let (_sender, receiver) = link.open(&Message::Sessions(request))?;
    receiver.replies().await
}

/// All sessions.
pub async fn list(link: &GuestLink) -> Vec<SessionInfo> {
    match ask(link, SessionsRequest::List).await.expect("a list").pop() {
        Some(Reply::Sessions(sessions)) => sessions,
        other => panic!("{other:?}"),
    }
}

/// The session of this name, once `state` holds for it.
pub async fn wait_for(link: &GuestLink, name: &str, state: impl Fn(&SessionInfo) -> bool) -> SessionInfo {
    loop {
        let found = list(link).await.into_iter().find(|session| session.name == name);
        if let Some(session) = found.filter(&state) {
            return session;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

/// Takes output until it ends with `expected`.
pub async fn expect(exec: &mut Exec, expected: &str) {
    let mut seen = Vec::new();
    while !seen.ends_with(expected.as_bytes()) {
        match exec.output.next().await.expect("output") {
            Event::Data(_, bytes) => seen.extend_from_slice(&bytes),
            Event::Reply(_) => {}
            other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&seen)),
        }
    }
}

#[test]
fn a_session_has_the_name_that_was_chosen() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        for name in ["build-1.a_B", "x", &"n".repeat(64)] {
            let exec = link.exec(session(name, "sleep 1000")).await.expect("starts");
            assert_eq!(exec.started.session.as_deref(), Some(name));
        }
    });
}

#[test]
fn sessions_without_a_name_are_numbered_past_those_that_are_taken() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let nameless = || with_spec("sleep 1000", SessionSpec::default());
        let first = link.exec(nameless()).await.expect("starts");
        let _taken = link.exec(session("s2", "sleep 1000")).await.expect("starts");
        let second = link.exec(nameless()).await.expect("starts");
        assert_eq!(first.started.session.as_deref(), Some("s1"));
        assert_eq!(second.started.session.as_deref(), Some("s3"));
    });
}

#[test]
fn an_invalid_name_is_refused() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        for name in ["", "a b", "../x", "ü", "a/b", "a\0", &"n".repeat(65)] {
            assert_eq!(code(link.exec(session(name, "true")).await), ErrorCode::InvalidRequest, "{name}");
        }
        assert_eq!(list(&link).await, []);
    });
}

#[test]
fn a_name_that_is_taken_is_refused() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let _first = link.exec(session("one", "sleep 1000")).await.expect("starts");
        assert_eq!(code(link.exec(session("one", "sleep 1000")).await), ErrorCode::SessionExists);
        assert_eq!(list(&link).await.len(), 1);
    });
}

#[test]
fn a_session_that_fails_to_start_does_not_exist() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut request = session("one", "");
        request.argv = vec!["/no/such/program".into()];
        assert_eq!(code(link.exec(request).await), ErrorCode::CommandNotFound);
        assert_eq!(list(&link).await, []);
        link.exec(session("one", "sleep 1000")).await.expect("the name is free");
    });
}

#[test]
fn a_ring_over_the_limit_is_invalid() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let ring_bytes = Some(SESSION_RING_BYTES_MAX + 1);
        let request = with_spec("true", SessionSpec { ring_bytes, ..SessionSpec::default() });
        assert_eq!(code(link.exec(request).await), ErrorCode::InvalidRequest);
    });
}

#[test]
fn the_stream_that_starts_a_session_sees_its_output_and_its_end() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut exec = link.exec(session("one", "echo ready; read x; echo got $x; exit 3")).await.expect("starts");
        expect(&mut exec, "ready\n").await;
        exec.input.send(b"it\n").await.expect("it runs");
        expect(&mut exec, "got it\n").await;
        loop {
            if let Event::Exited(exited) = exec.output.next().await.expect("the end") {
                assert_eq!(exited.status, ExitStatus::Code(3));
                break;
            }
        }
    });
}

#[test]
fn a_list_has_every_field_of_a_session() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut plain = link.exec(session("plain", "echo hello; sleep 1000")).await.expect("starts");
        expect(&mut plain, "hello\n").await;
        let tty = Some(Tty { rows: 24, cols: 80, term: String::new() });
        let terminal = link.exec(ExecRequest { tty, ..session("terminal", "sleep 1000") }).await.expect("starts");
        let sessions = list(&link).await;
        assert_eq!(sessions.len(), 2);
        let find = |name: &str| sessions.iter().find(|session| session.name == name).expect("listed").clone();
        let info = find("plain");
        assert_eq!(
            (info.pid, info.state, info.tty, info.attached),
            (plain.started.pid, SessionState::Running, false, 1)
        );
        assert_eq!((info.offset, info.oldest), (6, 0));
        assert!(info.command.contains("echo hello"), "{}", info.command);
        assert!(info.idle_ms < 20_000);
        assert_eq!((find("terminal").pid, find("terminal").tty), (terminal.started.pid, true));
    });
}

#[test]
fn a_session_survives_the_link_that_started_it() {
    bounded(async {
        let agent = Agent::listening();
        let link = agent.link().await.expect("the agent answers");
        let mut exec = link.exec(session("kept", "trap 'echo hup' HUP; echo ready; sleep 1000")).await.expect("starts");
        expect(&mut exec, "ready\n").await;
        let pid = exec.started.pid;
        drop((exec, link));
        let link = agent.link().await.expect("the agent answers");
        let info = wait_for(&link, "kept", |session| session.attached == 0).await;
        assert_eq!((info.pid, info.state, info.offset), (pid, SessionState::Running, 6));
        assert!(runs(pid));
    });
}

#[test]
fn dropping_its_stream_detaches_a_session_and_ends_nothing() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let exec = link.exec(session("kept", "sleep 1000")).await.expect("starts");
        let pid = exec.started.pid;
        drop(exec);
        wait_for(&link, "kept", |session| session.attached == 0).await;
        assert!(runs(pid));
    });
}

#[test]
fn a_session_may_end_with_its_last_attachment() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let spec = SessionSpec { name: Some("one".into()), on_detach: OnDetach::Kill, ..SessionSpec::default() };
        let mut exec =
            link.exec(with_spec("trap '' HUP TERM; sleep 1000 & echo ready; wait", spec)).await.expect("starts");
        expect(&mut exec, "ready\n").await;
        let pid = exec.started.pid;
        drop(exec);
        wait_for(&link, "one", |session| session.state == SessionState::Exited { code: 137 }).await;
        until("the end of its command", || (!runs(pid)).then_some(()));
    });
}

#[test]
fn a_session_may_end_with_the_link_of_its_last_attachment() {
    bounded(async {
        let agent = Agent::listening();
        let link = agent.link().await.expect("the agent answers");
        let spec = SessionSpec { on_detach: OnDetach::Kill, ..SessionSpec::default() };
        let exec = link.exec(with_spec("sleep 1000", spec)).await.expect("starts");
        let pid = exec.started.pid;
        drop((exec, link));
        until("the end of its command", || (!runs(pid)).then_some(()));
    });
}

#[test]
fn an_idle_session_ends_at_its_timeout() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let spec = SessionSpec { name: Some("idle".into()), idle_timeout_ms: Some(100), ..SessionSpec::default() };
        let exec = link.exec(with_spec("sleep 1000", spec)).await.expect("starts");
        let pid = exec.started.pid;
        drop(exec);
        wait_for(&link, "idle", |session| session.state != SessionState::Running).await;
        until("the end of its command", || (!runs(pid)).then_some(()));
    });
}

#[test]
fn a_session_that_writes_is_not_idle() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let spec = SessionSpec { name: Some("busy".into()), idle_timeout_ms: Some(2000), ..SessionSpec::default() };
        // It writes much more often than the timeout requires, even if other tests delay each of its processes.
        let script = "i=0; while [ $i -lt 60 ]; do echo $i; i=$((i+1)); sleep 0.04; done; exit 5";
        drop(link.exec(with_spec(script, spec)).await.expect("starts"));
        let info = wait_for(&link, "busy", |session| session.state != SessionState::Running).await;
        assert_eq!(info.state, SessionState::Exited { code: 5 }, "it ran for longer than its idle timeout");
    });
}

#[test]
fn a_session_with_a_viewer_is_not_idle() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let spec = SessionSpec { name: Some("seen".into()), idle_timeout_ms: Some(50), ..SessionSpec::default() };
        let exec = link.exec(with_spec("sleep 1000", spec)).await.expect("starts");
        let info = wait_for(&link, "seen", |session| session.idle_ms > 150).await;
        assert_eq!(info.state, SessionState::Running);
        drop(exec);
        wait_for(&link, "seen", |session| session.state != SessionState::Running).await;
    });
}

#[test]
fn the_name_of_a_session_that_ended_can_be_used_again() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        drop(link.exec(session("one", "exit 9")).await.expect("starts"));
        wait_for(&link, "one", |session| session.state != SessionState::Running).await;
        let again = link.exec(session("one", "sleep 1000")).await.expect("the name is free");
        let sessions = list(&link).await;
        assert_eq!(sessions.len(), 1);
        assert_eq!((sessions[0].pid, sessions[0].state), (again.started.pid, SessionState::Running));
    });
}

#[test]
fn the_number_of_sessions_is_bounded_and_an_end_frees_a_place() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut running = Vec::new();
        let refused = loop {
            match link.exec(with_spec("sleep 1000", SessionSpec::default())).await {
                Ok(exec) => running.push(exec),
                Err(error) => break error,
            }
        };
        assert_eq!(code::<()>(Err(refused)), ErrorCode::LimitExceeded);
        assert!(running.len() >= 16, "at least 16 fit, not only {}", running.len());
        let name = running[0].started.session.clone().expect("a name");
        ask(&link, SessionsRequest::Kill { session: name.clone(), signal: 9 }).await.expect("it runs");
        wait_for(&link, &name, |session| session.state != SessionState::Running).await;
        link.exec(session("one-more", "sleep 1000")).await.expect("there is room");
    });
}

#[test]
fn a_session_can_be_killed_by_any_signal() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        for (name, signal) in [("term", 15), ("kill", 9), ("usr1", 10)] {
            let mut exec = link.exec(session(name, "sleep 1000 & echo $! ready; wait")).await.expect("starts");
            expect(&mut exec, " ready\n").await;
            ask(&link, SessionsRequest::Kill { session: name.into(), signal }).await.expect("it runs");
            wait_for(&link, name, |session| session.state == SessionState::Exited { code: 128 + signal }).await;
        }
    });
}

#[test]
fn a_session_that_can_not_be_killed_is_named() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let kill = |session: &str, signal| SessionsRequest::Kill { session: session.into(), signal };
        assert_eq!(code(ask(&link, kill("absent", 15)).await), ErrorCode::SessionNotFound);
        let exec = link.exec(session("one", "sleep 1000")).await.expect("starts");
        for signal in [0, 65, -1] {
            assert_eq!(code(ask(&link, kill("one", signal)).await), ErrorCode::InvalidRequest, "{signal}");
        }
        assert!(runs(exec.started.pid));
    });
}

#[test]
fn a_session_that_ended_is_still_listed_with_its_code() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        drop(link.exec(session("done", "echo out; exit 9")).await.expect("starts"));
        let info = wait_for(&link, "done", |session| session.state != SessionState::Running).await;
        assert_eq!((info.state, info.offset), (SessionState::Exited { code: 9 }, 4));
    });
}
