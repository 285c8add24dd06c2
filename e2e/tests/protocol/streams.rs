//! Many streams on one link: no stream waits for another, and no stream breaks another.

use kiln_e2e::{Agent, RawLink, bounded, until};
use kiln_engine::link::Event;
use kiln_wire::credit::{WINDOW_BYTES, WINDOW_BYTES_MAX};
use kiln_wire::{Channel, ErrorCode, ExecRequest, ExitStatus, Kind, Message, MetricsRequest, Stdin, WRITE_CHUNK_BYTES};
use tokio::task::JoinSet;

use crate::common::{command, run, runs, sh};

#[test]
fn ten_commands_at_once_get_their_own_output() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut running = JoinSet::new();
        for number in 0..10_i32 {
            let link = link.clone();
            running.spawn(async move {
                let input = vec![b'0' + number as u8; 100_000];
                let output = link.run(sh(&format!("cat; exit {number}")), &input, 1 << 20).await.expect("runs");
                assert_eq!(output.exited.status, ExitStatus::Code(number));
                assert!(output.stdout == input, "bytes of {number} were mixed up");
            });
        }
        assert_eq!(running.join_all().await.len(), 10);
    });
}

#[test]
fn twenty_streams_finish_while_one_reader_is_stalled_for_the_whole_time() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut stalled = link.exec(command(&["yes"])).await.expect("starts");
        let mut running = JoinSet::new();
        for _ in 0..20 {
            let link = link.clone();
            running.spawn(async move {
                let output = run(&link, sh("head -c 500000 /dev/zero")).await;
                assert_eq!(output.stdout.len(), 500_000);
            });
        }
        assert_eq!(running.join_all().await.len(), 20);
        assert!(
            matches!(stalled.output.next().await, Ok(Event::Data(Channel::Out, bytes)) if bytes.starts_with(b"y\ny\n"))
        );
    });
}

#[test]
fn a_command_that_does_not_read_its_input_does_not_stop_others() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let stuck = link.exec(ExecRequest { stdin: Stdin::Stream, ..sh("sleep 1000") }).await.expect("starts");
        let feeder = tokio::spawn(async move { stuck.input.send(&vec![0; 10 << 20]).await });
        for _ in 0..5 {
            let output = link.run(command(&["cat"]), &vec![7; 300_000], 1 << 20).await.expect("runs");
            assert_eq!(output.stdout.len(), 300_000);
        }
        assert!(!feeder.is_finished(), "ten mebibytes do not fit a window");
        feeder.abort();
    });
}

#[test]
fn data_over_the_window_ends_its_stream_alone() {
    let (_agent, mut raw) = Agent::greeted();
    raw.send(1, &Message::Exec(Box::new(ExecRequest { stdin: Stdin::Stream, ..sh("echo $$; sleep 1000") })));
    let pid = loop {
        let frame = raw.frame_of(1);
        if frame.kind == Kind::DATA_OUT {
            break String::from_utf8(frame.payload).expect("UTF-8").trim().parse().expect("a pid");
        }
    };
    // More than a window and a full pipe.
    for _ in 0..2 * WINDOW_BYTES as usize / WRITE_CHUNK_BYTES {
        raw.send(1, &Message::Data(Channel::In, &[0; WRITE_CHUNK_BYTES]));
    }
    assert_eq!(raw.fault_of(1).code, ErrorCode::FlowControl);
    until("the end of the command", || (!runs(pid)).then_some(()));
    assert_runs(&mut raw, 3);
}

#[test]
fn one_frame_larger_than_the_window_is_an_overrun() {
    let (_agent, mut raw) = Agent::greeted();
    raw.send(1, &Message::Exec(Box::new(ExecRequest { stdin: Stdin::Stream, ..sh("sleep 1000") })));
    raw.send(1, &Message::Data(Channel::In, &vec![0; WINDOW_BYTES as usize + 1]));
    assert_eq!(raw.fault_of(1).code, ErrorCode::FlowControl);
    assert_runs(&mut raw, 3);
}

