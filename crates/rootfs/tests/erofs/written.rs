//! What is in an image: the same as in its tree, each block once, and always the same bytes.

use kiln_rootfs::erofs::{ReadLimits, read};
use kiln_rootfs::{Kind, Node, Tree, hash_bodies};

use crate::forest::{Forest, add_holes_and_xattrs, all_kinds, attributes, noise, with_xattrs};
use crate::seen::{assert_same, of_tree};

fn reread(image: &[u8]) -> Tree {
    read(image, image.len() as u64, &ReadLimits::default()).expect("our own image")
}

#[test]
fn a_tree_with_everything_is_read_as_it_was_written() {
    let mut forest = all_kinds();
    add_holes_and_xattrs(&mut forest);
    let (image, written) = forest.image();
    let tree = reread(&image);
    assert_same(&of_tree(&tree, &image[..]), &of_tree(&forest.tree, &forest.contents[..]));
    assert_eq!(tree.len() as u64, written.inodes);
}

#[test]
fn an_image_that_was_read_is_written_as_the_same_bytes() {
    let mut forest = all_kinds();
    add_holes_and_xattrs(&mut forest);
    // Parts that do not begin and end with a block become longer: zeros take the place of holes within a block. So the
    // second image has another digest than the first, and all later ones have that of the second.
    let mut image = forest.image().0;
    let mut digests = Vec::new();
    for _ in 0..2 {
        let mut tree = reread(&image);
        hash_bodies(&mut tree, &image[..], u64::MAX).expect("the contents can be read");
        let copy = Forest { tree, contents: image };
        let (next, written) = copy.image();
        digests.push(written.digest);
        image = next;
    }
    assert_eq!(digests[0], digests[1]);
}

#[test]
fn the_bytes_do_not_depend_on_numbers_of_nodes_or_on_places_in_the_spool() {
    let names = ["a", "b", "c", "d"];
    let build = |order: &[usize], decoys: bool| {
        let mut forest = Forest::new();
        if decoys {
            let body = forest.body(100, &[(0, &noise(100, 99))]);
            forest.tree.add(Node { attributes: with_xattrs(0o644, &[("user.a", b"1")]), kind: Kind::File(body) });
        }
        for index in order {
            let directory = forest.directory(Tree::ROOT, names[*index]);
            let contents = noise(10_000, *index as u64 % 2);
            // Cut in another way each time.
            let (start, end) = contents.split_at(1 + index * 13);
            forest.sparse(directory, "x", 10_000, &[(0, start), (start.len() as u64, end)]);
        }
        let shared = forest.file(Tree::ROOT, "shared", b"shared");
        for index in order {
            let directory = forest.tree.children(Tree::ROOT).expect("the root")[names[*index].as_bytes()];
            forest.link(directory, "shared", shared);
        }
        forest.image()
    };
    let (first, written) = build(&[0, 1, 2, 3], false);
    let (second, again) = build(&[3, 1, 0, 2], true);
    assert_eq!(written, again);
    assert!(first == second, "byte for byte the same");
}

#[test]
fn all_that_is_in_a_tree_changes_the_identifier() {
    let variants: [&dyn Fn(&mut Forest); 6] = [
        &|_| {},
        &|forest| {
            forest.directory(Tree::ROOT, "more");
        },
        &|forest| forest.tree.node_mut(Tree::ROOT).attributes.uid = 1,
        &|forest| forest.tree.node_mut(Tree::ROOT).attributes.modified.nanoseconds += 1,
        &|forest| {
            forest.file(Tree::ROOT, "more", b"1");
        },
        &|forest| {
            forest.file(Tree::ROOT, "more", b"2");
        },
    ];
    let mut found = Vec::new();
    for variant in variants {
        let mut forest = Forest::new();
        variant(&mut forest);
        let (_, written) = forest.image();
        assert_eq!((written.uuid[6] >> 4, written.uuid[8] >> 6), (8, 2), "the form of RFC 9562");
        assert!(!found.contains(&written.uuid));
        found.push(written.uuid);
    }
}

#[test]
fn files_with_the_same_contents_share_their_blocks() {
    let image_of = |seeds: &[u64]| {
        let mut forest = Forest::new();
        for (index, seed) in seeds.iter().enumerate() {
            forest.file(Tree::ROOT, format!("{index}"), &noise(100_000, *seed));
        }
        // Room for no tail behind this one, so its last block is a block.
        let set = [("user.large", &noise(3000, 0)[..])];
        let body = forest.body(100_000, &[(0, &noise(100_000, seeds[0]))]);
        forest.add(Tree::ROOT, "attributes", with_xattrs(0o644, &set), Kind::File(body));
        forest.image().0.len()
    };
    let (same, different) = (image_of(&[1, 1, 1, 1]), image_of(&[1, 2, 3, 4]));
    assert!(different - same >= 3 * 98_304, "{same} {different}");
    assert!(same < 100_000 * 2 + 65_536, "{same}");
}

#[test]
fn a_directory_with_100_000_names_and_a_hole_of_8_exbibytes_are_read_back() {
    let mut forest = Forest::new();
    let directory = forest.directory(Tree::ROOT, "many");
    for index in 0..100_000 {
        forest.add(directory, format!("{index:x}"), attributes(0o644), Kind::Fifo);
    }
    forest.sparse(Tree::ROOT, "hole", i64::MAX as u64, &[]);
    // Addresses and data need about as much as each other: 11 MiB in all.
    let tebibyte = 1 << 40;
    forest.sparse(Tree::ROOT, "ends", tebibyte, &[(0, b"start"), (tebibyte - 3, b"end")]);
    let (image, written) = forest.image();
    assert_eq!(written.inodes, 100_004);
    assert!(written.bytes < 24 << 20, "{}", written.bytes);
    let tree = reread(&image);
    assert_eq!(tree.len(), 100_004);
    let many = tree.children(Tree::ROOT).expect("the root")[&b"many"[..]];
    assert_eq!(tree.children(many).expect("a directory").len(), 100_000);
}

#[test]
fn a_name_in_the_order_of_bytes_before_the_dots_is_found() {
    let mut forest = Forest::new();
    for name in [&b"!"[..], b"-", b".-", b"..."] {
        forest.file(Tree::ROOT, name, name);
    }
    let (image, _) = forest.image();
    assert_same(&of_tree(&reread(&image), &image[..]), &of_tree(&forest.tree, &forest.contents[..]));
}
