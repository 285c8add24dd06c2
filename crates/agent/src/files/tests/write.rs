//! Writing whole files, exclusive writes, and appending.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_wire::{ErrorCode, Owner, Text, WriteMode};
use rustix::process::{Resource, Rlimit};

use super::{Yard, fifo, link, refused, socket, text};
use crate::files::{Append, AtomicWrite};

fn begin(yard: &Yard, name: &str, mode: WriteMode) -> Result<AtomicWrite, kiln_wire::Fault> {
    AtomicWrite::begin(&yard.root, &name.into(), mode, None, None)
}

fn append(yard: &Yard, name: &str, content: &[u8]) -> Result<u64, kiln_wire::Fault> {
    let mut append = Append::begin(&yard.root, &name.into())?;
    append.write(content)?;
    append.commit()
}

fn permissions(yard: &Yard, name: &str) -> u32 {
    std::fs::metadata(yard.path(name)).expect("it exists").permissions().mode() & 0o7777
}

#[test]
fn a_written_file_has_its_bytes_and_no_other_file_is_left() {
    let yard = Yard::new();
    assert_eq!(yard.write("f", b"one"), Ok(3));
    assert_eq!(yard.write("f", b""), Ok(0));
    assert_eq!(yard.write("f", b"three"), Ok(5));
    assert_eq!(yard.content("f"), b"three");
    assert_eq!(yard.names(), ["f"]);
}

#[test]
fn readers_see_a_whole_version_during_two_hundred_writes() {
    const WRITES: usize = 200;
    const BYTES: usize = 20_000;
    let yard = Yard::new();
    yard.plant("f", vec![0; BYTES]);
    let (stop, start) = (AtomicBool::new(false), Barrier::new(4));
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    let mut reads = 0;
                    while reads == 0 || !stop.load(Ordering::Relaxed) {
                        let seen = yard.content("f");
                        assert_eq!(seen.len(), BYTES, "a part of a version");
                        assert!(seen.iter().all(|byte| *byte == seen[0]), "a mix of versions");
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        start.wait();
        for version in 1..=WRITES {
            yard.write("f", &vec![(version % 256) as u8; BYTES]).expect("it is written");
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().expect("no reader saw a mix") > 0);
        }
    });
    assert_eq!(yard.content("f"), vec![(WRITES % 256) as u8; BYTES]);
    assert_eq!(yard.names(), ["f"]);
}

#[test]
fn a_write_that_is_dropped_does_not_change_the_old_file() {
    let yard = Yard::new();
    yard.plant("f", "old");
    let mut write = begin(&yard, "f", WriteMode::Replace).expect("it begins");
    write.write(b"new").expect("there is room");
    assert_eq!(yard.names().len(), 2);
    drop(write);
    assert_eq!((yard.names(), yard.content("f")), (vec!["f".to_owned()], b"old".to_vec()));
}

#[test]
fn a_new_file_is_0644_and_a_replaced_one_keeps_its_bits() {
    let yard = Yard::new();
    yard.write("new", b"x").expect("it is written");
    assert_eq!(permissions(&yard, "new"), 0o644);
    std::fs::set_permissions(yard.path("new"), std::fs::Permissions::from_mode(0o6751)).expect("it is ours");
    yard.write("new", b"y").expect("it is written");
    assert_eq!(permissions(&yard, "new"), 0o6751);
    let write = AtomicWrite::begin(&yard.root, &"new".into(), WriteMode::Replace, Some(0o600), None);
    write.expect("it begins").commit().expect("it is written");
    assert_eq!(permissions(&yard, "new"), 0o600);
}

#[test]
fn bits_and_owners_that_do_not_exist_are_refused() {
    let yard = Yard::new();
    let begin = |bits, owner| AtomicWrite::begin(&yard.root, &"f".into(), WriteMode::Replace, bits, owner);
    refused(begin(Some(0o10000), None), ErrorCode::InvalidRequest);
    refused(begin(None, Some(Owner { uid: u32::MAX, gid: 0 })), ErrorCode::InvalidRequest);
    assert_eq!(yard.names(), [""; 0]);
}

#[test]
fn the_own_user_can_be_set_as_owner() {
    let yard = Yard::new();
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let write = AtomicWrite::begin(&yard.root, &"f".into(), WriteMode::Replace, None, Some(Owner { uid, gid }));
    write.expect("it begins").commit().expect("it is written");
    let metadata = std::fs::metadata(yard.path("f")).expect("it exists");
    assert_eq!((metadata.uid(), metadata.gid()), (uid, gid));
}

#[test]
fn an_exclusive_write_refuses_an_existing_name() {
    let yard = Yard::new();
    yard.plant("f", "old");
    link("nowhere", yard.path("l"));
    std::fs::create_dir(yard.path("d")).expect("the yard is writable");
    for name in ["f", "l", "d"] {
        refused(begin(&yard, name, WriteMode::Exclusive), ErrorCode::AlreadyExists);
    }
    begin(&yard, "new", WriteMode::Exclusive).expect("it begins").commit().expect("nothing is there");
    assert_eq!(yard.names(), ["d", "f", "l", "new"]);
}

