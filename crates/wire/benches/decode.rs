//! The cost of splitting a byte stream into frames, against `tokio_util`'s `LengthDelimitedCodec` on the same bytes.
//!
//! Both get the stream like from a reader, in chunks of 64 KiB that are copied into the decoder's buffer, and
//! both return every frame. The promise in SPECIFICATION.md: ours is at least as fast at every size. The number in the
//! name of a benchmark is the size of a payload, in bytes.

use bytes::BytesMut;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use kiln_wire::{Decoder, Kind, PAYLOAD_MAX, StreamId, encode};
use tokio_util::codec::{Decoder as _, LengthDelimitedCodec};

/// Payload sizes up to the largest of a frame.
const SIZES: [usize; 4] = [16, 1 << 10, 64 << 10, PAYLOAD_MAX];
/// Bytes of one read of a transport.
const READ_BYTES: usize = 64 << 10;
/// Bytes of one pass.
const STREAM_BYTES: usize = 8 << 20;

fn main() {
    divan::main();
}

/// Whole frames of one size.
fn stream(payload_bytes: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..payload_bytes).map(|index| index as u8).collect();
    let mut bytes = Vec::new();
    while bytes.len() < STREAM_BYTES {
        encode(Kind::DATA_OUT, StreamId(1), &payload, &mut bytes).expect("at most the limit");
    }
    bytes
}

#[divan::bench(args = SIZES)]
fn kiln(bencher: Bencher, payload_bytes: usize) {
    let bytes = stream(payload_bytes);
    bencher.counter(BytesCount::new(bytes.len())).bench_local(|| {
        let mut decoder = Decoder::new();
        let mut seen = 0;
        for read in bytes.chunks(READ_BYTES) {
            decoder.push(read);
            while let Some(frame) = decoder.next().expect("well formed") {
                seen += black_box(frame).payload.len();
            }
        }
        seen
    });
}

#[divan::bench(args = SIZES)]
fn length_delimited(bencher: Bencher, payload_bytes: usize) {
    let bytes = stream(payload_bytes);
    bencher.counter(BytesCount::new(bytes.len())).bench_local(|| {
        let mut codec = LengthDelimitedCodec::builder().max_frame_length(1 << 20).new_codec();
        let mut buffer = BytesMut::new();
        let mut seen = 0;
        for read in bytes.chunks(READ_BYTES) {
            buffer.extend_from_slice(read);
            while let Some(frame) = codec.decode(&mut buffer).expect("well formed") {
                seen += black_box(frame).len();
            }
        }
        seen
    });
}
