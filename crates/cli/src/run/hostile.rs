//! Agents that stall or dribble in each phase of a run. None of them delays kiln longer than the phase's bound.
//!
//! The agent is a thread of this test. The fake engine starts a script instead of an agent. The script puts a symlink
//! to the thread's socket at the path that the agent would have bound.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser as _;
use kiln_engine::deadlines::OVERTIME;
use kiln_engine::guest::Watch;
use kiln_engine::{FakeEngine, Guest, VmSpec};
use kiln_wire::{
    Channel, Decoder, ExitStatus, Exited, Frame, Hello, Kind, Message, Started, StreamId, VERSION, encode,
};

use super::job::{Job, check};
use super::report::Report;
use super::step::Phase;
use crate::args::{Args, Command};
use crate::failure::TIMED_OUT;
use crate::interrupt::Interrupts;

/// `--timeout` and `--grace` of these runs.
const TIMEOUT: Duration = Duration::from_secs(1);
const GRACE: Duration = Duration::from_millis(300);
/// How far a bound may be missed.
const SLACK: Duration = Duration::from_secs(1);
/// Time between two bytes of an agent that dribbles.
const DRIBBLE: Duration = Duration::from_millis(100);
const FOR_THE_VM: Duration = Duration::from_secs(20);

/// The phase in which an agent misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    CopyIn,
    Start,
    /// In the output of the command.
    Output,
    CopyOut,
    /// While the files of a command that timed out are copied out.
    CopyOutLate,
}

/// How an agent misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Stall,
    Dribble,
}

/// Serves one link.
fn serve(mut stream: UnixStream, stop: Stop, then: Then) -> std::io::Result<()> {
    let hello = Hello { version: VERSION, agent: "hostile".into(), capabilities: vec![], boot_id: "b".into() };
    send(&mut stream, StreamId::LINK, &Message::Hello(hello))?;
    let mut decoder = Decoder::new();
    let mut buffer = [0; 4096];
    loop {
        while let Some(frame) = decoder.next().expect("kiln sends frames") {
            answer(&mut stream, frame, stop, then)?;
        }
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => decoder.push(&buffer[..count]),
        }
    }
}

fn answer(stream: &mut UnixStream, frame: Frame<'_>, stop: Stop, then: Then) -> std::io::Result<()> {
    let id = frame.stream;
    match frame.kind {
        Kind::PING => send(stream, StreamId::LINK, &Message::Pong(frame.payload)),
        Kind::EXEC => {
            let mut started = Vec::new();
            Message::Started(Started { pid: 1, session: None }).encode(id, &mut started).expect("small");
            if stop == Stop::Start {
                return dribble(stream, then, started);
            }
            stream.write_all(&started)?;
            match stop {
                Stop::Output => {
                    let mut output = Vec::new();
                    (0..1000).for_each(|_| encode(Channel::Out.kind(), id, b"x", &mut output).expect("small"));
                    dribble(stream, then, output)
                }
                Stop::CopyOutLate => {
                    thread::sleep(TIMEOUT);
                    exited(stream, id, true)
                }
                _ => exited(stream, id, false),
            }
        }
        Kind::FILES if stop == Stop::CopyIn => {
            let mut credits = Vec::new();
            (0..1000).for_each(|_| Message::Credit(1).encode(id, &mut credits).expect("small"));
            dribble(stream, then, credits)
        }
        Kind::FILES => {
            let mut archive = Vec::new();
            (0..1000).for_each(|_| encode(Channel::Out.kind(), id, &[0], &mut archive).expect("small"));
            dribble(stream, then, archive)
        }
        _ => Ok(()),
    }
}

fn exited(stream: &mut UnixStream, id: StreamId, timed_out: bool) -> std::io::Result<()> {
    let exited = Exited {
        status: ExitStatus::Code(0),
        wall_us: 0,
        user_us: 0,
        sys_us: 0,
        max_rss_bytes: 0,
        oom_killed: false,
        timed_out,
        truncated: false,
        pipes_held: false,
    };
    send(stream, id, &Message::Exited(exited))
}

fn send(stream: &mut UnixStream, id: StreamId, message: &Message<'_>) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    message.encode(id, &mut bytes).expect("small");
    stream.write_all(&bytes)
}

