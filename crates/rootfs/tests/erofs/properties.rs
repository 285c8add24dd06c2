//! Any tree survives an image.

use std::fs;

use kiln_rootfs::erofs::{Options, ReadLimits, read, write};
use kiln_rootfs::{Attributes, Children, Kind, NodeId, Time, Tree, hash_bodies};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::forest::{Forest, noise};
use crate::fsck::check;
use crate::seen::{assert_same, of_tree};

/// A node to add: below which directory, under which name, with what.
#[derive(Debug, Clone)]
struct Step {
    parent: Index,
    name: Vec<u8>,
    attributes: Attributes,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Directory,
    /// Gaps and lengths of data, and what is behind the last.
    File(Vec<(u64, usize)>, u64, u64),
    Symlink(Vec<u8>),
    Device(bool, u32, u32),
    Fifo,
    Socket,
    /// Another name for a node that is there.
    Link(Index),
}

fn any_attributes() -> impl Strategy<Value = Attributes> {
    let name = prop_oneof![
        "(user|trusted|security)\\.[a-z]{1,3}",
        Just("system.posix_acl_access".to_owned()),
        "user\\.[a-z]{200,250}",
    ];
    // Long ones by their length alone: as lists of random bytes they would take most of the time.
    let value = (prop_oneof![0..8_usize, 3000..5000_usize], any::<u64>()).prop_map(|(len, seed)| noise(len, seed));
    let time = (any::<i64>(), 0..1_000_000_000_u32).prop_map(|(seconds, nanoseconds)| Time { seconds, nanoseconds });
    (0..0o10000_u16, any::<u32>(), any::<u32>(), time, btree_map(name, value, 0..4)).prop_map(
        |(permissions, uid, gid, modified, xattrs)| Attributes {
            permissions,
            uid,
            gid,
            modified,
            xattrs: xattrs.into_iter().map(|(name, value)| (name.into_bytes().into(), value.into())).collect(),
        },
    )
}

fn any_step() -> impl Strategy<Value = Step> {
    let byte = any::<u8>().prop_filter("no name has it", |byte| !matches!(byte, 0 | b'/'));
    let name = prop_oneof![4 => vec(byte.clone(), 1..6), 1 => (byte.clone(), 200..256_usize).prop_map(|(byte, len)| std::vec![byte; len])]
        .prop_filter("it is in each directory", |name| name != b"." && name != b"..");
    let gap = prop_oneof![Just(0_u64), 1..5000_u64, Just(4096), Just(1 << 20), Just(1 << 28)];
    let parts = vec((gap.clone(), prop_oneof![1..100_usize, 4000..4200_usize, 1..30_000_usize]), 0..5);
    let what = prop_oneof![
        4 => Just(What::Directory),
        6 => (parts, gap, 0..4_u64).prop_map(|(parts, end, seed)| What::File(parts, end, seed)),
        2 => vec(byte.clone(), 1..20).prop_map(What::Symlink),
        1 => (byte, 1..4096_usize).prop_map(|(byte, len)| What::Symlink(std::vec![byte; len])),
        1 => (any::<bool>(), 0..4096_u32, 0..1_048_576_u32).prop_map(|(block, major, minor)| What::Device(block, major, minor)),
        1 => Just(What::Fifo),
        1 => Just(What::Socket),
        3 => any::<Index>().prop_map(What::Link),
    ];
    (any::<Index>(), name, any_attributes(), what).prop_map(|(parent, name, attributes, what)| Step {
        parent,
        name,
        attributes,
        what,
    })
}

