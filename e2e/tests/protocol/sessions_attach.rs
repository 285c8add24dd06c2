//! Attachments: replay, many viewers and one writer, slow viewers, stale tokens.

use kiln_e2e::{Agent, RawLink, bounded};
use kiln_engine::link::{Event, GuestLink, StreamError, StreamReceiver, StreamSender};
use kiln_wire::credit::WINDOW_BYTES;
use kiln_wire::{
    AttachRequest, Attached, ErrorCode, ExecRequest, ExitStatus, Kind, Message, Reply, SESSION_RING_BYTES, SessionSpec,
    SessionState, SessionsRequest, Tty,
};

use crate::common::code;
use crate::sessions::{ask, expect, list, session, wait_for, with_spec};

/// One attachment.
#[derive(Debug)]
struct Viewer {
    input: StreamSender,
    output: StreamReceiver,
    attached: Attached,
}

fn view(name: &str) -> AttachRequest {
    AttachRequest { session: name.into(), offset: None, write: false, steal: false }
}

async fn attach(link: &GuestLink, request: AttachRequest) -> Result<Viewer, StreamError> {
    let (input, mut output) = link.open(&Message::Attach(request))?;
    match output.next().await? {
        Event::Reply(reply) => match *reply {
            Reply::Attached(attached) => Ok(Viewer { input, output, attached }),
            other => panic!("{other:?} before Attached"),
        },
        other => panic!("{other:?} before Attached"),
    }
}

impl Viewer {
    /// Takes output up to and with `end`.
    async fn up_to(&mut self, end: &str) -> String {
        let mut seen = Vec::new();
        while !seen.ends_with(end.as_bytes()) {
            match self.output.next().await.expect("output") {
                Event::Data(_, bytes) => seen.extend_from_slice(&bytes),
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&seen)),
            }
        }
        String::from_utf8(seen).expect("UTF-8")
    }

    /// Takes output up to the session's end.
    async fn up_to_the_end(&mut self) -> (String, ExitStatus) {
        let mut seen = Vec::new();
        loop {
            match self.output.next().await.expect("output") {
                Event::Data(_, bytes) => seen.extend_from_slice(&bytes),
                Event::Eof => {}
                Event::Exited(exited) => return (String::from_utf8(seen).expect("UTF-8"), exited.status),
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&seen)),
            }
        }
    }
}

#[test]
fn a_viewer_gets_what_was_written_before_and_what_follows() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut first = link.exec(session("one", "echo before; read x; echo after; sleep 1000")).await.expect("starts");
        expect(&mut first, "before\n").await;
        let mut viewer = attach(&link, view("one")).await.expect("it runs");
        assert_eq!((viewer.attached.offset, viewer.attached.lost, viewer.attached.pid), (0, false, first.started.pid));
        assert_eq!(viewer.up_to("\n").await, "before\n");
        first.input.send(b"\n").await.expect("it runs");
        assert_eq!(viewer.up_to("\n").await, "after\n");
        expect(&mut first, "after\n").await;
    });
}

#[test]
fn a_client_that_returns_continues_where_it_stopped() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut first = link.exec(session("one", "printf 0123456789; sleep 1000")).await.expect("starts");
        expect(&mut first, "9").await;
        for offset in [0, 4, 9] {
            let mut viewer = attach(&link, AttachRequest { offset: Some(offset), ..view("one") }).await.expect("runs");
            assert_eq!((viewer.attached.offset, viewer.attached.lost), (offset, false));
            assert_eq!(viewer.up_to("9").await, "0123456789"[offset as usize..]);
        }
    });
}

#[test]
fn an_offset_past_the_end_waits_for_later_output() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut first = link.exec(session("one", "printf 0123; read x; printf 456; sleep 1000")).await.expect("starts");
        expect(&mut first, "3").await;
        for offset in [4, 100, u64::MAX] {
            let viewer = attach(&link, AttachRequest { offset: Some(offset), ..view("one") }).await.expect("runs");
            assert_eq!((viewer.attached.offset, viewer.attached.lost), (4, false), "{offset}");
        }
        let mut viewer = attach(&link, AttachRequest { offset: Some(4), ..view("one") }).await.expect("runs");
        first.input.send(b"\n").await.expect("it runs");
        assert_eq!(viewer.up_to("6").await, "456");
    });
}

