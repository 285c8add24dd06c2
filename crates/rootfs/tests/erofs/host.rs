//! Directories of the host as trees: the same as the host sees, and safe against what changes meanwhile.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use kiln_rootfs::directory::{DirectoryError, DirectoryReport, read};
use kiln_rootfs::{Limits, Spool, SpoolLimits, Tree};

use crate::forest::{image_of, noise};
use crate::seen::{assert_same, of_directory, of_tree};

fn spool() -> Spool {
    let limits = SpoolLimits { reserve_bytes: 0, ..SpoolLimits::default() };
    Spool::new(&std::env::temp_dir(), limits).expect("a spool")
}

fn try_read(path: &Path) -> Result<(Tree, Spool, DirectoryReport), DirectoryError> {
    let mut spool = spool();
    read(path, &mut spool, &Limits::default()).map(|(tree, report)| (tree, spool, report))
}

fn everything(path: &Path) {
    fs::create_dir_all(path.join("a/b/c")).expect("a directory");
    for size in [0, 1, 4095, 4096, 4097, 3_000_000] {
        fs::write(path.join(format!("a/{size}")), noise(size, size as u64)).expect("a file");
    }
    let sparse = File::create(path.join("sparse")).expect("a file");
    sparse.write_all_at(b"middle", 50_000_000).expect("a part");
    sparse.set_len(100_000_000).expect("a hole at the end");
    fs::hard_link(path.join("a/4096"), path.join("a/b/link")).expect("a link");
    symlink("/nowhere/\n", path.join("symlink")).expect("a symlink");
    fs::set_permissions(path.join("a/1"), fs::Permissions::from_mode(0o4711)).expect("permissions");
    rustix::fs::mknodat(rustix::fs::CWD, path.join("fifo"), rustix::fs::FileType::Fifo, 0o640.into(), 0)
        .expect("a FIFO");
    let flags = rustix::fs::XattrFlags::empty();
    // Not every file system of a host has these attributes; then there are none to compare.
    let _ = rustix::fs::setxattr(path.join("a/1"), "user.name", b"value", flags);
    let _ = rustix::fs::setxattr(path.join("a"), "user.directory", b"", flags);
    fs::write(path.join(std::ffi::OsStr::new("name\u{1b} \u{fc}")), b"x").expect("a file");
}

#[test]
fn a_directory_is_read_as_the_host_sees_it() {
    let scratch = tempfile::tempdir().expect("a directory");
    everything(scratch.path());
    let (tree, spool, report) = try_read(scratch.path()).expect("a directory that does not change");
    let expected = of_directory(scratch.path());
    assert_same(&of_tree(&tree, &spool), &expected);
    assert_eq!((report.entries, report.sockets), (expected.len() as u64 - 1, 0));
    assert!(spool.bytes() < 4_000_000, "holes are not read: {}", spool.bytes());
    // The image of it is always the same, and holds the same.
    let (image, written) = image_of(&tree, &spool);
    let again = try_read(scratch.path()).expect("a directory that does not change");
    assert_eq!(image_of(&again.0, &again.1).1, written);
    let tree = kiln_rootfs::erofs::read(&image[..], written.bytes, &Default::default()).expect("our own image");
    assert_same(&of_tree(&tree, &image[..]), &expected);
}

#[test]
fn sockets_are_left_out_and_a_symlink_is_not_followed() {
    let scratch = tempfile::tempdir().expect("a directory");
    let outside = tempfile::tempdir().expect("a directory");
    fs::write(outside.path().join("secret"), b"secret").expect("a file");
    symlink(outside.path(), scratch.path().join("link")).expect("a symlink");
    let _listener = UnixListener::bind(scratch.path().join("socket")).expect("a socket");
    let (tree, _, report) = try_read(scratch.path()).expect("a directory");
    assert_eq!((tree.len(), report.sockets, report.entries), (2, 1, 1));
    // The path of the user may be a symlink.
    let (tree, _, _) = try_read(&scratch.path().join("link")).expect("a directory");
    assert_eq!(tree.len(), 2);
}

#[test]
fn a_directory_of_the_kernel_is_left_empty() {
    let (tree, _, report) = try_read(Path::new("/proc/self")).expect("a directory");
    assert_eq!((tree.len(), report.of_the_kernel), (1, 1));
}

#[test]
fn what_is_too_much_or_not_there_is_refused_by_path() {
    let scratch = tempfile::tempdir().expect("a directory");
    let file = scratch.path().join("file");
    fs::write(&file, b"contents").expect("a file");
    let limits = Limits { entries_max: 0, ..Limits::default() };
    let error = read(scratch.path(), &mut spool(), &limits).expect_err("one entry is too much");
    assert!(matches!(&error, DirectoryError::TooMuch { path, .. } if *path == file), "{error:?}");
    let limits = Limits { text_bytes_max: 3, ..Limits::default() };
    let error = read(scratch.path(), &mut spool(), &limits).expect_err("the name is too long");
    assert!(matches!(&error, DirectoryError::TooMuch { path, .. } if *path == file), "{error:?}");
    let error = try_read(&file).expect_err("not a directory");
    assert!(matches!(&error, DirectoryError::NotADirectory { path } if *path == file), "{error:?}");
    let error = try_read(&scratch.path().join("missing")).expect_err("nothing is there");
    assert!(matches!(&error, DirectoryError::Unreadable { .. }), "{error:?}");
    let mut deep = scratch.path().to_owned();
    for _ in 0..256 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).expect("a directory");
    let error = try_read(scratch.path()).expect_err("too deep");
    assert!(matches!(&error, DirectoryError::TooDeep { .. }), "{error:?}");
}
