//! The reset marker with cuts at any byte, bytes that resemble it, and data made of its parts.

use kiln_wire::reset::{MAGIC, MARKER_BYTES, NONCE_BYTES, Nonce, Piece, ResetScanner, marker, split_at_magic};
use kiln_wire::{Channel, Decoder, Message, StreamId};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::strategies::cut;

/// What a scanner found in a stream: the bytes between resets.
#[derive(Debug, PartialEq, Eq, Default)]
struct Scanned {
    /// Bytes of each link; the first entry has the bytes before any marker.
    links: Vec<Vec<u8>>,
    nonces: Vec<Nonce>,
}

fn scan<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Scanned {
    let mut scanned = Scanned { links: vec![vec![]], nonces: vec![] };
    let mut scanner = ResetScanner::default();
    for mut input in pieces {
        while let Some(piece) = scanner.next(&mut input) {
            match piece {
                Piece::Bytes(bytes) => {
                    scanned.links.last_mut().expect("one from the start").extend_from_slice(bytes);
                }
                Piece::Reset(nonce) => {
                    scanned.nonces.push(nonce);
                    scanned.links.push(vec![]);
                }
            }
        }
        assert!(input.is_empty(), "a scanner consumes all of its input");
    }
    scanned
}

/// Bytes that contain the magic, its parts and similar bytes far more often than random ones.
fn fragments() -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop_oneof![
        4 => (0..MAGIC.len(), 0..=MAGIC.len()).prop_map(|(from, to)| MAGIC[from.min(to)..to].to_vec()),
        2 => Just(MAGIC.to_vec()),
        1 => (0..MAGIC.len()).prop_map(|at| vec![MAGIC[at]; 3]),
        1 => vec(any::<u8>(), 0..12),
        1 => Just(vec![0; 4]),
    ];
    vec(fragment, 0..30).prop_map(|fragments| fragments.concat())
}

/// Bytes without a whole magic.
fn harmless() -> impl Strategy<Value = Vec<u8>> {
    fragments().prop_map(|mut bytes| {
        while let Some(at) = bytes.windows(MAGIC.len()).position(|window| window == MAGIC) {
            bytes[at + 7] = 1;
        }
        // Without this byte, a magic could start here and end in the marker that the test appends.
        bytes.push(0);
        bytes
    })
}

proptest! {
    #[test]
    fn markers_are_found_and_other_bytes_pass_unchanged_with_any_cuts(
        links in vec((harmless(), any::<Nonce>()), 0..5),
        last in harmless(),
        cuts in vec(any::<usize>(), 0..30),
    ) {
        let mut stream = Vec::new();
        let mut expected = Scanned::default();
        for (bytes, nonce) in links {
            stream.extend_from_slice(&bytes);
            stream.extend(marker(&nonce));
            expected.links.push(bytes);
            expected.nonces.push(nonce);
        }
        stream.extend_from_slice(&last);
        expected.links.push(last);
        prop_assert_eq!(scan(cut(&stream, &cuts)), expected);
    }

    #[test]
    fn data_on_a_host_stream_never_forms_the_magic(
        messages in vec((fragments(), (0..=u32::MAX / 2).prop_map(|half| half * 2 + 1)), 0..8),
        cuts in vec(any::<usize>(), 0..30),
    ) {
        let mut stream = Vec::new();
        let mut sent = Vec::new();
        for (data, id) in &messages {
            let mut rest = &data[..];
            while !rest.is_empty() {
                let (part, after) = rest.split_at(split_at_magic(rest));
                prop_assert!(!part.is_empty());
                Message::Data(Channel::In, part).encode(StreamId(*id), &mut stream).expect("small");
                rest = after;
            }
            sent.extend_from_slice(data);
        }
        prop_assert!(!stream.windows(MAGIC.len()).any(|window| window == MAGIC));

        let scanned = scan(cut(&stream, &cuts).into_iter().chain([&[0][..]]));
        prop_assert_eq!(&scanned.nonces, &Vec::<Nonce>::new());
        let mut decoder = Decoder::new();
        decoder.push(&scanned.links[0]);
        let mut received = Vec::new();
        while let Some(frame) = decoder.next().expect("well formed") {
            received.extend_from_slice(frame.payload);
        }
        prop_assert_eq!(received, sent);
    }

    #[test]
    fn no_frame_waits_for_later_bytes(
        frames in vec((fragments(), vec(any::<usize>(), 0..6)), 1..10),
    ) {
        let (mut scanner, mut decoder) = (ResetScanner::default(), Decoder::new());
        for (data, cuts) in &frames {
            let mut rest = &data[..];
            while !rest.is_empty() {
                let (part, after) = rest.split_at(split_at_magic(rest));
                let mut bytes = Vec::new();
                Message::Data(Channel::In, part).encode(StreamId(1), &mut bytes).expect("small");
                let mut received = None;
                for mut input in cut(&bytes, cuts) {
                    while let Some(piece) = scanner.next(&mut input) {
                        match piece {
                            Piece::Bytes(bytes) => decoder.push(bytes),
                            Piece::Reset(_) => prop_assert!(false, "there is no marker"),
                        }
                    }
                    if let Some(bytes) = scanner.release(decoder.missing_bytes()) {
                        decoder.push(bytes);
                    }
                    if let Some(frame) = decoder.next().expect("well formed") {
                        received = Some(frame.payload.to_vec());
                    }
                }
                prop_assert_eq!(received.as_deref(), Some(part), "as soon as its last byte has arrived");
                rest = after;
            }
        }
    }

    #[test]
    fn no_input_loses_or_adds_bytes(bytes in fragments(), cuts in vec(any::<usize>(), 0..30)) {
        let whole = scan([&bytes[..]]);
        prop_assert_eq!(&scan(cut(&bytes, &cuts)), &whole);
        let accounted = whole.links.iter().map(Vec::len).sum::<usize>() + whole.nonces.len() * MARKER_BYTES;
        prop_assert!(accounted <= bytes.len() && bytes.len() - accounted < MARKER_BYTES, "only a tail is held back");
    }
}

#[test]
fn a_repeated_marker_is_reported_each_time() {
    let nonce = [0x5a; NONCE_BYTES];
    let stream = [marker(&nonce), marker(&nonce)].concat();
    assert_eq!(scan([&stream[..]]).nonces, [nonce, nonce]);
}

#[test]
fn a_nonce_may_be_the_magic() {
    assert_eq!(scan([&marker(&MAGIC)[..], b"x"]), Scanned { links: vec![vec![], b"x".to_vec()], nonces: vec![MAGIC] });
}
