//! The last bytes of a session's output, each with its offset since the session's start.

use std::collections::VecDeque;

/// Longest run of bytes that continue a character.
const CONTINUATION_MAX: usize = 3;

/// A bounded tail of a byte stream.
#[derive(Debug)]
pub struct Ring {
    bytes: VecDeque<u8>,
    capacity: usize,
    /// Offset of the byte after the last one.
    end: u64,
}

impl Ring {
    /// Keeps the last `capacity` bytes. Memory grows with the bytes.
    pub const fn new(capacity: usize) -> Self {
        Self { bytes: VecDeque::new(), capacity, end: 0 }
    }

    /// Adds bytes, and removes the oldest if there is no room.
    pub fn push(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
        let kept = &bytes[bytes.len().saturating_sub(self.capacity)..];
        let over = (self.bytes.len() + kept.len()).saturating_sub(self.capacity);
        self.bytes.drain(..over);
        self.bytes.extend(kept);
    }

    /// Offset of the next byte.
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Offset of the oldest byte that is kept.
    pub fn oldest(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// The offset at which a replay may start: the oldest byte that is not inside of a character whose start was
    /// removed.
    pub fn oldest_boundary(&self) -> u64 {
        let oldest = self.oldest();
        if oldest == 0 {
            return 0;
        }
        let cut = self.bytes.iter().take(CONTINUATION_MAX).take_while(|byte| **byte & 0xc0 == 0x80).count();
        oldest + cut as u64
    }

    /// Appends up to `count` bytes from `offset` on to `target`. The byte at the offset must be kept.
    pub fn copy(&self, offset: u64, count: usize, target: &mut Vec<u8>) {
        let skip = usize::try_from(offset.saturating_sub(self.oldest())).unwrap_or(usize::MAX);
        let (first, second) = self.bytes.as_slices();
        let from_first = first.get(skip..).unwrap_or_default();
        let from_second = second.get(skip.saturating_sub(first.len())..).unwrap_or_default();
        let take = from_first.len().min(count);
        target.extend_from_slice(&from_first[..take]);
        target.extend_from_slice(&from_second[..from_second.len().min(count - take)]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tail(ring: &Ring) -> Vec<u8> {
        let mut bytes = Vec::new();
        ring.copy(ring.oldest(), usize::MAX, &mut bytes);
        bytes
    }

    #[test]
    fn a_replay_starts_at_a_character() {
        let mut ring = Ring::new(5);
        ring.push("aé€".as_bytes());
        assert_eq!(ring.oldest(), 1);
        ring.push(b"x");
        assert_eq!((ring.oldest(), ring.oldest_boundary()), (2, 3));
        let mut bytes = Vec::new();
        ring.copy(ring.oldest_boundary(), usize::MAX, &mut bytes);
        assert_eq!(String::from_utf8(bytes).as_deref(), Ok("€x"));
    }

    #[test]
    fn bytes_that_are_not_text_are_skipped_up_to_a_bound() {
        let mut ring = Ring::new(8);
        ring.push(&[0x80; 16]);
        assert_eq!(ring.oldest_boundary(), ring.oldest() + CONTINUATION_MAX as u64);
    }

    proptest! {
        #[test]
        fn the_ring_is_the_tail_of_the_stream(
            capacity in 1usize..40,
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..20),
            (from, count) in (0usize..50, 0usize..50),
        ) {
            let mut ring = Ring::new(capacity);
            let mut all = Vec::new();
            for piece in &pieces {
                ring.push(piece);
                all.extend_from_slice(piece);
            }
            let kept = &all[all.len().saturating_sub(capacity)..];
            prop_assert_eq!(ring.end(), all.len() as u64);
            prop_assert_eq!(tail(&ring), kept);
            let from = from.min(kept.len());
            let mut part = Vec::new();
            ring.copy(ring.oldest() + from as u64, count, &mut part);
            prop_assert_eq!(part, &kept[from..(from + count).min(kept.len())]);
        }
    }
}
