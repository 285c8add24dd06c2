//! Operations on files that fail, and the codes of their faults.

use std::fs;
use std::os::unix::fs::symlink;

use kiln_e2e::{Agent, bounded};
use kiln_wire::{ErrorCode, FileRequest, Owner, ReadRange, WriteMode};

use crate::common::{code, fault};
use crate::files::{act, act_in, give, read, write};

fn stat(path: &str) -> FileRequest {
    FileRequest::Stat { path: path.into(), follow: true }
}

fn list(path: &str) -> FileRequest {
    FileRequest::List { path: path.into(), after: None, limit: None }
}

#[test]
fn every_operation_reports_a_missing_path_as_not_found() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let path = agent.path("missing");
        let text = || path.as_str().into();
        for request in [
            stat(&path),
            list(&path),
            FileRequest::Remove { path: text(), recursive: false },
            FileRequest::Remove { path: text(), recursive: true },
            FileRequest::Rename { from: text(), to: agent.path("to").as_str().into() },
            FileRequest::Copy { from: text(), to: agent.path("to").as_str().into() },
            FileRequest::Chmod { path: text(), permissions: 0o600 },
            FileRequest::Chown { path: text(), owner: Owner { uid: 0, gid: 0 } },
            FileRequest::TarOut { path: text() },
            FileRequest::Read { path: text(), range: ReadRange::default() },
            FileRequest::Mkdir { path: agent.path("missing/below").as_str().into(), parents: false, permissions: None },
        ] {
            let words = format!("{request:?}");
            let fault = fault(act(&link, request).await);
            assert_eq!(fault.code, ErrorCode::NotFound, "{words}: {fault}");
            assert!(fault.message.contains("missing"), "{words}: {fault}");
        }
        assert_eq!(code(give(&link, write(&agent.path("missing/file")), b"x").await), ErrorCode::NotFound);
        let append = FileRequest::Append { path: agent.path("missing/file").as_str().into() };
        assert_eq!(code(give(&link, append, b"x").await), ErrorCode::NotFound);
    });
}

#[test]
fn an_existing_path_is_reported_by_name() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let path = agent.path("file");
        fs::write(&path, "old").expect("ours");
        let exclusive = FileRequest::Write {
            path: path.as_str().into(),
            mode: WriteMode::Exclusive,
            permissions: None,
            owner: None,
        };
        assert_eq!(code(give(&link, exclusive, b"new").await), ErrorCode::AlreadyExists);
        for request in [
            FileRequest::Mkdir { path: path.as_str().into(), parents: false, permissions: None },
            FileRequest::Symlink { target: "x".into(), path: path.as_str().into() },
        ] {
            assert_eq!(code(act(&link, request).await), ErrorCode::AlreadyExists);
        }
        assert_eq!(fs::read(&path).expect("ours"), b"old");
    });
}

#[test]
fn an_exclusive_write_counts_a_dangling_symlink_as_existing() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        symlink(agent.path("nowhere"), agent.path("link")).expect("ours");
        let exclusive = FileRequest::Write {
            path: agent.path("link").as_str().into(),
            mode: WriteMode::Exclusive,
            permissions: None,
            owner: None,
        };
        assert_eq!(code(give(&link, exclusive, b"new").await), ErrorCode::AlreadyExists);
        assert!(!fs::exists(agent.path("nowhere")).expect("ours"));
    });
}

#[test]
fn two_exclusive_writes_at_once_have_one_winner() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let path = agent.path("file");
        let exclusive = || FileRequest::Write {
            path: path.as_str().into(),
            mode: WriteMode::Exclusive,
            permissions: None,
            owner: None,
        };
        let (first, second) =
            tokio::join!(give(&link, exclusive(), &[1; 100_000]), give(&link, exclusive(), &[2; 100_000]));
        assert_eq!(usize::from(first.is_ok()) + usize::from(second.is_ok()), 1, "{first:?} {second:?}");
        let loser = if first.is_ok() { second } else { first };
        assert_eq!(code(loser), ErrorCode::AlreadyExists);
    });
}

#[test]
fn directories_and_files_are_not_confused() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let (file, directory) = (agent.path("file"), agent.path("directory"));
        fs::write(&file, "x").expect("ours");
        fs::create_dir(&directory).expect("ours");
        assert_eq!(code(read(&link, &directory, ReadRange::default()).await), ErrorCode::IsADirectory);
        assert_eq!(code(give(&link, write(&directory), b"x").await), ErrorCode::IsADirectory);
        let append = FileRequest::Append { path: directory.as_str().into() };
        assert_eq!(code(give(&link, append, b"x").await), ErrorCode::IsADirectory);
        let copy = FileRequest::Copy { from: directory.as_str().into(), to: agent.path("to").as_str().into() };
        assert_eq!(code(act(&link, copy).await), ErrorCode::IsADirectory);
        assert_eq!(code(act(&link, list(&file)).await), ErrorCode::NotADirectory);
        assert_eq!(code(act(&link, stat(&format!("{file}/below"))).await), ErrorCode::NotADirectory);
        let rename = FileRequest::Rename { from: file.as_str().into(), to: directory.as_str().into() };
        assert_eq!(code(act(&link, rename).await), ErrorCode::IsADirectory);
    });
}

