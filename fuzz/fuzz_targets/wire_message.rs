//! Any payload of any kind: a message that is the same after encoding it again, or a fault that fits into a frame.
#![no_main]

use kiln_wire::{Decoder, Frame, Kind, Message, StreamId};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((kind, payload)) = input.split_first() else { return };
    let stream = StreamId(1);
    let mut bytes = Vec::new();
    match Message::parse(Frame { kind: Kind(*kind), stream, payload }) {
        Err(error) => Message::Error(error.fault()).encode(stream, &mut bytes).expect("a fault always fits"),
        Ok(message) => {
            message.encode(stream, &mut bytes).expect("it fitted a frame before");
            let mut decoder = Decoder::new();
            decoder.push(&bytes);
            let frame = decoder.next().expect("a good length").expect("a whole frame");
            assert_eq!(Message::parse(frame).expect("our own bytes"), message);
        }
    }
});
