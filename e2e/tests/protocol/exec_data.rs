//! What goes into a command and what comes out of it.

use kiln_e2e::{Agent, RawLink, bounded};
use kiln_engine::link::Event;
use kiln_wire::credit::{FRAME_COST_MIN, WINDOW_BYTES, frame_cost};
use kiln_wire::{Channel, ExecRequest, ExitStatus, Kind, Message, Stdin};

use crate::common::{OUTPUT_BYTES_MAX, command, run, sh};

/// Bytes without a pattern, so that no bug can keep the pattern intact.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..count).map(step).collect()
}

#[test]
fn stdout_and_stderr_stay_apart() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let output = run(&link, sh("echo out; echo err >&2; echo more; echo worse >&2")).await;
        assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\nmore\n"[..], &b"err\nworse\n"[..]));
    });
}

#[test]
fn stdin_is_streamed_to_its_end() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let output = link.run(command(&["cat"]), b"one\ntwo", 1 << 20).await.expect("runs");
        assert_eq!(output.stdout, b"one\ntwo");
        assert_eq!(output.exited.status, ExitStatus::Code(0));
    });
}

#[test]
fn a_stdin_that_ends_before_it_begins_is_empty() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut exec = link.exec(ExecRequest { stdin: Stdin::Stream, ..sh("wc -c") }).await.expect("starts");
        exec.input.eof().await.expect("the command runs");
        let Event::Data(Channel::Out, count) = exec.output.next().await.expect("output") else { panic!("no output") };
        assert_eq!(count.trim_ascii(), b"0");
    });
}

#[test]
fn four_mebibytes_of_noise_pass_both_ways_at_once() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let data = noise(4 << 20);
        let output = link.run(command(&["cat"]), &data, OUTPUT_BYTES_MAX).await.expect("runs");
        assert!(output.stdout == data, "{} bytes came back changed", output.stdout.len());
    });
}

#[test]
fn input_is_delivered_at_once_for_any_last_byte() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut exec = link.exec(ExecRequest { stdin: Stdin::Stream, ..command(&["cat"]) }).await.expect("starts");
        // A reset marker starts with 0xf8. The agent must deliver this byte without waiting for the next one.
        for byte in [0x00, 0x0a, 0xf8, 0xff] {
            exec.input.send(&[byte]).await.expect("the command runs");
            assert_eq!(exec.output.next().await, Ok(Event::Data(Channel::Out, vec![byte].into())));
        }
    });
}

#[test]
fn input_that_contains_the_reset_magic_is_only_input() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let magic = kiln_wire::reset::marker(&[3; 16]);
        let data = [&magic[..], b"x", &magic, &magic[..15], &magic[1..]].concat();
        let output = link.run(command(&["cat"]), &data, 1 << 20).await.expect("runs");
        assert_eq!(output.stdout, data);
    });
}

#[test]
fn one_megabyte_of_output_arrives_whole() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let output = run(&link, sh("yes 0123456789abcde | head -c 1000000")).await;
        assert_eq!(output.stdout.len(), 1_000_000);
        assert!(output.stdout.chunks(16).all(|line| b"0123456789abcde\n".starts_with(line)));
    });
}

/// The agent may keep one window of each stream, and not all that a command writes.
const RSS_GROWTH_MAX_BYTES: u64 = 4 << 20;

#[test]
fn a_hundred_megabytes_of_output_do_not_grow_the_agent() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        run(&link, sh("head -c 1000000 /dev/zero")).await;
        let before = agent.rss_peak_bytes();
        let mut exec = link.exec(sh("head -c 100000000 /dev/zero")).await.expect("starts");
        let mut count = 0;
        while let Event::Data(_, bytes) = exec.output.next().await.expect("output") {
            count += bytes.len();
        }
        let grown = agent.rss_peak_bytes() - before;
        assert_eq!(count, 100_000_000);
        assert!(grown <= RSS_GROWTH_MAX_BYTES, "grew by {grown} bytes");
    });
}

