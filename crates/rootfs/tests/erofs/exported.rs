//! Archives of trees: layers, images and GNU tar see the same in them.

use std::fs;

use crate::forest::{Forest, add_holes_and_xattrs, all_kinds, attributes, image_of, with_xattrs};
use crate::seen::{Listing, assert_same, of_directory, of_tree};
use kiln_programs::{PATH_ONLY, command};
use kiln_rootfs::erofs::{ReadLimits, read};
use kiln_rootfs::export::tar;
use kiln_rootfs::{Kind, Layers, Limits, Source, Spool, SpoolLimits, Tree};

fn exported(tree: &Tree, source: &(impl Source + ?Sized)) -> Vec<u8> {
    let mut archive = Vec::new();
    let exported = tar(tree, source, &mut archive).expect("a valid tree");
    assert_eq!(archive.len() as u64, exported.bytes);
    archive
}

fn imported(archive: &[u8]) -> (Tree, Spool) {
    let limits = SpoolLimits { reserve_bytes: 0, ..SpoolLimits::default() };
    let spool = Spool::new(&std::env::temp_dir(), limits).expect("a spool");
    let mut layers = Layers::new(spool, Limits::default());
    layers.apply(archive).expect("an archive of ours is a layer");
    let (tree, spool, notes) = layers.finish();
    assert_eq!(notes.lines(), Vec::<String>::new());
    (tree, spool)
}

/// A tree with all that an archive and a layer hold: no sockets, and no directory deeper than a layer may have.
fn whole() -> Forest {
    let mut forest = all_kinds();
    add_holes_and_xattrs(&mut forest);
    let names: [&[(&str, &[u8])]; 2] =
        [&[("user.with=sign", b"\0=\xff\n")], &[("user.with%3D", b"percent"), ("user.x", b"")]];
    for (index, set) in names.iter().enumerate() {
        forest.add(Tree::ROOT, format!("odd name {index}"), with_xattrs(0o644, set), Kind::Fifo);
    }
    let directory = forest.tree.children(Tree::ROOT).expect("the root")[&b"dir"[..]];
    assert!(forest.tree.children_mut(directory).expect("a directory").remove(&b"socket"[..]).is_some());
    forest.tree.children_mut(Tree::ROOT).expect("the root").remove(&b"0"[..]);
    forest
}

#[test]
fn a_tree_survives_archive_layers_image_and_archive_again() {
    let forest = whole();
    let expected = of_tree(&forest.tree, &forest.contents[..]);
    let archive = exported(&forest.tree, &forest.contents[..]);
    let (tree, spool) = imported(&archive);
    assert_same(&of_tree(&tree, &spool), &expected);
    let first = exported(&tree, &spool);

    let image = image_of(&tree, &spool).0;
    let again = read(&image[..], image.len() as u64, &ReadLimits::default()).expect("our own image");
    let second = exported(&again, &image[..]);
    let (tree, spool) = imported(&second);
    assert_same(&of_tree(&tree, &spool), &expected);
    // A chunk of the image may have blocks of zeros, which layers take as holes again. So nothing has changed.
    assert!(exported(&tree, &spool) == first, "byte for byte the same");
    assert!(image_of(&tree, &spool).0 == image, "byte for byte the same");
}

/// What every user can unpack: no devices, no owners, and only `user` attributes.
fn plain(listing: Listing) -> Listing {
    let mut kept = Listing::new();
    for (path, mut seen) in listing {
        if seen.kind.contains("device") {
            continue;
        }
        seen.owner = (0, 0);
        seen.permissions &= 0o777;
        seen.xattrs.retain(|name, _| name.starts_with(b"user."));
        kept.insert(path, seen);
    }
    kept
}

#[test]
fn gnu_tar_unpacks_a_tree_with_holes_links_and_attributes_as_it_is() {
    let mut forest = whole();
    // GNU tar decodes names of attributes that look percent-encoded, and ext4 holds less than 4 KiB of attributes.
    for name in ["odd name 0", "odd name 1", "attributes"] {
        forest.tree.children_mut(Tree::ROOT).expect("the root").remove(name.as_bytes());
    }
    forest.file(Tree::ROOT, "with attributes", b"contents");
    let expected = plain(of_tree(&forest.tree, &forest.contents[..]));
    let scratch = tempfile::tempdir().expect("a directory");
    let (archive, target) = (scratch.path().join("archive"), scratch.path().join("tree"));
    fs::write(&archive, exported(&forest.tree, &forest.contents[..])).expect("room for the archive");
    fs::create_dir(&target).expect("a directory");
    let output = command("tar", PATH_ONLY)
        .args(["--extract", "--same-permissions", "--xattrs", "--exclude=null", "--exclude=large", "--file"])
        .arg(&archive)
        .current_dir(&target)
        .output()
        .expect("GNU tar");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_same(&plain(of_directory(&target)), &expected);
}

#[test]
fn sockets_are_left_out_and_counted() {
    let mut forest = Forest::new();
    let socket = forest.add(Tree::ROOT, "socket", attributes(0o600), Kind::Socket);
    forest.link(Tree::ROOT, "other name", socket);
    let report = tar(&forest.tree, &forest.contents[..], Vec::new()).expect("a valid tree");
    assert_eq!((report.entries, report.sockets), (1, 2));
}

#[test]
fn what_an_archive_cannot_hold_is_refused_by_name() {
    let mut forest = Forest::new();
    forest.add(Tree::ROOT, "device", attributes(0o600), Kind::BlockDevice { major: 1 << 21, minor: 0 });
    let device = tar(&forest.tree, &forest.contents[..], Vec::new()).expect_err("too large");
    let mut forest = Forest::new();
    let inner = forest.directory(Tree::ROOT, "inner");
    forest.link(inner, "loop", inner);
    let linked = tar(&forest.tree, &forest.contents[..], Vec::new()).expect_err("a loop");
    let mut forest = Forest::new();
    forest.file(Tree::ROOT, "file", b"0123456789");
    forest.contents.truncate(5);
    let source = tar(&forest.tree, &forest.contents[..], Vec::new()).expect_err("too short");
    insta::assert_snapshot!([device.to_string(), linked.to_string(), source.to_string()].join("\n"), @r"
    `device` is device 2097152:0, and an archive holds numbers below 2097152
    the tree is not valid: a directory has two names
    failed to read the contents of `file`
    ");
}
