//! The end of commands: signals, kills, processes that are left behind, a link that ends.

use kiln_e2e::{Agent, bounded, until};
use kiln_engine::link::{Event, Exec, GuestLink};
use kiln_wire::credit::{FRAME_COST_MIN, WINDOW_BYTES, frame_cost};
use kiln_wire::{Channel, ErrorCode, ExecRequest, ExitStatus, Exited, Kind, Message, Signal, Stdin};

use crate::common::{run, runs, sh};

const SIGHUP: i32 = 1;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// Starts a script that prints `ready` and some pids as its first line.
async fn start(link: &GuestLink, script: &str) -> (Exec, Vec<u32>) {
    let mut exec = link.exec(sh(script)).await.expect("starts");
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        match exec.output.next().await.expect("output") {
            Event::Data(_, bytes) => line.extend_from_slice(&bytes),
            other => panic!("{other:?} before the first line"),
        }
    }
    let line = String::from_utf8(line).expect("UTF-8");
    let pids = line.strip_prefix("ready").expect("the script's first line").split_whitespace();
    let pids = pids.map(|pid| pid.parse().expect("a pid")).collect();
    (exec, pids)
}

async fn end(exec: &mut Exec) -> Exited {
    loop {
        if let Event::Exited(exited) = exec.output.next().await.expect("the end") {
            return exited;
        }
    }
}

fn gone(pids: &[u32]) {
    until("the end of every process", || pids.iter().all(|pid| !runs(*pid)).then_some(()));
}

#[test]
fn a_signal_that_ends_a_command_is_reported() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        for signal in [SIGHUP, 6, SIGKILL, SIGTERM, 64] {
            let exited = run(&link, sh(&format!("kill -{signal} $$; sleep 100"))).await.exited;
            assert_eq!(exited.status, ExitStatus::Signal(signal));
        }
    });
}

#[test]
fn a_running_command_can_be_killed() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let (mut exec, _) = start(&link, "echo ready; sleep 1000").await;
        exec.input.signal(SIGKILL).expect("it runs");
        assert_eq!(end(&mut exec).await.status, ExitStatus::Signal(SIGKILL));
    });
}

#[test]
fn a_command_can_catch_a_signal_and_any_may_be_sent() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let script = "trap 'echo caught; exit 7' TERM; trap : USR1; echo ready; while :; do sleep 0.01; done";
        let (mut exec, _) = start(&link, script).await;
        exec.input.signal(10).expect("it runs");
        exec.input.signal(SIGTERM).expect("it runs");
        // The whole group gets them, so the shell also prints a message about its child on stderr.
        let mut caught = Vec::new();
        loop {
            match exec.output.next().await.expect("output") {
                Event::Data(Channel::Out, bytes) => caught.extend_from_slice(&bytes),
                Event::Exited(exited) => break assert_eq!(exited.status, ExitStatus::Code(7)),
                _ => {}
            }
        }
        assert_eq!(caught, b"caught\n");
    });
}

#[test]
fn a_real_time_signal_is_a_signal() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let (mut exec, _) = start(&link, "echo ready; sleep 1000").await;
        exec.input.signal(64).expect("it runs");
        assert_eq!(end(&mut exec).await.status, ExitStatus::Signal(64));
    });
}

#[test]
fn a_number_that_is_not_a_signal_is_refused() {
    for signal in [0, 65, -1, i32::MIN, i32::MAX] {
        let (_agent, mut raw) = Agent::greeted();
        raw.send(1, &Message::Exec(Box::new(sh("echo ready; sleep 1000"))));
        while raw.frame_of(1).kind != Kind::DATA_OUT {}
        raw.send(1, &Message::Signal(Signal { signal }));
        let fault = raw.fault_of(1);
        assert_eq!(fault.code, ErrorCode::InvalidRequest, "{fault}");
        assert!(fault.message.contains(&signal.to_string()), "{fault}");
        raw.ping();
    }
}

#[test]
fn a_kill_reaches_the_whole_process_group() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let script = "sleep 1000 & a=$!; sh -c 'sleep 1000; :' & echo ready $a $!; wait";
        let (mut exec, pids) = start(&link, script).await;
        exec.input.signal(SIGKILL).expect("it runs");
        assert_eq!(end(&mut exec).await.status, ExitStatus::Signal(SIGKILL));
        gone(&pids);
    });
}

