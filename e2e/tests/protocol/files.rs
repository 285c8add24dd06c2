//! Operations on the guest's files.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_e2e::{Agent, bounded};
use kiln_engine::link::{Event, GuestLink, StreamError, StreamReceiver};
use kiln_wire::{
    Done, FileKind, FileRequest, FileStat, FilesRequest, ListPage, Message, Owner, ReadRange, Reply, Text, WriteMode,
};

/// Runs an operation without data.
pub async fn act(link: &GuestLink, request: FileRequest) -> Result<Vec<Reply>, StreamError> {
    let (_sender, receiver) = link.files(request)?;
    receiver.replies().await
}

/// Runs an operation without data in a jail.
pub async fn act_in(link: &GuestLink, jail: &str, request: FileRequest) -> Result<Vec<Reply>, StreamError> {
    let request = FilesRequest { jail: Some(jail.into()), request };
    let (_sender, receiver) = link.open(&Message::Files(Box::new(request)))?;
    receiver.replies().await
}

/// Reads part of a file.
pub async fn read(link: &GuestLink, path: &str, range: ReadRange) -> Result<(Vec<u8>, Done), StreamError> {
    let (_sender, mut receiver) = link.files(FileRequest::Read { path: path.into(), range })?;
    take(&mut receiver).await
}

/// Takes data up to the end.
pub async fn take(receiver: &mut StreamReceiver) -> Result<(Vec<u8>, Done), StreamError> {
    let mut content = Vec::new();
    loop {
        match receiver.next().await? {
            Event::Data(_, bytes) => content.extend_from_slice(&bytes),
            Event::Reply(_) | Event::Eof => {}
            Event::Done(done) => return Ok((content, done)),
            other => panic!("{other:?}"),
        }
    }
}

/// Runs an operation that takes data.
pub async fn give(link: &GuestLink, request: FileRequest, content: &[u8]) -> Result<Done, StreamError> {
    let (sender, mut receiver) = link.files(request)?;
    let feed = async {
        // If this fails, the receiver returns the reason.
        let _ = sender.send(content).await;
        let _ = sender.eof().await;
    };
    tokio::join!(feed, receiver.done()).1
}

/// A write with the default options.
pub fn write(path: &str) -> FileRequest {
    FileRequest::Write { path: path.into(), mode: WriteMode::Replace, permissions: None, owner: None }
}

fn bytes(offset: i64, limit: Option<i64>) -> ReadRange {
    ReadRange::Bytes { offset, limit }
}

fn lines(offset_line: i64, limit_lines: Option<i64>, max_bytes: Option<i64>) -> ReadRange {
    ReadRange::Lines { offset_line, limit_lines, max_bytes }
}

async fn page(link: &GuestLink, path: &str, after: Option<Text>, limit: Option<u32>) -> ListPage {
    match act(link, FileRequest::List { path: path.into(), after, limit }).await.expect("a directory").pop() {
        Some(Reply::Page(page)) => page,
        other => panic!("{other:?}"),
    }
}

async fn stat(link: &GuestLink, path: &str, follow: bool) -> FileStat {
    link.stat(path, follow).await.expect("it is there")
}

#[test]
fn a_file_is_read_unchanged() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let path = agent.path("file");
        for content in [&b""[..], b"\r\n\0\xff no end of line", &vec![0xa5; 3 << 20]] {
            fs::write(&path, content).expect("the directory is ours");
            let (read, done) = read(&link, &path, ReadRange::default()).await.expect("a plain file");
            assert!(read == content);
            assert_eq!(done, Done { bytes: content.len() as u64, ..Done::default() });
        }
    });
}