#[test]
fn a_directory_that_is_not_empty_is_not_removed() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        fs::create_dir_all(agent.path("a/b")).expect("ours");
        let remove = FileRequest::Remove { path: agent.path("a").as_str().into(), recursive: false };
        assert_eq!(code(act(&link, remove).await), ErrorCode::NotEmpty);
        fs::create_dir(agent.path("c")).expect("ours");
        let rename = FileRequest::Rename { from: agent.path("c").as_str().into(), to: agent.path("a").as_str().into() };
        assert_eq!(code(act(&link, rename).await), ErrorCode::NotEmpty);
    });
}

#[test]
fn an_operation_that_the_kernel_forbids_is_permission_denied() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        // The kernel refuses to change permissions below `/proc`, also for root.
        let chmod = FileRequest::Chmod { path: "/proc/self/environ".into(), permissions: 0o777 };
        assert_eq!(code(act(&link, chmod).await), ErrorCode::PermissionDenied);
    });
}

#[test]
fn devices_fifos_and_sockets_are_refused_by_name_and_never_waited_for() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let (fifo, socket) = (agent.path("fifo"), agent.path("socket"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o600)).expect("ours");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("ours");
        for path in [&fifo, &socket, "/dev/zero", "/dev/full", "/dev/tty"] {
            assert_eq!(code(read(&link, path, ReadRange::default()).await), ErrorCode::NotAFile, "{path}");
            assert_eq!(code(give(&link, write(path), b"x").await), ErrorCode::NotAFile, "{path}");
            let append = FileRequest::Append { path: path.into() };
            assert_eq!(code(give(&link, append, b"x").await), ErrorCode::NotAFile, "{path}");
            let copy = FileRequest::Copy { from: path.into(), to: agent.path("to").as_str().into() };
            assert_eq!(code(act(&link, copy).await), ErrorCode::NotAFile, "{path}");
        }
        assert!(fs::symlink_metadata(&fifo).is_ok(), "and not replaced either");
    });
}

#[test]
fn a_name_that_is_too_long_is_refused_by_name() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let name = "n".repeat(256);
        assert_eq!(code(act(&link, stat(&agent.path(&name))).await), ErrorCode::NameTooLong);
        assert_eq!(code(give(&link, write(&agent.path(&name)), b"x").await), ErrorCode::NameTooLong);
        let deep = format!("/{}", "d/".repeat(3000));
        assert_eq!(code(act(&link, stat(&deep)).await), ErrorCode::NameTooLong);
        give(&link, write(&agent.path(&"n".repeat(255))), b"x").await.expect("the longest name that may be");
    });
}

#[test]
fn symlinks_in_a_circle_are_too_many() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        symlink(agent.path("b"), agent.path("a")).expect("ours");
        symlink(agent.path("a"), agent.path("b")).expect("ours");
        assert_eq!(code(act(&link, stat(&agent.path("a"))).await), ErrorCode::TooManyLinks);
        assert_eq!(code(read(&link, &agent.path("a"), ReadRange::default()).await), ErrorCode::TooManyLinks);
    });
}

#[test]
fn numbers_out_of_bounds_are_refused_by_name() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let path = agent.path("file");
        fs::write(&path, "x").expect("ours");
        for (range, named) in [
            (ReadRange::Bytes { offset: -1, limit: None }, "offset"),
            (ReadRange::Bytes { offset: 0, limit: Some(-1) }, "limit"),
            (ReadRange::Bytes { offset: i64::MIN, limit: None }, "offset"),
            (ReadRange::Lines { offset_line: -1, limit_lines: None, max_bytes: None }, "offset_line"),
            (ReadRange::Lines { offset_line: 0, limit_lines: Some(-1), max_bytes: None }, "limit_lines"),
            (ReadRange::Lines { offset_line: 0, limit_lines: None, max_bytes: Some(-1) }, "max_bytes"),
        ] {
            let fault = fault(read(&link, &path, range).await);
            assert_eq!(fault.code, ErrorCode::InvalidRequest);
            assert!(fault.message.contains(named), "{fault}");
        }
        let directory = agent.directory().to_str().expect("UTF-8");
        for limit in [0, 10_001, u32::MAX] {
            let list = FileRequest::List { path: directory.into(), after: None, limit: Some(limit) };
            assert_eq!(code(act(&link, list).await), ErrorCode::InvalidRequest, "{limit}");
        }
        for permissions in [0o10000, u32::MAX] {
            let chmod = FileRequest::Chmod { path: path.as_str().into(), permissions };
            assert_eq!(code(act(&link, chmod).await), ErrorCode::InvalidRequest);
            let mkdir = FileRequest::Mkdir {
                path: agent.path("d").as_str().into(),
                parents: false,
                permissions: Some(permissions),
            };
            assert_eq!(code(act(&link, mkdir).await), ErrorCode::InvalidRequest);
        }
    });
}

