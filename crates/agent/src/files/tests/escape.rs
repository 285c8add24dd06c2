//! Attempts to leave a jail.

use kiln_wire::{ErrorCode, Fault, Owner, ReadRange, Text, WriteMode};

use super::{GO, Yard, link, refused, text};
use crate::files::{self, Append, AtomicWrite, Packer, Reader, Root, Unpacker};

/// A jail, a directory next to it, and symlinks in the jail that point to that directory.
fn yard_with_exits() -> (Yard, Root) {
    let yard = Yard::new();
    yard.plant("outside/secret", "secret");
    yard.plant("jail/inside/f", "inside");
    let jail = yard.path("jail");
    link("../outside/secret", jail.join("relative"));
    link(yard.path("outside/secret"), jail.join("absolute"));
    link("relative", jail.join("chain"));
    link("../outside", jail.join("directory"));
    link("/proc/self/root", jail.join("magic"));
    link("../outside/new", jail.join("dangling"));
    let root = Root::new(Some(&jail.as_path().into())).expect("it is a directory");
    (yard, root)
}

const EXITS: &[&str] =
    &["../outside/secret", "inside/../../outside/secret", "relative", "absolute", "chain", "directory/secret"];

#[test]
fn nothing_is_read_or_changed_through_an_exit() {
    let (yard, root) = yard_with_exits();
    type Operation<'a> = &'a dyn Fn(&Text) -> Result<(), Fault>;
    let operations: &[(&str, Operation<'_>)] = &[
        ("read", &|path| Reader::open(&root, path, ReadRange::default()).map(drop)),
        ("write", &|path| AtomicWrite::begin(&root, path, WriteMode::Replace, None, None).map(drop)),
        ("append", &|path| Append::begin(&root, path).map(drop)),
        ("stat", &|path| files::stat(&root, path, true).map(drop)),
        ("chmod", &|path| files::chmod(&root, path, 0o777)),
        ("copy from", &|path| files::copy(&root, path, &"copied".into(), &GO).map(drop)),
        ("copy to", &|path| files::copy(&root, &"inside/f".into(), path, &GO).map(drop)),
        ("mkdir", &|path| files::mkdir(&root, path, true, None)),
        ("unpack", &|path| Unpacker::open(&root, path, files::Owners::Process).map(drop)),
        ("list", &|path| files::list(&root, path, None, None).map(drop)),
    ];
    for (name, operation) in operations {
        for exit in EXITS {
            let fault = operation(&Text::from(*exit)).expect_err(&format!("{name} `{exit}` is refused"));
            assert_eq!(fault.code, ErrorCode::OutsideJail, "{name} `{exit}`: {fault}");
            assert!(fault.message.contains(exit), "{fault}");
        }
    }
    assert_eq!(yard.content("outside/secret"), b"secret");
    assert_eq!(super::names(&yard.path("outside")), ["secret"]);
}

#[test]
fn names_below_an_exit_are_not_changed() {
    let (yard, root) = yard_with_exits();
    let exit: Text = "directory/secret".into();
    let up: Text = "../outside/secret".into();
    let owner = Owner { uid: 0, gid: 0 };
    for path in [&exit, &up] {
        refused(files::remove(&root, path, true, &GO), ErrorCode::OutsideJail);
        refused(files::rename(&root, path, &"taken".into()), ErrorCode::OutsideJail);
        refused(files::rename(&root, &"inside/f".into(), path), ErrorCode::OutsideJail);
        refused(files::symlink(&root, &"x".into(), path), ErrorCode::OutsideJail);
        refused(files::chown(&root, path, owner), ErrorCode::OutsideJail);
        refused(files::stat(&root, path, false), ErrorCode::OutsideJail);
        refused(files::mkdir(&root, path, false, None), ErrorCode::OutsideJail);
        refused(Packer::open(&root, path), ErrorCode::OutsideJail);
    }
    assert_eq!(yard.content("outside/secret"), b"secret");
}

#[test]
fn a_dangling_symlink_does_not_create_a_file_outside() {
    let (yard, root) = yard_with_exits();
    let dangling: Text = "dangling".into();
    refused(AtomicWrite::begin(&root, &dangling, WriteMode::Replace, None, None), ErrorCode::OutsideJail);
    refused(Append::begin(&root, &dangling), ErrorCode::OutsideJail);
    refused(AtomicWrite::begin(&root, &dangling, WriteMode::Exclusive, None, None), ErrorCode::AlreadyExists);
    assert_eq!(super::names(&yard.path("outside")), ["secret"]);
}

#[test]
fn magic_links_of_proc_are_not_followed() {
    let (_yard, root) = yard_with_exits();
    let path = "magic/etc/passwd".into();
    refused(Reader::open(&root, &path, ReadRange::default()), ErrorCode::OutsideJail);
    let proc = Root::new(Some(&"/proc".into())).expect("/proc is mounted");
    refused(Reader::open(&proc, &"self/root/etc/passwd".into(), ReadRange::default()), ErrorCode::TooManyLinks);
}

#[test]
fn removing_a_symlink_or_a_tree_with_exits_removes_nothing_outside() {
    let (yard, root) = yard_with_exits();
    files::remove(&root, &"absolute".into(), true, &GO).expect("the symlink itself is removed");
    link(yard.path("outside"), yard.path("jail/inside/out"));
    files::remove(&root, &"inside".into(), true, &GO).expect("the tree is removed");
    assert_eq!(yard.content("outside/secret"), b"secret");
}

#[test]
fn absolute_paths_and_dots_that_stay_inside_are_resolved_in_the_jail() {
    let (_yard, root) = yard_with_exits();
    for path in ["/inside/f", "inside/../inside/f", "//inside//f", "./inside/./f"] {
        assert_eq!(files::stat(&root, &path.into(), false).expect(path).size, 6);
    }
    assert!(files::list(&root, &"/".into(), None, None).expect("the jail itself").entries.len() > 3);
    refused(files::stat(&root, &"..".into(), false), ErrorCode::OutsideJail);
    refused(files::stat(&root, &"/..".into(), false), ErrorCode::OutsideJail);
}

#[test]
fn without_a_jail_paths_start_at_the_root_of_the_guest() {
    let whole = Root::new(None).expect("there is a /");
    let inode = |path: &str| files::stat(&whole, &path.into(), true).expect(path).inode;
    assert_eq!(inode("proc"), inode("/proc"));
    assert_eq!(inode("/.."), inode("/"));
}

#[test]
fn invalid_paths_are_refused_by_name() {
    let yard = Yard::new();
    let stat = |path: &[u8]| files::stat(&yard.root, &text(path), false);
    assert!(refused(stat(b""), ErrorCode::InvalidRequest).contains("empty"));
    assert!(refused(stat(b"a\0b"), ErrorCode::InvalidRequest).contains("zero byte"));
    assert!(refused(stat(&[b'n'; 256]), ErrorCode::NameTooLong).contains("256 bytes"));
    assert!(refused(stat(&b"a/".repeat(2048)), ErrorCode::NameTooLong).contains("4096 bytes"));
    refused(
        files::mkdir(&yard.root, &text(&[b"p/".as_slice(), &[b'n'; 256]].concat()), true, None),
        ErrorCode::NameTooLong,
    );
    assert_eq!(yard.names(), [""; 0]);
    refused(Root::new(Some(&"/none/such".into())), ErrorCode::NotFound);
}

#[test]
fn loops_of_symlinks_are_refused() {
    let yard = Yard::new();
    link("b", yard.path("a"));
    link("a", yard.path("b"));
    refused(yard.write("a", b"x"), ErrorCode::TooManyLinks);
    refused(Append::begin(&yard.root, &"a".into()), ErrorCode::TooManyLinks);
    refused(Reader::open(&yard.root, &"a".into(), ReadRange::default()), ErrorCode::TooManyLinks);
}