fn grown(root: Attributes, steps: &[Step]) -> Forest {
    let mut forest = Forest::new();
    forest.tree.node_mut(Tree::ROOT).attributes = root;
    let (mut directories, mut others): (Vec<NodeId>, Vec<NodeId>) = (vec![Tree::ROOT], vec![]);
    for step in steps {
        let parent = directories[step.parent.index(directories.len())];
        if forest.tree.children(parent).expect("a directory").contains_key(&step.name[..]) {
            continue;
        }
        let kind = match &step.what {
            What::Directory => Kind::Directory(Children::new()),
            What::Symlink(target) => Kind::Symlink(target.clone().into()),
            What::Device(true, major, minor) => Kind::BlockDevice { major: *major, minor: *minor },
            What::Device(false, major, minor) => Kind::CharacterDevice { major: *major, minor: *minor },
            What::Fifo => Kind::Fifo,
            What::Socket => Kind::Socket,
            What::File(parts, end, seed) => {
                let mut offset = 0;
                let contents: Vec<(u64, Vec<u8>)> = parts
                    .iter()
                    .map(|(gap, len)| {
                        let start = offset + gap;
                        offset = start + *len as u64;
                        (start, noise(*len, *seed))
                    })
                    .collect();
                let parts: Vec<(u64, &[u8])> = contents.iter().map(|(offset, bytes)| (*offset, &bytes[..])).collect();
                Kind::File(forest.body(offset + end, &parts))
            }
            What::Link(target) => {
                if !others.is_empty() {
                    forest.link(parent, &step.name, others[target.index(others.len())]);
                }
                continue;
            }
        };
        let is_directory = matches!(kind, Kind::Directory(_));
        let id = forest.add(parent, &step.name, step.attributes.clone(), kind);
        if is_directory { &mut directories } else { &mut others }.push(id);
    }
    forest
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_survives_an_image(root in any_attributes(), steps in vec(any_step(), 0..40)) {
        let forest = grown(root, &steps);
        let (image, written) = forest.image();
        let tree = read(&image[..], image.len() as u64, &ReadLimits::default()).expect("our own image");
        prop_assert_eq!(tree.len() as u64, written.inodes);
        assert_same(&of_tree(&tree, &image[..]), &of_tree(&forest.tree, &forest.contents[..]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn fsck_agrees_with_any_tree(root in any_attributes(), steps in vec(any_step(), 0..80)) {
        let scratch = tempfile::tempdir().expect("a directory");
        let image = scratch.path().join("image");
        fs::write(&image, grown(root, &steps).image().0).expect("room for the image");
        check(&image);
    }
}

/// Reads an image, writes what was read, and writes that again. From the second image on nothing may change.
fn settle(image: &[u8]) {
    let limits = ReadLimits { names_max: 1 << 16, extents_max: 1 << 16, xattr_bytes_max: 4 << 20 };
    let bytes_max = 16 << 20;
    let rewritten = |image: &[u8]| {
        let mut tree = read(image, image.len() as u64, &limits).ok()?;
        hash_bodies(&mut tree, image, bytes_max).ok()?;
        let mut copy = Vec::new();
        write(&tree, image, &mut copy, &Options { bytes_max }).ok()?;
        Some(copy)
    };
    let Some(first) = rewritten(image) else { return };
    let second = rewritten(&first).expect("our own image");
    assert!(rewritten(&second).expect("our own image") == second, "the same tree is the same image");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_image_is_refused_or_read_and_then_settles(
        seed in 0..5_usize,
        changes in vec((any::<Index>(), any::<u8>()), 1..12),
    ) {
        const SEEDS: [&[u8]; 5] = [
            include_bytes!("../../../../fuzz/seeds/rootfs_erofs/attributes"),
            include_bytes!("../../../../fuzz/seeds/rootfs_erofs/chunks"),
            include_bytes!("../../../../fuzz/seeds/rootfs_erofs/kinds"),
            include_bytes!("../../../../fuzz/seeds/rootfs_erofs/mkfs"),
            include_bytes!("../../../../fuzz/seeds/rootfs_erofs/names"),
        ];
        let mut image = SEEDS[seed].to_vec();
        // Without its checksum, changes of the first block are not all refused alike.
        image[1024 + 8] &= !1;
        for (at, byte) in changes {
            // Most of an image are contents and zeros: the first 3 KiB behind the superblock have what is read.
            let at = 1024 + at.index((image.len() - 1024).min(7168));
            image[at] = byte;
        }
        settle(&image);
    }
}
