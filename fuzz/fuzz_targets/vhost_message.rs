//! Any bytes as a message of either side: header and payload are refused, or are the same after encoding them again.
#![no_main]

use kiln_vdev::protocol::{
    BackendCall, BackendRequest, Config, FrontendCall, FrontendRequest, HEADER_BYTES, Header, Inflight,
    PAYLOAD_BYTES_MAX, Payload, SharedMemoryConfig, VringState,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((head, payload)) = input.split_first_chunk::<HEADER_BYTES>() else { return };
    let header = Header::decode(*head);
    assert_eq!(header.encode(), *head);
    if header.check().is_ok() {
        assert!(header.payload_bytes <= PAYLOAD_BYTES_MAX && header.flags.reserved() == 0);
    }
    let payload = &payload[..payload.len().min(PAYLOAD_BYTES_MAX as usize)];
    if let Some(request) = FrontendRequest::from_number(header.request)
        && let Ok(call) = FrontendCall::decode(request, payload)
    {
        assert_eq!(call.request(), request);
        assert_eq!(FrontendCall::decode(request, &call.payload()), Ok(call));
    }
    if let Some(request) = BackendRequest::from_number(header.request)
        && let Ok(call) = BackendCall::decode(request, payload)
    {
        assert_eq!(BackendCall::decode(request, &call.payload()), Ok(call));
    }
    if header.flags.is_reply() {
        reply::<u64>(payload);
        reply::<Config>(payload);
        reply::<VringState>(payload);
        reply::<Inflight>(payload);
        reply::<SharedMemoryConfig>(payload);
    }
});

/// Replies are payloads without their own number.
fn reply<P: Payload + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let Ok(value) = P::decode(bytes) else { return };
    let mut again = Vec::new();
    value.encode(&mut again);
    assert!(again.len() <= bytes.len().max(24), "no payload grows, except for the padding of `Inflight`");
    assert_eq!(P::decode(&again), Ok(value));
}
