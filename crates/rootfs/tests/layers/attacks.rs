//! Known attacks on programs that unpack layers, each with the result that is safe. Most have been a CVE of another
//! program. The numbers are those of our list of attack classes; 17 to 21 are about manifests, registries and guests.
//! Class 22 is layers that crash a reader written in C: this crate starts no program and has no unsafe code, which
//! `cargo xtask tidy` and the compiler hold.

use kiln_archive::{EXTENSION_BYTES_MAX, EXTENTS_MAX, EntryType};
use kiln_rootfs::{Kind, Limits};

use crate::builder::{BLOCK, Tar, record};
use crate::image::{build, build_raw, lines, refusal};

fn tar() -> Tar {
    Tar::new()
}

/// Every layer is refused with a text that has this part and names the layer and an entry.
#[track_caller]
fn refused(part: &str, layers: impl IntoIterator<Item = Tar>) {
    for layer in layers {
        let text = refusal([layer]);
        assert!(text.starts_with("layer 1, entry ") && text.contains(part), "{text}");
    }
}

// 1
#[test]
fn headers_in_the_body_of_a_file_are_not_members() {
    // The header has size 0 and the pax record the true size. A reader that takes the header's finds `inner`.
    let inner = tar().file("inner", b"").file("inner2", b"").open_end();
    let layer =
        tar().pax(&[("size", b"1024")]).member(EntryType::Regular, "outer", &inner, |header| header.set_size(0));
    let image = build([layer]).expect("one file");
    assert_eq!(image.lines().len(), 1);
    assert_eq!(image.content(image.id("outer")), inner);
}

// 2
#[test]
fn the_pax_size_counts_also_if_the_size_of_the_header_is_smaller() {
    let inner = tar().file("inner", [b'x'; 1536]).open_end();
    let layer =
        tar().pax(&[("size", b"2048")]).member(EntryType::Regular, "outer", &inner, |header| header.set_size(16));
    let image = build([layer.file("after", b"x")]).expect("two files");
    assert_eq!(image.tree.children(kiln_rootfs::Tree::ROOT).map(std::collections::BTreeMap::len), Some(2));
    assert_eq!(image.content(image.id("outer")), inner);
}

// 3
#[test]
fn the_pax_size_is_not_that_of_the_header_with_the_long_name() {
    // The body of the long name has 13 bytes. The file takes 2048, up to the middle of `file_c`, whose data is no header.
    let layer = tar()
        .pax(&[("size", b"2048")])
        .long(EntryType::GNULongName, b"longname.txt")
        .file("file_a", b"aaaa")
        .file("file_b", b"bbbb")
        .file("file_c", b"cccc");
    refused("no tar header at byte", [layer]);
    // With the right number of bytes, it is one file under the long name.
    let layer = tar().pax(&[("size", b"2048")]).long(EntryType::GNULongName, b"longname.txt").member(
        EntryType::Regular,
        "short",
        &[b'x'; 2048],
        |header| header.set_size(3),
    );
    assert_eq!(build([layer]).expect("one file").content_of("longname.txt").len(), 2048);
}

// 4
#[test]
fn malformed_pax_headers_are_refused() {
    let raw = |records: &[u8]| tar().member(EntryType::XHeader, "pax", records, |_| {}).file("f", b"");
    let records: [&[u8]; 12] = [
        b"3 path=abc\n",
        b"13 path=abc\n",
        b"99999999999999999999 path=abc\n",
        b"0 path=abc\n",
        b"-12 path=abc\n",
        b"path=abc\n",
        b"12 path=abcd",
        b"9 pathabc\n",
        b"11 size=ten\n",
        b"28 size=9223372036854775809\n",
        b"10 size=-5\n",
        b"12 path=a\0c\n",
    ];
    for records in records {
        let text = refusal([raw(records)]);
        assert!(text.contains("malformed pax header") || text.contains("more than a file can have"), "{text}");
    }
    refused("two headers of type `x`", [tar().pax(&[("uid", b"1")]).pax(&[("uid", b"2")]).file("f", b"")]);
    refused("ends after a name without a member", [tar().file("f", b"").pax(&[("uid", b"1")])]);
    let huge = tar().member(EntryType::XHeader, "pax", b"", |header| header.set_size(100 << 20));
    refused(&format!("over {EXTENSION_BYTES_MAX}"), [huge]);
    // Readers that take the first of two records would see another name than a scanner that takes the last one.
    assert_eq!(lines([tar().pax(&[("path", b"first"), ("path", b"last")]).file("f", b"")]), ["last="]);
}