#[test]
fn an_exclusive_write_that_comes_second_is_refused_and_leaves_nothing() {
    let yard = Yard::new();
    let first = begin(&yard, "f", WriteMode::Exclusive).expect("it begins");
    let mut second = begin(&yard, "f", WriteMode::Exclusive).expect("it begins");
    second.write(b"second").expect("there is room");
    second.commit().expect("nothing is there");
    refused(first.commit(), ErrorCode::AlreadyExists);
    assert_eq!((yard.names(), yard.content("f")), (vec!["f".to_owned()], b"second".to_vec()));
}

#[test]
fn a_symlink_stays_and_its_file_is_replaced() {
    let yard = Yard::new();
    yard.plant("d/f", "old");
    yard.plant("e/x", "");
    link("../d/f", yard.path("e/l"));
    link("e/l", yard.path("l"));
    yard.write("l", b"new").expect("it is written");
    assert_eq!(yard.content("d/f"), b"new");
    assert!(yard.path("l").is_symlink() && yard.path("e/l").is_symlink());
    link("d/made", yard.path("dangling"));
    yard.write("dangling", b"made").expect("it is written");
    assert_eq!(yard.content("d/made"), b"made");
    assert_eq!(append(&yard, "l", b"er"), Ok(2));
    assert_eq!(yard.content("d/f"), b"newer");
}

#[test]
fn a_file_that_is_not_plain_is_refused_by_name() {
    let yard = Yard::new();
    fifo(&yard.path("pipe"));
    let _listener = socket(&yard.path("s"));
    std::fs::create_dir(yard.path("d")).expect("the yard is writable");
    for (name, code) in [
        ("pipe", ErrorCode::NotAFile),
        ("s", ErrorCode::NotAFile),
        ("d", ErrorCode::IsADirectory),
        (".", ErrorCode::IsADirectory),
        ("new/", ErrorCode::IsADirectory),
        ("none/f", ErrorCode::NotFound),
    ] {
        refused(begin(&yard, name, WriteMode::Replace), code);
        refused(append(&yard, name, b"x"), code);
    }
    assert_eq!(yard.names(), ["d", "pipe", "s"]);
}

#[test]
fn a_directory_that_was_created_meanwhile_is_not_replaced() {
    let yard = Yard::new();
    let write = begin(&yard, "f", WriteMode::Replace).expect("it begins");
    std::fs::create_dir(yard.path("f")).expect("the yard is writable");
    refused(write.commit(), ErrorCode::IsADirectory);
    assert_eq!(yard.names(), ["f"]);
}

#[test]
fn append_creates_a_file_and_adds_to_it() {
    let yard = Yard::new();
    assert_eq!(append(&yard, "log", b"one\n"), Ok(4));
    assert_eq!(permissions(&yard, "log"), 0o644);
    assert_eq!(append(&yard, "log", b"two\n"), Ok(4));
    assert_eq!(yard.content("log"), b"one\ntwo\n");
}

#[test]
fn a_name_may_have_any_bytes() {
    let yard = Yard::new();
    let name: Text = text(b"\xff\xfe \n\"'");
    let mut write = AtomicWrite::begin(&yard.root, &name, WriteMode::Exclusive, None, None).expect("it begins");
    write.write(b"x").expect("there is room");
    write.commit().expect("it is written");
    assert_eq!(std::fs::read(yard.directory.path().join(name.as_path())).expect("it exists"), b"x");
}

/// The limit applies to a process, so the test runs itself again as a child, which it recognises by a variable.
#[test]
fn a_write_that_runs_out_of_room_fails_and_leaves_nothing() {
    const CHILD: &str = "KILN_TEST_WRITE_LIMITED";
    let Some(directory) = std::env::var_os(CHILD) else {
        let yard = Yard::new();
        yard.plant("f", "old");
        let (_crate, module) = module_path!().split_once("::").expect("the test is not in the root of the crate");
        let name = format!("{module}::a_write_that_runs_out_of_room_fails_and_leaves_nothing");
        let output = std::process::Command::new(std::env::current_exe().expect("the test has a program"))
            .args([name.as_str(), "--exact", "--nocapture"])
            .env(CHILD, yard.directory.path())
            .output()
            .expect("the test runs again");
        let talk = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && talk.contains("1 passed"), "{talk}");
        assert_eq!((yard.names(), yard.content("f")), (vec!["f".to_owned()], b"old".to_vec()));
        return;
    };
    let root = crate::files::Root::new(Some(&directory.into())).expect("the parent made it");
    ignore_size_signal();
    let limit = Rlimit { current: Some(4096), maximum: Some(4096) };
    rustix::process::setrlimit(Resource::Fsize, limit).expect("a limit may be lowered");
    let mut write = AtomicWrite::begin(&root, &"f".into(), WriteMode::Replace, None, None).expect("it begins");
    write.write(&[1; 4096]).expect("this much is allowed");
    let fault = write.write(&[1; 4096]).expect_err("over the limit");
    assert!(fault.message.contains("failed to write `f`: file too large"), "{fault}");
    refused(write.write(b"more"), ErrorCode::Io);
    refused(write.commit(), ErrorCode::Io);
}

#[expect(unsafe_code, reason = "none of the dependencies has a safe function to ignore a signal")]
fn ignore_size_signal() {
    // SAFETY: ignoring a signal runs no code of this process.
    let former = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    assert_ne!(former, libc::SIG_ERR);
}
