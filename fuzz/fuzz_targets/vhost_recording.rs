//! Any bytes as a recording: reading ends, the story stays bounded, and each entry is the same after it is written and
//! read again.
#![no_main]

use kiln_vdev::tap::{Entry, Recording, RecordingError, Story};
use libfuzzer_sys::fuzz_target;

const OPENING: &[u8] = b"{\"kiln_vhost_recording\":1}\n";

fuzz_target!(|bytes: &[u8]| {
    // Half of the inputs get a valid opening, so that the fuzzer need not find one.
    let whole = match bytes.split_first() {
        Some((first, rest)) if first & 1 == 1 => [OPENING, rest].concat(),
        _ => bytes.to_vec(),
    };
    let lines = whole.iter().filter(|byte| **byte == b'\n').count();
    let Ok(recording) = Recording::new(Box::new(std::io::Cursor::new(whole)), "input") else { return };
    let mut story = Story::new(None);
    let mut read = 0;
    for entry in recording {
        read += 1;
        assert!(read <= lines + 2, "more entries than lines");
        match entry {
            Ok(entry) => {
                let line = serde_json::to_vec(&entry).expect("plain data is JSON");
                assert_eq!(serde_json::from_slice::<Entry>(&line).expect("it was just written"), entry);
                serde_json::to_vec(&story.tell(entry)).expect("plain data is JSON");
            }
            Err(RecordingError::Line { .. }) => {}
            Err(_) => break,
        }
    }
    serde_json::to_vec(&story.end()).expect("plain data is JSON");
});
