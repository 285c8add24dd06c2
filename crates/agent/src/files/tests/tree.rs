//! Directories, names, copies, symlinks, permissions, owners, and removing.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::AtomicBool;

use kiln_wire::{ErrorCode, Owner};

use super::{GO, Yard, fifo, link, refused, socket};
use crate::files::{chmod, chown, copy, mkdir, remove, rename, symlink};

fn permissions(yard: &Yard, name: &str) -> u32 {
    std::fs::metadata(yard.path(name)).expect("it exists").permissions().mode() & 0o7777
}

#[test]
fn mkdir_creates_one_directory_with_its_bits_or_all_missing_ones() {
    let yard = Yard::new();
    let make = |path: &str, parents, bits| mkdir(&yard.root, &path.into(), parents, bits);
    make("d", false, Some(0o1777)).expect("it is made");
    make("e", false, None).expect("it is made");
    assert_eq!((permissions(&yard, "d"), permissions(&yard, "e")), (0o1777, 0o755));
    refused(make("d", false, None), ErrorCode::AlreadyExists);
    refused(make("a/b", false, None), ErrorCode::NotFound);
    make("/a//b/../b/c/", true, Some(0o700)).expect("they are made");
    assert_eq!((permissions(&yard, "a/b"), permissions(&yard, "a/b/c")), (0o755, 0o700));
    make("a/b", true, Some(0o711)).expect("an existing directory is accepted");
    assert_eq!(permissions(&yard, "a/b"), 0o755);
    yard.plant("f", "");
    refused(make("f", true, None), ErrorCode::AlreadyExists);
    refused(make("f/x/y", true, None), ErrorCode::NotADirectory);
    refused(make("x", true, Some(0o10000)), ErrorCode::InvalidRequest);
    link("a", yard.path("l"));
    make("l/through", true, None).expect("a symlink to a directory is accepted");
    assert!(yard.path("a/through").is_dir());
    link("nowhere", yard.path("dangling"));
    refused(make("dangling", true, None), ErrorCode::NotFound);
}

#[test]
fn remove_takes_one_entry_unless_it_is_recursive() {
    let yard = Yard::new();
    yard.plant("d/f", "");
    yard.plant("kept/f", "");
    link("../kept", yard.path("d/l"));
    let take = |path: &str, recursive| remove(&yard.root, &path.into(), recursive, &GO);
    refused(take("d", false), ErrorCode::NotEmpty);
    take("d/l", false).expect("the symlink goes");
    take("d/f", false).expect("the file goes");
    take("d", false).expect("the empty directory goes");
    refused(take("d", true), ErrorCode::NotFound);
    refused(take("kept/f/", true), ErrorCode::NotADirectory);
    refused(take(".", true), ErrorCode::InvalidRequest);
    refused(take("kept/..", true), ErrorCode::InvalidRequest);
    assert_eq!(yard.names(), ["kept"]);
}

#[test]
fn a_tree_is_removed_with_all_kinds_of_entries() {
    let yard = Yard::new();
    yard.plant("kept", "x");
    for directory in 0..40 {
        for file in 0..5 {
            yard.plant(&format!("t/{directory}/{}/{file}", directory % 7), "x");
        }
    }
    fifo(&yard.path("t/p"));
    let _listener = socket(&yard.path("t/s"));
    link("../kept", yard.path("t/l"));
    link("..", yard.path("t/up"));
    std::fs::set_permissions(yard.path("t/3"), std::fs::Permissions::from_mode(0o500)).expect("it is ours");
    std::fs::set_permissions(yard.path("t/3"), std::fs::Permissions::from_mode(0o700)).expect("it is ours");
    remove(&yard.root, &"t/".into(), true, &GO).expect("it goes");
    assert_eq!((yard.names(), yard.content("kept")), (vec!["kept".to_owned()], b"x".to_vec()));
}

#[test]
fn a_tree_deeper_than_any_path_and_any_stack_is_removed() {
    const DEPTH: usize = 2500;
    let yard = Yard::new();
    super::hostile::dig(yard.directory.path(), "deep", DEPTH);
    let before = open_descriptors();
    remove(&yard.root, &"deep".into(), true, &GO).expect("it goes");
    assert_eq!(yard.names(), [""; 0]);
    assert!(open_descriptors() <= before + 64);
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc is mounted").count()
}