// 5
#[test]
fn a_directory_over_a_symlink_replaces_the_symlink() {
    let layers = [
        tar().dir("etc").symlink("a", "/etc"),
        tar().member(EntryType::Directory, "a", b"", |header| header.set_mode(0o777)),
    ];
    let image = build(layers).expect("the layers are right");
    assert_eq!(image.lines(), ["a/", "etc/"]);
    assert_eq!(image.node("etc").attributes.permissions, 0o755, "no attribute passes a symlink");
    assert_eq!(image.node("a").attributes.permissions, 0o777);
}

// 6
#[test]
fn a_symlink_in_a_parent_stays_inside_the_tree() {
    for (target, place) in [
        ("/root", "root/.ssh/k"),
        ("..", ".ssh/k"),
        ("../../../../../..", ".ssh/k"),
        ("/../root", "root/.ssh/k"),
        ("root", "root/.ssh/k"),
        ("./root/../other/", "other/.ssh/k"),
    ] {
        let image = build([tar().symlink("x", target).file("x/.ssh/k", b"key")]).expect("it stays inside");
        assert_eq!(image.content_of(place), b"key", "{target}");
    }
    // In two steps, each of which is harmless.
    let image = build([tar().dir("d/e").symlink("d/e/up", "../..").symlink("x", "d/e/up/..").file("x/f", b"")]);
    assert_eq!(image.expect("it stays inside").content_of("f"), b"");
    refused(
        "more than 40 symlinks",
        [
            tar().symlink("x", "x").file("x/f", b""),
            tar().symlink("a", "b").symlink("b", "a").file("a/f", b""),
            (0..41)
                .fold(tar().dir("l41"), |tar, at| tar.symlink(&format!("l{at}"), &format!("l{}", at + 1)))
                .file("l0/f", b""),
        ],
    );
    let longest = (1..41).fold(tar().dir("l41"), |tar, at| tar.symlink(&format!("l{at}"), &format!("l{}", at + 1)));
    assert_eq!(build([longest.file("l1/f", b"x")]).expect("40 symlinks").content_of("l41/f"), b"x");
    refused(
        "`f` in its path is not a directory",
        [tar().file("f", b"").file("f/x", b""), tar().file("f", b"").symlink("l", "f/deeper").file("l/x", b"")],
    );
}

// 7
#[test]
fn names_stay_below_the_root() {
    refused(
        "has a part `..`",
        [
            tar().file("../x", b""),
            tar().file("a/../x", b""),
            tar().file("a/..", b""),
            tar().dir(".."),
            tar().file("/../x", b""),
            tar().symlink("../x", "y"),
            tar().pax(&[("path", b"../../x")]).file("f", b""),
        ],
    );
    refused(
        "has the path of the root",
        [
            tar().file("", b""),
            tar().file(".", b""),
            tar().symlink("./", "/etc"),
            tar().hard_link("/", "x"),
            tar().fifo("//"),
        ],
    );
    let names =
        tar().file("/a", b"").file("//b", b"").file("c//d", b"").file("e/./f", b"").file("./g", b"").symlink("h/", "x");
    assert_eq!(lines([names]), ["a=", "b=", "c/", "c/d=", "e/", "e/f=", "g=", "h->x"]);
    // Only a directory changes the root.
    let root = tar().member(EntryType::Directory, "./", b"", |header| header.set_mode(0o1700));
    let image = build([root, tar().file("a", b"")]).expect("the layers are right");
    assert_eq!(image.tree.node(kiln_rootfs::Tree::ROOT).attributes.permissions, 0o1700);
}

