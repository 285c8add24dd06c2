//! Archives as guests send them, honest and hostile, against what is there already.

use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use bytes::Bytes;
use tar::EntryType;
use tokio::sync::mpsc;

use super::*;

/// Takes an archive to a place, with room for a mebibyte.
fn take_at(arriving: mpsc::Receiver<Piece>, host: &Path) -> io::Result<LeftOut> {
    take(arriving, &Target::find(host).map_err(io::Error::other)?, &mut Budget::new(1 << 20))
}

/// Pieces of an archive made by `fill`, without its end.
fn pieces(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> (mpsc::Sender<Piece>, mpsc::Receiver<Piece>) {
    let mut archive = tar::Builder::new(Vec::new());
    fill(&mut archive);
    let bytes = archive.into_inner().expect("in memory");
    let (sender, arriving) = mpsc::channel(2 + bytes.len() / 100);
    for piece in bytes.chunks(100) {
        sender.try_send(Piece::Bytes(Bytes::copy_from_slice(piece))).expect("there is room");
    }
    (sender, arriving)
}

/// Unpacks an archive made by `fill` into `out` of a folder.
fn unpack_into(folder: &Path, fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> io::Result<LeftOut> {
    let (sender, arriving) = pieces(fill);
    sender.try_send(Piece::End).expect("there is room");
    take_at(arriving, &folder.join("out"))
}

fn unpacked(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> (tempfile::TempDir, io::Result<LeftOut>) {
    let folder = tempfile::tempdir().expect("a folder");
    let outcome = unpack_into(folder.path(), fill);
    (folder, outcome)
}

fn add_mode(archive: &mut tar::Builder<Vec<u8>>, kind: EntryType, name: &str, mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    header.set_path(name).expect("a plain name");
    header.set_cksum();
    archive.append(&header, io::empty()).expect("in memory");
}

fn add(archive: &mut tar::Builder<Vec<u8>>, kind: EntryType, name: &str, link: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    // Written directly, because the safe setter refuses hostile names.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    archive.append(&header, content).expect("in memory");
}

fn mode(path: &Path) -> u32 {
    path.metadata().expect("it is there").permissions().mode() & 0o7777
}

#[test]
fn a_folder_comes_out_under_its_new_name() {
    let (folder, outcome) = unpacked(|archive| {
        add(archive, EntryType::Directory, "result/", "", b"");
        add(archive, EntryType::Regular, "result/a/b", "", b"text");
        add(archive, EntryType::Symlink, "result/a/l", "../a/b", b"");
    });
    outcome.expect("a good archive");
    assert_eq!(fs_err::read(folder.path().join("out/a/l")).expect("it is there"), b"text");
    assert_eq!(fs_err::read_dir(folder.path()).expect("readable").count(), 1, "nothing else is left");
}

#[test]
fn a_folder_without_a_name_of_its_own_comes_out_too() {
    for base in ["./", "/", ".."] {
        let (folder, outcome) = unpacked(|archive| {
            add(archive, EntryType::Directory, base, "", b"");
            add(archive, EntryType::Regular, &format!("{base}/etc/x"), "", b"1");
        });
        outcome.expect("a good archive");
        assert!(folder.path().join("out/etc/x").is_file(), "{base}");
    }
}

#[test]
fn a_single_file_comes_out_as_a_file() {
    let (folder, outcome) = unpacked(|archive| add(archive, EntryType::Regular, "x", "", b"1"));
    outcome.expect("a good archive");
    assert_eq!(fs_err::read(folder.path().join("out")).expect("it is there"), b"1");
}

#[test]
fn bits_that_lend_rights_do_not_come_out() {
    let (folder, outcome) = unpacked(|archive| {
        add_mode(archive, EntryType::Directory, "r/", 0o7000);
        add_mode(archive, EntryType::Regular, "r/su", 0o6755);
    });
    outcome.expect("a good archive");
    assert_eq!(mode(&folder.path().join("out/su")), 0o755);
    assert_eq!(mode(&folder.path().join("out")), 0o700);
}

#[test]
fn an_archive_that_was_cut_off_between_files_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (sender, arriving) = pieces(|archive| add(archive, EntryType::Regular, "r", "", b"1"));
    drop(sender);
    let error = take_at(arriving, &folder.path().join("out")).expect_err("cut off");
    assert!(error.to_string().contains("cut off"), "{error}");
    assert_eq!(fs_err::read_dir(folder.path()).expect("readable").count(), 0);
}

#[test]
fn an_existing_folder_is_merged_into_and_kinds_are_not_mixed() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    fs_err::create_dir(&out).expect("a folder");
    fs_err::write(out.join("old"), "old").expect("a file");
    unpack_into(folder.path(), |archive| {
        add(archive, EntryType::Directory, "r/", "", b"");
        add(archive, EntryType::Regular, "r/new", "", b"new");
    })
    .expect("merged");
    assert_eq!(fs_err::read_dir(&out).expect("readable").count(), 2);
    unpack_into(folder.path(), |archive| add(archive, EntryType::Regular, "r", "", b"")).expect_err("a file");
    fs_err::remove_dir_all(&out).expect("removed");
    fs_err::write(&out, "old").expect("a file");
    unpack_into(folder.path(), |archive| add(archive, EntryType::Directory, "r/", "", b"")).expect_err("a folder");
    assert_eq!(fs_err::read(&out).expect("it is there"), b"old");
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    type Fill = fn(&mut tar::Builder<Vec<u8>>);
    let top = |archive: &mut tar::Builder<Vec<u8>>| add(archive, EntryType::Directory, "r/", "", b"");
    let hostile: [(&str, Fill); 15] = [
        ("leaves", |archive| add(archive, EntryType::Regular, "r/../../evil", "", b"x")),
        ("not in", |archive| add(archive, EntryType::Regular, "s/x", "", b"x")),
        ("symlink", |archive| {
            add(archive, EntryType::Symlink, "r/l", "d", b"");
            add(archive, EntryType::Regular, "r/l/evil", "", b"x");
        }),
        ("twice", |archive| {
            add(archive, EntryType::Symlink, "r/l", "d", b"");
            add(archive, EntryType::Regular, "r/l", "", b"x");
        }),
        ("is a symlink", |archive| add(archive, EntryType::Symlink, "r", "/tmp", b"")),
        ("hard link", |archive| add(archive, EntryType::Link, "r/h", "/etc/passwd", b"")),
        ("hard link", |archive| add(archive, EntryType::Link, "r", "/etc/passwd", b"")),
        ("is of type Char", |archive| add(archive, EntryType::Char, "r/d", "", b"")),
        ("is of type Fifo", |archive| add(archive, EntryType::Fifo, "r/d", "", b"")),
        ("limit", |archive| add(archive, EntryType::Regular, "r/f", "", &vec![0; 2 << 20])),
        ("too long", |archive| {
            add(archive, EntryType::GNULongName, "././@LongLink", "", &[b'x'; 100_000]);
            add(archive, EntryType::Regular, "r/x", "", b"x");
        }),
        ("without a member", |archive| add(archive, EntryType::GNULongName, "././@LongLink", "", &[b'x'; 100_000])),
        ("through a file", |archive| {
            add(archive, EntryType::Regular, "r/f", "", b"x");
            add(archive, EntryType::Regular, "r/f/evil", "", b"x");
        }),
        ("has a name of more than", |archive| {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            archive.append_data(&mut header, format!("r/{}", "n".repeat(300)), io::empty()).expect("in memory");
        }),
        ("deep", |archive| {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            let deep = format!("r{}", "/d".repeat(200));
            archive.append_data(&mut header, deep, io::empty()).expect("in memory");
        }),
    ];
    let mut texts = Vec::new();
    for (word, fill) in hostile {
        let (folder, outcome) = unpacked(|archive| {
            top(archive);
            fill(archive);
        });
        let words = format!("{:#}", anyhow::Error::new(outcome.expect_err(word)));
        assert!(words.contains(word), "{word}: {words}");
        assert_eq!(fs_err::read_dir(folder.path()).expect("readable").count(), 0, "{word}");
        texts.push(words);
    }
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn a_symlink_at_the_top_is_refused_before_anything_goes_through_it() {
    let outside = tempfile::tempdir().expect("a folder");
    let link = outside.path().to_str().expect("UTF-8").to_owned();
    let (folder, outcome) = unpacked(|archive| {
        add(archive, EntryType::Symlink, "r", &link, b"");
        add(archive, EntryType::Regular, "r/evil", "", b"x");
    });
    assert!(outcome.expect_err("refused").to_string().contains("symlink"));
    for path in [outside.path(), folder.path()] {
        assert_eq!(fs_err::read_dir(path).expect("readable").count(), 0);
    }
}

#[test]
fn a_symlink_that_leads_out_is_left_out_by_name_and_the_rest_arrives() {
    let (folder, outcome) = unpacked(|archive| {
        add(archive, EntryType::Directory, "r/", "", b"");
        add(archive, EntryType::Symlink, "r/absolute", "/etc/passwd", b"");
        add(archive, EntryType::Symlink, "r/up", "../x", b"");
        add(archive, EntryType::Regular, "r/f", "", b"text");
        // What pretends to be below one of them is below a folder of that name.
        add(archive, EntryType::Regular, "r/up/f", "", b"text");
    });
    let words = outcome.expect("a good archive").words;
    assert_eq!(words.len(), 2);
    assert!(words[0].contains("`r/absolute` points outside") && words[0].contains("/etc/passwd"), "{words:?}");
    let out = folder.path().join("out");
    assert_eq!(fs_err::read(out.join("f")).expect("it is there"), b"text");
    assert!(out.join("up/f").is_file() && !out.join("absolute").exists());
}

#[test]
fn what_is_not_in_an_archive_but_made_for_it_counts_too() {
    // Each member has a path of 100 new folders: half a kilobyte becomes a hundred inodes.
    let (folder, outcome) = unpacked(|archive| {
        add(archive, EntryType::Directory, "r/", "", b"");
        for number in 0..1000 {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            let path = format!("r/{number}{}", "/d".repeat(100));
            archive.append_data(&mut header, path, io::empty()).expect("in memory");
        }
    });
    assert!(outcome.expect_err("refused").to_string().contains("--out-limit"));
    assert_eq!(fs_err::read_dir(folder.path()).expect("readable").count(), 0);
}

#[test]
fn the_umask_is_kept_for_any_mode_from_the_guest() {
    // Each test has a process of its own.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let (folder, outcome) = unpacked(|archive| {
        add_mode(archive, EntryType::Directory, "r/", 0o7777);
        add_mode(archive, EntryType::Regular, "r/f", 0o4777);
        add_mode(archive, EntryType::Regular, "r/implied/f", 0o666);
    });
    outcome.expect("a good archive");
    let out = folder.path().join("out");
    let modes = ["", "f", "implied", "implied/f"].map(|name| mode(&out.join(name)));
    assert_eq!(modes, [0o700, 0o700, 0o700, 0o600]);
}

