//! Archives in and out, against the `tar` of this host.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use kiln_e2e::{Agent, bounded};
use kiln_engine::link::{GuestLink, StreamError};
use kiln_wire::{Done, ErrorCode, FileRequest};

use crate::common::code;
use crate::files::{give, take};

/// Packs with the host's tar.
fn packed(directory: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").arg("-C").arg(directory).args(["-cf", "-"]).args(arguments).output();
    let output = output.expect("tar is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Unpacks with the host's tar.
fn unpack(archive: &[u8], directory: &Path) {
    fs::create_dir_all(directory).expect("ours");
    let mut tar = Command::new("tar");
    let mut tar =
        tar.arg("-C").arg(directory).args(["-xpf", "-"]).stdin(Stdio::piped()).spawn().expect("tar is installed");
    tar.stdin.take().expect("piped").write_all(archive).expect("tar reads");
    assert!(tar.wait().expect("a child of ours").success());
}

async fn tar_in(link: &GuestLink, path: &str, archive: &[u8]) -> Result<Done, StreamError> {
    give(link, FileRequest::TarIn { path: path.into() }, archive).await
}

async fn tar_out(link: &GuestLink, path: &str) -> Result<(Vec<u8>, Done), StreamError> {
    let (_sender, mut receiver) = link.files(FileRequest::TarOut { path: path.into() })?;
    take(&mut receiver).await
}

/// A tree with every kind of entry that an archive keeps: 6 entries, `tree` included.
fn plant(root: &Path) {
    let tree = root.join("tree");
    fs::create_dir_all(tree.join("sub ü")).expect("ours");
    fs::write(tree.join("file"), vec![9; 300_000]).expect("ours");
    fs::write(tree.join("sub ü").join("n".repeat(200)), "long").expect("ours");
    fs::write(tree.join("run.sh"), "#!/bin/sh\n").expect("ours");
    fs::set_permissions(tree.join("run.sh"), fs::Permissions::from_mode(0o751)).expect("ours");
    symlink("../nowhere", tree.join("link")).expect("ours");
    fs::set_permissions(tree.join("sub ü"), fs::Permissions::from_mode(0o710)).expect("ours");
}

fn check(tree: &Path) {
    assert!(fs::read(tree.join("file")).expect("unpacked") == vec![9; 300_000]);
    assert_eq!(fs::read(tree.join("sub ü").join("n".repeat(200))).expect("unpacked"), b"long");
    let mode = |name: &str| fs::metadata(tree.join(name)).expect("unpacked").permissions().mode() & 0o7777;
    assert_eq!((mode("run.sh"), mode("sub ü")), (0o751, 0o710));
    assert_eq!(fs::read_link(tree.join("link")).expect("unpacked"), Path::new("../nowhere"));
}

#[test]
fn an_archive_goes_in() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        plant(agent.directory());
        let archive = packed(agent.directory(), &["tree"]);
        let done = tar_in(&link, &agent.path("new/deep"), &archive).await.expect("unpacked");
        assert_eq!((done.bytes, done.entries), (archive.len() as u64, 6));
        check(&agent.directory().join("new/deep/tree"));
    });
}

#[test]
fn archives_of_every_dialect_go_in() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        plant(agent.directory());
        for dialect in ["gnu", "pax"] {
            let archive = packed(agent.directory(), &["--format", dialect, "tree"]);
            let path = agent.path(dialect);
            tar_in(&link, &path, &archive).await.expect(dialect);
            check(&Path::new(&path).join("tree"));
        }
    });
}

#[test]
fn an_archive_comes_out() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        plant(agent.directory());
        let (archive, done) = tar_out(&link, &agent.path("tree")).await.expect("packed");
        assert_eq!((done.bytes, done.entries), (archive.len() as u64, 6));
        let out = agent.directory().join("out");
        unpack(&archive, &out);
        check(&out.join("tree"));
    });
}