/// Sends nothing, or a byte now and then, from another thread, so that pings are still answered.
fn dribble(stream: &UnixStream, then: Then, bytes: Vec<u8>) -> std::io::Result<()> {
    let mut stream = stream.try_clone()?;
    if then == Then::Dribble {
        thread::spawn(move || {
            // Until the link is closed.
            for byte in bytes {
                if stream.write_all(&[byte]).is_err() {
                    return;
                }
                thread::sleep(DRIBBLE);
            }
        });
    }
    Ok(())
}

/// The script that the fake engine starts instead of an agent.
fn script(folder: &Path, stop: Stop, then: Then) -> camino::Utf8PathBuf {
    let socket = folder.join("hostile.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // An error only means that the link was closed, which ends this agent.
            thread::spawn(move || drop(serve(stream, stop, then)));
        }
    });
    let script = folder.join("agent");
    let text = format!("#!/bin/sh\nln -s '{}' \"$2\"\nexec sleep 600\n", socket.display());
    std::fs::write(&script, text).expect("the folder is ours");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("the file is ours");
    camino::Utf8PathBuf::from_path_buf(script).expect("UTF-8")
}

fn job(folder: &Path) -> Job {
    let file = folder.join("file");
    std::fs::write(&file, vec![7; 1 << 20]).expect("the folder is ours");
    let timeout = format!("{}ms", TIMEOUT.as_millis());
    let grace = format!("{}ms", GRACE.as_millis());
    let copy_in = format!("{}:/f", file.display());
    let copy_out = format!("/f:{}", folder.join("out").display());
    let words =
        ["kiln", "run", "--json", "--timeout", &timeout, "--grace", &grace, "--in", &copy_in, "--out", &copy_out];
    match Args::try_parse_from(words.into_iter().chain(["true"])).expect("good arguments").command {
        Command::Run(args) => check(*args, None, None).expect("a good run"),
        other => panic!("not run: {other:?}"),
    }
}

/// Runs against an agent that misbehaves in this phase. Asserts the phase in which the run timed out, and the bound.
fn bounded_by(stop: Stop, then: Then, phase: Phase, bound: Duration) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut job = job(folder.path());
    if stop != Stop::CopyIn {
        job.copy_in.clear();
    }
    let home = camino::Utf8Path::from_path(folder.path()).expect("UTF-8").join("home");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let engine = FakeEngine::new(home, script(folder.path(), stop, then));
        let guest = Guest::start(&engine, VmSpec::new("kernel", "initramfs"), FOR_THE_VM, Watch::default())
            .await
            .expect("it answers");
        let mut interrupts = Interrupts::new().expect("signals");
        let mut report = Report::default();
        let from = Instant::now();
        let failure = job.in_guest(&guest, &mut interrupts, &mut report).await.expect_err("it does not end");
        let took = from.elapsed();
        let seen = format!("{stop:?} {then:?}: {took:?}, {}", failure.message());
        assert_eq!((failure.code, report.timed_out_in), (TIMED_OUT, Some(phase)), "{seen}");
        assert!(failure.message().contains(&phase.to_string()), "{seen}");
        assert!(took >= bound && took < bound + SLACK, "{seen}");
        let from = Instant::now();
        guest.vm.kill().await;
        assert!(from.elapsed() < SLACK, "the VM is gone at once");
    });
    runtime.shutdown_timeout(SLACK);
}

#[test]
fn a_guest_that_takes_no_files_is_ended_at_the_timeout() {
    for then in [Then::Stall, Then::Dribble] {
        bounded_by(Stop::CopyIn, then, Phase::CopyIn, TIMEOUT);
    }
}

#[test]
fn a_guest_that_starts_no_command_is_ended_at_the_timeout() {
    for then in [Then::Stall, Then::Dribble] {
        bounded_by(Stop::Start, then, Phase::Start, TIMEOUT);
    }
}

#[test]
fn a_guest_that_does_not_end_its_command_is_ended_after_grace_and_overtime() {
    for then in [Then::Stall, Then::Dribble] {
        bounded_by(Stop::Output, then, Phase::Command, TIMEOUT + GRACE + OVERTIME);
    }
}

#[test]
fn a_guest_that_gives_no_files_is_ended_at_the_timeout() {
    for then in [Then::Stall, Then::Dribble] {
        bounded_by(Stop::CopyOut, then, Phase::CopyOut, TIMEOUT);
    }
}

#[test]
fn files_that_an_ended_command_has_left_have_grace_and_overtime() {
    for then in [Then::Stall, Then::Dribble] {
        bounded_by(Stop::CopyOutLate, then, Phase::CopyOut, TIMEOUT + GRACE + OVERTIME);
    }
}
