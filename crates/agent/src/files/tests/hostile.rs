//! Hostile archives and trees.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kiln_wire::{ErrorCode, Fault};
use proptest::prelude::*;
use rustix::fs::{CWD, Mode, OFlags};
use tar::{EntryType, Header};

use super::{Yard, link, refused};
use crate::files::{Owners, Unpacked, Unpacker};

/// Creates nested directories, all but the first named `d`, deeper than the longest path.
pub(super) fn dig(directory: &Path, first: &str, depth: usize) {
    let open = |parent: &OwnedFd, name: &str| {
        rustix::fs::mkdirat(parent, name, Mode::RWXU).expect("the directory is writable");
        rustix::fs::openat(parent, name, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("it was made")
    };
    let top = rustix::fs::openat(CWD, directory, OFlags::PATH, Mode::empty()).expect("a directory");
    let mut current = open(&top, first);
    for _ in 1..depth {
        current = open(&current, "d");
    }
}

/// The raw bytes of one member. `size` is the size in its header.
fn member(kind: u8, name: &[u8], link: &[u8], data: &[u8], size: u64) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::new(kind));
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
    header.set_size(size);
    header.set_cksum();
    let padding = data.len().next_multiple_of(512) - data.len();
    [header.as_bytes(), data, &vec![0; padding]].concat()
}

fn file(name: &str, data: &str) -> Vec<u8> {
    member(b'0', name.as_bytes(), b"", data.as_bytes(), data.len() as u64)
}

fn special(kind: u8, name: &str, link: &str) -> Vec<u8> {
    member(kind, name.as_bytes(), link.as_bytes(), b"", 0)
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 1024]].concat()
}

fn unpack_bytes(yard: &Yard, archive: &[u8]) -> Result<Unpacked, Fault> {
    Unpacker::open(&yard.root, &"in".into(), Owners::Archive)?.read_from(archive)
}

fn unpack(yard: &Yard, members: &[Vec<u8>]) -> Result<Unpacked, Fault> {
    unpack_bytes(yard, &archive(members))
}

/// A yard with a file outside the directory into which archives are unpacked.
fn guarded() -> Yard {
    let yard = Yard::new();
    yard.plant("secret", "secret");
    std::fs::create_dir(yard.path("in")).expect("the yard is writable");
    yard
}

#[track_caller]
fn assert_unharmed(yard: &Yard) {
    assert_eq!(
        (yard.names(), yard.content("secret")),
        (vec!["in".to_owned(), "secret".to_owned()], b"secret".to_vec())
    );
    assert_eq!(std::fs::metadata(yard.path("secret")).expect("it exists").nlink(), 1);
}

#[test]
fn names_that_leave_are_refused() {
    let yard = guarded();
    for name in ["../x", "/x", "a/../../x", "..", "a/..", "./../x"] {
        for kind in [b'0', b'5', b'2', b'1'] {
            let message = refused(unpack(&yard, &[special(kind, name, "l")]), ErrorCode::OutsideJail);
            assert!(message.contains(name), "{message}");
        }
    }
    let long = [member(b'L', b"././@LongLink", b"", b"../x\0", 5), file("x", "x")];
    refused(unpack(&yard, &long), ErrorCode::OutsideJail);
    let pax = [member(b'x', b"pax", b"", b"13 path=../x\n", 13), file("x", "x")];
    refused(unpack(&yard, &pax), ErrorCode::OutsideJail);
    assert_unharmed(&yard);
}

#[test]
fn files_through_symlinks_that_leave_are_refused() {
    for target in [std::path::PathBuf::from(".."), guarded().path("").join("../..")] {
        let yard = guarded();
        let target = target.to_str().expect("it is text");
        let members = [special(b'2', "l", target), file("l/x", "x")];
        refused(unpack(&yard, &members), ErrorCode::OutsideJail);
        let chain = [special(b'2', "l", target), special(b'2', "m", "l"), file("m/a/x", "x")];
        refused(unpack(&yard, &chain), ErrorCode::OutsideJail);
        refused(unpack(&yard, &[special(b'2', "l", target), special(b'5', "l/d", "")]), ErrorCode::OutsideJail);
        refused(unpack(&yard, &[special(b'2', "l", target), special(b'5', "l", "")]), ErrorCode::OutsideJail);
        assert_unharmed(&yard);
    }
}

#[test]
fn a_file_replaces_a_symlink_and_never_writes_through_it() {
    let yard = guarded();
    unpack(&yard, &[special(b'2', "l", "../secret"), file("l", "mine")]).expect("nothing leaves");
    assert_eq!(yard.content("in/l"), b"mine");
    assert!(!yard.path("in/l").is_symlink());
    assert_unharmed(&yard);
}

#[test]
fn hard_links_stay_inside() {
    let yard = guarded();
    for target in ["../secret", "/etc/passwd", "a/../../secret"] {
        let message = refused(unpack(&yard, &[special(b'1', "h", target)]), ErrorCode::OutsideJail);
        assert!(message.contains(target) && message.contains("`h`"), "{message}");
    }
    let through = [special(b'2', "l", ".."), special(b'1', "h", "l/secret")];
    refused(unpack(&yard, &through), ErrorCode::OutsideJail);
    refused(unpack(&yard, &[special(b'1', "h", "missing")]), ErrorCode::NotFound);
    assert_unharmed(&yard);
    unpack(&yard, &[file("f", "x"), special(b'1', "h", "f"), special(b'1', "f", "f")]).expect("it stays inside");
    assert_eq!(yard.content("in/h"), b"x");
}

