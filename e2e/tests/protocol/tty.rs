//! Commands on a terminal.

use kiln_e2e::{Agent, bounded};
use kiln_engine::link::{Event, Exec};
use kiln_wire::{Channel, ExecRequest, ExitStatus, Exited, Kind, Message, Stdin, Tty};

use crate::common::{run, sh};

fn on_tty(script: &str, rows: u16, cols: u16, term: &str) -> ExecRequest {
    ExecRequest { tty: Some(Tty { rows, cols, term: term.into() }), stdin: Stdin::Stream, ..sh(script) }
}

/// Takes output until it ends with `expected`. A terminal may split it anywhere.
async fn expect(exec: &mut Exec, expected: &str) {
    let mut seen = Vec::new();
    while !seen.ends_with(expected.as_bytes()) {
        match exec.output.next().await {
            Ok(Event::Data(Channel::Out, bytes)) => seen.extend_from_slice(&bytes),
            other => panic!("{other:?} after {:?}, where {expected:?} belongs", String::from_utf8_lossy(&seen)),
        }
    }
}

async fn end(exec: &mut Exec) -> Exited {
    loop {
        if let Event::Exited(exited) = exec.output.next().await.expect("the end") {
            return exited;
        }
    }
}

async fn output_of(request: ExecRequest) -> String {
    let (_agent, link) = Agent::linked().await;
    let mut exec = link.exec(request).await.expect("starts");
    let mut seen = Vec::new();
    loop {
        match exec.output.next().await.expect("output") {
            Event::Data(Channel::Out, bytes) => seen.extend_from_slice(&bytes),
            Event::Eof => {}
            Event::Exited(exited) => {
                assert_eq!(exited.status, ExitStatus::Code(0));
                return String::from_utf8(seen).expect("UTF-8");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_terminal_has_the_requested_size() {
    bounded(async {
        assert_eq!(output_of(on_tty("stty size", 24, 80, "")).await, "24 80\r\n");
    });
}

#[test]
fn a_terminal_may_have_no_size_or_the_largest() {
    bounded(async {
        assert_eq!(output_of(on_tty("stty size", 0, 0, "")).await, "0 0\r\n");
        assert_eq!(output_of(on_tty("stty size", u16::MAX, u16::MAX, "")).await, "65535 65535\r\n");
    });
}

#[test]
fn all_three_files_are_the_controlling_terminal() {
    bounded(async {
        let script = "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo here > /dev/tty && echo there >&2";
        assert_eq!(output_of(on_tty(script, 24, 80, "")).await, "here\r\nthere\r\n");
    });
}

#[test]
fn the_kind_of_terminal_is_in_the_environment() {
    bounded(async {
        assert_eq!(output_of(on_tty("echo $TERM", 24, 80, "vt220")).await, "vt220\r\n");
        assert_eq!(output_of(on_tty("echo $TERM", 24, 80, "")).await, "xterm-256color\r\n");
    });
}

#[test]
fn a_terminal_echoes_what_is_typed() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut exec = link.exec(on_tty("echo ready; read x; echo got $x", 24, 80, "")).await.expect("starts");
        expect(&mut exec, "ready\r\n").await;
        exec.input.send("hü\n".as_bytes()).await.expect("it runs");
        expect(&mut exec, "hü\r\ngot hü\r\n").await;
        assert_eq!(end(&mut exec).await.status, ExitStatus::Code(0));
    });
}

#[test]
fn a_resize_is_seen_and_signalled() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.01; done";
        let mut exec = link.exec(on_tty(script, 24, 80, "")).await.expect("starts");
        expect(&mut exec, "ready\r\n").await;
        for (rows, cols) in [(50, 132), (0, 0), (u16::MAX, u16::MAX), (1, 1)] {
            exec.input.resize(rows, cols).expect("it runs");
            expect(&mut exec, &format!("{rows} {cols}\r\n")).await;
        }
    });
}

#[test]
fn the_interrupt_character_interrupts() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut exec = link.exec(on_tty("echo ready; exec sleep 1000", 24, 80, "")).await.expect("starts");
        expect(&mut exec, "ready\r\n").await;
        exec.input.send(b"\x03").await.expect("it runs");
        assert_eq!(end(&mut exec).await.status, ExitStatus::Signal(2));
    });
}

