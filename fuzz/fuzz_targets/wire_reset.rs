//! The reset scanner with cuts anywhere: its pieces and markers, joined, are its input for any cuts.
#![no_main]

use kiln_wire::reset::{MARKER_BYTES, Piece, ResetScanner, marker, split_at_magic};
use libfuzzer_sys::fuzz_target;

/// The input, joined from pieces and markers, and the number of markers.
fn reassembled(stream: &[u8], cuts: &[u8]) -> (Vec<u8>, usize) {
    let mut scanner = ResetScanner::default();
    let (mut again, mut markers) = (Vec::new(), 0);
    let mut rest = stream;
    for cut in cuts.iter().map(|cut| usize::from(*cut)).chain([usize::MAX]) {
        let (mut piece, after) = rest.split_at(cut.min(rest.len()));
        rest = after;
        while let Some(found) = scanner.next(&mut piece) {
            match found {
                Piece::Bytes(bytes) => again.extend_from_slice(bytes),
                Piece::Reset(nonce) => {
                    again.extend(marker(&nonce));
                    markers += 1;
                }
            }
        }
    }
    (again, markers)
}

// The first byte is the number of bytes with cuts after it.
fuzz_target!(|input: &[u8]| {
    let Some((count, rest)) = input.split_first() else { return };
    let (cuts, stream) = rest.split_at(usize::from(*count % 16).min(rest.len()));
    let whole = reassembled(stream, &[]);
    assert!(stream.starts_with(&whole.0));
    assert!(stream.len() - whole.0.len() < MARKER_BYTES, "only the start of a marker is held back");
    assert_eq!(reassembled(stream, cuts), whole);

    let mut data = stream;
    while !data.is_empty() {
        let (part, after) = data.split_at(split_at_magic(data));
        assert!(!part.is_empty());
        assert_eq!(reassembled(part, &[]).1, 0, "a part has no marker");
        data = after;
    }
});