#[test]
fn a_whole_window_is_allowed_and_credited_once_it_is_read() {
    let (_agent, mut raw) = Agent::greeted();
    raw.send(1, &Message::Exec(Box::new(ExecRequest { stdin: Stdin::Stream, ..sh("cat > /dev/null") })));
    raw.send(1, &Message::Data(Channel::In, &vec![0; WINDOW_BYTES as usize]));
    let mut credited = 0;
    while credited < WINDOW_BYTES / 4 * 3 {
        if let Message::Credit(bytes) = raw.frame_of(1).message() {
            credited += bytes;
        }
    }
    raw.send(1, &Message::Data(Channel::In, &vec![0; credited as usize]));
    raw.send(1, &Message::Eof);
    let last = raw.to_the_end_of(1).pop().expect("a last frame");
    assert!(matches!(last.message(), Message::Exited(exited) if exited.status == ExitStatus::Code(0)));
}

#[test]
fn more_credit_than_a_window_is_never_used() {
    let (_agent, mut raw) = Agent::greeted();
    raw.send(1, &Message::Exec(Box::new(sh("read x < /dev/null; head -c 3000000 /dev/zero"))));
    for _ in 0..10 {
        raw.send(1, &Message::Credit(u32::MAX));
    }
    let mut received = 0;
    while received < WINDOW_BYTES as usize {
        let frame = raw.frame_of(1);
        received += if frame.kind.is_data() { frame.payload.len() } else { 0 };
    }
    // The bytes that were sent before the credit arrived, and the largest window.
    raw.send(0, &Message::Ping(b"fence"));
    loop {
        let frame = raw.frame();
        match frame.kind {
            Kind::PONG => break,
            kind if kind.is_data() => received += frame.payload.len(),
            _ => {}
        }
    }
    assert!(received <= (WINDOW_BYTES + WINDOW_BYTES_MAX) as usize, "{received}");
}

#[test]
fn a_stream_id_in_use_is_refused() {
    let (_agent, mut raw) = Agent::greeted();
    raw.send(1, &Message::Exec(Box::new(sh("sleep 1000"))));
    assert_eq!(raw.frame_of(1).kind, Kind::STARTED);
    raw.send(1, &Message::Exec(Box::new(sh("echo second"))));
    assert_eq!(raw.fault_of(1).code, ErrorCode::StreamRefused);
    assert_runs(&mut raw, 3);
}

#[test]
fn a_stream_id_of_the_guest_or_the_link_is_refused() {
    let (_agent, mut raw) = Agent::greeted();
    for id in [2, u32::MAX - 1] {
        raw.send(id, &Message::Exec(Box::new(sh("true"))));
        assert_eq!(raw.fault_of(id).code, ErrorCode::StreamRefused);
    }
    raw.send(0, &Message::Exec(Box::new(sh("true"))));
    assert_eq!(raw.fault_of(0).code, ErrorCode::StreamRefused);
    assert_runs(&mut raw, 3);
}

#[test]
fn the_number_of_streams_is_bounded_and_an_end_frees_a_place() {
    let (agent, mut raw) = Agent::greeted();
    raw.ping();
    let before = agent.rss_peak_bytes();
    let hourly = Message::Metrics(MetricsRequest { interval_ms: Some(3_600_000) });
    let refused = (0..20_000).map(|number| 2 * number + 1).find(|id| {
        raw.send(*id, &hourly);
        raw.frame_of(*id).kind == Kind::ERROR
    });
    let refused = refused.expect("a bound of streams");
    assert!(refused > 2 * 64, "at least 64 streams fit, not only {refused}");
    raw.send(1, &Message::Cancel);
    raw.to_the_end_of(1);
    raw.send(refused + 2, &hourly);
    assert_eq!(raw.frame_of(refused + 2).kind, Kind::REPLY);
    assert!(agent.rss_peak_bytes() - before < 8 << 20, "streams that do nothing cost little");
}

#[test]
fn a_stream_id_may_be_used_again_after_its_end() {
    let (_agent, mut raw) = Agent::greeted();
    for _ in 0..3 {
        assert_runs(&mut raw, 1);
    }
    assert_runs(&mut raw, u32::MAX);
}

/// Runs a command on `stream`, which shows that the link works.
pub fn assert_runs(raw: &mut RawLink, stream: u32) {
    raw.send(stream, &Message::Exec(Box::new(sh("echo works"))));
    let frames = raw.to_the_end_of(stream);
    let output: Vec<u8> = frames.iter().filter(|f| f.kind == Kind::DATA_OUT).flat_map(|f| f.payload.clone()).collect();
    assert_eq!(output, b"works\n", "{frames:?}");
    assert_eq!(frames.last().expect("a last frame").kind, Kind::EXITED);
}