// 8
#[test]
fn a_hard_link_is_to_a_node_of_the_tree_or_refused() {
    refused("the path of its target has a part `..`", [tar().hard_link("l", "../../etc/shadow")]);
    refused(
        "which does not exist",
        [
            tar().hard_link("l", "/etc/shadow"),
            tar().hard_link("l", "etc/shadow"),
            tar().hard_link("l", &format!("{}/Cargo.toml", env!("CARGO_MANIFEST_DIR"))),
            tar().symlink("x", "/etc").hard_link("l", "x/shadow"),
            tar().hard_link("l", "").dir("d"),
        ],
    );
    let image = build([tar().file("etc/shadow", b"ours").symlink("x", "/etc"), tar().hard_link("l", "/x/shadow")]);
    let image = image.expect("the target is in the tree");
    assert_eq!(image.id("l"), image.id("etc/shadow"));
}

// 9
#[test]
fn hard_links_can_not_go_around_in_a_circle() {
    refused(
        "is a hard link to itself",
        [tar().file("a", b"").hard_link("a", "a"), tar().file("d/a", b"").hard_link("d/a", "./d//a")],
    );
    refused("which does not exist", [tar().hard_link("a", "b").hard_link("b", "a")]);
    refused("which is a directory", [tar().dir("d").hard_link("l", "d"), tar().hard_link("l/x", "l")]);
    let text = refusal([tar().file("a", b""), tar().mark(".wh.a").hard_link("b", "a")]);
    assert!(text.contains("layer 2, entry 2, `b`") && text.contains("does not exist"), "{text}");
    let image = build([tar().symlink("s", "nowhere").hard_link("l", "s")]).expect("a link to the symlink itself");
    assert_eq!((image.id("l"), image.lines()), (image.id("s"), vec!["l->nowhere".into(), "s->nowhere".into()]));
    let chain =
        (1..1000).fold(tar().file("l0", b"x"), |tar, at| tar.hard_link(&format!("l{at}"), &format!("l{}", at - 1)));
    let image = build([chain]).expect("a chain");
    assert_eq!(image.id("l999"), image.id("l0"));
}

// 10
#[test]
fn a_whiteout_has_the_name_of_something() {
    refused(
        "whiteout without a name",
        [
            tar().mark(".wh."),
            tar().mark(".wh.."),
            tar().mark(".wh..."),
            tar().mark("a/.wh..."),
            tar().hard_link("a/.wh..", "x"),
            tar().dir(".wh.../"),
        ],
    );
    refused("has the name of a whiteout", [tar().file(".wh.a/b", b""), tar().mark("a/.wh.b/.wh.c")]);
    let lower = || tar().file("a/b", b"").file("c", b"");
    assert_eq!(lines([lower(), tar().mark(".wh..wh..opq")]), Vec::<String>::new());
    assert_eq!(lines([lower(), tar().mark("x/.wh.y").mark("c/.wh.y").mark(".wh.nothing")]), ["a/", "a/b=", "c="]);
    assert_eq!(lines([lower(), tar().mark(".wh.a").mark("a/.wh.b")]), ["c="]);
    // A mark below a symlink is about the place to which the symlink leads, in the tree.
    let linked = || lower().symlink("l", "/a");
    assert_eq!(lines([linked(), tar().mark("l/.wh..wh..opq")]), ["a/", "c=", "l->/a"]);
    // Not if this layer replaces the symlink: the mark is about what is replaced.
    assert_eq!(
        lines([linked(), tar().dir("l").mark("l/.wh..wh..opq").file("l/n", b"")]),
        ["a/", "a/b=", "c=", "l/", "l/n="]
    );
    let text = refusal([tar().symlink("x", "x"), tar().mark("x/.wh.a")]);
    assert!(text.contains("more than 40 symlinks"), "{text}");
}