#[test]
fn a_cancel_kills_the_whole_process_group() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let (mut exec, pids) = start(&link, "trap '' TERM HUP; sleep 1000 & echo ready $$ $!; wait").await;
        exec.input.cancel().expect("it runs");
        let last = loop {
            match exec.output.next().await {
                Ok(Event::Data(..) | Event::Eof) => {}
                last => break last,
            }
        };
        assert_eq!(crate::common::code(last), ErrorCode::Cancelled);
        gone(&pids);
    });
}

#[test]
fn dropping_an_exec_kills_it() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let (exec, pids) = start(&link, "sleep 1000 & echo ready $$ $!; wait").await;
        drop(exec);
        gone(&pids);
        run(&link, sh("true")).await;
    });
}

#[test]
fn a_link_that_drops_kills_its_commands() {
    bounded(async {
        let agent = Agent::listening();
        let link = agent.link().await.expect("the agent answers");
        let (exec, pids) = start(&link, "trap '' HUP TERM; sleep 1000 & echo ready $$ $!; wait").await;
        drop((exec, link));
        gone(&pids);
        until("their reaping", || agent.children().is_empty().then_some(()));
    });
}

#[test]
fn an_agent_of_one_link_ends_with_it_and_leaves_no_command() {
    let (mut agent, mut raw) = Agent::greeted();
    raw.send(1, &Message::Exec(Box::new(sh("sleep 1000 & echo $$ $!; wait"))));
    let line = loop {
        let frame = raw.frame_of(1);
        if frame.kind == Kind::DATA_OUT {
            break String::from_utf8(frame.payload).expect("UTF-8");
        }
    };
    let pids: Vec<u32> = line.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect();
    raw.close();
    assert!(agent.wait_exit().success());
    gone(&pids);
}

#[test]
fn a_child_that_holds_the_output_does_not_delay_the_exit() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let output = run(&link, sh("sleep 1000 & echo $!; exit 3")).await;
        assert_eq!(output.exited.status, ExitStatus::Code(3));
        assert!(output.exited.pipes_held);
        let pid = String::from_utf8(output.stdout).expect("UTF-8").trim().parse().expect("a pid");
        gone(&[pid]);
    });
}

#[test]
fn a_child_that_never_stops_writing_does_not_delay_the_exit() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let exited = run(&link, sh("yes & exit 0")).await.exited;
        assert_eq!((exited.status, exited.pipes_held), (ExitStatus::Code(0), true));
    });
}

#[test]
fn a_child_that_closes_the_output_is_not_killed_by_the_drain() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let output = run(&link, sh("sleep 0.02 && echo late & exit 0")).await;
        assert_eq!(output.stdout, b"late\n");
        assert!(!output.exited.pipes_held);
    });
}

#[test]
fn output_that_is_not_read_does_not_delay_the_exit() {
    let (_agent, mut raw) = Agent::greeted();
    // More than the window and less than window and pipe together: the command ends while its output waits.
    let count = WINDOW_BYTES + 4096;
    raw.send(1, &Message::Exec(Box::new(sh(&format!("head -c {count} /dev/zero; exit 6")))));
    let (mut received, mut cost) = (0, 0);
    while cost + FRAME_COST_MIN <= WINDOW_BYTES as usize {
        let frame = raw.frame_of(1);
        if frame.kind.is_data() {
            received += frame.payload.len();
            cost += frame_cost(frame.payload.len());
        }
    }
    raw.send(1, &Message::Credit(WINDOW_BYTES));
    let frames = raw.to_the_end_of(1);
    let rest: usize = frames.iter().filter(|frame| frame.kind.is_data()).map(|frame| frame.payload.len()).sum();
    assert_eq!(received + rest, count as usize);
    let Some(Message::Exited(exited)) = frames.last().map(|frame| frame.message()) else { panic!("{frames:?}") };
    assert_eq!(exited.status, ExitStatus::Code(6));
}

#[test]
fn a_command_that_was_stopped_can_be_continued_and_killed() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let request = ExecRequest { stdin: Stdin::Stream, ..sh("echo ready; read x; exit 9") };
        let mut exec = link.exec(request).await.expect("starts");
        assert!(matches!(exec.output.next().await, Ok(Event::Data(..))));
        exec.input.signal(19).expect("it runs");
        exec.input.send(b"go\n").await.expect("it runs");
        exec.input.signal(18).expect("it runs");
        assert_eq!(end(&mut exec).await.status, ExitStatus::Code(9));
    });
}
