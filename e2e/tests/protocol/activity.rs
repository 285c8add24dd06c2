//! Whether a guest is in use: commands, sessions, watches, forwards, leases.

use std::fs;
use std::os::unix::net::UnixListener;

use kiln_e2e::{Agent, bounded};
use kiln_engine::link::{Event, GuestLink};
use kiln_wire::{Activity, ExecRequest, ForwardRequest, Message, Reply, SessionSpec, Stdin, Tty, WatchRequest};

use crate::common::{command, sh};
use crate::sessions::{expect, session};

/// The agent's report once `state` holds.
async fn once(link: &GuestLink, state: impl Fn(&Activity) -> bool) -> Activity {
    loop {
        let activity = link.activity().await.expect("an answer");
        if state(&activity) {
            return activity;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

#[test]
fn a_guest_that_does_nothing_is_idle() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let activity = link.activity().await.expect("an answer");
        assert!(activity.uptime_ms > 0 && activity.cpu_busy_ms > 0, "{activity:?}");
        let idle = Activity { uptime_ms: activity.uptime_ms, cpu_busy_ms: activity.cpu_busy_ms, ..Activity::default() };
        assert_eq!(activity, idle);
        assert_eq!(link.streams_open(), 0);
    });
}

#[test]
fn commands_count_while_they_run() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let exec = link.exec(sh("sleep 1000")).await.expect("starts");
        let second = link.exec(sh("sleep 1000")).await.expect("starts");
        assert_eq!(once(&link, |activity| activity.execs > 1).await.execs, 2);
        assert_eq!(link.streams_open(), 2);
        drop((exec, second));
        once(&link, |activity| activity.execs == 0).await;
        assert_eq!(link.streams_open(), 0);
    });
}

#[test]
fn a_session_counts_while_its_shell_runs_something() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut exec = link.exec(session("work", "echo ready; read line; sleep 1000")).await.expect("starts");
        expect(&mut exec, "ready\n").await;
        let idle = once(&link, |activity| activity.sessions.is_empty()).await;
        assert_eq!(idle.execs, 0, "a session is no plain command");
        exec.input.send(b"go\n").await.expect("it takes input");
        assert_eq!(once(&link, |activity| !activity.sessions.is_empty()).await.sessions, ["work"]);
    });
}

#[test]
fn a_shell_on_a_terminal_is_idle_between_two_commands() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let mut exec = link
            .exec(ExecRequest {
                tty: Some(Tty { rows: 24, cols: 80, term: "dumb".into() }),
                stdin: Stdin::Stream,
                session: Some(SessionSpec { name: Some("shell".into()), ..SessionSpec::default() }),
                env: vec![("PS1".into(), "now$ ".into())],
                ..command(&["/bin/sh", "-i"])
            })
            .await
            .expect("starts");
        expect(&mut exec, "now$ ").await;
        once(&link, |activity| activity.sessions.is_empty()).await;
        exec.input.send(b"sh -c 'echo on; exec sleep 1000'\n").await.expect("it takes input");
        // A Ctrl-C before the command has the terminal would be the shell's.
        expect(&mut exec, "'\r\non\r\n").await;
        once(&link, |activity| activity.sessions == ["shell"]).await;
        exec.input.send(b"\x03").await.expect("it takes input");
        once(&link, |activity| activity.sessions.is_empty()).await;
        exec.input.send(b"sleep 1000 &\n").await.expect("it takes input");
        once(&link, |activity| activity.sessions == ["shell"]).await;
    });
}

#[test]
fn a_session_without_a_shell_counts_while_it_sleeps() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let _exec = link.exec(session("worker", "exec sleep 1000")).await.expect("starts");
        assert_eq!(once(&link, |activity| !activity.sessions.is_empty()).await.sessions, ["worker"]);
    });
}

#[test]
fn watches_and_forwards_count_while_they_are_open() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let socket = agent.path("socket");
        let _listener = UnixListener::bind(&socket).expect("a socket");
        let watch = WatchRequest { path: agent.path("").into(), recursive: false };
        let (watching, mut watched) = link.open(&Message::Watch(watch)).expect("the link is up");
        assert!(matches!(watched.next().await, Ok(Event::Reply(reply)) if *reply == Reply::Watching));
        let forward = ForwardRequest::Unix { path: socket.into() };
        let (forwarding, mut forwarded) = link.open(&Message::Forward(forward)).expect("the link is up");
        assert!(matches!(forwarded.next().await, Ok(Event::Reply(reply)) if *reply == Reply::Connected));
        let activity = link.activity().await.expect("an answer");
        assert_eq!((activity.watches, activity.forwards), (1, 1));
        drop((watching, watched, forwarding, forwarded));
        once(&link, |activity| (activity.watches, activity.forwards) == (0, 0)).await;
    });
}

#[test]
fn a_lease_is_listed_while_its_file_exists() {
    bounded(async {
        let folder = tempfile::tempdir().expect("a folder");
        let variable = format!("KILN_LEASES={}", folder.path().display());
        let agent = Agent::listening_under(&["env", &variable]);
        let link = agent.link().await.expect("the agent answers");
        let file = folder.path().join("build");
        fs::write(&file, "600\n").expect("a file");
        fs::write(folder.path().join("nonsense"), "forever\n").expect("a file");
        let leases = link.activity().await.expect("an answer").leases;
        assert_eq!(leases.len(), 1, "{leases:?}");
        assert_eq!(leases[0].name, "build");
        assert!((1..=600_000).contains(&leases[0].expires_in_ms), "{leases:?}");
        fs::remove_file(&file).expect("it is there");
        assert_eq!(link.activity().await.expect("an answer").leases, []);
    });
}