// 11
#[test]
fn marks_of_overlay_filesystems_are_left_out() {
    let xattrs: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/../../x"),
        ("SCHILY.xattr.trusted.overlay.metacopy", b""),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("LIBARCHIVE.xattr.trusted%2eoverlay.opaque", b"eQ"),
        ("SCHILY.xattr.trusted.other", b"kept"),
        ("SCHILY.xattr.overlay", b"unknown"),
        ("SCHILY.xattr.user.", b"unknown"),
    ];
    let layer = tar()
        .pax(xattrs)
        .dir("d")
        .device(EntryType::Char, "gone", 0, 0)
        .hard_link("gone2", "gone")
        .device(EntryType::Char, "null", 1, 3)
        .device(EntryType::Block, "b", 0, 0);
    let image = build([tar().file("gone", b"hidden"), layer]).expect("the layers are right");
    assert_eq!(image.lines(), ["b b:0:0", "d/", "null c:1:3"]);
    let kept: Vec<_> = image.node("d").attributes.xattrs.keys().collect();
    assert_eq!(kept, [&Box::from(&b"trusted.other"[..])]);
    let notes = &image.notes;
    assert_eq!((notes.overlay_xattrs.count, notes.unknown_xattrs.count, notes.whiteout_devices.count), (5, 2, 2));
}

// 12
#[test]
fn names_of_any_bytes_are_kept_and_escaped_in_errors() {
    let odd = "new\nline \u{1b}[2J \\ 'quote'";
    let image = build([tar().pax(&[("path", b"\xff\xfe\n")]).file("f", b"").file(odd, b"")]).expect("Linux takes them");
    assert_eq!(image.tree.children(kiln_rootfs::Tree::ROOT).expect("the root").len(), 2);
    image.id(odd);
    let text = refusal([tar().file(odd, b"").hard_link(odd, odd)]);
    assert!(text.contains(r"new\nline \u{1b}[2J"), "{text}");
    refused("malformed pax header", [tar().pax(&[("path", b"a\0b")]).file("f", b"")]);
    let name = |bytes: usize| "n".repeat(bytes);
    build([tar().file(&name(255), b"")]).expect("Linux takes it");
    refused("a name of more than 255 bytes", [tar().file(&name(256), b""), tar().dir(&format!("{}/x", name(256)))]);
    let path = |last: usize| format!("{}{}", format!("{}/", name(255)).repeat(15), name(last));
    build([tar().file(&path(255), b"")]).expect("Linux takes 4095 bytes");
    refused("more than 4095 bytes", [tar().file(&format!("{}/x", path(255)), b"")]);
    let deep = |depth: usize| vec!["d"; depth].join("/");
    build([tar().file(&deep(255), b"")]).expect("it is deep enough");
    refused("more than 255 directories", [tar().file(&deep(256), b""), tar().dir(&deep(2000))]);
    refused("over 1048576", [tar().long(EntryType::GNULongName, &vec![b'n'; 1 << 20]).file("f", b"")]);
    // A symlink makes the path in the tree longer than the one in the archive.
    let through = |rest: &str| tar().dir(&deep(200)).symlink("x", &deep(200)).file(&format!("x/{rest}"), b"");
    build([through(&deep(55))]).expect("255 in all");
    refused("more than 255 directories", [through(&deep(56))]);
    let through = |rest: &str| tar().dir(&path(200)).symlink("x", &path(200)).file(&format!("x/{rest}"), b"");
    build([through(&name(54))]).expect("4095 in all");
    refused("more than 4095 bytes", [through(&name(55)), through(&format!("{}/x", name(54)))]);
}

// 13
#[test]
fn the_last_of_two_entries_with_the_same_path_counts() {
    assert_eq!(lines([tar().file("a", b"1").file("a", b"2")]), ["a=2"]);
    assert_eq!(lines([tar().file("a", b"").dir("a").file("a/b", b"")]), ["a/", "a/b="]);
    assert_eq!(lines([tar().dir("a").file("a/b", b"").file("a", b"1")]), ["a=1"]);
    assert_eq!(lines([tar().file("a", b"1").file("A", b"2")]), ["A=2", "a=1"]);
    assert_eq!(lines([tar().file("a/b/c", b"").file("a", b"").dir("a").file("a/d", b"")]), ["a/", "a/d="]);
    // After a directory is replaced, its old place is not used.
    assert_eq!(lines([tar().dir("b").file("a/x", b"").symlink("a", "b").file("a/y", b"")]), ["a->b", "b/", "b/y="]);
    assert_eq!(
        lines([tar().dir("b").symlink("a", "b").file("a/x", b"").dir("a").file("a/y", b"")]),
        ["a/", "a/y=", "b/", "b/x="]
    );
}

