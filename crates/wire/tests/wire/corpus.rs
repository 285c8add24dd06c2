//! Stored bytes of version 1: a change of the format fails here until `corpus/v1.txt` is changed too.

use std::fmt::Write as _;

use kiln_wire::{Decoder, Kind, Message, StreamId};

const CORPUS: &str = include_str!("../corpus/v1.txt");

/// One entry of the corpus.
struct Entry {
    name: &'static str,
    frame: Vec<u8>,
    expected: &'static str,
}

fn entries() -> Vec<Entry> {
    let lines: Vec<&str> = CORPUS.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    let entry = |lines: &[&'static str]| Entry {
        name: lines[0],
        frame: frame_bytes(lines[1].trim_start()),
        expected: lines[2].trim_start(),
    };
    lines.chunks(3).map(entry).collect()
}

/// Length, kind and stream in hexadecimal, then the payload as text or as `hex:`.
fn frame_bytes(line: &str) -> Vec<u8> {
    let mut parts = line.splitn(4, ' ');
    let mut bytes: Vec<u8> = parts.by_ref().take(3).flat_map(hex).collect();
    match parts.next().unwrap_or("") {
        payload if payload.starts_with("hex:") => bytes.extend(hex(&payload[4..])),
        payload => bytes.extend(payload.as_bytes()),
    }
    bytes
}

fn hex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("digits"));
    pairs.map(|pair| u8::from_str_radix(pair, 16).expect("two digits")).collect()
}

/// What the frame means, in the notation of the corpus.
fn meaning(frame: &[u8]) -> String {
    let mut decoder = Decoder::new();
    decoder.push(frame);
    let frame_read = decoder.next().expect("a good length").expect("a whole frame");
    let stream = frame_read.stream;
    match Message::parse(frame_read) {
        Err(error) => format!("! {}", error.fault().code.name()),
        Ok(message) => {
            let mut again = Vec::new();
            message.encode(stream, &mut again).expect("small");
            let mark = if again == frame { '=' } else { '<' };
            format!("{mark} {message:?}")
        }
    }
}

#[test]
fn the_bytes_of_version_1_keep_their_meaning() {
    let mut wrong = String::new();
    for entry in entries() {
        let meaning = meaning(&entry.frame);
        if meaning != entry.expected {
            writeln!(wrong, "{}\n  was  {}\n  is   {meaning}", entry.name, entry.expected).expect("a string grows");
        }
    }
    assert!(wrong.is_empty(), "the protocol has changed:\n{wrong}");
}

#[test]
fn the_corpus_has_every_kind_as_this_version_encodes_it() {
    let written: Vec<u8> = entries().iter().filter(|e| e.expected.starts_with('=')).map(|e| e.frame[4]).collect();
    let missing: Vec<&Kind> = Kind::ALL.iter().filter(|kind| !written.contains(&kind.0)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_whole_corpus_is_one_stream_of_frames() {
    let entries = entries();
    let stream: Vec<u8> = entries.iter().flat_map(|entry| entry.frame.iter().copied()).collect();
    let mut decoder = Decoder::new();
    decoder.push(&stream);
    for entry in &entries {
        let frame = decoder.next().expect("good lengths").expect("as many frames as entries");
        assert_eq!(frame.stream, StreamId(u32::from_be_bytes(entry.frame[5..9].try_into().expect("four"))));
        assert_eq!(frame.payload, &entry.frame[9..], "{}", entry.name);
    }
    assert_eq!(decoder.finish(), Ok(()));
}