#[test]
fn an_impossible_path_is_invalid() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        for path in ["", "/tmp/a\0b", "a\0b"] {
            assert_eq!(code(act(&link, stat(path)).await), ErrorCode::InvalidRequest, "{path:?}");
        }
    });
}

#[test]
fn nothing_leaves_a_jail() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let jail = agent.path("jail");
        fs::create_dir(&jail).expect("ours");
        fs::write(agent.path("outside"), "secret").expect("ours");
        symlink(agent.path("outside"), agent.path("jail/absolute")).expect("ours");
        symlink("../outside", agent.path("jail/relative")).expect("ours");
        symlink("..", agent.path("jail/up")).expect("ours");
        for path in ["../outside", "a/../../outside", "relative", "up/outside", ".."] {
            let refused = code(act_in(&link, &jail, stat(path)).await);
            assert!(matches!(refused, ErrorCode::OutsideJail | ErrorCode::NotFound), "{path}: {refused:?}");
            let read = FileRequest::Read { path: path.into(), range: ReadRange::default() };
            act_in(&link, &jail, read).await.expect_err("nothing to read there");
        }
        assert_eq!(code(act_in(&link, &jail, stat("../outside")).await), ErrorCode::OutsideJail);
        for request in [
            FileRequest::Remove { path: "../outside".into(), recursive: true },
            FileRequest::Remove { path: "up/outside".into(), recursive: false },
            FileRequest::Rename { from: "../outside".into(), to: "in".into() },
            FileRequest::Mkdir { path: "up/made".into(), parents: true, permissions: None },
            FileRequest::Mkdir { path: "../made".into(), parents: true, permissions: None },
            FileRequest::Symlink { target: "x".into(), path: "../made".into() },
            FileRequest::Copy { from: "relative".into(), to: "stolen".into() },
            FileRequest::Copy { from: "absolute".into(), to: "stolen".into() },
            FileRequest::Chmod { path: "relative".into(), permissions: 0 },
            FileRequest::Chmod { path: "absolute".into(), permissions: 0 },
            FileRequest::TarOut { path: "..".into() },
        ] {
            let words = format!("{request:?}");
            act_in(&link, &jail, request).await.expect_err(&words);
        }
        assert_eq!(fs::read(agent.path("outside")).expect("untouched"), b"secret");
        assert!(!fs::exists(agent.path("made")).expect("ours"));
        assert!(!fs::exists(agent.path("jail/stolen")).expect("ours"));
    });
}

#[test]
fn a_full_disk_is_reported_and_the_old_file_stays() {
    bounded(async {
        // The agent has its own file system of 64 KiB. In a user namespace this needs no root.
        let script = "mount -t tmpfs -o size=64k kiln /mnt && exec \"$@\"";
        let agent = Agent::listening_under(&["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
        let link = agent.link().await.expect("the agent answers");
        give(&link, write("/mnt/file"), b"old").await.expect("it fits");
        let fault = fault(give(&link, write("/mnt/file"), &vec![1; 200_000]).await);
        assert_eq!(fault.code, ErrorCode::NoSpace, "{fault}");
        let append = FileRequest::Append { path: "/mnt/file".into() };
        assert_eq!(code(give(&link, append, &vec![1; 200_000]).await), ErrorCode::NoSpace);
        let (old, _) = read(&link, "/mnt/file", ReadRange::default()).await.expect("it is still there");
        assert!(old.starts_with(b"old"));
        let copy = FileRequest::Copy { from: "/bin/sh".into(), to: "/mnt/sh".into() };
        assert_eq!(code(act(&link, copy).await), ErrorCode::NoSpace);
        let replies = act(&link, list("/mnt")).await.expect("a directory");
        let kiln_wire::Reply::Page(page) = &replies[0] else { panic!("{replies:?}") };
        assert_eq!(page.entries.len(), 1, "no temporary file stays: {page:?}");
    });
}

#[test]
fn a_rename_to_another_file_system_is_reported() {
    bounded(async {
        let script = "mount -t tmpfs -o size=64k kiln /mnt && exec \"$@\"";
        let agent = Agent::listening_under(&["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
        let link = agent.link().await.expect("the agent answers");
        fs::write(agent.path("file"), "x").expect("ours");
        let rename = FileRequest::Rename { from: agent.path("file").as_str().into(), to: "/mnt/file".into() };
        assert_eq!(code(act(&link, rename).await), ErrorCode::CrossDevice);
    });
}
