//! The reset marker: a new start on a transport that has no connections.
//!
//! virtio-serial is one byte pipe for the whole life of a VM. A host that died, or a snapshot taken at any moment, may
//! leave half a frame in it. So the host starts each link with 16 fixed bytes (the magic) and a nonce. The agent finds
//! them at any position, drops its state of the old link and sends the same 32 bytes back. The host skips everything
//! before them. Bytes that are sent while the guest's port is closed are lost, so the host repeats the marker until the
//! agent replies. The agent replies to the first marker of a nonce and ignores the repetitions.
//!
//! *Why data can't be taken for a marker.* The frames of a host never contain the whole magic:
//!
//! - The magic has no zero byte. The first byte of a header is zero, because a frame is shorter than 16 MiB. So a magic
//!   that starts in one frame can't continue into the next header.
//! - The magic has no odd byte. The last byte of a header is the low byte of a stream id: odd for a host's stream, zero
//!   for the link. So a magic that starts in a header can't continue into the payload.
//! - A header is shorter than the magic, so the magic would have to be inside one payload. A JSON payload can't contain
//!   it, because some of its bytes never occur in UTF-8. [`split_at_magic`] splits data that contains it into two
//!   frames.
//!
//! Only the direction to the guest needs this: in the other direction the host looks for its own random nonce, which
//! the guest can't guess before it is sent.
//!
//! *Why no frame is delayed.* The scanner holds back bytes that may be the start of a marker until the next bytes
//! decide that. But a frame's data may end with such bytes, and the host may send nothing more until it has a reply to
//! that frame. So if the held bytes are exactly what the current frame lacks, they are
//! [released](ResetScanner::release) to it. The search continues as if they were still held: the decoder has a complete
//! frame then, so bytes that follow are either the next header, which can't continue a magic, or the rest of a real
//! marker, which resets the link anyway.

/// The fixed first half of a marker: distinct even bytes, none zero, some that UTF-8 never has.
pub const MAGIC: [u8; 16] =
    [0xf8, 0xfe, 0xfa, 0xfc, 0xc0, 0xf6, 0x80, 0xbe, 0xa4, 0xe2, 0xd6, 0x92, 0xb8, 0xce, 0xac, 0x9a];
/// The position of each byte in the magic; 255 for a byte that is not in it.
const PLACES: [u8; 256] = {
    let mut places = [u8::MAX; 256];
    let mut at = 0;
    while at < MAGIC.len() {
        places[MAGIC[at] as usize] = at as u8;
        at += 1;
    }
    places
};
/// Length of the nonce after the magic.
pub const NONCE_BYTES: usize = 16;
/// Length of a marker.
pub const MARKER_BYTES: usize = MAGIC.len() + NONCE_BYTES;

/// The host chooses a random nonce for each link.
pub type Nonce = [u8; NONCE_BYTES];

/// The bytes of a marker.
pub fn marker(nonce: &Nonce) -> [u8; MARKER_BYTES] {
    let mut bytes = [0; MARKER_BYTES];
    bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
    bytes[MAGIC.len()..].copy_from_slice(nonce);
    bytes
}

/// What [`ResetScanner::next`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes of the current link.
    Bytes(&'a [u8]),
    /// A new link starts with the bytes after this.
    Reset(Nonce),
}

/// Finds markers in a byte stream that arrives in pieces of any size.
///
/// ```
/// # use kiln_wire::reset::{Piece, ResetScanner, marker};
/// let mut bytes = b"half a fra".to_vec();
/// bytes.extend(marker(&[7; 16]));
/// let mut scanner = ResetScanner::default();
/// let mut input = &bytes[..];
/// assert_eq!(scanner.next(&mut input), Some(Piece::Bytes(b"half a fra")));
/// assert_eq!(scanner.next(&mut input), Some(Piece::Reset([7; 16])));
/// assert_eq!(scanner.next(&mut input), None);
/// ```
#[derive(Debug, Default)]
pub struct ResetScanner {
    /// Bytes at the end of the last input that may belong to a marker. They are held back until the next bytes decide.
    held: usize,
    /// How many of the held bytes were released to a frame.
    released: usize,
    /// The part of the nonce in the held bytes.
    nonce: Nonce,
}

impl ResetScanner {
    /// Whether `bytes` can go to the decoder without a scan: they contain no marker and no part of one, and no bytes
    /// are held back.
    pub fn is_plain(&self, bytes: &[u8]) -> bool {
        self.held == 0 && find_prefix(bytes) == bytes.len()
    }

    /// The next piece of `input`, which is shortened by it. `None` once it is empty.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Option<Piece<'a>> {
        while !input.is_empty() {
            if self.held >= MAGIC.len() {
                self.take_nonce(input);
                if self.held < MARKER_BYTES {
                    return None;
                }
                (self.held, self.released) = (0, 0);
                return Some(Piece::Reset(self.nonce));
            }
            if self.held > 0 {
                if input[0] == MAGIC[self.held] {
                    self.held += 1;
                    *input = &input[1..];
                    continue;
                }
                // The magic's bytes are distinct, so no other magic can start within the held bytes: all of them are
                // data.
                let held = std::mem::take(&mut self.held);
                let released = std::mem::take(&mut self.released);
                if released == held {
                    continue;
                }
                return Some(Piece::Bytes(&MAGIC[released..held]));
            }
            let start = find_prefix(input);
            let (before, after) = input.split_at(start);
            if !before.is_empty() {
                *input = after;
                return Some(Piece::Bytes(before));
            }
            self.held = 1;
            *input = &input[1..];
        }
        None
    }

    /// The bytes that are held back, if they are exactly what the decoder's frame
    /// [lacks](crate::Decoder::missing_bytes): push them to the decoder. Call this once the input is used up and its
    /// frames were taken. If the bytes turn out to start a marker, the marker is still found.
    pub fn release(&mut self, missing_bytes: Option<usize>) -> Option<&'static [u8]> {
        let held = self.held - self.released;
        if held == 0 || self.held >= MAGIC.len() || missing_bytes != Some(held) {
            return None;
        }
        let released = std::mem::replace(&mut self.released, self.held);
        Some(&MAGIC[released..self.held])
    }

    fn take_nonce(&mut self, input: &mut &[u8]) {
        let have = self.held - MAGIC.len();
        let take = (NONCE_BYTES - have).min(input.len());
        self.nonce[have..have + take].copy_from_slice(&input[..take]);
        self.held += take;
        *input = &input[take..];
    }
}

