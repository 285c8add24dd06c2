//! The digest of a file's contents. All code that fills a [`Tree`](crate::Tree) uses this one, so that the same
//! contents have the same digest wherever they come from.
//!
//! ```text
//!   data(offset, bytes) … ──▶ finish(size) ──▶ blake3(size, parts, blake3(all bytes))
//! ```

/// Separates these digests from all others.
const DOMAIN: &[u8] = b"kiln body 1\0";

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
