//! Images as Linux mounts them. The tests need root and a loop device; `make test` runs them where it finds both.
//!
//! Each test mounts in a mount namespace of its thread. The namespace, the mount and the loop device end with the test,
//! also if it panics or is killed.

use std::fs::{self, File};
use std::path::Path;

use kiln_rootfs::{Source as _, Tree};
use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

use crate::forest::{Forest, add_holes_and_xattrs, all_kinds, attributes, noise};
use crate::fsck::run;
use crate::seen::{Listing, assert_same, of_directory, of_tree};

/// What Linux sees of an image.
fn mounted(forest: &Forest) -> Listing {
    with_mount(forest, of_directory)
}

/// Calls a function with the directory on which an image is mounted.
fn with_mount<T>(forest: &Forest, look: impl FnOnce(&Path) -> T) -> T {
    private_mounts();
    let scratch = tempfile::tempdir().expect("a directory");
    let (image, target) = (scratch.path().join("image"), scratch.path().join("mount"));
    fs::write(&image, forest.image().0).expect("room for the image");
    fs::create_dir(&target).expect("a directory");
    let [image, mount] = [&image, &target].map(|path| path.to_str().expect("a path of a test is text"));
    run("mount", &["-t", "erofs", "-o", "loop,ro", image, mount]);
    let _unmount = Unmount(mount.to_owned());
    look(&target)
}

/// Gives this thread mounts of its own.
fn private_mounts() {
    #[expect(unsafe_code, reason = "other threads are not affected")]
    // SAFETY: only the mounts of this thread change, and no descriptor.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.expect("root may have mounts of its own");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).expect("mounts can be made private");
}

struct Unmount(String);

impl Drop for Unmount {
    fn drop(&mut self) {
        // Without this the directory of the test could not be removed.
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
#[ignore = "needs root and a loop device; `make test` runs it where it finds them"]
fn linux_mounts_a_tree_with_everything_as_it_is() {
    let mut forest = all_kinds();
    add_holes_and_xattrs(&mut forest);
    assert_same(&mounted(&forest), &of_tree(&forest.tree, &forest.contents[..]));
}

#[test]
#[ignore = "needs root and a loop device; `make test` runs it where it finds them"]
fn linux_finds_each_of_20_000_names() {
    let mut forest = Forest::new();
    let directory = forest.directory(Tree::ROOT, "many");
    for index in 0..20_000_u32 {
        let contents = index.to_le_bytes();
        forest.file(directory, format!("{:x}", index.wrapping_mul(2_654_435_761)), &contents);
    }
    // Listing looks up each name, by halving.
    assert_same(&mounted(&forest), &of_tree(&forest.tree, &forest.contents[..]));
}

#[test]
#[ignore = "needs root and a loop device; `make test` runs it where it finds them"]
fn linux_reads_files_whose_blocks_are_shared() {
    let mut forest = Forest::new();
    for index in 0..50 {
        let directory = forest.directory(Tree::ROOT, format!("{index}"));
        for size in [0, 1, 4095, 4096, 4097, 12_288, 50_000] {
            forest.file(directory, format!("{size}"), &noise(size, 5));
            forest.sparse(directory, format!("hole {size}"), size as u64 + 40_960, &[(8192, &noise(size, 5))]);
        }
    }
    forest.tree.node_mut(Tree::ROOT).attributes = attributes(0o1777);
    assert_same(&mounted(&forest), &of_tree(&forest.tree, &forest.contents[..]));
}

#[test]
#[ignore = "needs root and a loop device; `make test` runs it where it finds them"]
fn linux_reads_a_file_of_6_gibibytes_at_its_holes_and_its_end() {
    let mut forest = Forest::new();
    let gibibyte = 1 << 30;
    let (middle, end) = (noise(8192, 1), noise(5000, 2));
    let (middle_start, end_start) = (5 * gibibyte + 4096, 6 * gibibyte - 5000);
    forest.sparse(Tree::ROOT, "large", 6 * gibibyte, &[(middle_start, &middle), (end_start, &end)]);
    with_mount(&forest, |mount| {
        let file = File::open(mount.join("large")).expect("the file");
        assert_eq!(file.metadata().expect("metadata").len(), 6 * gibibyte);
        let mut found = vec![1; 8192];
        for (offset, expected) in [(middle_start, middle), (end_start, end), (gibibyte, vec![0; 8192])] {
            file.read_exact_at(&mut found[..expected.len()], offset).expect("the file has these bytes");
            assert!(found[..expected.len()] == expected, "at {offset}");
        }
    });
}
