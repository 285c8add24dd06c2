//! Archives of other programs, unpacked by other programs: our tree has the same files with the same attributes.
//!
//! GNU tar and Python write each of their formats. GNU tar, and tar2sqfs with rdsquashfs, unpack them as root; what is
//! then on disk is compared with our tree.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use kiln_rootfs::{Kind, Limits};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use crate::image::{Image, build_raw};

/// What a path has. The content of a file is its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    kind: String,
    permissions: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path of the same node.
    first_name: Vec<u8>,
}

type Files = BTreeMap<Vec<u8>, Seen>;

/// Which files a format can store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Store {
    /// All.
    Everything,
    /// Those with short names, small owners and times after 1970.
    Plain,
}

/// Runs a program to its end.
#[track_caller]
fn run(command: &mut Command, input: Option<&[u8]>) -> Vec<u8> {
    let name = command.get_program().to_owned();
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let child = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{name:?} is not installed: {error}"));
    let writer = child.stdin.take().zip(input.map(<[u8]>::to_vec)).map(|(mut stdin, input)| {
        std::thread::spawn(move || {
            // If the program ends early, its error is more useful.
            let _ = stdin.write_all(&input);
        })
    });
    let output = child.wait_with_output().expect("a child of ours");
    if let Some(writer) = writer {
        writer.join().expect("it does not panic");
    }
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Makes files of every kind.
fn plant(root: &Path, store: Store) {
    assert!(rustix::process::geteuid().is_root(), "devices and files of other owners need root");
    let file = |name: &str, data: &[u8]| fs::write(root.join(name), data).expect("ours");
    let node = |name: &str, kind, device| {
        rustix::fs::mknodat(CWD, root.join(name), kind, Mode::from_raw_mode(0o640), device).expect("root may");
    };
    for directory in ["d/sub", "sticky", "empty"] {
        fs::create_dir_all(root.join(directory)).expect("ours");
    }
    file("empty-file", b"");
    file("small", b"a small file\n");
    file("d/setuid", b"#!/bin/sh\n");
    let large: Vec<u8> = (0..700_001_u32).map(|at| (at * 31 % 253) as u8).collect();
    file("d/sub/large", &large);
    fs::hard_link(root.join("small"), root.join("d/hard")).expect("ours");
    fs::hard_link(root.join("small"), root.join("z-hard")).expect("ours");
    symlink("d/sub/large", root.join("link")).expect("ours");
    fs::hard_link(root.join("link"), root.join("link-hard")).expect("ours");
    symlink("/nowhere/at/all", root.join("d/dangling")).expect("ours");
    node("char", FileType::CharacterDevice, rustix::fs::makedev(4, 64));
    node("block", FileType::BlockDevice, rustix::fs::makedev(259, 70_000));
    node("d/pipe", FileType::Fifo, 0);
    let sparse = File::create(root.join("d/sparse")).expect("ours");
    for tooth in [1, 3, 4, 9, 20, 21, 22, 50, 100, 101, 200] {
        sparse.write_all_at(&[tooth as u8; 4096], tooth * 16_384 + 100).expect("ours");
    }
    sparse.set_len(5_000_001).expect("ours");
    if store == Store::Everything {
        file(&format!("d/{}", "n".repeat(200)), b"a long name");
        fs::create_dir_all(root.join("p".repeat(120)).join("q".repeat(120))).expect("ours");
        file(&format!("{}/{}/f", "p".repeat(120), "q".repeat(120)), b"a long path");
        symlink("t".repeat(180), root.join("long-target")).expect("ours");
        fs::write(root.join(OsStr::from_bytes(b"odd\xff\n name")), b"odd").expect("ours");
        file("caf\u{e9}", b"a name in UTF-8");
        xattr(root, "small", "user.note", b"one\0two\n");
        xattr(root, "small", "trusted.empty", b"");
        xattr(root, "d", "user.large", &[b'v'; 3000]);
        let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        xattr(root, "d/setuid", "security.capability", capability);
    }
    attributes(root, store);
}

fn xattr(root: &Path, name: &str, key: &str, value: &[u8]) {
    rustix::fs::lsetxattr(root.join(name), key, value, XattrFlags::empty()).expect("this file system has xattrs");
}

/// Sets owners, permissions and times, the times last since all else changes them.
fn attributes(root: &Path, store: Store) {
    let own = |name: &str, user: u32, group: u32| {
        std::os::unix::fs::lchown(root.join(name), Some(user), Some(group)).expect("root may");
    };
    own("d", 1000, 100);
    own("link", 12, 34);
    own("char", 0, 6);
    if store == Store::Everything {
        own("small", 3_000_000_000, 4_294_967_290);
    }
    for (name, mode) in [("d", 0o2750), ("sticky", 0o1777), ("empty", 0o000), ("small", 0o600), ("d/setuid", 0o4755)] {
        let path = root.join(name);
        // A change of the owner drops a capability, and it was set before.
        rustix::fs::chmod(&path, Mode::from_raw_mode(mode)).expect("ours");
    }
    let mut times =
        vec![("small", 1_700_000_000, 123_456_789), ("link", 1_000_000_000, 0), ("d/sub/large", 2_208_988_800, 5)];
    if store == Store::Everything {
        times.extend([
            ("d/setuid", -86_401, 750_000_000),
            ("sticky", -1, 1),
            ("caf\u{e9}", 5_000_000_000, 999_999_999),
        ]);
    }
    times.extend([("d", 1_600_000_000, 0), ("empty", 0, 0)]);
    for (name, seconds, nanoseconds) in times {
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, root.join(name), &times, AtFlags::SYMLINK_NOFOLLOW).expect("ours");
    }
}

