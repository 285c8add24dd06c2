//! A hostile byte stream, cut anywhere: the decoder neither panics nor depends on the cuts, and its frames are exactly
//! the bytes of the stream.
#![no_main]

use kiln_wire::{Decoder, FrameError, encode};
use libfuzzer_sys::fuzz_target;

/// Decodes `stream` in pieces of the given lengths, the rest at once, and writes its frames again.
fn written_again(stream: &[u8], cuts: &[u8]) -> (Vec<u8>, Option<FrameError>, usize) {
    let mut decoder = Decoder::new();
    let mut again = Vec::new();
    let mut rest = stream;
    for cut in cuts.iter().map(|cut| usize::from(*cut)).chain([usize::MAX]) {
        let (piece, after) = rest.split_at(cut.min(rest.len()));
        rest = after;
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => {
                    encode(frame.kind, frame.stream, frame.payload, &mut again).expect("it fitted a frame before")
                }
                Ok(None) => break,
                Err(error) => return (again, Some(error), 0),
            }
        }
    }
    let pending = decoder.pending_bytes();
    assert_eq!(decoder.finish().is_ok(), pending == 0);
    (again, None, pending)
}

// The first byte is the number of bytes with cuts after it.
fuzz_target!(|input: &[u8]| {
    let Some((count, rest)) = input.split_first() else { return };
    let (cuts, stream) = rest.split_at(usize::from(*count % 16).min(rest.len()));
    let whole = written_again(stream, &[]);
    assert!(stream.starts_with(&whole.0));
    if whole.1.is_none() {
        assert_eq!(whole.0.len() + whole.2, stream.len());
    }
    assert_eq!(written_again(stream, cuts), whole);
});
