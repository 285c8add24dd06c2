//! Watching, with a deadline on every wait.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use kiln_wire::{ErrorCode, WatchEvent, WatchEventKind};
use rustix::event::{PollFd, PollFlags, poll};

use super::{GO, Yard, refused};
use crate::files::{Root, WATCHED_DIRECTORIES_MAX, Watcher, remove};

const EVENT_DEADLINE: Duration = Duration::from_secs(10);

fn watch(yard: &Yard, path: &str, recursive: bool) -> Watcher {
    let root = Root::new(Some(&yard.directory.path().into())).expect("it is a directory");
    Watcher::new(root, &path.into(), recursive).expect("it is watched")
}

/// Waits until there is an event with this change and path.
#[track_caller]
fn expect(watcher: &mut Watcher, change: WatchEventKind, path: &str) {
    let wanted = WatchEvent { change, path: path.into() };
    let deadline = Instant::now() + EVENT_DEADLINE;
    let mut events = Vec::new();
    while !events.contains(&wanted) {
        let left = deadline.checked_duration_since(Instant::now());
        let left = left.unwrap_or_else(|| panic!("no {change:?} of `{path}` among {events:?}"));
        let timeout = left.try_into().expect("a few seconds");
        poll(&mut [PollFd::new(watcher, PollFlags::IN)], Some(&timeout)).expect("poll works");
        watcher.read(&mut events).expect("events");
    }
}

#[test]
fn each_change_in_a_directory_has_its_kind() {
    let yard = Yard::new();
    std::fs::create_dir(yard.path("d")).expect("the yard is writable");
    let mut watcher = watch(&yard, "d", false);
    yard.plant("d/f", "x");
    expect(&mut watcher, WatchEventKind::Created, "d/f");
    yard.plant("d/f", "longer");
    expect(&mut watcher, WatchEventKind::Modified, "d/f");
    std::fs::set_permissions(yard.path("d/f"), std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    expect(&mut watcher, WatchEventKind::Attributes, "d/f");
    std::fs::rename(yard.path("d/f"), yard.path("d/g")).expect("it is ours");
    expect(&mut watcher, WatchEventKind::Created, "d/g");
    std::fs::remove_file(yard.path("d/g")).expect("it is ours");
    expect(&mut watcher, WatchEventKind::Removed, "d/g");
    std::fs::remove_dir(yard.path("d")).expect("it is ours");
    expect(&mut watcher, WatchEventKind::Removed, "d");
}

#[test]
fn a_file_is_still_watched_after_it_was_replaced() {
    let yard = Yard::new();
    yard.plant("f", "x");
    yard.plant("other", "x");
    let mut watcher = watch(&yard, "f", false);
    yard.plant("other", "y");
    yard.write("f", b"one").expect("it is written");
    expect(&mut watcher, WatchEventKind::Created, "f");
    yard.write("f", b"two").expect("it is written");
    let mut events = Vec::new();
    watcher.read(&mut events).expect("events");
    assert!(events.iter().all(|event| event.path == "f".into()), "{events:?}");
    assert_eq!(events.len(), 1, "{events:?}");
}

#[test]
fn new_directories_of_a_tree_are_watched() {
    let yard = Yard::new();
    std::fs::create_dir_all(yard.path("t/a/b")).expect("the yard is writable");
    let mut watcher = watch(&yard, "t", true);
    yard.plant("t/a/b/f", "x");
    expect(&mut watcher, WatchEventKind::Created, "t/a/b/f");
    yard.plant("t/new/deep/f", "x");
    expect(&mut watcher, WatchEventKind::Created, "t/new/deep/f");
    yard.plant("t/new/deep/g", "x");
    expect(&mut watcher, WatchEventKind::Created, "t/new/deep/g");
    std::fs::rename(yard.path("t/new"), yard.path("t/moved")).expect("it is ours");
    expect(&mut watcher, WatchEventKind::Removed, "t/new");
    yard.plant("t/moved/deep/h", "x");
    expect(&mut watcher, WatchEventKind::Created, "t/moved/deep/h");
    remove(&yard.root, &"t/moved".into(), true, &GO).expect("it goes");
    expect(&mut watcher, WatchEventKind::Removed, "t/moved");
}

#[test]
fn a_tree_of_too_many_directories_is_refused() {
    let yard = Yard::new();
    for number in 0..WATCHED_DIRECTORIES_MAX {
        std::fs::create_dir(yard.path(&number.to_string())).expect("the yard is writable");
    }
    let root = || Root::new(Some(&yard.directory.path().into())).expect("it is a directory");
    let message = refused(Watcher::new(root(), &".".into(), true), ErrorCode::LimitExceeded);
    assert!(message.contains("4096"), "{message}");
    refused(Watcher::new(root(), &"none".into(), false), ErrorCode::NotFound);
}