/// What is below a directory on disk.
fn on_disk(root: &Path) -> Files {
    let mut files = Files::new();
    let mut first_names = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).expect("ours") {
            let path = entry.expect("ours").path();
            let metadata = path.symlink_metadata().expect("ours");
            let kind = metadata.file_type();
            let name = path.strip_prefix(root).expect("it is below").as_os_str().as_bytes().to_vec();
            let device = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
            let described = match () {
                () if kind.is_dir() => "directory".to_owned(),
                () if kind.is_file() => content(&fs::read(&path).expect("ours")),
                () if kind.is_symlink() => target(fs::read_link(&path).expect("ours").as_os_str().as_bytes()),
                () if kind.is_char_device() => format!("char {device:?}"),
                () if kind.is_block_device() => format!("block {device:?}"),
                () if kind.is_fifo() => "fifo".to_owned(),
                () => panic!("`{}` is of a kind that nothing here makes", path.display()),
            };
            let seen = Seen {
                kind: described,
                permissions: if kind.is_symlink() { 0o777 } else { metadata.mode() & 0o7777 },
                owner: (metadata.uid(), metadata.gid()),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                xattrs: xattrs(&path),
                first_name: Vec::new(),
            };
            if kind.is_dir() {
                open.push(path);
            } else {
                let first: &mut Vec<u8> = first_names.entry(metadata.ino()).or_insert_with(|| name.clone());
                *first = first.clone().min(name.clone());
            }
            files.insert(name, seen);
        }
    }
    for (name, seen) in &mut files {
        let inode = root.join(OsStr::from_bytes(name)).symlink_metadata().expect("ours").ino();
        seen.first_name = first_names.get(&inode).unwrap_or(name).clone();
    }
    files
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut names[..]).expect("ours");
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 65_536];
        let key = CString::new(name).expect("it ended at a NUL");
        let length = rustix::fs::lgetxattr(path, key.as_c_str(), &mut value[..]).expect("it was listed");
        value.truncate(length);
        (name.to_vec(), value)
    };
    names.map(value).collect()
}

fn content(bytes: &[u8]) -> String {
    format!("file of {} bytes, {}", bytes.len(), blake3::hash(bytes).to_hex())
}

fn target(bytes: &[u8]) -> String {
    format!("symlink to {}", bytes.escape_ascii())
}

/// What our tree has.
fn in_tree(image: &Image) -> Files {
    let mut files = Files::new();
    let mut first_names = BTreeMap::new();
    image.walk(|path, id| {
        let node = image.tree.node(id);
        let kind = match &node.kind {
            Kind::Directory(_) => "directory".to_owned(),
            Kind::File(_) => content(&image.content(id)),
            Kind::Symlink(to) => target(to),
            Kind::CharacterDevice { major, minor } => format!("char {:?}", (major, minor)),
            Kind::BlockDevice { major, minor } => format!("block {:?}", (major, minor)),
            Kind::Fifo => "fifo".to_owned(),
            Kind::Socket => "socket".to_owned(),
        };
        let attributes = &node.attributes;
        let is_symlink = matches!(node.kind, Kind::Symlink(_));
        let first: &mut Vec<u8> = first_names.entry(id).or_insert_with(|| path.to_vec());
        *first = first.clone().min(path.to_vec());
        files.insert(
            path.to_vec(),
            Seen {
                kind,
                permissions: if is_symlink { 0o777 } else { attributes.permissions.into() },
                owner: (attributes.uid, attributes.gid),
                modified: (attributes.modified.seconds, attributes.modified.nanoseconds.into()),
                xattrs: attributes.xattrs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
                first_name: Vec::new(),
            },
        );
    });
    image.walk(|path, id| {
        files.get_mut(path).expect("it was seen").first_name = first_names[&id].clone();
    });
    files
}