#[test]
fn a_hard_link_to_a_symlink_does_not_open_its_target() {
    let yard = guarded();
    let members = [special(b'2', "l", "../secret"), special(b'1', "h", "l"), file("h", "mine")];
    unpack(&yard, &members).expect("nothing leaves");
    assert_unharmed(&yard);
}

#[test]
fn devices_fifos_and_unknown_kinds_are_refused_by_name() {
    let yard = guarded();
    for kind in [b'3', b'4', b'6'] {
        let message = refused(unpack(&yard, &[special(kind, "dev", "")]), ErrorCode::NotAFile);
        assert!(message.contains("`dev`"), "{message}");
    }
    // Sparse files are allowed, but their maps must be valid.
    let data_without_parts = member(b'S', b"sparse", b"", b"x", 1);
    refused(unpack(&yard, &[data_without_parts]), ErrorCode::InvalidRequest);
    refused(unpack(&yard, &[special(b'M', "more", "")]), ErrorCode::Unsupported);
    assert_eq!(super::names(&yard.path("in")), [""; 0]);
}

#[test]
fn a_wrong_size_costs_only_the_bytes_that_arrive() {
    let yard = guarded();
    for size in [1600, 1 << 40, i64::MAX.unsigned_abs()] {
        let message = refused(unpack(&yard, &[member(b'0', b"f", b"", b"x", size)]), ErrorCode::InvalidRequest);
        assert!(message.contains("`f`") && message.contains("ends inside"), "{message}");
    }
    refused(unpack(&yard, &[member(b'0', b"f", b"", b"x", u64::MAX)]), ErrorCode::InvalidRequest);
    refused(unpack(&yard, &[member(b'L', b"n", b"", b"x", 1 << 40)]), ErrorCode::LimitExceeded);
    refused(unpack(&yard, &[member(b'x', b"n", b"", b"x", 1 << 40)]), ErrorCode::LimitExceeded);
    refused(unpack(&yard, &[member(b'L', b"n", b"", b"x", 5000)]), ErrorCode::InvalidRequest);
    let longest = [member(b'L', b"n", b"", &[b'n'; 5000], 5000), file("x", "")];
    refused(unpack(&yard, &longest), ErrorCode::NameTooLong);
    assert_eq!(super::names(&yard.path("in")), [""; 0]);
}

#[test]
fn an_incomplete_or_invalid_archive_is_refused() {
    let yard = guarded();
    let whole = archive(&[file("a", "one"), file("b", "two")]);
    for length in (0..whole.len() - 1024).step_by(100).chain([0, 512, 1024, 2048]) {
        refused(unpack_bytes(&yard, &whole[..length]), ErrorCode::InvalidRequest);
    }
    refused(unpack_bytes(&yard, b"no archive at all"), ErrorCode::InvalidRequest);
    let message = refused(unpack_bytes(&yard, &[b'x'; 2048]), ErrorCode::InvalidRequest);
    assert!(message.contains("no tar header at byte 0"), "{message}");
    refused(unpack(&yard, &[member(b'x', b"p", b"", b"99 path=x\n", 10), file("x", "")]), ErrorCode::InvalidRequest);
    unpack_bytes(&yard, &[0; 10_240]).expect("an empty archive is valid");
}

#[test]
fn a_directory_is_not_replaced_by_a_file_and_may_be_reached_by_an_inner_symlink() {
    let yard = guarded();
    yard.plant("in/usr/bin/old", "old");
    link("usr/bin", yard.path("in/bin"));
    unpack(&yard, &[special(b'5', "bin", ""), file("bin/new", "new")]).expect("it stays inside");
    assert_eq!(super::names(&yard.path("in/usr/bin")), ["new", "old"]);
    assert!(yard.path("in/bin").is_symlink());
    refused(unpack(&yard, &[file("usr/bin", "x")]), ErrorCode::IsADirectory);
    refused(unpack(&yard, &[file("usr/bin/old/x", "x")]), ErrorCode::NotADirectory);
}

#[test]
fn a_read_only_directory_gets_its_files_and_its_time() {
    let yard = guarded();
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Directory);
    header.as_old_mut().name[..2].copy_from_slice(b"d/");
    header.set_mode(0o555);
    header.set_mtime(1_000_000);
    header.set_size(0);
    header.set_cksum();
    unpack(&yard, &[header.as_bytes().to_vec(), file("d/f", "x")]).expect("it stays inside");
    let metadata = std::fs::metadata(yard.path("in/d")).expect("it exists");
    assert_eq!((metadata.mode() & 0o777, metadata.mtime()), (0o555, 1_000_000));
    assert_eq!(yard.content("in/d/f"), b"x");
    rustix::fs::chmod(yard.path("in/d"), Mode::RWXU).expect("it is ours");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn no_archive_changes_files_outside(
        changes in prop::collection::vec((0_usize..5120, any::<u8>()), 1..12),
        mend in any::<bool>(),
    ) {
        let yard = guarded();
        let mut bytes = archive(&[
            special(b'5', "d/", ""),
            special(b'2', "d/l", "../.."),
            file("d/f", "content"),
            special(b'1', "d/h", "d/f"),
        ]);
        let length = bytes.len();
        for (position, byte) in changes {
            bytes[position % length] = byte;
        }
        if mend {
            for block in bytes.chunks_exact_mut(512).filter(|block| block.iter().any(|byte| *byte != 0)) {
                let mut header = Header::from_byte_slice(block).clone();
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        // Nothing outside is changed, whether or not the archive is refused.
        let _ = unpack_bytes(&yard, &bytes);
        assert_unharmed(&yard);
    }
}