#[test]
fn removing_and_copying_can_be_cancelled() {
    let yard = Yard::new();
    yard.plant("d/f", "x");
    let stop = AtomicBool::new(true);
    refused(remove(&yard.root, &"d".into(), true, &stop), ErrorCode::Cancelled);
    refused(copy(&yard.root, &"d/f".into(), &"g".into(), &stop), ErrorCode::Cancelled);
    assert_eq!(yard.names(), ["d"]);
}

#[test]
fn rename_behaves_like_rename_2() {
    let yard = Yard::new();
    yard.plant("a", "a");
    yard.plant("b", "b");
    yard.plant("d/f", "");
    yard.plant("e/x", "");
    let to = |from: &str, to: &str| rename(&yard.root, &from.into(), &to.into());
    to("a", "b").expect("it replaces");
    assert_eq!(yard.content("b"), b"a");
    refused(to("a", "c"), ErrorCode::NotFound);
    refused(to("b", "d"), ErrorCode::IsADirectory);
    refused(to("d", "b"), ErrorCode::NotADirectory);
    refused(to("d", "e"), ErrorCode::NotEmpty);
    refused(to("d", "d/inside"), ErrorCode::InvalidRequest);
    refused(to(".", "x"), ErrorCode::InvalidRequest);
    link("b", yard.path("l"));
    to("l", "l2").expect("the symlink itself moves");
    assert!(yard.path("l2").is_symlink());
    let message = refused(to("b", "none/x"), ErrorCode::NotFound);
    assert!(message.contains("`none/x`"), "{message}");
}

#[test]
fn a_copy_has_the_bytes_and_bits_and_appears_as_a_whole() {
    let yard = Yard::new();
    let content: Vec<u8> = (0..300_000_u32).map(|number| number as u8).collect();
    yard.plant("f", &content);
    std::fs::set_permissions(yard.path("f"), std::fs::Permissions::from_mode(0o4711)).expect("it is ours");
    yard.plant("old", "old");
    let to = |from: &str, to: &str| copy(&yard.root, &from.into(), &to.into(), &GO);
    assert_eq!(to("f", "old"), Ok(300_000));
    assert_eq!((yard.content("old"), permissions(&yard, "old")), (content.clone(), 0o4711));
    assert_eq!(to("f", "f"), Ok(300_000));
    assert_eq!(yard.content("f"), content);
    std::fs::create_dir(yard.path("d")).expect("the yard is writable");
    refused(to("d", "x"), ErrorCode::IsADirectory);
    refused(to("f", "d"), ErrorCode::IsADirectory);
    fifo(&yard.path("p"));
    refused(to("p", "x"), ErrorCode::NotAFile);
    refused(to("f", "p"), ErrorCode::NotAFile);
    assert_eq!(yard.names(), ["d", "f", "old", "p"]);
}

#[test]
fn a_symlink_may_have_any_target() {
    let yard = Yard::new();
    symlink(&yard.root, &"/any/../where".into(), &"l".into()).expect("it is made");
    assert_eq!(std::fs::read_link(yard.path("l")).expect("a symlink").to_str(), Some("/any/../where"));
    refused(symlink(&yard.root, &"x".into(), &"l".into()), ErrorCode::AlreadyExists);
    refused(symlink(&yard.root, &"".into(), &"m".into()), ErrorCode::InvalidRequest);
    refused(symlink(&yard.root, &"a\0".into(), &"m".into()), ErrorCode::InvalidRequest);
}

#[test]
fn chmod_follows_a_symlink_and_chown_does_not() {
    let yard = Yard::new();
    yard.plant("f", "");
    link("f", yard.path("l"));
    chmod(&yard.root, &"l".into(), 0o2640).expect("it is ours");
    assert_eq!(permissions(&yard, "f"), 0o2640);
    refused(chmod(&yard.root, &"f".into(), 0o10000), ErrorCode::InvalidRequest);
    let metadata = std::fs::metadata(yard.path("f")).expect("it exists");
    let own = Owner { uid: metadata.uid(), gid: metadata.gid() };
    link("nowhere", yard.path("dangling"));
    chown(&yard.root, &"dangling".into(), own).expect("the symlink itself is changed");
    refused(chmod(&yard.root, &"dangling".into(), 0o600), ErrorCode::NotFound);
    refused(chown(&yard.root, &"f".into(), Owner { uid: 0, gid: u32::MAX }), ErrorCode::InvalidRequest);
}