/// Where the magic starts in `bytes`, whole or cut off by the end; `bytes.len()` if it does not.
fn find_prefix(bytes: &[u8]) -> usize {
    let whole = MAGIC.len();
    // Any whole magic covers exactly one of the positions 15, 31, 47, …, and its bytes are distinct. So the byte at
    // such a position shows where a magic around it would start, and only one byte in sixteen is read.
    let mut probe = whole - 1;
    while probe < bytes.len() {
        let at = usize::from(PLACES[usize::from(bytes[probe])]);
        if at < whole && bytes[probe - at..].starts_with(&MAGIC) {
            return probe - at;
        }
        probe += whole;
    }
    let tail = bytes.len().saturating_sub(whole - 1);
    (tail..bytes.len()).find(|start| MAGIC.starts_with(&bytes[*start..])).unwrap_or(bytes.len())
}

/// Length of the longest prefix of `data` that a host may put into one frame: a prefix without the whole magic.
pub fn split_at_magic(data: &[u8]) -> usize {
    let start = find_prefix(data);
    if data.len() - start >= MAGIC.len() { start + MAGIC.len() / 2 } else { data.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(pieces: &[&[u8]]) -> (Vec<u8>, Vec<Nonce>) {
        let (mut scanner, mut bytes, mut resets) = (ResetScanner::default(), Vec::new(), Vec::new());
        for mut input in pieces.iter().copied() {
            while let Some(piece) = scanner.next(&mut input) {
                match piece {
                    Piece::Bytes(piece) => bytes.extend_from_slice(piece),
                    Piece::Reset(nonce) => resets.push(nonce),
                }
            }
        }
        (bytes, resets)
    }

    #[test]
    fn the_magic_has_the_properties_that_the_argument_needs() {
        let mut sorted = MAGIC;
        sorted.sort_unstable();
        assert!(sorted.windows(2).all(|pair| pair[0] != pair[1]), "distinct");
        assert!(MAGIC.iter().all(|byte| byte % 2 == 0 && *byte != 0), "even and not zero");
        assert!(MAGIC.contains(&0xfe), "never in UTF-8");
    }

    #[test]
    fn a_marker_is_found_at_every_offset_and_any_cut() {
        for before in 0..40 {
            let mut stream = vec![0x11; before];
            stream.extend(marker(&[9; NONCE_BYTES]));
            stream.extend(b"after");
            for cut in 0..stream.len() {
                let (bytes, resets) = scan(&[&stream[..cut], &stream[cut..]]);
                assert_eq!(resets, [[9; NONCE_BYTES]], "before {before}, cut {cut}");
                assert_eq!(bytes, [&vec![0x11; before][..], b"after"].concat());
            }
        }
    }

    #[test]
    fn bytes_that_resemble_a_marker_pass_unchanged() {
        for length in 1..MAGIC.len() {
            let stream = [&MAGIC[..length], b"x", &MAGIC[..length], &[0]].concat();
            for cut in 0..stream.len() {
                assert_eq!(scan(&[&stream[..cut], &stream[cut..]]), (stream.clone(), vec![]));
            }
        }
    }

    #[test]
    fn bytes_that_a_frame_lacks_are_released_and_the_marker_is_still_found() {
        let mut scanner = ResetScanner::default();
        let mut input = &MAGIC[..3];
        assert_eq!(scanner.next(&mut input), None);
        assert_eq!(scanner.release(None), None);
        assert_eq!(scanner.release(Some(2)), None, "the frame lacks another number of bytes");
        assert_eq!(scanner.release(Some(3)), Some(&MAGIC[..3]));
        assert_eq!(scanner.release(Some(3)), None, "only once");

        let mut rest = &marker(&[4; NONCE_BYTES])[3..];
        assert_eq!(scanner.next(&mut rest), Some(Piece::Reset([4; NONCE_BYTES])));
    }

    #[test]
    fn released_bytes_are_not_returned_again() {
        let mut scanner = ResetScanner::default();
        assert_eq!(scanner.next(&mut &MAGIC[..2]), None);
        assert_eq!(scanner.release(Some(2)), Some(&MAGIC[..2]));
        let mut input = &[MAGIC[2], 0][..];
        assert_eq!(scanner.next(&mut input), Some(Piece::Bytes(&MAGIC[2..3])));
        assert_eq!(scanner.next(&mut input), Some(Piece::Bytes(&[0])));
    }

    #[test]
    fn data_with_the_magic_is_split_inside_it() {
        for before in 0..40 {
            let data = [&vec![1; before][..], &MAGIC, b"rest"].concat();
            let first = split_at_magic(&data);
            assert!(first > before && first < before + MAGIC.len());
            assert_eq!(split_at_magic(&data[first..]), data.len() - first);
        }
        assert_eq!(split_at_magic(b"plain"), 5);
        assert_eq!(split_at_magic(&MAGIC[..15]), 15);
    }
}
