//! The reset marker: a new start on a transport that has no connections.
//!
//! virtio-serial is one byte pipe for the whole life of a VM. A host that died, or a snapshot taken at any moment, may
//! leave half a frame in it. So the host starts each link with 16 fixed bytes and a nonce; the agent finds them
//! wherever they come, drops what it had of the old link and sends the same 32 bytes back; the host skips everything
//! up to them. The marker may come more than once with one nonce (bytes sent while the guest's port is closed are
//! lost, so the host repeats it until it is answered): the agent answers the first and ignores the rest.
//!
//! *Why data can't be taken for a marker.* The magic has no zero byte, so it can't run into a frame's header, whose
//! first byte is zero; it has no odd byte, so it can't run out of one, whose last byte is the low byte of a host's
//! (odd) stream id or zero; it is no UTF-8, so it can't stand in JSON; and [`split_at_magic`] cuts data that holds it
//! into two frames. Only the way to the guest needs this: on the way back the host looks for its own random nonce.
//!
//! *Why nothing waits.* A frame's data may end with what could be the start of a marker, and the host may then wait for
//! an answer to it. So bytes held back that are just what a frame lacks are [released](ResetScanner::release) to it.

/// The fixed first half of a marker: distinct even bytes, none zero, some that UTF-8 never has.
pub const MAGIC: [u8; 16] =
    [0xf8, 0xfe, 0xfa, 0xfc, 0xc0, 0xf6, 0x80, 0xbe, 0xa4, 0xe2, 0xd6, 0x92, 0xb8, 0xce, 0xac, 0x9a];
/// Where in the magic each byte stands; 255 for a byte that it does not have.
const PLACES: [u8; 256] = {
    let mut places = [u8::MAX; 256];
    let mut at = 0;
    while at < MAGIC.len() {
        places[MAGIC[at] as usize] = at as u8;
        at += 1;
    }
    places
};
/// Length of the nonce that follows.
pub const NONCE_BYTES: usize = 16;
/// Length of a marker.
pub const MARKER_BYTES: usize = MAGIC.len() + NONCE_BYTES;

/// Chosen by the host at random for each link.
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
    /// Bytes of the link as it is.
    Bytes(&'a [u8]),
    /// A new link starts with the bytes after this.
    Reset(Nonce),
}

/// Finds markers in a byte stream, however it is cut.
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
    /// Bytes of a marker that ended the last input; held back until it is known what they are.
    held: usize,
    /// How many of them were released to a frame all the same.
    released: usize,
    /// The part of the nonce among them.
    nonce: Nonce,
}

impl ResetScanner {
    /// Whether there is nothing in `bytes` to look at: no marker, no part of one, none held back. They may then go to the
    /// decoder as they are.
    pub fn is_plain(&self, bytes: &[u8]) -> bool {
        self.held == 0 && find_prefix(bytes) == bytes.len()
    }

    /// The next piece of `input`, which is shortened by it; `None` once it is empty.
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
                // The magic's bytes are distinct, so what was held can't hold a later start of it.
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

    /// To call once the input is used up and its frames are taken: the bytes that are held back, where they are just
    /// what the decoder's frame [lacks](crate::Decoder::missing_bytes). They go to the decoder. Should they turn out to
    /// start a marker, it is found all the same.
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

/// Where the magic starts in `bytes`, whole or cut by the end; `bytes.len()` where it does not.
fn find_prefix(bytes: &[u8]) -> usize {
    let whole = MAGIC.len();
    // Any whole magic covers exactly one of these positions, so one byte in sixteen is looked at.
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

/// The longest prefix of `data` that a host may put into one frame: it does not hold the whole magic.
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
    fn the_magic_is_what_the_argument_needs() {
        let mut sorted = MAGIC;
        sorted.sort_unstable();
        assert!(sorted.windows(2).all(|pair| pair[0] != pair[1]), "distinct");
        assert!(MAGIC.iter().all(|byte| byte % 2 == 0 && *byte != 0), "even and not zero");
        assert!(MAGIC.contains(&0xfe), "never in UTF-8");
    }

    #[test]
    fn a_marker_is_found_at_every_offset_and_however_it_is_cut() {
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
    fn what_only_looks_like_a_marker_passes_unchanged() {
        for length in 1..MAGIC.len() {
            let stream = [&MAGIC[..length], b"x", &MAGIC[..length], &[0]].concat();
            for cut in 0..stream.len() {
                assert_eq!(scan(&[&stream[..cut], &stream[cut..]]), (stream.clone(), vec![]));
            }
        }
    }

    #[test]
    fn what_a_frame_lacks_is_released_to_it_and_the_marker_is_still_found() {
        let mut scanner = ResetScanner::default();
        let mut input = &MAGIC[..3];
        assert_eq!(scanner.next(&mut input), None);
        assert_eq!(scanner.release(None), None);
        assert_eq!(scanner.release(Some(2)), None, "not what the frame lacks");
        assert_eq!(scanner.release(Some(3)), Some(&MAGIC[..3]));
        assert_eq!(scanner.release(Some(3)), None, "once");

        let mut rest = &marker(&[4; NONCE_BYTES])[3..];
        assert_eq!(scanner.next(&mut rest), Some(Piece::Reset([4; NONCE_BYTES])));
    }

    #[test]
    fn what_was_released_does_not_come_again() {
        let mut scanner = ResetScanner::default();
        assert_eq!(scanner.next(&mut &MAGIC[..2]), None);
        assert_eq!(scanner.release(Some(2)), Some(&MAGIC[..2]));
        let mut input = &[MAGIC[2], 0][..];
        assert_eq!(scanner.next(&mut input), Some(Piece::Bytes(&MAGIC[2..3])));
        assert_eq!(scanner.next(&mut input), Some(Piece::Bytes(&[0])));
    }

    #[test]
    fn data_that_holds_the_magic_is_cut_inside_it() {
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
