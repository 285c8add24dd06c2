//! Any bytes as one to three layers of an image: a tree that holds what every tree must hold, or an error; memory stays
//! bounded by the limits. Every such tree can be written as an image, unless that is too large, and the image can be read.
//!
//! The first byte has the number of layers and whether sums of headers are made right. Without that, hardly any change of
//! a header would get past its sum. Then come 16 bits for the length of each layer but the last.
#![no_main]

use std::collections::HashSet;

use kiln_rootfs::{
    DEPTH_MAX, Kind, Layers, Limits, NAME_BYTES_MAX, PATH_BYTES_MAX, Source as _, Spool, SpoolLimits, Tree,
    XATTR_BYTES_MAX, erofs,
};
use libfuzzer_sys::fuzz_target;

const BLOCK: usize = 512;
const LIMITS: Limits = Limits {
    bytes_max: 1 << 20,
    entries_max: 2000,
    text_bytes_max: 1 << 17,
    xattr_bytes_max: 1 << 18,
    link_names_max: 1 << 16,
};
/// Size of an image.
const IMAGE_BYTES_MAX: u64 = 4 << 20;
const SPOOL_LIMITS: SpoolLimits = SpoolLimits { bytes_max: 1 << 21, reserve_bytes: 0 };

fuzz_target!(|input: &[u8]| {
    let Some((first, rest)) = input.split_first() else { return };
    let mut bytes = rest.to_vec();
    let mut layers = Layers::new(Spool::new(&std::env::temp_dir(), SPOOL_LIMITS).expect("a folder"), LIMITS);
    for layer in split(&mut bytes, usize::from(first & 3).clamp(1, 3)) {
        if first & 4 != 0 {
            mend(layer);
        }
        match layers.apply(&*layer) {
            Ok(report) => assert_eq!(report.bytes, layer.len() as u64, "a layer is read to its end"),
            Err(error) => {
                assert!(error.to_string().len() < 8000, "an error has a bounded length");
                assert!(!error.to_string().contains(|c: char| c.is_control()), "an error can be printed");
                return;
            }
        }
    }
    let (tree, spool, _notes) = layers.finish();
    check(&tree, &spool);
    write(&tree, &spool);
});

/// A small tree can make a large image: a hole of terabytes needs megabytes of addresses.
fn write(tree: &Tree, spool: &Spool) {
    let mut image = Vec::new();
    let written = match erofs::write(tree, spool, &mut image, &erofs::Options { bytes_max: IMAGE_BYTES_MAX }) {
        Ok(written) => written,
        Err(erofs::WriteError::TooLarge { .. }) => return,
        Err(error) => panic!("a tree of layers is refused: {error}"),
    };
    assert_eq!(written.bytes, image.len() as u64);
    let read = erofs::read(image.as_slice(), written.bytes, &erofs::ReadLimits::default()).expect("our image is right");
    assert_eq!(read.len() as u64, written.inodes);
}

fn split(mut bytes: &mut [u8], count: usize) -> Vec<&mut [u8]> {
    let mut layers = Vec::new();
    for _ in 1..count {
        let Some((length, rest)) = bytes.split_first_chunk_mut() else { return layers };
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (layer, rest) = rest.split_at_mut(length);
        layers.push(layer);
        bytes = rest;
    }
    layers.push(bytes);
    layers
}

/// Writes the right sum into each block that looks like a header.
fn mend(layer: &mut [u8]) {
    for block in layer.chunks_exact_mut(BLOCK).filter(|block| block[257..].starts_with(b"ustar")) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().copied().map(u32::from).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

fn check(tree: &Tree, spool: &Spool) {
    assert!(tree.len() as u64 <= LIMITS.entries_max + 1);
    assert!(spool.bytes() <= SPOOL_LIMITS.bytes_max);
    let mut directories = HashSet::from([Tree::ROOT]);
    let mut open = vec![(Tree::ROOT, 0, 0)];
    let mut last = [0];
    while let Some((directory, depth, path_bytes)) = open.pop() {
        for (name, child) in tree.children(directory).expect("only directories are opened") {
            assert!((1..=NAME_BYTES_MAX).contains(&name.len()) && **name != *b"." && **name != *b"..");
            assert!(!name.contains(&b'/') && !name.contains(&0));
            let path_bytes = path_bytes + usize::from(depth > 0) + name.len();
            assert!(depth < DEPTH_MAX && path_bytes <= PATH_BYTES_MAX);
            let node = tree.node(*child);
            let attributes = &node.attributes;
            assert!(attributes.permissions <= 0o7777 && attributes.modified.nanoseconds < 1_000_000_000);
            assert!(attributes.uid != u32::MAX && attributes.gid != u32::MAX);
            let xattrs = attributes.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
            assert!(xattrs <= XATTR_BYTES_MAX && !attributes.xattrs.keys().any(|name| name.contains(&0)));
            match &node.kind {
                Kind::Directory(_) => {
                    assert!(directories.insert(*child), "a directory has one name, so there is no circle");
                    open.push((*child, depth + 1, path_bytes));
                }
                Kind::Symlink(target) => assert!((1..=PATH_BYTES_MAX).contains(&target.len())),
                Kind::CharacterDevice { major, minor } => assert!((*major, *minor) != (0, 0)),
                Kind::File(body) => {
                    let mut end = 0;
                    for extent in &body.extents {
                        assert!(extent.bytes > 0 && extent.offset >= end);
                        end = extent.offset + extent.bytes;
                        assert!(end <= body.size);
                        spool
                            .read_exact_at(&mut last, extent.spool_offset + extent.bytes - 1)
                            .expect("the spool has it");
                    }
                }
                _ => {}
            }
        }
    }
}