#[test]
fn a_single_file_comes_out_under_its_own_name() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        fs::write(agent.path("file"), "x").expect("ours");
        let (archive, done) = tar_out(&link, &agent.path("file")).await.expect("packed");
        assert_eq!(done.entries, 1);
        let out = agent.directory().join("out");
        unpack(&archive, &out);
        assert_eq!(fs::read(out.join("file")).expect("unpacked"), b"x");
    });
}

#[test]
fn a_packed_tree_is_unpacked_unchanged() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        plant(agent.directory());
        let (archive, _) = tar_out(&link, &agent.path("tree")).await.expect("packed");
        tar_in(&link, &agent.path("again"), &archive).await.expect("unpacked");
        check(&agent.directory().join("again/tree"));
    });
}

#[test]
fn an_archive_replaces_files_and_shares_directories() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        plant(agent.directory());
        let archive = packed(agent.directory(), &["tree"]);
        let target = agent.directory().join("target");
        fs::create_dir_all(target.join("tree")).expect("ours");
        fs::write(target.join("tree/file"), "old").expect("ours");
        fs::write(target.join("tree/other"), "kept").expect("ours");
        tar_in(&link, &agent.path("target"), &archive).await.expect("unpacked");
        check(&target.join("tree"));
        assert_eq!(fs::read(target.join("tree/other")).expect("kept"), b"kept");
    });
}

#[test]
fn no_archive_leaves_its_directory() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        fs::write(agent.path("evil"), "evil").expect("ours");
        fs::create_dir(agent.path("inside")).expect("ours");
        fs::create_dir(agent.path("outside")).expect("ours");
        let outside = agent.path("outside/evil");
        for rename in ["s,^,../outside/,".to_owned(), "s,^,a/../../outside/,".to_owned(), format!("s,^evil,{outside},")]
        {
            let archive = packed(agent.directory(), &["-P", "--transform", &rename, "evil"]);
            assert_eq!(code(tar_in(&link, &agent.path("inside"), &archive).await), ErrorCode::OutsideJail, "{rename}");
        }
        assert_eq!(fs::read_dir(agent.path("outside")).expect("ours").count(), 0);
    });
}

#[test]
fn no_archive_leaves_its_directory_through_its_own_symlink() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let source = agent.directory().join("source");
        fs::create_dir(&source).expect("ours");
        fs::create_dir(agent.path("outside")).expect("ours");
        for target in [agent.path("outside"), "../outside".to_owned()] {
            let file = agent.path("evil.tar");
            let tar = |arguments: &[&str]| {
                let run = Command::new("tar").arg("-C").arg(&source).args(arguments).status();
                assert!(run.expect("tar is installed").success());
            };
            symlink(&target, source.join("way")).expect("ours");
            tar(&["-cf", &file, "way"]);
            fs::remove_file(source.join("way")).expect("ours");
            fs::create_dir(source.join("way")).expect("ours");
            fs::write(source.join("way/evil"), "evil").expect("ours");
            tar(&["-rf", &file, "way/evil"]);
            fs::remove_dir_all(source.join("way")).expect("ours");

            let archive = fs::read(&file).expect("ours");
            let refused = tar_in(&link, &agent.path("inside"), &archive).await;
            assert_eq!(code(refused), ErrorCode::OutsideJail);
            assert_eq!(fs::read_dir(agent.path("outside")).expect("ours").count(), 0);
            fs::remove_dir_all(agent.path("inside")).expect("ours");
        }
    });
}

#[test]
fn devices_and_fifos_in_archives_are_refused() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let fifo = agent.path("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).expect("ours");
        let archive = packed(agent.directory(), &["fifo"]);
        assert_eq!(code(tar_in(&link, &agent.path("inside"), &archive).await), ErrorCode::NotAFile);
    });
}

