//! Images against the tools of erofs-utils. They must be installed: `scripts/install.sh test` does it.
//!
//! Debian 12 has version 1.5. It extracts neither hard links nor extended attributes, and writes no holes, so that what
//! is behind one moves to the front. For those there are the tests with a mount.

use std::fs;
use std::path::Path;

use kiln_programs::{PATH_ONLY, command};
use kiln_rootfs::Tree;
use kiln_rootfs::erofs::{ReadLimits, read};

use crate::forest::{Forest, add_holes_and_xattrs, all_kinds, noise};
use crate::seen::{Listing, Seen, assert_same, of_directory, of_tree};

/// Runs a program and returns what it printed. Fails if it does.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = command(program, PATH_ONLY).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("`{program}` of erofs-utils or util-linux: {error}"));
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

/// Checks an image. On its level 3, the program reports a success, too.
pub fn check(image: &Path) {
    let printed = run("fsck.erofs", &["-d3", text(image)]);
    assert!(printed.contains("No errors found"), "{printed}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of a test is text")
}

/// What version 1.5 keeps of a name.
fn as_extracted(listing: Listing) -> Listing {
    let is_root = rustix::process::geteuid().is_root();
    let one = |seen: Seen| Seen {
        xattrs: Default::default(),
        links: (Vec::new(), 0),
        owner: if is_root { seen.owner } else { (0, 0) },
        // It sets the owner after the permissions, and Linux then clears these two bits.
        permissions: if seen.kind == "directory" { seen.permissions } else { seen.permissions & 0o1777 },
        ..seen
    };
    // Only root may make devices.
    let can_extract = |seen: &Seen| is_root || !seen.kind.contains("device");
    let kept = listing.into_iter().filter(|(_, seen)| can_extract(seen));
    kept.map(|(path, seen)| (path, one(seen))).collect()
}

#[test]
fn fsck_extracts_a_tree_with_all_kinds_as_it_is() {
    let forest = all_kinds();
    let scratch = tempfile::tempdir().expect("a directory");
    let (image, target) = (scratch.path().join("image"), scratch.path().join("tree"));
    fs::write(&image, forest.image().0).expect("room for the image");
    run("fsck.erofs", &["--preserve", &format!("--extract={}", text(&target)), text(&image)]);
    let expected = as_extracted(of_tree(&forest.tree, &forest.contents[..]));
    assert_same(&as_extracted(of_directory(&target)), &expected);
}

#[test]
fn fsck_finds_nothing_wrong_with_holes_attributes_and_many_names() {
    let mut forest = all_kinds();
    add_holes_and_xattrs(&mut forest);
    let directory = forest.directory(Tree::ROOT, "many");
    for index in 0..20_000 {
        forest.file(directory, format!("{index}"), format!("{index}").as_bytes());
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let image = scratch.path().join("image");
    fs::write(&image, forest.image().0).expect("room for the image");
    check(&image);
    let printed = run("dump.erofs", &["-s", text(&image)]);
    assert!(printed.contains("sb_csum"), "the checksum is announced: {printed}");
}

/// A directory of the host with the kinds of nodes that every user can make.
fn host_directory(path: &Path) {
    fs::create_dir_all(path.join("inner/more")).expect("a directory");
    for size in [0, 1, 4000, 4032, 4033, 4096, 5000, 100_000] {
        fs::write(path.join(format!("inner/{size}")), noise(size, size as u64)).expect("a file");
    }
    fs::hard_link(path.join("inner/5000"), path.join("link")).expect("a link");
    std::os::unix::fs::symlink("inner/5000", path.join("symlink")).expect("a symlink");
    for index in 0..400 {
        fs::write(path.join(format!("inner/more/{index}-{}", "x".repeat(index % 100))), [1]).expect("a file");
    }
    for name in ["user.a", "user.b"] {
        for file in ["inner/1", "inner/4000", "inner/4096", "inner", ""] {
            let flags = rustix::fs::XattrFlags::empty();
            // Not every file system of a host has these attributes; then there are none to compare.
            let _ = rustix::fs::setxattr(path.join(file), name, b"value", flags);
        }
    }
}

#[test]
fn what_mkfs_writes_without_compression_is_read() {
    let scratch = tempfile::tempdir().expect("a directory");
    let (image, source) = (scratch.path().join("image"), scratch.path().join("tree"));
    host_directory(&source);
    let variants: [&[&str]; 5] = [
        &[],
        &["-Eforce-inode-extended"],
        &["-x1"],
        &["--chunksize=4096"],
        &["--chunksize=16384", "-Eforce-chunk-indexes"],
    ];
    for options in variants {
        run("mkfs.erofs", &[options, &[text(&image), text(&source)]].concat());
        let bytes = fs::read(&image).expect("the image");
        let tree = read(&bytes[..], bytes.len() as u64, &ReadLimits::default())
            .unwrap_or_else(|error| panic!("{options:?}: {error}"));
        assert_same(&of_tree(&tree, &bytes[..]), &of_directory(&source));
        let forest = Forest { tree, contents: bytes };
        let copy = forest.image().0;
        let tree = read(&copy[..], copy.len() as u64, &ReadLimits::default()).expect("our own image");
        assert_same(&of_tree(&tree, &copy[..]), &of_directory(&source));
    }
}

#[test]
fn an_image_with_compression_is_refused() {
    let scratch = tempfile::tempdir().expect("a directory");
    let (image, source) = (scratch.path().join("image"), scratch.path().join("tree"));
    fs::create_dir(&source).expect("a directory");
    fs::write(source.join("zeros"), [0; 100_000]).expect("a file");
    run("mkfs.erofs", &["-zlz4", text(&image), text(&source)]);
    let bytes = fs::read(&image).expect("the image");
    let error = read(&bytes[..], bytes.len() as u64, &ReadLimits::default()).expect_err("it is compressed");
    assert!(error.to_string().contains("compress"), "{error}");
}