#[test]
fn a_command_whose_output_is_not_read_waits_and_does_not_grow_the_agent() {
    let (agent, mut raw) = Agent::greeted();
    raw.ping();
    let before = agent.rss_peak_bytes();
    raw.send(1, &Message::Exec(Box::new(sh("head -c 50000000 /dev/zero; echo done >&2"))));
    let mut cost = 0;
    while cost + FRAME_COST_MIN <= WINDOW_BYTES as usize {
        let frame = raw.frame_of(1);
        cost += if frame.kind.is_data() { frame_cost(frame.payload.len()) } else { 0 };
    }
    assert!(cost <= WINDOW_BYTES as usize, "not one byte over the window: {cost}");
    raw.ping();
    let grown = agent.rss_peak_bytes() - before;
    assert!(grown <= RSS_GROWTH_MAX_BYTES, "grew by {grown} bytes");
}

#[test]
fn a_command_that_closes_its_stdin_continues_and_the_rest_is_dropped() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let data = noise(2 << 20);
        let script = "exec 0<&-; echo closed; sleep 0.05; echo still; exit 5";
        let output = link.run(sh(script), &data, 1 << 20).await.expect("runs");
        assert_eq!(output.stdout, b"closed\nstill\n");
        assert_eq!(output.exited.status, ExitStatus::Code(5));
    });
}

#[test]
fn a_command_that_ends_without_reading_its_stdin_ends_at_once() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let output = link.run(sh("exit 4"), &noise(2 << 20), 1 << 20).await.expect("runs");
        assert_eq!(output.exited.status, ExitStatus::Code(4));
    });
}

#[test]
fn a_reader_that_exits_early_causes_a_sigpipe_for_its_writer() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let output = run(&link, sh("yes | head -n 1; echo $?")).await;
        assert_eq!(output.stdout, b"y\n0\n");
    });
}

#[test]
fn output_arrives_while_the_command_runs() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let request = ExecRequest { stdin: Stdin::Stream, ..sh("printf ready; read x; printf $x >&2") };
        let mut exec = link.exec(request).await.expect("starts");
        assert_eq!(exec.output.next().await, Ok(Event::Data(Channel::Out, b"ready"[..].into())));
        exec.input.send(b"go\n").await.expect("the command runs");
        assert_eq!(exec.output.next().await, Ok(Event::Data(Channel::Err, b"go"[..].into())));
    });
}

#[test]
fn data_frames_are_never_larger_than_a_writers_turn() {
    let (_agent, mut raw) = Agent::greeted();
    raw.send(1, &Message::Exec(Box::new(sh("head -c 1000000 /dev/zero"))));
    let frames = raw.to_the_end_of(1);
    let sizes = frames.iter().filter(|frame| frame.kind == Kind::DATA_OUT).map(|frame| frame.payload.len());
    assert!(sizes.clone().all(|size| (1..=kiln_wire::WRITE_CHUNK_BYTES).contains(&size)));
    assert_eq!(sizes.sum::<usize>(), 1_000_000);
}

#[test]
fn frames_of_an_exec_arrive_in_order_and_end_with_exited() {
    let (_agent, mut raw) = Agent::greeted();
    raw.send(1, &Message::Exec(Box::new(sh("echo hi"))));
    let kinds: Vec<Kind> =
        raw.to_the_end_of(1).iter().map(|frame| frame.kind).filter(|kind| *kind != Kind::EOF).collect();
    assert_eq!(kinds, [Kind::STARTED, Kind::DATA_OUT, Kind::EXITED]);
    raw.send(1, &Message::Cancel);
    raw.send(1, &Message::Credit(1));
    nothing_more_on(&mut raw, 1);
}

/// Checks that nothing more arrives on a stream that has ended, whatever the host sends on it.
fn nothing_more_on(raw: &mut RawLink, stream: u32) {
    raw.send(0, &Message::Ping(b"fence"));
    loop {
        let frame = raw.frame();
        assert_ne!(frame.stream, stream, "{frame:?}");
        if frame.kind == Kind::PONG {
            return;
        }
    }
}