#[test]
fn a_part_of_a_file_is_read_by_bytes() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let path = agent.path("file");
        fs::write(&path, "0123456789").expect("the directory is ours");
        for (range, expected) in [
            (bytes(3, None), "3456789"),
            (bytes(3, Some(4)), "3456"),
            (bytes(3, Some(7)), "3456789"),
            (bytes(3, Some(100)), "3456789"),
            (bytes(0, Some(0)), ""),
            (bytes(10, None), ""),
            (bytes(i64::MAX, None), ""),
            (bytes(0, Some(i64::MAX)), "0123456789"),
        ] {
            let (read, done) = read(&link, &path, range).await.expect("a plain file");
            assert_eq!(String::from_utf8_lossy(&read), expected, "{range:?}");
            // A request for four bytes that returns four is not truncated.
            assert_eq!((done.bytes, done.truncated), (expected.len() as u64, false), "{range:?}");
        }
    });
}

#[test]
fn a_part_of_a_file_is_read_by_lines_which_keep_their_ends() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let path = agent.path("file");
        fs::write(&path, "zero\none\r\n\nthree\nfour without an end").expect("the directory is ours");
        for (range, expected) in [
            (lines(0, Some(1), None), "zero\n"),
            (lines(1, Some(2), None), "one\r\n\n"),
            (lines(3, None, None), "three\nfour without an end"),
            (lines(4, Some(9), None), "four without an end"),
            (lines(5, None, None), ""),
            (lines(i64::MAX, Some(i64::MAX), Some(i64::MAX)), ""),
            (lines(0, None, Some(7)), "zero\non"),
            (lines(3, Some(1), Some(100)), "three\n"),
            (lines(0, Some(0), None), ""),
        ] {
            let (read, done) = read(&link, &path, range).await.expect("a plain file");
            assert_eq!(String::from_utf8_lossy(&read), expected, "{range:?}");
            assert_eq!(done.bytes, expected.len() as u64, "{range:?}");
        }
        let (_, done) = read(&link, &path, lines(0, None, Some(7))).await.expect("a plain file");
        assert!(done.truncated);
    });
}

#[test]
fn a_read_returns_the_status_before_the_bytes() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let path = agent.path("file");
        fs::write(&path, "12345").expect("the directory is ours");
        let request = FileRequest::Read { path: path.as_str().into(), range: ReadRange::default() };
        let (_sender, mut receiver) = link.files(request).expect("the link is up");
        let Event::Reply(reply) = receiver.next().await.expect("an answer") else { panic!("no reply first") };
        let Reply::Stat(stat) = *reply else { panic!("no stat") };
        assert_eq!((stat.kind, stat.size), (FileKind::File, 5));
    });
}

#[test]
fn a_file_of_proc_is_read_whole_although_its_size_is_zero() {
    bounded(async {
        let (_agent, link) = Agent::linked().await;
        let (content, _) = read(&link, "/proc/version", ReadRange::default()).await.expect("a plain file");
        assert_eq!(content, fs::read("/proc/version").expect("Linux has it"));
    });
}

#[test]
fn a_write_makes_a_file_and_leaves_nothing_else() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let path = agent.path("file");
        for content in [&b""[..], b"\0\xff", &vec![7; 2 << 20]] {
            let done = give(&link, write(&path), content).await.expect("written");
            assert_eq!(done.bytes, content.len() as u64);
            assert!(fs::read(&path).expect("it is there") == content);
        }
        assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o7777, 0o644);
        assert_eq!(fs::read_dir(agent.directory()).expect("ours").count(), 1, "no temporary file stays");
    });
}

#[test]
fn a_write_sets_permissions_and_keeps_those_of_the_file_it_replaces() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let path = agent.path("file");
        let mode = || fs::metadata(&path).expect("it is there").permissions().mode() & 0o7777;
        let request = |permissions| FileRequest::Write {
            path: path.as_str().into(),
            mode: WriteMode::Replace,
            permissions,
            owner: None,
        };
        give(&link, request(Some(0o4751)), b"a").await.expect("written");
        assert_eq!(mode(), 0o4751);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("ours");
        give(&link, request(None), b"b").await.expect("written");
        assert_eq!(mode(), 0o600);
    });
}

