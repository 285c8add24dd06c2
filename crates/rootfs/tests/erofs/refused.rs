//! Trees that no image can hold, and images that are broken.

use kiln_rootfs::erofs::{Options, ReadError, ReadLimits, WriteError, read, write};
use kiln_rootfs::{Attributes, Body, Children, Extent, Kind, NodeId, Tree};

use crate::forest::{Forest, add_holes_and_xattrs, all_kinds, attributes, noise, with_xattrs};

fn refused(forest: &Forest, options: &Options) -> String {
    let mut image = Vec::new();
    let error = write(&forest.tree, &forest.contents[..], &mut image, options).expect_err("no image can hold it");
    assert_eq!(image.len(), 0, "it is refused before a byte is written");
    error.to_string()
}

/// A tree with one node that can't be in an image.
fn with(name: &str, attributes: Attributes, kind: Kind) -> String {
    let mut forest = Forest::new();
    forest.add(Tree::ROOT, name, attributes, kind);
    refused(&forest, &Options::default())
}

fn file(size: u64, extents: Vec<Extent>) -> Kind {
    Kind::File(Body { size, extents, digest: [0; 32] })
}

#[test]
fn what_the_format_or_linux_cannot_hold_is_refused_by_name() {
    let extent = |offset, bytes| Extent { offset, bytes, spool_offset: 0 };
    let large = noise(65_536, 1);
    let many: Vec<(String, Vec<u8>)> = (0..5).map(|n| (format!("user.{n}"), noise(65_535, n))).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|(name, value)| (&**name, &value[..])).collect();
    let plain = || attributes(0o644);
    let all = [
        with("large", plain(), file(1 << 63, vec![])),
        with("beyond", plain(), file(10, vec![extent(5, 6)])),
        with("overlap", plain(), file(10, vec![extent(0, 6), extent(5, 1)])),
        with("empty part", plain(), file(10, vec![extent(0, 0)])),
        with("device", plain(), Kind::CharacterDevice { major: 4096, minor: 0 }),
        with("device", plain(), Kind::BlockDevice { major: 0, minor: 1 << 20 }),
        with("link", plain(), Kind::Symlink(Box::default())),
        with("link", plain(), Kind::Symlink(vec![b'x'; 4096].into())),
        with("link", plain(), Kind::Symlink(b"a\0b".as_slice().into())),
        with("mode", attributes(0o10000), Kind::Fifo),
        with("a/b", plain(), Kind::Fifo),
        with("..", plain(), Kind::Fifo),
        with(&"x".repeat(256), plain(), Kind::Fifo),
        with("name", with_xattrs(0o644, &[("system.nfs4_acl", b"")]), Kind::Fifo),
        with("value", with_xattrs(0o644, &[("user.x", &large)]), Kind::Fifo),
        with("many\x1b", with_xattrs(0o644, &many), Kind::Fifo),
    ];
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn a_directory_with_two_names_or_in_itself_is_refused() {
    let mut forest = Forest::new();
    let inner = forest.directory(Tree::ROOT, "inner");
    forest.link(inner, "up", inner);
    let message = refused(&forest, &Options::default());
    let mut forest = Forest::new();
    let inner = forest.directory(Tree::ROOT, "inner");
    forest.link(Tree::ROOT, "other", inner);
    assert_eq!(refused(&forest, &Options::default()), message);
    insta::assert_snapshot!(message, @"`/` is not valid in a tree: a directory has two names");
}

#[test]
fn an_image_over_its_limit_is_refused_before_it_is_written() {
    let mut forest = Forest::new();
    forest.file(Tree::ROOT, "file", &noise(100_000, 1));
    let bytes = forest.image().1.bytes;
    write(&forest.tree, &forest.contents[..], Vec::new(), &Options { bytes_max: bytes }).expect("just enough");
    let message = refused(&forest, &Options { bytes_max: bytes - 1 });
    insta::assert_snapshot!(message, @"the image needs 106496 bytes, and at most 106495 are allowed");
    // 16 TiB of data have no place in an image. The contents are not read before that is found.
    let mut forest = Forest::new();
    let extents = vec![Extent { offset: 0, bytes: 1 << 44, spool_offset: 0 }];
    forest.add(Tree::ROOT, "file", attributes(0o644), file(1 << 44, extents));
    insta::assert_snapshot!(refused(&forest, &Options::default()), @"the image needs 17592186052608 bytes, and at most 17592186040320 are allowed");
}

#[test]
fn a_source_that_ends_early_is_named_by_the_file() {
    let mut forest = Forest::new();
    let directory = forest.directory(Tree::ROOT, "dir");
    forest.file(directory, "file", &noise(100_000, 1));
    forest.contents.truncate(50_000);
    let error = write(&forest.tree, &forest.contents[..], Vec::new(), &Options::default()).expect_err("it ends early");
    assert!(matches!(&error, WriteError::Source { path, .. } if path == "/dir/file"), "{error:?}");
}

fn try_read(image: &[u8]) -> Result<Tree, ReadError> {
    read(image, image.len() as u64, &ReadLimits::default())
}