// 14
#[test]
fn bombs_end_at_a_limit() {
    let limited = |limits, layer: Tar| build_raw([layer.end()], limits).expect_err("over the limit").to_string();
    let limits = Limits::default();
    // 64 KiB of zeros that cost nothing still count as bytes of the layer.
    let text = limited(Limits { bytes_max: 60_000, ..limits }, tar().file("zeros", [0; 65_536]));
    assert!(text.contains("`zeros`") && text.contains("the layers have more than 60000 bytes"), "{text}");
    let text =
        limited(Limits { bytes_max: 60_000, ..limits }, (0..200).fold(tar(), |tar, at| tar.file(&at.to_string(), b"")));
    assert!(text.contains("the layers have more than 60000 bytes"), "{text}");
    let behind_the_end = build_raw([[tar().end(), vec![1; 60_000]].concat()], Limits { bytes_max: 60_000, ..limits });
    behind_the_end.expect_err("what is behind the end counts too");
    let text =
        limited(Limits { entries_max: 10, ..limits }, (0..11).fold(tar(), |tar, at| tar.file(&at.to_string(), b"")));
    assert!(text.contains("entry 11, `10`") && text.contains("more than 10 entries"), "{text}");
    let text = limited(Limits { entries_max: 10, ..limits }, tar().file("1/2/3/4/5/6/7/8/9/10/11", b""));
    assert!(text.contains("more than 10 entries"), "{text}");
    let text = limited(
        Limits { text_bytes_max: 100, ..limits },
        tar().symlink("a", &"x".repeat(50)).symlink("b", &"x".repeat(50)),
    );
    assert!(text.contains("entry 2, `b`") && text.contains("more than 100 bytes in all"), "{text}");
    let text = limited(
        Limits { xattr_bytes_max: 1000, ..limits },
        tar().pax(&[("SCHILY.xattr.user.a", &[b'x'; 600])]).file("f", b""),
    );
    assert!(text.contains("the xattrs take more than 1000 bytes"), "{text}");
    let half = vec![b'x'; 40_000];
    refused(
        "its xattrs have more than 65536 bytes",
        [tar().pax(&[("SCHILY.xattr.user.a", &half), ("SCHILY.xattr.user.b", &half)]).file("f", b"")],
    );
    refused(
        "it has an xattr with a name of 256 bytes",
        [tar().pax(&[(&format!("SCHILY.xattr.user.{}", "n".repeat(251)), b"")]).file("f", b"")],
    );
}

// 14
#[test]
fn sparse_bombs_end_at_a_limit() {
    let sparse = |size: &str, map: &str| {
        tar().pax(&[("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", size.as_bytes())]).file("f", b"x")
    };
    refused("9223372036854775807 bytes, and the largest one has", [sparse("9223372036854775807", "0,1")]);
    refused("more than a file can have", [sparse("9223372036854775808", "0,1")]);
    let image = build([sparse("17592186044416", "17592186044415,1")]).expect("the largest file");
    assert_eq!(image.spool.bytes(), 4096);
    let segments = (0..EXTENTS_MAX + 2).map(|at| format!("{},0", at * 8)).collect::<Vec<_>>().join(",");
    refused("malformed pax header", [sparse("9000000", &segments)]);
    let in_data = tar()
        .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"9")])
        .file("f", format!("{:\n<512}", "10000000"));
    refused("more than 65536 parts", [in_data]);
}

