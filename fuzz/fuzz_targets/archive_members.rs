//! Any bytes as a tar archive, by both sets of rules: members with data in order and inside their size, or an error; memory
//! stays bounded.
#![no_main]

use kiln_archive::Members;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    check(Members::new(input), input.len() as u64);
    check(Members::of_layer(input), input.len() as u64);
});

fn check(mut members: Members<&[u8]>, input_bytes: u64) {
    let mut buffer = [0; 700];
    while let Ok(Some(member)) = members.next() {
        let (mut end, mut sum) = (0, 0);
        while let Ok(Some(data)) = members.read(&mut buffer) {
            assert!(data.bytes > 0 && data.bytes <= buffer.len());
            assert!(data.offset >= end, "parts are in order");
            end = data.offset + data.bytes as u64;
            sum += data.bytes as u64;
            assert!(end <= member.size, "data is inside its file");
        }
        assert!(sum <= input_bytes);
        match members.length() {
            Ok(length) => assert!(length <= member.size),
            Err(_) => break,
        }
    }
    assert!(members.bytes() <= input_bytes);
}