#[test]
fn a_write_may_name_the_owner() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let path = agent.path("file");
        let own = fs::metadata(agent.directory()).expect("ours");
        let owner = Some(Owner { uid: own.uid(), gid: own.gid() });
        let request =
            FileRequest::Write { path: path.as_str().into(), mode: WriteMode::Replace, permissions: None, owner };
        give(&link, request, b"x").await.expect("written");
        let written = fs::metadata(&path).expect("it is there");
        assert_eq!((written.uid(), written.gid()), (own.uid(), own.gid()));
    });
}

#[test]
fn readers_see_the_old_file_or_the_new_one_and_never_a_mix() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let path = agent.path("file");
        let content = |number: u8| vec![number; 200_000];
        fs::write(&path, content(0)).expect("the directory is ours");
        let stop = Arc::new(AtomicBool::new(false));
        let reader = std::thread::spawn({
            let (path, stop) = (path.clone(), Arc::clone(&stop));
            move || {
                let mut reads = 0;
                while !stop.load(Ordering::Relaxed) {
                    let seen = fs::read(&path).expect("there is always one");
                    assert!(seen.len() == 200_000 && seen.iter().all(|byte| *byte == seen[0]), "a mix");
                    reads += 1;
                }
                reads
            }
        });
        for number in 1..=20 {
            give(&link, write(&path), &content(number)).await.expect("written");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(reader.join().expect("never a mix") > 0);
    });
}

#[test]
fn a_write_that_is_cancelled_changes_nothing() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let path = agent.path("file");
        fs::write(&path, "old").expect("the directory is ours");
        let (sender, mut receiver) = link.files(write(&path)).expect("the link is up");
        sender.send(&vec![1; 100_000]).await.expect("it takes data");
        sender.cancel().expect("it runs");
        assert_eq!(crate::common::code(receiver.done().await), kiln_wire::ErrorCode::Cancelled);
        assert_eq!(fs::read(&path).expect("it is there"), b"old");
        assert_eq!(fs::read_dir(agent.directory()).expect("ours").count(), 1, "no temporary file stays");
    });
}

#[test]
fn an_append_adds_and_creates() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let path = agent.path("file");
        for (content, expected) in [("one", "one"), ("", "one"), ("two", "onetwo")] {
            let request = FileRequest::Append { path: path.as_str().into() };
            let done = give(&link, request, content.as_bytes()).await.expect("appended");
            assert_eq!(done.bytes, content.len() as u64);
            assert_eq!(fs::read_to_string(&path).expect("it is there"), expected);
        }
    });
}

#[test]
fn stat_returns_what_exists() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let path = agent.path("file");
        fs::write(&path, "12345").expect("ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("ours");
        fs::hard_link(&path, agent.path("second")).expect("ours");
        let real = fs::metadata(&path).expect("ours");
        let told = stat(&link, &path, false).await;
        let expected = FileStat {
            kind: FileKind::File,
            size: 5,
            permissions: 0o640,
            owner: Owner { uid: real.uid(), gid: real.gid() },
            modified_ns: real.mtime() * 1_000_000_000 + real.mtime_nsec(),
            links: 2,
            inode: real.ino(),
            target: None,
        };
        assert_eq!(told, expected);
    });
}

#[test]
fn every_kind_of_file_is_distinguished() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let (fifo, socket) = (agent.path("fifo"), agent.path("socket"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).expect("ours");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("ours");
        let directory = agent.directory().to_str().expect("UTF-8");
        for (path, kind) in [
            (directory, FileKind::Directory),
            (&fifo, FileKind::Fifo),
            (&socket, FileKind::Socket),
            ("/dev/null", FileKind::CharDevice),
        ] {
            assert_eq!(stat(&link, path, false).await.kind, kind, "{path}");
        }
    });
}