#[test]
fn an_incomplete_archive_is_invalid() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        plant(agent.directory());
        let archive = packed(agent.directory(), &["tree"]);
        let cut = &archive[..archive.len() / 2 + 100];
        for bytes in [cut, &archive[..600], &[0xff; 2048]] {
            assert_eq!(code(tar_in(&link, &agent.path("inside"), bytes).await), ErrorCode::InvalidRequest);
        }
    });
}

#[test]
fn an_impossible_path_in_an_archive_is_named() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        fs::write(agent.path("file"), "x").expect("ours");
        assert_eq!(code(tar_in(&link, &agent.path("file"), b"").await), ErrorCode::NotADirectory);
        assert_eq!(code(tar_out(&link, &agent.path("missing")).await), ErrorCode::NotFound);
    });
}

#[test]
fn holes_stay_holes_in_every_dialect() {
    const SIZE: u64 = 20 << 30;
    bounded(async {
        let (agent, link) = Agent::linked().await;
        let file = fs::File::create(agent.path("f")).expect("ours");
        file.write_all_at(b"middle", SIZE / 2).expect("ours");
        file.set_len(SIZE).expect("ours");
        let check = |path: &str| {
            let metadata = fs::metadata(path).expect("it is there");
            assert_eq!(metadata.len(), SIZE);
            assert!(metadata.blocks() < 1000, "{} blocks", metadata.blocks());
            let mut middle = [0; 8];
            let copy = fs::File::open(path).expect("it is there");
            copy.read_exact_at(&mut middle, SIZE / 2 - 1).expect("it is long enough");
            assert_eq!(&middle, b"\0middle\0");
        };
        for dialect in ["--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"] {
            let format = if dialect.contains("gnu") { dialect } else { "--format=pax" };
            let archive = packed(agent.directory(), &["-S", format, dialect, "f"]);
            tar_in(&link, &agent.path(dialect), &archive).await.expect(dialect);
            check(&agent.path(&format!("{dialect}/f")));
        }
        let (archive, done) = tar_out(&link, &agent.path("f")).await.expect("packed");
        assert!(done.bytes < 200_000, "{} bytes", done.bytes);
        unpack(&archive, &agent.directory().join("out"));
        check(&agent.path("out/f"));
    });
}

#[test]
fn files_that_an_archive_lacks_are_named() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        fs::create_dir(agent.path("d")).expect("ours");
        fs::write(agent.path("d/f"), "x").expect("ours");
        rustix::fs::mkfifoat(rustix::fs::CWD, agent.path("d/p"), rustix::fs::Mode::RUSR).expect("ours");
        let (_, done) = tar_out(&link, &agent.path("d")).await.expect("packed");
        assert_eq!((done.entries, done.left_out.len(), done.left_out_more), (2, 1, 0));
        assert_eq!(done.left_out[0].code, ErrorCode::NotAFile);
        assert!(done.left_out[0].message.contains("d/p` is a FIFO"), "{}", done.left_out[0].message);
        // The agent's files in `/proc`: some of them can't be read, and all others are packed.
        let (_, done) = tar_out(&link, "/proc/self/task").await.expect("packed");
        let unreadable = done.left_out.iter().find(|fault| fault.message.contains("/mem`")).expect("it is named");
        assert_ne!(unreadable.code, ErrorCode::NotAFile);
    });
}

#[test]
fn files_without_a_size_are_packed_whole() {
    bounded(async {
        let (agent, link) = Agent::linked().await;
        for path in ["/proc/filesystems", "/proc/kallsyms", "/sys/class/net/lo/mtu"] {
            let Ok(content) = fs::read(path) else { continue };
            let (archive, _) = tar_out(&link, path).await.expect("packed");
            let out = agent.directory().join("out");
            unpack(&archive, &out);
            let name = Path::new(path).file_name().expect("a name");
            assert!(fs::read(out.join(name)).expect("unpacked") == content, "{path}");
        }
        assert!(agent.directory().join("out/filesystems").is_file());
    });
}
