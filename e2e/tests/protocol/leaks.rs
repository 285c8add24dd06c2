//! Many streams leave nothing behind in the agent.

use kiln_e2e::{Agent, bounded, until};
use kiln_engine::link::GuestLink;
use kiln_wire::{FileRequest, ForwardRequest, Message, Tty, WatchRequest};
use tokio::task::JoinSet;

use crate::common::{command, run, sh};
use crate::files::{act, give, write};
use crate::sessions::{session, wait_for};

/// Opens every kind of stream once. Several of them fail.
async fn all_sorts(agent: &Agent, link: &GuestLink) {
    run(link, sh("echo out; echo err >&2; exit 3")).await;
    link.run(command(&["cat"]), b"input", 1 << 20).await.expect("runs");
    link.run(command(&["/no/such/program"]), b"", 1).await.expect_err("it is not there");
    drop(link.exec(sh("sleep 1000")).await.expect("starts"));
    let mut on_tty = sh("true");
    on_tty.tty = Some(Tty { rows: 1, cols: 1, term: String::new() });
    run(link, on_tty).await;
    give(link, write(&agent.path("file")), b"x").await.expect("written");
    give(link, write("/no/such/directory/file"), b"x").await.expect_err("it is not there");
    act(link, FileRequest::TarOut { path: "/no/such/file".into() }).await.expect_err("it is not there");
    drop(link.files(write(&agent.path("unfinished"))).expect("the link is up"));
    drop(link.open(&Message::Forward(ForwardRequest::Unix { path: "/no/socket".into() })).expect("the link is up"));
    let watch = WatchRequest { path: agent.directory().to_str().expect("UTF-8").into(), recursive: true };
    drop(link.open(&Message::Watch(watch)).expect("the link is up"));
}

#[test]
fn two_hundred_commands_leave_no_open_file_and_no_zombie() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        run(&link, sh("true")).await;
        let files = agent.open_files();
        for _ in 0..20 {
            let mut running = JoinSet::new();
            for _ in 0..10 {
                let link = link.clone();
                running.spawn(async move { run(&link, sh("exit 0")).await });
            }
            running.join_all().await;
        }
        until("as few files as before", || (agent.open_files() <= files).then_some(()));
        until("no children", || agent.children().is_empty().then_some(()));
    });
}

#[test]
fn streams_of_every_kind_leave_no_open_file_child_or_temporary_file() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        all_sorts(&agent, &link).await;
        until("no children", || agent.children().is_empty().then_some(()));
        let files = agent.open_files();
        for _ in 0..8 {
            all_sorts(&agent, &link).await;
        }
        until("as few files as before", || (agent.open_files() <= files).then_some(()));
        until("no children", || agent.children().is_empty().then_some(()));
        until("no temporary files", || {
            (std::fs::read_dir(agent.directory()).expect("ours").count() == 1).then_some(())
        });
    });
}

#[test]
fn links_that_drop_leave_no_open_file_and_no_child() {
    bounded(async {
        let agent = Agent::listening();
        drop(agent.link().await.expect("the agent answers"));
        let link = agent.link().await.expect("the agent answers");
        let files = agent.open_files();
        drop(link);
        for _ in 0..10 {
            let link = agent.link().await.expect("the agent answers");
            let _running = link.exec(sh("sleep 1000 & sleep 1000")).await.expect("starts");
            let _unfinished = link.files(write(&agent.path("unfinished"))).expect("the link is up");
        }
        let _link = agent.link().await.expect("the agent answers");
        until("as few files as before", || (agent.open_files() <= files).then_some(()));
        until("no children", || agent.children().is_empty().then_some(()));
    });
}

#[test]
fn sessions_that_end_leave_no_child() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        for number in 0..10 {
            let name = format!("n{number}");
            drop(link.exec(session(&name, "exit 1")).await.expect("starts"));
            wait_for(&link, &name, |session| session.state != kiln_wire::SessionState::Running).await;
        }
        until("no children", || agent.children().is_empty().then_some(()));
    });
}

#[test]
fn an_idle_agent_sleeps() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        run(&link, sh("true")).await;
        let before = agent.context_switches();
        // Not a wait for a state: an idle agent must do nothing during this time.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        let woken = agent.context_switches() - before;
        assert!(woken <= 10, "woken {woken} times in 300 ms");
    });
}