#[test]
fn stat_returns_a_symlink_itself_unless_it_is_followed() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        fs::write(agent.path("file"), "12345").expect("ours");
        act(&link, FileRequest::Symlink { target: "file".into(), path: agent.path("link").as_str().into() })
            .await
            .expect("made");
        let itself = stat(&link, &agent.path("link"), false).await;
        assert_eq!((itself.kind, itself.target), (FileKind::Symlink, Some("file".into())));
        let followed = stat(&link, &agent.path("link"), true).await;
        assert_eq!((followed.kind, followed.size, followed.target), (FileKind::File, 5, None));
    });
}

#[test]
fn a_list_is_sorted_and_whole_page_by_page() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let names: Vec<String> = (0..25).map(|number| format!("n{number:02}")).collect();
        for name in names.iter().rev() {
            fs::write(agent.path(name), name).expect("ours");
        }
        let directory = agent.directory().to_str().expect("UTF-8");
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let page = page(&link, directory, after, Some(10)).await;
            assert!(page.entries.len() <= 10);
            seen.extend(page.entries.iter().map(|entry| entry.name.to_string()));
            assert!(page.entries.iter().all(|entry| entry.kind == FileKind::File && entry.size == 3));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen, names);
        assert_eq!(page(&link, directory, None, None).await.entries.len(), 25);
    });
}

/// Makes many hard links to one file, because some file systems create files slowly.
fn plant_links(agent: &Agent, names: impl Iterator<Item = String>) {
    let file = agent.path("file");
    fs::write(&file, "x").expect("ours");
    for name in names {
        fs::hard_link(&file, agent.path(&name)).expect("ours");
    }
}

#[test]
fn a_list_of_more_than_ten_thousand_entries_continues_where_it_stopped() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        fs::create_dir(agent.path("d")).expect("ours");
        plant_links(&agent, (0..10_003).map(|number| format!("d/{number:05}")));
        let first = page(&link, &agent.path("d"), None, None).await;
        assert_eq!((first.entries.len(), first.next.is_some()), (10_000, true));
        let second = page(&link, &agent.path("d"), first.next, None).await;
        let names: Vec<String> = second.entries.iter().map(|entry| entry.name.to_string()).collect();
        assert_eq!(names, ["10000", "10001", "10002"]);
        assert_eq!(second.next, None);
    });
}

#[test]
fn long_names_make_short_pages_and_no_name_is_lost() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        fs::create_dir(agent.path("d")).expect("ours");
        // As JSON each of these names is six times as long: 3,000 do not fit into one frame.
        plant_links(&agent, (0..3000).map(|number| format!("d/{number:04}{}", "\u{1}".repeat(200))));
        let (mut seen, mut after) = (0, None);
        loop {
            let page = page(&link, &agent.path("d"), after, None).await;
            seen += page.entries.len();
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen, 3000);
    });
}

#[test]
fn paths_need_not_be_utf_8() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let mut path = agent.directory().as_os_str().as_encoded_bytes().to_vec();
        path.extend(b"/n\xff\xfe");
        let path = Text::from(path);
        let request =
            FileRequest::Write { path: path.clone(), mode: WriteMode::Replace, permissions: None, owner: None };
        give(&link, request, b"x").await.expect("written");
        assert_eq!(fs::read(path.as_path()).expect("it is there"), b"x");
        let page = page(&link, agent.directory().to_str().expect("UTF-8"), None, None).await;
        assert_eq!(page.entries[0].name, Text::from(&b"n\xff\xfe"[..]));
        act(&link, FileRequest::Remove { path, recursive: false }).await.expect("removed");
    });
}

#[test]
fn directories_are_made_with_their_parents_and_permissions() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let path = agent.path("a/b/c");
        let request = |parents| FileRequest::Mkdir { path: path.as_str().into(), parents, permissions: Some(0o711) };
        act(&link, request(false)).await.expect_err("no parent");
        act(&link, request(true)).await.expect("made");
        act(&link, request(true)).await.expect("one that exists is accepted");
        assert_eq!(fs::metadata(&path).expect("made").permissions().mode() & 0o7777, 0o711);
        let plain = agent.path("plain");
        let request = FileRequest::Mkdir { path: plain.as_str().into(), parents: false, permissions: None };
        act(&link, request).await.expect("made");
        assert_eq!(fs::metadata(&plain).expect("made").permissions().mode() & 0o7777, 0o755);
    });
}