/// An image with a changed field of the inode of a node. The superblock's checksum does not cover it.
fn changed(name: &str, at: usize, bytes: &[u8]) -> String {
    let mut forest = Forest::new();
    forest.file(Tree::ROOT, "file", &noise(5000, 1));
    forest.sparse(Tree::ROOT, "sparse", 1 << 20, &[(0, b"x")]);
    forest.add(Tree::ROOT, "link", attributes(0o777), Kind::Symlink(b"target".as_slice().into()));
    let set = [("user.a", &b"1"[..])];
    forest.add(Tree::ROOT, "dir", with_xattrs(0o755, &set), Kind::Directory(Children::new()));
    let mut image = forest.image().0;
    // The root is first, then the others in their order; all inodes of this small tree are in the first block of them.
    let order = ["dir", "file", "link", "sparse"];
    let inode = inodes(&image)[1 + order.iter().position(|one| *one == name).expect("a name")];
    image[inode + at..inode + at + bytes.len()].copy_from_slice(bytes);
    try_read(&image).expect_err("the image is broken").to_string()
}

/// Offsets of the inodes in the first block of them: they have the number 1, 2, 3 … and a time that is known.
fn inodes(image: &[u8]) -> Vec<usize> {
    let is_inode = |number: u32, at: usize| {
        image[at + 20..at + 24] == number.to_le_bytes() && image[at + 32..at + 40] == 1_700_000_000_u64.to_le_bytes()
    };
    (1..=5).map(|number| (4096..8192).step_by(32).find(|at| is_inode(number, *at)).expect("an inode")).collect()
}

#[test]
fn broken_inodes_are_refused_by_their_number_and_problem() {
    let all = [
        changed("file", 0, &[0xff]),
        changed("file", 0, &[3]),
        changed("file", 0, &[1 | 5 << 1]),
        changed("file", 5, &[0xf0]),
        changed("file", 15, &[0x80]),
        changed("file", 16, &[0xff, 0xff, 0xff, 0x7f]),
        changed("file", 40, &[0xff, 0xff, 0xff, 0xff]),
        changed("file", 5, &[0x40]),
        changed("link", 8, &[0, 0]),
        changed("link", 8, &[0, 0x10]),
        changed("sparse", 14, &[1]),
        changed("sparse", 17, &[1]),
        changed("dir", 2, &[1, 0]),
        changed("dir", 2, &[0xff, 0xff]),
        changed("dir", 8, &[0, 0]),
        changed("dir", 15, &[1]),
    ];
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn bytes_that_are_no_image_are_refused() {
    let mut forest = Forest::new();
    forest.file(Tree::ROOT, "file", b"contents");
    let image = forest.image().0;
    let mut other_blocks = image.clone();
    other_blocks[1024 + 12] = 9;
    other_blocks[1024 + 8] = 0;
    let mut feature = image.clone();
    feature[1024 + 80] = 0x80;
    feature[1024 + 8] = 0;
    let mut checksum = image.clone();
    checksum[1024 + 20] ^= 1;
    let cases =
        [vec![], vec![0; 4095], vec![0; 8192], image[..image.len() - 1].to_vec(), other_blocks, feature, checksum];
    let all = cases.map(|bytes| try_read(&bytes).expect_err("it is no image").to_string());
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn more_than_the_limits_allow_is_refused_by_name() {
    let mut forest = all_kinds();
    add_holes_and_xattrs(&mut forest);
    let image = forest.image().0;
    let all = ReadLimits::default();
    let limits = [
        ReadLimits { names_max: 100, ..all },
        ReadLimits { extents_max: 100, ..all },
        ReadLimits { xattr_bytes_max: 1000, ..all },
    ];
    let errors = limits.map(|limits| read(&image[..], image.len() as u64, &limits).expect_err("too much").to_string());
    insta::assert_snapshot!(errors.join("\n"), @r"
    the image has too many names
    the image has too many parts of files
    the image has too many extended attributes
    ");
}

#[test]
fn directories_that_share_their_blocks_are_refused() {
    // Each of them has the same names as the first, so a reader that follows each would read them all 1000 times.
    let mut forest = Forest::new();
    let target = forest.file(Tree::ROOT, "target", b"");
    let many = |forest: &mut Forest, directory: NodeId| {
        for index in 0..2000 {
            forest.link(directory, format!("{index:0100}"), target);
        }
    };
    let directories: Vec<NodeId> = (0..50).map(|index| forest.directory(Tree::ROOT, format!("{index:02}"))).collect();
    many(&mut forest, directories[0]);
    let mut image = forest.image().0;
    // All directories get size, format and address of the first, whose inode is the second of all.
    let all: Vec<usize> = (4096..image.len() - 64)
        .step_by(32)
        .filter(|at| {
            image[at + 4..at + 6] == 0o040_755_u16.to_le_bytes()
                && image[at + 32..at + 40] == 1_700_000_000_u64.to_le_bytes()
        })
        .collect();
    assert_eq!(all.len(), 51);
    for (from, to) in [(0, 2), (8, 20)] {
        let field = image[all[1] + from..all[1] + to].to_vec();
        for at in &all[2..] {
            image[at + from..at + to].copy_from_slice(&field);
        }
    }
    let error = try_read(&image).expect_err("their `.` is another directory");
    assert!(matches!(error, ReadError::Malformed { .. }), "{error}");
}