#[test]
fn a_file_that_is_there_keeps_its_mode_and_its_links_keep_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (out, other) = (folder.path().join("out"), folder.path().join("other"));
    fs_err::write(&out, "old and longer").expect("a file");
    fs_err::set_permissions(&out, std::fs::Permissions::from_mode(0o600)).expect("ours");
    let fill = |archive: &mut tar::Builder<Vec<u8>>| add(archive, EntryType::Regular, "r", "", b"new");
    unpack_into(folder.path(), fill).expect("replaced");
    assert_eq!((fs_err::read(&out).expect("it is there"), mode(&out)), (b"new".to_vec(), 0o600));
    // With a second name it stays the same file.
    fs_err::hard_link(&out, &other).expect("ours");
    let inode = out.metadata().expect("it is there").ino();
    unpack_into(folder.path(), |archive| add(archive, EntryType::Regular, "r", "", b"newer")).expect("replaced");
    assert_eq!(fs_err::read(&other).expect("it is there"), b"newer");
    assert_eq!((out.metadata().expect("it is there").ino(), mode(&out)), (inode, 0o600));
    fs_err::remove_file(&other).expect("ours");
    // A symlink that the user named is followed, and stays.
    fs_err::rename(&out, &other).expect("ours");
    symlink("other", &out).expect("ours");
    unpack_into(folder.path(), fill).expect("replaced");
    assert!(out.is_symlink());
    assert_eq!((fs_err::read(&other).expect("it is there"), mode(&other)), (b"new".to_vec(), 0o600));
    assert_eq!(fs_err::read_dir(folder.path()).expect("readable").count(), 2);
}

