//! Any bytes as an EROFS image: a tree or an error, with bounded work. A tree is written as an image, read and written
//! again, and from the second image on nothing changes.
#![no_main]

use kiln_rootfs::erofs::{Options, ReadLimits, read, write};
use kiln_rootfs::{Tree, hash_bodies};
use libfuzzer_sys::fuzz_target;

/// What images may claim to have, so that a case stays short.
const BYTES_MAX: u64 = 16 << 20;
const LIMITS: ReadLimits = ReadLimits { names_max: 1 << 16, extents_max: 1 << 16, xattr_bytes_max: 4 << 20 };

fuzz_target!(|input: &[u8]| {
    let Ok(mut tree) = read(input, input.len() as u64, &LIMITS) else { return };
    if hash_bodies(&mut tree, input, BYTES_MAX).is_err() {
        return;
    }
    // Names and attributes that the format holds can be too many for one image, if the input shares them.
    let Some(first) = image(&tree, input) else { return };
    let second = again(&first);
    // Holes within a block or a chunk have become zeros in the first image.
    assert!(again(&second) == second, "the same tree is the same image");
});

fn image(tree: &Tree, source: &[u8]) -> Option<Vec<u8>> {
    let mut image = Vec::new();
    let written = write(tree, source, &mut image, &Options { bytes_max: BYTES_MAX }).ok()?;
    assert_eq!(written.bytes, image.len() as u64);
    Some(image)
}

fn again(bytes: &[u8]) -> Vec<u8> {
    let mut tree = read(bytes, bytes.len() as u64, &ReadLimits::default()).expect("our own image");
    hash_bodies(&mut tree, bytes, u64::MAX).expect("the image is whole");
    image(&tree, bytes).expect("an image of the same size")
}