#[test]
fn a_tree_is_removed_and_what_its_symlinks_point_to_stays() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        fs::create_dir_all(agent.path("tree/a/b")).expect("ours");
        fs::create_dir(agent.path("precious")).expect("ours");
        fs::write(agent.path("precious/file"), "x").expect("ours");
        std::os::unix::fs::symlink(agent.path("precious"), agent.path("tree/a/link")).expect("ours");
        let remove = |name: &str, recursive| FileRequest::Remove { path: agent.path(name).as_str().into(), recursive };
        act(&link, remove("tree", false)).await.expect_err("not empty");
        act(&link, remove("tree", true)).await.expect("removed");
        assert!(!fs::exists(agent.path("tree")).expect("ours"));
        assert!(fs::exists(agent.path("precious/file")).expect("ours"));
        act(&link, remove("precious/file", false)).await.expect("removed");
        act(&link, remove("precious", false)).await.expect("an empty directory");
    });
}

#[test]
fn a_rename_moves_and_replaces() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        fs::write(agent.path("a"), "new").expect("ours");
        fs::write(agent.path("b"), "old").expect("ours");
        let request =
            FileRequest::Rename { from: agent.path("a").as_str().into(), to: agent.path("b").as_str().into() };
        act(&link, request).await.expect("renamed");
        assert_eq!(fs::read(agent.path("b")).expect("it is there"), b"new");
        assert!(!fs::exists(agent.path("a")).expect("ours"));
    });
}

#[test]
fn a_copy_has_the_content_and_the_permissions() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let content = vec![3; 1 << 20];
        fs::write(agent.path("a"), &content).expect("ours");
        fs::set_permissions(agent.path("a"), fs::Permissions::from_mode(0o751)).expect("ours");
        let request = FileRequest::Copy { from: agent.path("a").as_str().into(), to: agent.path("b").as_str().into() };
        act(&link, request).await.expect("copied");
        assert!(fs::read(agent.path("b")).expect("it is there") == content);
        assert_eq!(fs::metadata(agent.path("b")).expect("it is there").permissions().mode() & 0o7777, 0o751);
        assert_eq!(fs::read_dir(agent.directory()).expect("ours").count(), 2, "no temporary file stays");
    });
}

#[test]
fn permissions_and_owners_are_changed() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let path = agent.path("file");
        fs::write(&path, "x").expect("ours");
        let chmod = |permissions| FileRequest::Chmod { path: path.as_str().into(), permissions };
        for permissions in [0, 0o7777, 0o1644] {
            act(&link, chmod(permissions)).await.expect("changed");
            assert_eq!(fs::metadata(&path).expect("ours").permissions().mode() & 0o7777, permissions);
        }
        let own = fs::metadata(&path).expect("ours");
        let owner = Owner { uid: own.uid(), gid: own.gid() };
        act(&link, FileRequest::Chown { path: path.as_str().into(), owner }).await.expect("its own owner");
    });
}

#[test]
fn a_relative_path_starts_at_the_root_or_at_the_jail() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        fs::write(agent.path("file"), "12345").expect("ours");
        assert_eq!(link.stat(&agent.path("file")[1..], false).await.expect("below /").size, 5);
        let jail = agent.directory().to_str().expect("UTF-8");
        for path in ["file", "/file", "./file", "//file"] {
            let stat = act_in(&link, jail, FileRequest::Stat { path: path.into(), follow: false }).await;
            assert!(matches!(&stat.expect("inside")[..], [Reply::Stat(stat)] if stat.size == 5), "{path}");
        }
    });
}