#[test]
fn devices_and_fifos_are_written_into() {
    let folder = tempfile::tempdir().expect("a folder");
    let (sender, arriving) = pieces(|archive| add(archive, EntryType::Regular, "r", "", b"gone"));
    sender.try_send(Piece::End).expect("there is room");
    take_at(arriving, Path::new("/dev/null")).expect("it takes all");
    assert!(Path::new("/dev/null").metadata().expect("it is there").file_type().is_char_device());

    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("ours");
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || fs_err::read(fifo).expect("it can be read")
    });
    let (sender, arriving) = pieces(|archive| add(archive, EntryType::Regular, "r", "", &[b'x'; 200_000]));
    sender.try_send(Piece::End).expect("there is room");
    take_at(arriving, &fifo).expect("it takes all");
    assert!(reader.join().expect("it read") == vec![b'x'; 200_000]);
    assert!(fifo.metadata().expect("it is there").file_type().is_fifo());

    let (sender, arriving) = pieces(|archive| add(archive, EntryType::Directory, "r/", "", b""));
    sender.try_send(Piece::End).expect("there is room");
    let error = take_at(arriving, Path::new("/dev/null")).expect_err("a folder");
    assert!(error.to_string().contains("/dev/null"), "{error}");
}

#[test]
fn a_merge_with_anything_in_the_way_changes_nothing() {
    let fill = |archive: &mut tar::Builder<Vec<u8>>| {
        add(archive, EntryType::Directory, "r/", "", b"");
        add(archive, EntryType::Regular, "r/a", "", b"new");
        add(archive, EntryType::Regular, "r/d/f", "", b"new");
        add(archive, EntryType::Symlink, "r/l", "a", b"");
    };
    type InTheWay = fn(&Path);
    let cases: [(&str, InTheWay); 5] = [
        ("`d` is a file in the target", |out| fs_err::write(out.join("d"), "old").expect("ours")),
        ("`d/f` is a folder in the target", |out| fs_err::create_dir_all(out.join("d/f")).expect("ours")),
        ("`d` is a symlink in the target", |out| symlink("/tmp", out.join("d")).expect("ours")),
        ("`l` is a file in the target", |out| fs_err::write(out.join("l"), "old").expect("ours")),
        ("`a` is a symlink in the target", |out| {
            fs_err::remove_file(out.join("a")).expect("ours");
            symlink("kept", out.join("a")).expect("ours");
        }),
    ];
    let mut texts = Vec::new();
    for (words, in_the_way) in cases {
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().join("out");
        fs_err::create_dir(&out).expect("ours");
        for name in ["a", "kept"] {
            fs_err::write(out.join(name), "old").expect("ours");
        }
        in_the_way(&out);
        let count = fs_err::read_dir(&out).expect("readable").count();
        let error = unpack_into(folder.path(), fill).expect_err(words).to_string();
        assert!(error.contains(words), "{words}: {error}");
        assert_eq!(fs_err::read(out.join("a")).expect("it is there"), b"old", "{words}");
        assert_eq!(fs_err::read_dir(&out).expect("readable").count(), count, "{words}");
        texts.push(error);
    }
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn a_merge_keeps_the_modes_of_what_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out");
    fs_err::create_dir_all(out.join("d")).expect("ours");
    fs_err::write(out.join("d/f"), "old").expect("ours");
    symlink("nowhere", out.join("l")).expect("ours");
    for (name, mode) in [("d", 0o750), ("d/f", 0o640)] {
        fs_err::set_permissions(out.join(name), std::fs::Permissions::from_mode(mode)).expect("ours");
    }
    unpack_into(folder.path(), |archive| {
        add_mode(archive, EntryType::Directory, "r/", 0o777);
        add_mode(archive, EntryType::Directory, "r/d/", 0o777);
        add(archive, EntryType::Regular, "r/d/f", "", b"new");
        add(archive, EntryType::Symlink, "r/l", "d/f", b"");
    })
    .expect("merged");
    assert_eq!((mode(&out.join("d")), mode(&out.join("d/f"))), (0o750, 0o640));
    assert_eq!(fs_err::read(out.join("l")).expect("it leads to the file"), b"new");
}

