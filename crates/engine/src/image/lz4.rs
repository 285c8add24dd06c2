//! Unpacks LZ4's legacy format, in which kernels are packed: a magic number, then blocks, each after its length. Of each
//! block, sequences of literals and of copies from what is already there (see LZ4's doc/lz4_Block_format.md).

/// First bytes of the format.
pub(crate) const LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// Every block but the last unpacks to this many bytes.
const BLOCK_BYTES: usize = 8 << 20;
/// The shortest copy.
const MATCH_BYTES_MIN: usize = 4;

/// What the stream unpacks to; `None` when it is damaged or larger than `bytes_max`.
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
        decompress_block(block, &mut out)?;
        if out.len() > bytes_max || out.len() - start > BLOCK_BYTES {
            return None;
        }
        rest = &after[length..];
    }
    Some(out)
}

fn decompress_block(mut block: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    loop {
        let (&token, rest) = block.split_first()?;
        block = rest;
        let literal_bytes = length(usize::from(token >> 4), &mut block)?;
        let (literals, rest) = block.split_at_checked(literal_bytes)?;
        out.extend_from_slice(literals);
        // The last sequence ends here.
        let Some((offset, rest)) = rest.split_first_chunk() else {
            return rest.is_empty().then_some(());
        };
        block = rest;
        let offset = usize::from(u16::from_le_bytes(*offset));
        let match_bytes = length(usize::from(token & 15), &mut block)? + MATCH_BYTES_MIN;
        // The bound keeps a stream of long copies from filling memory before the caller looks at the size.
        if offset == 0 || offset > out.len() - start || out.len() - start + match_bytes > BLOCK_BYTES {
            return None;
        }
        copy_within(out, offset, match_bytes);
    }
}

/// A length of 15 goes on in the bytes that follow, up to one below 255.
fn length(nibble: usize, block: &mut &[u8]) -> Option<usize> {
    let mut length = nibble;
    if nibble == 15 {
        loop {
            let (&more, rest) = block.split_first()?;
            *block = rest;
            length = length.checked_add(more.into())?;
            if more != 255 {
                break;
            }
        }
    }
    Some(length)
}

/// Appends `count` bytes from `offset` back; they may overlap what is appended, and repeat then.
fn copy_within(out: &mut Vec<u8>, offset: usize, count: usize) {
    let mut left = count;
    let from = out.len() - offset;
    while left > 0 {
        let chunk = left.min(out.len() - from);
        out.extend_from_within(from..from + chunk);
        left -= chunk;
    }
}

#[cfg(test)]
mod tests {
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

    /// Packs in the simplest way: runs of one byte become copies, the rest are literals.
    fn pack(bytes: &[u8]) -> Vec<u8> {
        fn more(mut length: usize, out: &mut Vec<u8>) {
            if length >= 15 {
                length -= 15;
                out.extend(std::iter::repeat_n(255, length / 255));
                out.push((length % 255) as u8);
            }
        }
        let mut block = Vec::new();
        let mut literals = Vec::new();
        let mut rest = bytes;
        while let Some((&first, after)) = rest.split_first() {
            literals.push(first);
            let run = after.iter().take_while(|&&byte| byte == first).count();
            rest = after;
            if run >= MATCH_BYTES_MIN {
                let match_bytes = run - MATCH_BYTES_MIN;
                block.push(((literals.len().min(15) << 4) | match_bytes.min(15)) as u8);
                more(literals.len(), &mut block);
                block.append(&mut literals);
                block.extend([1, 0]);
                more(match_bytes, &mut block);
                rest = &after[run..];
            }
        }
        block.push((literals.len().min(15) << 4) as u8);
        more(literals.len(), &mut block);
        block.append(&mut literals);
        block
    }

    proptest! {
        #[test]
        fn what_is_packed_unpacks(parts in prop::collection::vec((any::<u8>(), 1..600_usize), 0..20)) {
            let bytes: Vec<u8> = parts.iter().flat_map(|&(byte, count)| std::iter::repeat_n(byte, count)).collect();
            let packed = stream(&[&pack(&bytes)]);
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
        let mut stream = stream(&[&pack(b"one "), &pack(b"two")]);
        stream.extend(7_u32.to_le_bytes());
        assert_eq!(decompress_legacy(&stream, 100).as_deref(), Some(&b"one two"[..]));
    }

    #[test]
    fn a_copy_from_before_the_start_and_too_many_bytes_are_refused() {
        assert_eq!(decompress_legacy(&stream(&[&[0x10, b'a', 2, 0, 0]]), 100), None);
        assert_eq!(decompress_legacy(&stream(&[&[0x10, b'a', 0, 0, 0]]), 100), None);
        assert_eq!(decompress_legacy(&stream(&[&pack(&[7; 101])]), 100), None);
    }
}