#[test]
fn output_that_the_ring_no_longer_has_is_reported_as_lost() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let count = u64::from(SESSION_RING_BYTES) * 3;
        let script = format!("head -c {count} /dev/zero | tr '\\0' x; echo end; sleep 1000");
        let mut first = link.exec(session("one", &script)).await.expect("starts");
        expect(&mut first, "end\n").await;
        let viewer = attach(&link, AttachRequest { offset: Some(0), ..view("one") }).await.expect("runs");
        assert!(viewer.attached.lost);
        assert_eq!(viewer.attached.offset, count + 4 - u64::from(SESSION_RING_BYTES));
        let info = list(&link).await.remove(0);
        assert_eq!((info.offset, info.oldest), (count + 4, viewer.attached.offset));
        let mut viewer = attach(&link, view("one")).await.expect("runs");
        assert!(!viewer.attached.lost, "no offset was requested");
        assert_eq!(viewer.up_to("end\n").await.len(), SESSION_RING_BYTES as usize);
    });
}

#[test]
fn a_ring_is_cut_at_a_character_boundary() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        for (number, shift) in ["", "x", "xy"].iter().enumerate() {
            let name = format!("ring{number}");
            let spec = SessionSpec { name: Some(name.clone()), ring_bytes: Some(4096), ..SessionSpec::default() };
            let script = format!(
                "printf '{shift}'; i=0; while [ $i -lt 500 ]; do printf '€€€€€€€€'; i=$((i+1)); done; echo end; sleep 1000"
            );
            let mut first = link.exec(with_spec(&script, spec)).await.expect("starts");
            expect(&mut first, "end\n").await;
            let mut viewer = attach(&link, view(&name)).await.expect("runs");
            let replay = viewer.up_to("end\n").await;
            assert!(replay.starts_with('€') && replay.len() > 4096 - 3 && replay.len() <= 4096, "{}", replay.len());
        }
    });
}

#[test]
fn a_session_that_ended_can_still_be_read_with_its_end() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        drop(link.exec(session("done", "echo out; exit 9")).await.expect("starts"));
        wait_for(&link, "done", |session| session.state != SessionState::Running).await;
        let mut viewer = attach(&link, view("done")).await.expect("its output is kept");
        assert_eq!(viewer.up_to_the_end().await, ("out\n".to_owned(), ExitStatus::Code(9)));
    });
}

#[test]
fn many_viewers_see_the_same() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let script = "read x; i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done; exit 2";
        let first = link.exec(session("one", script)).await.expect("starts");
        let mut viewers = Vec::new();
        for _ in 0..8 {
            viewers.push(attach(&link, view("one")).await.expect("it runs"));
        }
        assert_eq!(list(&link).await[0].attached, 9);
        first.input.send(b"\n").await.expect("it runs");
        let expected: String = (0..500).map(|number| format!("line {number}\n")).collect();
        for viewer in &mut viewers {
            assert_eq!(viewer.up_to_the_end().await, (expected.clone(), ExitStatus::Code(2)));
        }
    });
}

#[test]
fn a_session_has_one_writer_at_a_time() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let first = link.exec(session("one", "cat")).await.expect("starts");
        let write = || AttachRequest { write: true, ..view("one") };
        assert_eq!(code(attach(&link, write()).await), ErrorCode::SessionBusy, "who started it writes");
        drop(first);
        wait_for(&link, "one", |session| session.attached == 0).await;
        let mut writer = attach(&link, write()).await.expect("there is no writer");
        assert_eq!(code(attach(&link, write()).await), ErrorCode::SessionBusy);
        writer.input.send(b"mine\n").await.expect("it runs");
        assert_eq!(writer.up_to("\n").await, "mine\n");
    });
}

#[test]
fn the_right_to_write_can_be_stolen() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let _first = link.exec(session("one", "cat")).await.expect("starts");
        let steal = AttachRequest { write: true, steal: true, ..view("one") };
        let mut thief = attach(&link, steal).await.expect("it runs");
        thief.input.send(b"stolen\n").await.expect("it runs");
        assert_eq!(thief.up_to("\n").await, "stolen\n");
        assert_eq!(code(attach(&link, AttachRequest { write: true, ..view("one") }).await), ErrorCode::SessionBusy);
    });
}

#[test]
fn a_viewer_can_not_write() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let first = link.exec(session("one", "cat")).await.expect("starts");
        let viewer = attach(&link, view("one")).await.expect("it runs");
        // The input is refused or dropped, and never reaches the session.
        let _ = viewer.input.send(b"not mine\n").await;
        link.ping().await.expect("the agent has seen it");
        first.input.send(b"mine\n").await.expect("it runs");
        let mut other = attach(&link, view("one")).await.expect("it runs");
        assert_eq!(other.up_to("\n").await, "mine\n");
    });
}