/// An archive of a file with a hole of ten gibibytes and a byte at each end.
fn holed(archive: &mut tar::Builder<Vec<u8>>) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_path("r").expect("a name");
    header.set_mode(0o644);
    header.set_size(2);
    let gnu = header.as_gnu_mut().expect("it is one");
    gnu.set_real_size(10 << 30);
    for (part, offset) in gnu.sparse.iter_mut().zip([0, (10 << 30) - 1]) {
        part.set_offset(offset);
        part.set_length(1);
    }
    header.set_cksum();
    archive.append(&header, b"ab".as_slice()).expect("in memory");
}

#[test]
fn a_hole_costs_no_room_in_a_file_and_counts_in_a_stream() {
    let (folder, outcome) = unpacked(holed);
    outcome.expect("a good archive");
    let metadata = folder.path().join("out").metadata().expect("it is there");
    assert_eq!(metadata.len(), 10 << 30);
    assert!(metadata.blocks() < 100, "{} blocks", metadata.blocks());
    let mut end = String::new();
    let mut file = std::fs::File::open(folder.path().join("out")).expect("it is there");
    io::Seek::seek(&mut file, io::SeekFrom::End(-1)).expect("it has that much");
    file.read_to_string(&mut end).expect("a byte");
    assert_eq!(end, "b");

    let (sender, arriving) = pieces(holed);
    sender.try_send(Piece::End).expect("there is room");
    let error = take_at(arriving, Path::new("/dev/null")).expect_err("ten gibibytes of zeros");
    assert!(error.to_string().contains("--out-limit"), "{error}");
}