// 15
#[test]
fn an_archive_ends_at_its_end_mark() {
    let evil = || tar().file("evil", b"").open_end();
    let good = || tar().file("good", b"");
    let whole = |rest: Vec<u8>| {
        build_raw([[good().end(), rest].concat()], Limits::default()).expect("the end is there").lines()
    };
    for rest in [evil(), b"garbage".to_vec(), vec![0; 20 * BLOCK], [vec![0; BLOCK], evil()].concat(), vec![0xff; 100]] {
        assert_eq!(whole(rest), ["good="]);
    }
    let text = |archive: Vec<u8>| build_raw([archive], Limits::default()).expect_err("it is refused").to_string();
    let lone = text([good().open_end(), vec![0; BLOCK], evil(), vec![0; 2 * BLOCK]].concat());
    assert!(lone.contains("entry 2: the archive continues after a block of zeros"), "{lone}");
    for (cut, part) in [(0, "without its end mark"), (100, "without its end mark"), (BLOCK, "without its end mark")] {
        let error = text(good().open_end()[..cut].to_vec());
        assert!(error.contains(part), "{error}");
    }
    let error = text(tar().file("f", [1; 1000]).end()[..BLOCK + 700].to_vec());
    assert!(error.contains("entry 1, `f`: the archive ends inside a member"), "{error}");
    assert_eq!(
        build_raw([[good().open_end(), vec![0; BLOCK]].concat()], Limits::default()).expect("half a mark").lines(),
        ["good="]
    );
}

// 16
#[test]
fn headers_that_are_not_right_are_refused() {
    let header = |change: fn(&mut tar::Header)| tar().member(EntryType::Regular, "f", b"", change);
    refused(
        "has no size",
        [
            header(|header| header.as_old_mut().size = [0xff; 12]),
            header(|header| header.as_old_mut().size = [0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].map(|byte| byte | 0x80)),
            header(|header| header.as_old_mut().size = *b"12345678x\0\0\0"),
        ],
    );
    refused("a malformed mode", [header(|header| header.as_old_mut().mode = *b"0000988\0")]);
    refused("a malformed owner", [header(|header| header.as_old_mut().uid = *b"zero\0\0\0\0")]);
    refused("its owner is 4294967295:0", [tar().pax(&[("uid", b"4294967295")]).file("f", b"")]);
    refused("its owner is 0:-1", [tar().pax(&[("gid", b"-1")]).file("f", b"")]);
    refused(
        "which is unknown",
        [
            tar().member(EntryType::new(b'V'), "f", b"", |_| {}),
            tar().member(EntryType::new(b'M'), "f", b"", |_| {}),
            tar().member(EntryType::new(b'Z'), "f", b"", |_| {}),
            tar().member(EntryType::new(0x1b), "f", b"", |_| {}),
        ],
    );
    refused("the device 4096:0", [tar().pax(&[("SCHILY.devmajor", b"4096")]).device(EntryType::Char, "d", 0, 0)]);
    refused("the device 8:1048576", [tar().device(EntryType::Block, "d", 8, 1 << 20)]);
    let mut bad_sum = tar().file("f", b"").end();
    bad_sum[0] = b'g';
    let text = build_raw([bad_sum], Limits::default()).expect_err("the sum is wrong").to_string();
    assert!(text.contains("no tar header at byte 0"), "{text}");
    // The header of a link may claim data that other readers take for the next member.
    let evil = tar().file("evil", b"").blocks(b"x").open_end();
    for kind in
        [EntryType::Link, EntryType::Symlink, EntryType::Char, EntryType::Block, EntryType::Directory, EntryType::Fifo]
    {
        let layer = tar().file("a", b"").member(kind, "l", &evil, |header| header.as_old_mut().linkname[0] = b'a');
        refused("1024 bytes of data for a member that is not a file", [layer]);
    }
    // An archive of the oldest format has no magic.
    let old = tar().member(EntryType::new(0), "f", b"x", |header| header.as_old_mut().pad = [0; 255]);
    assert_eq!(lines([old]), ["f=x"]);
    assert_eq!(record("path", b"x"), b"9 path=x\n");
    assert!(matches!(build([tar().fifo("p")]).expect("a FIFO").node("p").kind, Kind::Fifo));
}
