//! The rules by which a layer changes the tree of the layers below it.

use kiln_archive::EntryType;
use kiln_rootfs::{Kind, Layers, Limits, NOTED_MAX, Time, Tree};

use crate::builder::Tar;
use crate::image::{Image, build, build_raw, lines, spool};

fn tar() -> Tar {
    Tar::new()
}

fn dir(tar: Tar, name: &str, mode: u32) -> Tar {
    tar.member(EntryType::Directory, name, b"", |header| header.set_mode(mode))
}

#[test]
fn a_mark_acts_on_lower_layers_wherever_it_is() {
    let lower = || tar().file("d/old", b"").file("f", b"old");
    for upper in [tar().mark("d/.wh..wh..opq").file("d/new", b""), tar().file("d/new", b"").mark("d/.wh..wh..opq")] {
        assert_eq!(lines([lower(), upper]), ["d/", "d/new=", "f=old"]);
    }
    for upper in [tar().mark(".wh.d").file("d/new", b""), tar().file("d/new", b"").mark(".wh.d")] {
        assert_eq!(lines([lower(), upper]), ["d/", "d/new=", "f=old"]);
    }
    for upper in [tar().mark(".wh.f").file("f", b"new"), tar().file("f", b"new").mark(".wh.f")] {
        assert_eq!(lines([lower(), upper]), ["d/", "d/old=", "f=new"]);
    }
}

#[test]
fn a_mark_at_the_end_removes_the_symlink_that_entries_would_have_passed() {
    let lower = tar().dir("real").symlink("x", "real");
    assert_eq!(lines([lower, tar().file("x/f", b"").mark(".wh.x")]), ["real/", "x/", "x/f="]);
}

#[test]
fn a_mark_may_be_of_any_type() {
    let marks =
        tar().hard_link(".wh.a", "nothing").dir(".wh.b/").symlink(".wh.c", "x").file(".wh.d", b"data").fifo(".wh.e");
    let lower = ["a", "b", "c", "d", "e", "f"].iter().fold(tar(), |tar, name| tar.file(name, b""));
    assert_eq!(lines([lower, marks]), ["f="]);
}

#[test]
fn files_of_a_union_filesystem_are_left_out() {
    let layer = (0..9).fold(tar().dir(".wh..wh.plnk"), |tar, at| tar.file(&format!(".wh..wh.plnk/{at}"), b"x"));
    let image = build([layer.file("d/.wh..wh.aufs", b"").file("a", b"")]).expect("the layer is right");
    assert_eq!(image.lines(), ["a="], "a mark makes no directory either");
    assert_eq!((image.notes.union_files.count, image.notes.union_files.first.len()), (11, NOTED_MAX));
}

#[test]
fn a_directory_over_a_directory_changes_only_its_attributes() {
    let image =
        build([dir(tar(), "d", 0o700).file("d/f", b""), dir(tar(), "d", 0o1777)]).expect("the layers are right");
    assert_eq!((image.lines(), image.node("d").attributes.permissions), (vec!["d/".into(), "d/f=".into()], 0o1777));
}

#[test]
fn anything_else_replaces_what_was_there_with_all_in_it() {
    let lower = || tar().file("d/sub/f", b"").file("f", b"old");
    for (upper, expected) in [
        (tar().file("d", b"new"), ["d=new", "f=old"]),
        (tar().symlink("d", "f"), ["d->f", "f=old"]),
        (tar().fifo("d"), ["d|", "f=old"]),
        (tar().hard_link("d", "f"), ["d=old", "f=old"]),
    ] {
        assert_eq!(lines([lower(), upper]), expected);
    }
    assert_eq!(lines([lower(), tar().dir("f")]), ["d/", "d/sub/", "d/sub/f=", "f/"]);
}

#[test]
fn parents_without_an_entry_are_made() {
    let image = build([tar().file("a/b/f", b"").hard_link("c/l", "a/b/f")]).expect("the layer is right");
    for path in ["a", "a/b", "c"] {
        let attributes = &image.node(path).attributes;
        assert_eq!((attributes.permissions, attributes.uid, attributes.gid), (0o755, 0, 0));
        assert_eq!(attributes.modified, Time::default());
    }
    // Later entries for them change their attributes only.
    let image = build([dir(tar().file("a/f", b""), "a", 0o500)]).expect("the layer is right");
    assert_eq!((image.node("a").attributes.permissions, image.lines().len()), (0o500, 2));
}

#[test]
fn a_root_without_an_entry_can_be_entered_by_all() {
    let image = build([tar().file("a", b"")]).expect("the layer is right");
    assert_eq!(image.tree.node(Tree::ROOT).attributes.permissions, 0o755);
}

#[test]
fn a_merged_usr_takes_the_files_of_old_paths() {
    let lower = tar().dir("usr/lib").symlink("lib", "usr/lib").symlink("bin", "/usr/bin");
    let upper = tar().file("lib/x.so", b"").file("bin/tool", b"").file("lib/modules/m", b"");
    let expected =
        ["bin->/usr/bin", "lib->usr/lib", "usr/", "usr/bin/", "usr/bin/tool=", "usr/lib/", "usr/lib/modules/"];
    assert_eq!(lines([lower, upper])[..7], expected);
}

