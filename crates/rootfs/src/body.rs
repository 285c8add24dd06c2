//! The digest of a file's contents. All code that fills a [`Tree`](crate::Tree) uses this one, so that the same
//! contents have the same digest wherever they come from.
//!
//! ```text
//!   data(offset, bytes) … ──▶ finish(size) ──▶ blake3(size, parts, blake3(all bytes))
//! ```

use std::collections::HashMap;
use std::io;

use crate::source::Source;
use crate::tree::{Body, Extent, Kind, Tree};

/// Separates these digests from all others.
const DOMAIN: &[u8] = b"kiln body 1\0";
/// The same for digests of places.
const PLACE_DOMAIN: &[u8] = b"kiln place 1\0";
/// Bytes that are read and hashed at once.
const BUFFER_LEN: usize = 1 << 20;

/// Computes [`Body::digest`](crate::Body::digest) while the data of a file passes by.
///
/// Parts that touch count as one: how the data is cut does not matter, only where the holes are.
///
/// ```
/// use kiln_rootfs::BodyHasher;
///
/// let mut whole = BodyHasher::default();
/// whole.data(0, b"0123");
/// let mut cut = BodyHasher::default();
/// cut.data(0, b"01");
/// cut.data(2, b"23");
/// assert_eq!(whole.finish(4), cut.finish(4));
/// ```
#[derive(Debug, Default)]
pub struct BodyHasher {
    bytes: blake3::Hasher,
    /// Offsets of the parts, and of their ends.
    parts: Vec<(u64, u64)>,
}

impl BodyHasher {
    /// Adds data at an offset, which is not before the end of the data so far.
    pub fn data(&mut self, offset: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.bytes.update(bytes);
        let end = offset + bytes.len() as u64;
        match self.parts.last_mut() {
            Some((_, last_end)) if *last_end == offset => *last_end = end,
            _ => self.parts.push((offset, end)),
        }
    }

    /// The digest of a file of this size, holes included.
    pub fn finish(self, size: u64) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(DOMAIN);
        hasher.update(&size.to_le_bytes());
        hasher.update(&(self.parts.len() as u64).to_le_bytes());
        for (offset, end) in self.parts {
            hasher.update(&offset.to_le_bytes());
            hasher.update(&end.to_le_bytes());
        }
        hasher.update(self.bytes.finalize().as_bytes());
        *hasher.finalize().as_bytes()
    }
}

/// Why the contents of a tree were not hashed.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// They can't be read.
    #[error("failed to read the contents of a file")]
    Source(#[source] io::Error),
    /// They are more than allowed.
    #[error("the files have more than {bytes_max} bytes in all")]
    TooLarge {
        /// Bytes that are allowed.
        bytes_max: u64,
    },
}

/// Reads the contents of all files of a tree, at most `bytes_max` in all, and replaces the digests of its files. Files
/// that had the same digest before are read once.
///
/// A tree that was read from an image needs this before its digests can be compared with those of another one.
///
/// # Errors
/// If the contents are more than allowed, or can't be read.
pub fn hash_bodies(tree: &mut Tree, source: &(impl Source + ?Sized), bytes_max: u64) -> Result<(), HashError> {
    let mut known: HashMap<[u8; 32], [u8; 32]> = HashMap::new();
    let mut buffer = vec![0; BUFFER_LEN];
    let mut left = bytes_max;
    for id in tree.ids() {
        let Kind::File(body) = &mut tree.node_mut(id).kind else { continue };
        let digest = match known.get(&body.digest) {
            Some(digest) => *digest,
            None => {
                let bytes = body.extents.iter().try_fold(0_u64, |sum, extent| sum.checked_add(extent.bytes));
                left = bytes.and_then(|bytes| left.checked_sub(bytes)).ok_or(HashError::TooLarge { bytes_max })?;
                let digest = digest_of(body, source, &mut buffer).map_err(HashError::Source)?;
                known.insert(body.digest, digest);
                digest
            }
        };
        body.digest = digest;
    }
    Ok(())
}

fn digest_of(body: &Body, source: &(impl Source + ?Sized), buffer: &mut [u8]) -> io::Result<[u8; 32]> {
    let mut hasher = BodyHasher::default();
    for extent in &body.extents {
        let mut done = 0;
        while done < extent.bytes {
            let count = buffer.len().min(usize::try_from(extent.bytes - done).unwrap_or(usize::MAX));
            source.read_exact_at(&mut buffer[..count], extent.spool_offset + done)?;
            hasher.data(extent.offset + done, &buffer[..count]);
            done += count as u64;
        }
    }
    Ok(hasher.finish(body.size))
}

/// A digest of where the parts of a file are. Within one source, files with the same one have the same contents.
pub(crate) fn place_digest(size: u64, extents: &[Extent]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(PLACE_DOMAIN);
    hasher.update(&size.to_le_bytes());
    for extent in extents {
        for number in [extent.offset, extent.bytes, extent.spool_offset] {
            hasher.update(&number.to_le_bytes());
        }
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(size: u64, parts: &[(u64, &[u8])]) -> [u8; 32] {
        let mut hasher = BodyHasher::default();
        for (offset, bytes) in parts {
            hasher.data(*offset, bytes);
        }
        hasher.finish(size)
    }

    #[test]
    fn the_way_in_which_data_is_cut_does_not_matter() {
        let whole = digest(10, &[(2, b"abcdef")]);
        assert_eq!(digest(10, &[(2, b"ab"), (4, b""), (4, b"cdef")]), whole);
    }

    #[test]
    fn size_place_and_bytes_of_the_data_all_count() {
        let all = [
            digest(10, &[(2, b"abcdef")]),
            digest(11, &[(2, b"abcdef")]),
            digest(10, &[(1, b"abcdef")]),
            digest(10, &[(2, b"abcdeg")]),
            digest(10, &[(2, b"abc"), (6, b"def")]),
            digest(10, &[(2, b"abcd"), (7, b"ef")]),
            digest(10, &[]),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[..index].contains(one), "case {index}");
        }
    }
}
