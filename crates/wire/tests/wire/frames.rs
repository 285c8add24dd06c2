//! Frames with cuts at any byte, limits, concurrent writers and noise.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

use kiln_wire::{
    Decoder, EndError, FrameError, HEADER_BYTES, Kind, LENGTH_MAX, LENGTH_MIN, PAYLOAD_MAX, StreamId, encode,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::strategies::cut;

type OwnedFrame = (Kind, StreamId, Vec<u8>);

fn frames() -> impl Strategy<Value = Vec<OwnedFrame>> {
    let payload = prop_oneof![8 => vec(any::<u8>(), 0..200), 1 => vec(any::<u8>(), 4000..20_000)];
    vec((any::<u8>().prop_map(Kind), any::<u32>().prop_map(StreamId), payload), 0..20)
}

fn encoded(frames: &[OwnedFrame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, stream, payload) in frames {
        encode(*kind, *stream, payload, &mut bytes).expect("under the limit");
    }
    bytes
}

fn drain(decoder: &mut Decoder, into: &mut Vec<OwnedFrame>) {
    while let Some(frame) = decoder.next().expect("the stream is well formed") {
        into.push((frame.kind, frame.stream, frame.payload.to_vec()));
    }
}

proptest! {
    #[test]
    fn frames_round_trip_with_cuts_at_any_byte(
        frames in frames(),
        cuts in vec(any::<usize>(), 0..40),
    ) {
        let bytes = encoded(&frames);
        let mut decoder = Decoder::new();
        let mut out = Vec::new();
        for piece in cut(&bytes, &cuts) {
            decoder.push(piece);
            drain(&mut decoder, &mut out);
        }
        prop_assert_eq!(out, frames);
        prop_assert_eq!(decoder.finish(), Ok(()));
        prop_assert_eq!(decoder.pending_bytes(), 0);
    }

    #[test]
    fn a_stream_may_end_only_between_frames(frames in frames(), cut in any::<usize>()) {
        let bytes = encoded(&frames);
        let cut = cut % (bytes.len() + 1);
        let mut boundaries = vec![0];
        for (_, _, payload) in &frames {
            boundaries.push(boundaries[boundaries.len() - 1] + HEADER_BYTES + payload.len());
        }
        let mut decoder = Decoder::new();
        decoder.push(&bytes[..cut]);
        drain(&mut decoder, &mut Vec::new());
        prop_assert_eq!(decoder.finish().is_ok(), boundaries.contains(&cut));
        let inside = cut - boundaries.iter().rfind(|boundary| **boundary <= cut).expect("0 is one");
        prop_assert_eq!(decoder.pending_bytes(), inside);
    }

    #[test]
    fn noise_never_panics_and_never_buffers_more_than_was_pushed(noise in vec(vec(any::<u8>(), 0..64), 0..32)) {
        let mut decoder = Decoder::new();
        let mut pushed = 0;
        for piece in &noise {
            pushed += piece.len();
            decoder.push(piece);
            while let Ok(Some(frame)) = decoder.next() {
                prop_assert!(frame.payload.len() <= PAYLOAD_MAX);
            }
            prop_assert!(decoder.pending_bytes() <= pushed);
            let _ = decoder.finish();
        }
        decoder.clear();
        prop_assert_eq!(decoder.pending_bytes(), 0);
        prop_assert_eq!(decoder.finish(), Ok(()));
    }

    #[test]
    fn a_length_out_of_bounds_is_refused_before_its_body(
        length in prop_oneof![0..LENGTH_MIN, LENGTH_MAX + 1..=u32::MAX],
    ) {
        let mut decoder = Decoder::new();
        decoder.push(&length.to_be_bytes());
        let refused = decoder.next().expect_err("out of bounds");
        prop_assert!(matches!(refused, FrameError::TooLong(_) | FrameError::TooShort(_)));
        prop_assert_eq!(decoder.finish(), Err(EndError::Frame(refused)));
    }
}

#[test]
fn a_frame_of_the_largest_size_passes_with_single_bytes_at_its_edges() {
    let payload: Vec<u8> = (0..PAYLOAD_MAX).map(|index| (index % 251) as u8).collect();
    let bytes = encoded(&[(Kind::DATA_OUT, StreamId(u32::MAX), payload.clone())]);
    let mut decoder = Decoder::new();
    let (edge, rest) = bytes.split_at(12);
    let (middle, end) = rest.split_at(rest.len() - 3);
    for byte in edge {
        decoder.push(&[*byte]);
        assert_eq!(decoder.next(), Ok(None));
    }
    decoder.push(middle);
    assert_eq!(decoder.next(), Ok(None));
    decoder.push(end);
    let frame = decoder.next().expect("at the limit").expect("whole");
    assert_eq!((frame.kind, frame.stream), (Kind::DATA_OUT, StreamId(u32::MAX)));
    assert_eq!(frame.payload, payload);
}

#[test]
fn an_empty_payload_is_a_frame() {
    let bytes = encoded(&[(Kind::EOF, StreamId(1), vec![])]);
    assert_eq!(bytes, [0, 0, 0, 5, 0x33, 0, 0, 0, 1]);
    let mut decoder = Decoder::new();
    decoder.push(&bytes);
    assert_eq!(decoder.next().expect("valid").expect("whole").payload, b"");
}

const WRITERS: u8 = 2;
const FRAMES_EACH: u32 = 1000;

/// Each frame has its writer, its index, and bytes that are computed from both.
fn numbered_payload(writer: u8, number: u32) -> Vec<u8> {
    let filler = (number as usize * 37) % 3000;
    let mut payload = vec![writer];
    payload.extend(number.to_be_bytes());
    payload.extend((0..filler).map(|index| (index as u8) ^ writer ^ (number as u8)));
    payload
}

#[test]
fn frames_of_two_writers_are_not_torn() {
    let (sender, mut receiver) = UnixStream::pair().expect("a socket pair");
    let sender = Arc::new(Mutex::new(sender));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let sender = Arc::clone(&sender);
            thread::spawn(move || {
                for number in 0..FRAMES_EACH {
                    let mut frame = Vec::new();
                    let payload = numbered_payload(writer, number);
                    encode(Kind::DATA_OUT, StreamId(u32::from(writer)), &payload, &mut frame).expect("small");
                    sender.lock().expect("no writer panics").write_all(&frame).expect("the reader keeps reading");
                }
            })
        })
        .collect();
    drop(sender);

    let mut decoder = Decoder::new();
    let mut next_of = [0; WRITERS as usize];
    let mut buffer = [0; 4096];
    loop {
        let read = receiver.read(&mut buffer).expect("the writers write");
        if read == 0 {
            break;
        }
        decoder.push(&buffer[..read]);
        while let Some(frame) = decoder.next().expect("no frame is torn") {
            let writer = frame.payload[0];
            let number = &mut next_of[usize::from(writer)];
            assert_eq!(frame.stream, StreamId(u32::from(writer)));
            assert_eq!(frame.payload, numbered_payload(writer, *number));
            *number += 1;
        }
    }
    assert_eq!(decoder.finish(), Ok(()));
    assert_eq!(next_of, [FRAMES_EACH; WRITERS as usize]);
    for writer in writers {
        writer.join().expect("no writer panics");
    }
}
