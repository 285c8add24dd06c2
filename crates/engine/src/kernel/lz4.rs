//! Unpacks LZ4's legacy format, in which kernels are packed: a magic number, then blocks, each after its length. The
//! crate `lz4_flex` unpacks blocks, but does not parse this format.

/// First bytes of the format.
pub(crate) const LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// Every block but the last unpacks to this many bytes.
const BLOCK_BYTES: usize = 8 << 20;

/// Unpacks a stream. `None` if it is damaged or larger than `bytes_max`.
pub(crate) fn decompress_legacy(stream: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
    let mut rest = stream.strip_prefix(&LEGACY_MAGIC)?;
    let mut out = Vec::new();
    // A kernel's payload ends with its unpacked size, which no block is long enough to follow.
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some(block) = after.get(..length) else { break };
        if length == 0 {
            break;
        }
        let start = out.len();
        // A block that would unpack to more than may still come is an error of the crate, which fills no further.
        out.resize(start + BLOCK_BYTES.min(bytes_max - start), 0);
        let unpacked = lz4_flex::block::decompress_into(block, &mut out[start..]).ok()?;
        out.truncate(start + unpacked);
        rest = &after[length..];
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use lz4_flex::block::compress;
    use proptest::prelude::*;

    use super::*;

    fn stream(blocks: &[&[u8]]) -> Vec<u8> {
        let mut stream = LEGACY_MAGIC.to_vec();
        for block in blocks {
            stream.extend((block.len() as u32).to_le_bytes());
            stream.extend(*block);
        }
        stream
    }

    proptest! {
        #[test]
        fn what_is_packed_unpacks(parts in prop::collection::vec((any::<u8>(), 1..600_usize), 0..20)) {
            let bytes: Vec<u8> = parts.iter().flat_map(|&(byte, count)| std::iter::repeat_n(byte, count)).collect();
            let packed = stream(&[&compress(&bytes)]);
            prop_assert_eq!(decompress_legacy(&packed, bytes.len()), Some(bytes));
        }

        #[test]
        fn rubbish_is_an_answer_and_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let unpacked = decompress_legacy(&stream(&[&bytes]), 1 << 20);
            prop_assert!(unpacked.is_none_or(|unpacked| unpacked.len() <= 1 << 20));
        }
    }

    #[test]
    fn a_copy_repeats_what_it_overlaps() {
        // Three literals, then nine bytes from three back, then an end without literals.
        let block = [0x35, b'a', b'b', b'c', 3, 0, 0x00];
        assert_eq!(decompress_legacy(&stream(&[&block]), 100).as_deref(), Some(&b"abcabcabcabc"[..]));
    }

    #[test]
    fn blocks_follow_each_other_up_to_the_size_at_the_end() {
        let mut stream = stream(&[&compress(b"one "), &compress(b"two")]);
        stream.extend(7_u32.to_le_bytes());
        assert_eq!(decompress_legacy(&stream, 100).as_deref(), Some(&b"one two"[..]));
    }

    #[test]
    fn a_copy_from_before_the_start_and_too_many_bytes_are_refused() {
        assert_eq!(decompress_legacy(&stream(&[&[0x10, b'a', 2, 0, 0]]), 100), None);
        assert_eq!(decompress_legacy(&stream(&[&[0x10, b'a', 0, 0, 0]]), 100), None);
        assert_eq!(decompress_legacy(&stream(&[&compress(&[7; 101])]), 100), None);
    }
}