#[test]
fn a_hard_link_stays_when_the_name_of_its_target_goes() {
    let lower = || tar().file("a", b"data").hard_link("b", "a");
    let image = build([lower(), tar().hard_link("c", "b"), tar().mark(".wh.a").file("b", b"new")]).expect("right");
    assert_eq!(image.lines(), ["b=new", "c=data"]);
    // A link is made after the marks of its layer, and before its later entries.
    let image = build([lower(), tar().hard_link("c", "a").file("a", b"new")]).expect("right");
    assert_eq!((image.lines(), image.id("b")), (vec!["a=new".into(), "b=data".into(), "c=data".into()], image.id("c")));
}

#[test]
fn the_attributes_of_a_hard_link_are_those_of_its_node() {
    let link = tar().file("a", b"").pax(&[("uid", b"7"), ("SCHILY.xattr.user.x", b"1")]).hard_link("b", "a");
    let image = build([link]).expect("right");
    assert_eq!((image.node("b").attributes.uid, image.node("b").attributes.xattrs.len()), (0, 0));
    // Not even their faults count: other programs ignore them too.
    build([tar().file("a", b"").pax(&[("uid", b"4294967295")]).hard_link("b", "a")]).expect("right");
}

#[test]
fn a_hard_link_may_replace_the_directory_of_its_target() {
    assert_eq!(lines([tar().file("d/f", b"x").hard_link("d", "d/f")]), ["d=x"]);
}

#[test]
fn the_same_hard_link_twice_is_one() {
    let image = build([tar().file("a", b"").hard_link("b", "a").hard_link("b", "a")]).expect("right");
    assert_eq!(image.id("a"), image.id("b"));
}

#[test]
fn attributes_are_kept_exactly() {
    let records: &[(&str, &[u8])] = &[
        ("uid", b"4294967294"),
        ("gid", b"3000000000"),
        ("mtime", b"-86400.25"),
        ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        ("SCHILY.xattr.user.empty", b""),
        ("SCHILY.xattr.system.posix_acl_access", b"\x02\0\0\0"),
        ("SCHILY.xattr.system.other", b"dropped"),
    ];
    let layer = tar().pax(records).member(EntryType::Regular, "f", b"data", |header| header.set_mode(0o106_4755));
    let image = build([layer]).expect("right");
    let attributes = &image.node("f").attributes;
    assert_eq!((attributes.permissions, attributes.uid, attributes.gid), (0o4755, 4_294_967_294, 3_000_000_000));
    assert_eq!(attributes.modified, Time { seconds: -86_401, nanoseconds: 750_000_000 });
    let names: Vec<_> = attributes.xattrs.iter().map(|(name, value)| (name.as_ref(), value.len())).collect();
    let expected: [(&[u8], usize); 3] =
        [(b"security.capability", 20), (b"system.posix_acl_access", 4), (b"user.empty", 0)];
    assert_eq!(names, expected);
    assert_eq!(image.notes.unknown_xattrs.count, 1);
}

#[test]
fn equal_files_share_their_data() {
    let image = build([tar().file("a", [1; 5000]).file("b", [1; 5000]), tar().file("c", [1; 5000])]).expect("right");
    assert_eq!(image.spool.bytes(), 5000);
    let bodies = ["a", "b", "c"].map(|path| image.node(path).kind.clone());
    assert!(bodies[0] == bodies[1] && bodies[1] == bodies[2] && matches!(bodies[0], Kind::File(_)));
    assert_ne!(image.id("a"), image.id("b"), "they are no hard links");
}

#[test]
fn an_image_without_layers_is_an_empty_root() {
    assert_eq!(lines([]), Vec::<String>::new());
    assert_eq!(build_raw([vec![0; 1024]], Limits::default()).expect("an empty archive").lines(), Vec::<String>::new());
}

#[test]
#[should_panic(expected = "no layer follows one that was refused")]
fn nothing_follows_a_refused_layer() {
    let mut layers = Layers::new(spool(), Limits::default());
    layers.apply([1; 512].as_slice()).expect_err("it is not an archive");
    let _ = layers.apply([0; 1024].as_slice());
}

#[test]
fn a_directory_is_made_in_the_tree_unless_it_is_there_or_a_file_is_in_the_way() {
    let stack = || {
        let mut stack = Layers::new(spool(), Limits::default());
        let layer = dir(tar().symlink("link", "/real").file("file", b""), "real", 0o700).end();
        stack.apply(layer.as_slice()).expect("the layer is right");
        stack
    };
    let mut made = stack();
    for path in ["/real", "/link/a/b/", "/", "", "./new/../new"] {
        let result = made.make_directory(path.as_bytes());
        assert_eq!(result.is_ok(), !path.contains(".."), "{path}");
    }
    let (tree, spool, notes) = made.finish();
    let image = Image { tree, spool, notes };
    assert_eq!(image.lines(), ["file=", "link->/real", "real/", "real/a/", "real/a/b/"]);
    assert_eq!(image.node("real").attributes.permissions, 0o700);
    let error = stack().make_directory(b"/file/x").expect_err("a file is in the way").to_string();
    assert!(error.contains("`file` in its path is not a directory"), "{error}");
}
