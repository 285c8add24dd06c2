//! Reports of file changes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use kiln_e2e::{Agent, bounded};
use kiln_engine::link::{Event, GuestLink, StreamError, StreamReceiver, StreamSender};
use kiln_wire::{ErrorCode, Kind, Message, Reply, WatchEventKind, WatchRequest};

use crate::common::code;

struct Watch {
    sender: StreamSender,
    receiver: StreamReceiver,
}

async fn watch(link: &GuestLink, path: &str, recursive: bool) -> Result<Watch, StreamError> {
    let (sender, mut receiver) = link.open(&Message::Watch(WatchRequest { path: path.into(), recursive }))?;
    match receiver.next().await? {
        Event::Reply(reply) if *reply == Reply::Watching => Ok(Watch { sender, receiver }),
        other => panic!("{other:?} before Watching"),
    }
}

impl Watch {
    /// Takes changes until this one comes.
    async fn expect(&mut self, change: WatchEventKind, path: &str) {
        let mut seen = Vec::new();
        loop {
            match self.receiver.next().await.expect("changes") {
                Event::Reply(reply) => match *reply {
                    Reply::Changed(event) if event.change == change && event.path.to_string() == path => return,
                    Reply::Changed(event) => seen.push(event),
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?} after {seen:?}"),
            }
        }
    }
}

#[test]
fn changes_in_a_directory_are_reported() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        fs::create_dir(agent.path("d")).expect("ours");
        let mut watch = watch(&link, &agent.path("d"), false).await.expect("it is there");
        let file = agent.path("d/file ü");
        fs::write(&file, "x").expect("ours");
        watch.expect(WatchEventKind::Created, &file).await;
        fs::write(&file, "changed").expect("ours");
        watch.expect(WatchEventKind::Modified, &file).await;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("ours");
        watch.expect(WatchEventKind::Attributes, &file).await;
        fs::rename(&file, agent.path("d/new")).expect("ours");
        watch.expect(WatchEventKind::Removed, &file).await;
        watch.expect(WatchEventKind::Created, &agent.path("d/new")).await;
        fs::remove_file(agent.path("d/new")).expect("ours");
        watch.expect(WatchEventKind::Removed, &agent.path("d/new")).await;
    });
}

#[test]
fn changes_of_one_file_are_reported_and_its_replacement_too() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let file = agent.path("file");
        fs::write(&file, "x").expect("ours");
        let mut watch = watch(&link, &file, false).await.expect("it is there");
        fs::write(agent.path("neighbour"), "x").expect("ours");
        fs::write(&file, "changed").expect("ours");
        watch.expect(WatchEventKind::Modified, &file).await;
        fs::rename(agent.path("neighbour"), &file).expect("ours");
        watch.expect(WatchEventKind::Created, &file).await;
    });
}

#[test]
fn changes_far_below_are_reported_if_the_watch_is_recursive() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        fs::create_dir_all(agent.path("d/a/b")).expect("ours");
        let mut deep = watch(&link, &agent.path("d"), true).await.expect("it is there");
        let mut flat = watch(&link, &agent.path("d"), false).await.expect("it is there");
        fs::write(agent.path("d/a/b/file"), "x").expect("ours");
        fs::write(agent.path("d/top"), "x").expect("ours");
        deep.expect(WatchEventKind::Created, &agent.path("d/a/b/file")).await;
        let Event::Reply(first) = flat.receiver.next().await.expect("a change") else { panic!("no change") };
        assert!(matches!(*first, Reply::Changed(event) if event.path.to_string() == agent.path("d/top")));
    });
}

#[test]
fn a_directory_that_appears_is_watched_from_then_on() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        fs::create_dir(agent.path("d")).expect("ours");
        let mut watch = watch(&link, &agent.path("d"), true).await.expect("it is there");
        fs::create_dir_all(agent.path("d/new/deep")).expect("ours");
        fs::write(agent.path("d/new/deep/file"), "x").expect("ours");
        watch.expect(WatchEventKind::Created, &agent.path("d/new/deep/file")).await;
        fs::write(agent.path("d/new/deep/file"), "more").expect("ours");
        watch.expect(WatchEventKind::Modified, &agent.path("d/new/deep/file")).await;
    });
}

#[test]
fn a_missing_path_can_not_be_watched() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        assert_eq!(code(watch(&link, &agent.path("missing"), true).await.map(drop)), ErrorCode::NotFound);
    });
}

#[test]
fn a_watch_continues_until_it_is_cancelled() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let mut watch = watch(&link, agent.directory().to_str().expect("UTF-8"), false).await.expect("it is there");
        watch.sender.cancel().expect("it runs");
        assert_eq!(code(watch.receiver.next().await), ErrorCode::Cancelled);
        fs::write(agent.path("file"), "x").expect("ours");
        link.ping().await.expect("the link goes on");
    });
}

#[test]
fn more_changes_than_are_read_are_reported_as_an_overflow_and_do_not_grow_the_agent() {
    const CHANGES: usize = 40_000;
    let (agent, mut raw) = Agent::greeted();
    let files = [agent.path("one"), agent.path("two")];
    for file in &files {
        fs::write(file, "x").expect("ours");
    }
    let path = agent.directory().to_str().expect("UTF-8").into();
    raw.send(1, &Message::Watch(WatchRequest { path, recursive: false }));
    assert_eq!(raw.frame_of(1).kind, Kind::REPLY);
    let before = agent.rss_peak_bytes();
    for number in 0..CHANGES {
        // Two files in turn, because the kernel joins an event with an equal event before it.
        let permissions = fs::Permissions::from_mode(0o600 + (number as u32 & 7));
        fs::set_permissions(&files[number % 2], permissions).expect("ours");
    }
    // Changes are reported in order, so the last one comes after all others.
    fs::write(agent.path("last"), "").expect("ours");
    let (mut told, mut overflows) = (0, 0);
    loop {
        let frame = raw.frame_of(1);
        let Message::Reply(reply) = frame.message() else { panic!("{frame:?}") };
        let Reply::Changed(event) = *reply else { panic!("{reply:?}") };
        match event.change {
            WatchEventKind::Overflow => overflows += 1,
            WatchEventKind::Attributes => told += 1,
            _ if event.path.to_string().ends_with("last") => break,
            other => panic!("{other:?}"),
        }
        if overflows > 0 {
            break;
        }
    }
    assert!(told == CHANGES || overflows > 0, "{} of {CHANGES} are gone in silence", CHANGES - told);
    assert!(agent.rss_peak_bytes() - before < 8 << 20);
}