/// Compares our tree of an archive with what other programs make of it.
#[track_caller]
fn compare(archive: &[u8], what: &str) {
    let image = build_raw([archive.to_vec()], Limits::default()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let ours = in_tree(&image);
    assert!(ours.len() > 10, "{what}: an archive of many files");
    let folder = tempfile::tempdir().expect("a folder");
    let by_tar = folder.path().join("tar");
    fs::create_dir(&by_tar).expect("ours");
    let options = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", "-"];
    run(Command::new("tar").arg("-C").arg(&by_tar).args(options), Some(archive));
    same(&ours, &on_disk(&by_tar), &format!("{what}, unpacked by tar"));

    let (image, by_squashfs) = (folder.path().join("image"), folder.path().join("squashfs"));
    run(Command::new("tar2sqfs").args(["-q", "-s", "-c", "gzip"]).arg(&image), Some(archive));
    let options = ["-q", "-u", "/", "-X", "-T", "-C", "-O", "-p"];
    run(Command::new("rdsquashfs").args(options).arg(&by_squashfs).arg(&image), None);
    let coarse = |files: &Files| files.iter().map(|(name, seen)| (name.clone(), coarse(seen))).collect();
    same(&coarse(&ours), &coarse(&on_disk(&by_squashfs)), &format!("{what}, unpacked by rdsquashfs"));
}

/// What is left of a file in squashfs: whole seconds in 32 bits, none before 1970. rdsquashfs restores no hard links, and
/// capabilities only to lose them, since it changes the owner after them.
fn coarse(seen: &Seen) -> Seen {
    let seconds = seen.modified.0.clamp(0, u32::MAX.into());
    let mut xattrs = seen.xattrs.clone();
    xattrs.remove(&b"security.capability"[..]);
    Seen { modified: (seconds, 0), xattrs, first_name: Vec::new(), ..seen.clone() }
}

#[track_caller]
fn same(ours: &Files, theirs: &Files, what: &str) {
    for (name, seen) in theirs {
        assert_eq!(ours.get(name), Some(seen), "{what}: `{}`", name.escape_ascii());
    }
    let extra: Vec<_> =
        ours.keys().filter(|name| !theirs.contains_key(*name)).map(|name| name.escape_ascii().to_string()).collect();
    assert!(extra.is_empty(), "{what}: only we have {extra:?}");
}

/// Packs a folder with tar.
fn tar(root: &Path, options: &[&str]) -> Vec<u8> {
    run(
        Command::new("tar")
            .arg("-C")
            .arg(root)
            .args(["-cf", "-", "--numeric-owner", "--sort=name"])
            .args(options)
            .arg("."),
        None,
    )
}

const XATTRS: [&str; 2] = ["--xattrs", "--xattrs-include=*"];

fn planted(store: Store) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    plant(folder.path(), store);
    folder
}

#[test]
#[ignore = "needs root, to make devices and files of other owners; `make test` runs it if it is root"]
fn as_root_archives_of_tar_are_read_as_tar_and_tar2sqfs_read_them() {
    let folder = planted(Store::Everything);
    let pax = |more: &[&'static str]| [&["--format=posix"], &XATTRS[..], more].concat();
    for options in [
        vec!["--format=gnu"],
        vec!["--format=gnu", "-S"],
        vec!["--format=oldgnu", "-S"],
        pax(&[]),
        pax(&["-S", "--sparse-version=0.0"]),
        pax(&["-S", "--sparse-version=0.1"]),
        pax(&["-S", "--sparse-version=1.0"]),
        pax(&["--pax-option=globexthdr.name=g,comment=global"]),
    ] {
        compare(&tar(folder.path(), &options), &format!("tar {}", options.join(" ")));
    }
}

#[test]
#[ignore = "needs root, to make devices and files of other owners; `make test` runs it if it is root"]
fn as_root_archives_of_old_formats_are_read_as_tar_and_tar2sqfs_read_them() {
    let folder = planted(Store::Plain);
    for options in [vec!["--format=ustar"], vec!["--format=v7", "--exclude=char", "--exclude=block", "--exclude=pipe"]]
    {
        compare(&tar(folder.path(), &options), &format!("tar {}", options.join(" ")));
    }
}

/// Packs a folder in the format that the first argument names. The standard library reads no xattrs, so the program adds
/// them as pax records.
const PYTHON: &str = r#"
import os, sys, tarfile
form, root = getattr(tarfile, sys.argv[1] + "_FORMAT"), os.fsencode(sys.argv[2])
def add(info):
    path = os.path.join(sys.argv[2], info.name)
    if form == tarfile.PAX_FORMAT and not info.islnk():
        for name in os.listxattr(path, follow_symlinks=False):
            value = os.getxattr(path, name, follow_symlinks=False)
            info.pax_headers["SCHILY.xattr." + name] = value.decode("utf-8", "surrogateescape")
    info.uname = info.gname = ""
    return info
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=form) as tar:
    tar.add(sys.argv[2], arcname=".", filter=add)
"#;

#[test]
#[ignore = "needs root, to make devices and files of other owners; `make test` runs it if it is root"]
fn as_root_archives_of_python_are_read_as_tar_and_tar2sqfs_read_them() {
    for (format, store) in [("PAX", Store::Everything), ("GNU", Store::Everything), ("USTAR", Store::Plain)] {
        let folder = planted(store);
        let archive = run(Command::new("python3").args(["-c", PYTHON, format]).arg(folder.path()), None);
        compare(&archive, &format!("Python's {format}"));
    }
}
