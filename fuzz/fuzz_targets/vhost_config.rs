//! Any bytes as the configuration of any device, with any features: fields that a terminal can show, and a guess with a
//! reason.
#![no_main]

use kiln_vdev::virtio::{DeviceKind, config, feature, plausible};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else { return };
    let Some((features, bytes)) = rest.split_first_chunk() else { return };
    let kind = DeviceKind::ALL[usize::from(*kind) % DeviceKind::ALL.len()];
    let features = u64::from_le_bytes(*features);

    let fields = config::decode(kind, bytes);
    assert!(fields.len() <= config::layout(kind).len());
    for field in &fields {
        assert!(!field.to_string().chars().any(char::is_control), "control characters are escaped");
    }
    let names = feature::names(Some(kind), features);
    assert_eq!(names.iter().fold(0, |bits, name| bits | 1 << name.bit), features);
    for candidate in plausible(features, None, bytes) {
        assert!(!candidate.reason.chars().any(char::is_control));
    }
});