#[test]
fn a_token_detaches_its_own_attachment_and_no_other() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let _first = link.exec(session("one", "echo hi; sleep 1000")).await.expect("starts");
        let mut stale = attach(&link, view("one")).await.expect("it runs");
        let fresh = attach(&link, view("one")).await.expect("it runs");
        assert_ne!(stale.attached.token, fresh.attached.token);
        let detach = |token: &str| SessionsRequest::Detach { session: "one".into(), token: token.into() };

        ask(&link, detach(&stale.attached.token)).await.expect("it is attached");
        loop {
            match stale.output.next().await {
                Ok(Event::Done(_)) | Err(_) => break,
                Ok(Event::Data(..) | Event::Eof) => {}
                other => panic!("{other:?}"),
            }
        }
        wait_for(&link, "one", |session| session.attached == 2).await;
        for token in [stale.attached.token.as_str(), "", "guess"] {
            assert_eq!(code(ask(&link, detach(token)).await), ErrorCode::SessionNotFound);
        }
        assert_eq!(list(&link).await[0].attached, 2, "a stale token changes nothing");
        ask(&link, detach(&fresh.attached.token)).await.expect("it is attached");
    });
}

#[test]
fn a_session_that_does_not_exist_can_not_be_attached() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        for name in ["absent", "", "../x"] {
            assert_eq!(code(attach(&link, view(name)).await), ErrorCode::SessionNotFound);
        }
    });
}

#[test]
fn a_writer_resizes_and_signals_the_session() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let tty = Some(Tty { rows: 24, cols: 80, term: String::new() });
        let script = "trap 'stty size' WINCH; trap 'exit 6' USR1; echo ready; while :; do sleep 0.01; done";
        drop(link.exec(ExecRequest { tty, ..session("one", script) }).await.expect("starts"));
        wait_for(&link, "one", |session| session.attached == 0 && session.offset >= 7).await;
        let mut writer = attach(&link, AttachRequest { write: true, ..view("one") }).await.expect("it runs");
        assert_eq!(writer.up_to("ready\r\n").await, "ready\r\n");
        writer.input.resize(40, 100).expect("it runs");
        assert_eq!(writer.up_to("\n").await, "40 100\r\n");
        writer.input.signal(10).expect("it runs");
        assert_eq!(writer.up_to_the_end().await.1, ExitStatus::Code(6));
    });
}

#[test]
fn a_slow_viewer_gets_the_range_it_missed_and_delays_no_other_viewer() {
    let (_agent, mut raw) = Agent::greeted();
    let count = u64::from(WINDOW_BYTES) * 4;
    let script = format!("read x; head -c {count} /dev/zero; echo end; sleep 1000");
    raw.send(1, &Message::Exec(Box::new(session("one", &script))));
    while raw.frame_of(1).kind != Kind::STARTED {}
    // Neither stream gives credit before the session has written everything.
    raw.send(3, &Message::Attach(view("one")));
    raw.send(1, &Message::Data(kiln_wire::Channel::In, b"\n"));
    let mut by_three = 0;
    wait_for_offset(&mut raw, count + 4, &mut by_three);
    assert!(by_three <= u64::from(WINDOW_BYTES));
    raw.send(3, &Message::Credit(by_three as u32));
    let (from, to) = lagged(&mut raw, &mut by_three);
    assert_eq!(from, by_three, "what was sent, without a hole");
    assert!(to > from && to <= count + 4);
    let mut offset = to;
    while offset < count + 4 {
        let frame = raw.frame_of(3);
        assert!(frame.kind.is_data(), "{frame:?}");
        offset += frame.payload.len() as u64;
        raw.send(3, &Message::Credit(kiln_wire::credit::frame_cost(frame.payload.len()) as u32));
    }
    assert_eq!(offset, count + 4);
}

/// Lists sessions until this one has written so many bytes. Counts data of stream 3 that arrives meanwhile.
fn wait_for_offset(raw: &mut RawLink, offset: u64, received: &mut u64) {
    loop {
        raw.send(5, &Message::Sessions(SessionsRequest::List));
        let mut reached = false;
        loop {
            let frame = raw.frame();
            match frame.message() {
                Message::Data(_, bytes) if frame.stream == 3 => *received += bytes.len() as u64,
                Message::Reply(reply) if frame.stream == 5 => {
                    reached = matches!(&*reply, Reply::Sessions(sessions) if sessions[0].offset == offset);
                }
                Message::Done(_) if frame.stream == 5 => break,
                _ => {}
            }
        }
        if reached {
            return;
        }
    }
}

/// Waits for the message that stream 3 lags. Counts data that arrives before it.
fn lagged(raw: &mut RawLink, received: &mut u64) -> (u64, u64) {
    loop {
        let frame = raw.frame_of(3);
        match frame.message() {
            Message::Reply(reply) => match *reply {
                Reply::Lagged(lagged) => return (lagged.from, lagged.to),
                Reply::Attached(_) => {}
                other => panic!("{other:?}"),
            },
            Message::Data(_, bytes) => {
                *received += bytes.len() as u64;
                raw.send(3, &Message::Credit(kiln_wire::credit::frame_cost(bytes.len()) as u32));
            }
            other => panic!("{other:?}"),
        }
    }
}