#[test]
fn the_end_of_input_ends_a_reader_on_a_terminal() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut exec = link.exec(on_tty("stty -echo; echo ready; cat; exit 4", 24, 80, "")).await.expect("starts");
        expect(&mut exec, "ready\r\n").await;
        exec.input.send(b"line\n").await.expect("it runs");
        expect(&mut exec, "line\r\n").await;
        exec.input.eof().await.expect("it runs");
        assert_eq!(end(&mut exec).await.status, ExitStatus::Code(4));
    });
}

#[test]
fn each_program_that_reads_gets_the_end_of_input() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        // The first end follows a line without a newline, before any program reads.
        let mut exec =
            link.exec(on_tty("stty -echo; echo ready; cat; cat; cat; exit 4", 24, 80, "")).await.expect("starts");
        expect(&mut exec, "ready\r\n").await;
        exec.input.send(b"rest").await.expect("it runs");
        exec.input.eof().await.expect("it runs");
        expect(&mut exec, "rest").await;
        assert_eq!(end(&mut exec).await.status, ExitStatus::Code(4));
    });
}

#[test]
fn the_end_of_input_ends_a_program_that_edits_its_own_lines_later() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        // Like a shell: it drops unknown keys, and Ctrl-D ends it. An end that was typed before is lost.
        let key = "dd bs=1 count=1 2>/dev/null | od -An -tu1 | tr -d ' '";
        let script = format!("cat; stty -icanon -echo; until [ \"$({key})\" = 4 ]; do :; done; exit 5");
        let mut exec = link.exec(on_tty(&script, 24, 80, "")).await.expect("starts");
        exec.input.eof().await.expect("it runs");
        assert_eq!(end(&mut exec).await.status, ExitStatus::Code(5));
    });
}

#[test]
fn the_last_output_before_the_end_is_not_lost() {
    bounded(async {
        let script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done";
        let output = output_of(on_tty(script, 24, 80, "")).await;
        assert_eq!(output.lines().count(), 2000);
        assert!(output.ends_with("line 1999\r\n"));
    });
}

#[test]
fn a_process_that_stays_on_the_terminal_does_not_delay_the_exit() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let script = "trap '' HUP; sleep 1000 & echo ready; exit 3";
        let mut exec = link.exec(on_tty(script, 24, 80, "")).await.expect("starts");
        expect(&mut exec, "ready\r\n").await;
        assert_eq!(end(&mut exec).await.status, ExitStatus::Code(3));
    });
}

#[test]
fn a_resize_without_a_terminal_harms_nothing() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let exec = link.exec(sh("sleep 1000")).await.expect("starts");
        exec.input.resize(10, 10).expect("it runs");
        assert_eq!(run(&link, sh("echo fine")).await.stdout, b"fine\n");
    });
}

#[test]
fn many_short_lines_on_a_terminal_arrive_in_few_frames() {
    const LINES: usize = 20_000;
    let (_agent, mut raw) = Agent::greeted();
    let script = format!("i=0; while [ $i -lt {LINES} ]; do echo $i; i=$((i+1)); done");
    raw.send(1, &Message::Exec(Box::new(on_tty(&script, 24, 80, ""))));
    let frames = raw.to_the_end_of(1);
    let data: Vec<_> = frames.iter().filter(|frame| frame.kind == Kind::DATA_OUT).collect();
    let lines: usize = data.iter().map(|frame| frame.payload.iter().filter(|byte| **byte == b'\n').count()).sum();
    assert_eq!(lines, LINES);
    // The worst case is a frame for each line. The agent joins the lines of some milliseconds.
    assert!(data.len() <= LINES / 10, "{} frames", data.len());
}

#[test]
fn a_key_is_echoed_on_an_idle_terminal() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut exec = link.exec(on_tty("stty -icanon; echo ready; cat", 24, 80, "")).await.expect("starts");
        expect(&mut exec, "ready\r\n").await;
        for key in ["a", "b", "c", "d"] {
            exec.input.send(key.as_bytes()).await.expect("it runs");
            // The echo of the key, and the copy that `cat` writes.
            expect(&mut exec, &key.repeat(2)).await;
        }
    });
}
