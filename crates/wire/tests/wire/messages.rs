//! Messages round-trip, and all other bytes are an error that can be sent to the peer.

use kiln_wire::{
    Channel, Decoder, ErrorCode, ExitStatus, Exited, Fault, Frame, FrameError, Goodbye, GoodbyeReason, Kind, Message,
    PAYLOAD_MAX, Resize, Signal, StreamId, Text,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::strategies::{message, text};

/// Encodes a message, decodes the bytes and checks the result.
fn round_trip<T>(message: &Message<'_>, stream: StreamId, check: impl FnOnce(Message<'_>) -> T) -> T {
    let mut bytes = Vec::new();
    message.encode(stream, &mut bytes).expect("under the limit");
    let mut decoder = Decoder::new();
    decoder.push(&bytes);
    let frame = decoder.next().expect("well formed").expect("whole");
    assert_eq!(frame.stream, stream);
    assert_eq!(frame.kind, message.kind());
    check(Message::parse(frame).expect("our own message can be parsed"))
}

fn frame(kind: Kind, payload: &[u8]) -> Frame<'_> {
    Frame { kind, stream: StreamId(1), payload }
}

proptest! {
    #[test]
    fn every_message_round_trips(message in message(), stream in any::<u32>()) {
        let message = message.message();
        round_trip(&message, StreamId(stream), |out| assert_eq!(out, message));
    }

    #[test]
    fn any_bytes_are_text_and_round_trip_in_json(text in text()) {
        let json = serde_json::to_string(&text).expect("text is JSON");
        prop_assert_eq!(serde_json::from_str::<Text>(&json).expect("our own JSON"), text);
    }

    #[test]
    fn any_payload_is_a_message_or_a_fault_that_fits_a_frame(
        kind in any::<u8>(),
        payload in vec(any::<u8>(), 0..200),
    ) {
        if let Err(error) = Message::parse(frame(Kind(kind), &payload)) {
            let mut bytes = Vec::new();
            prop_assert_eq!(Message::Error(error.fault()).encode(StreamId(1), &mut bytes), Ok(()));
        }
    }

    /// JSON that is nearly right reaches deeper into the parsers than noise.
    #[test]
    fn a_message_with_one_byte_changed_never_panics(
        message in message(),
        at in any::<proptest::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = Vec::new();
        message.message().encode(StreamId(1), &mut bytes).expect("under the limit");
        let kind = Kind(bytes[4]);
        let payload = &mut bytes[9..];
        if !payload.is_empty() {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        if let Ok(message) = Message::parse(frame(kind, payload)) {
            let mut again = Vec::new();
            message.encode(StreamId(1), &mut again).expect("under the limit");
        }
    }
}

#[test]
fn exit_codes_and_signals_at_their_edges_round_trip() {
    for code in [-1, 0, 255, 256, i32::MIN, i32::MAX] {
        for status in [ExitStatus::Code(code), ExitStatus::Signal(code)] {
            let exited = Message::Exited(Exited {
                status,
                wall_us: u64::MAX,
                user_us: 0,
                sys_us: 1 << 53,
                max_rss_bytes: u64::MAX,
                oom_killed: true,
                timed_out: true,
                truncated: true,
                pipes_held: true,
            });
            round_trip(&exited, StreamId(1), |out| assert_eq!(out, exited));
        }
        let signal = Message::Signal(Signal { signal: code });
        round_trip(&signal, StreamId(1), |out| assert_eq!(out, signal));
    }
    assert_eq!(ExitStatus::Signal(i32::MAX).shell_code(), i32::MAX, "a hostile signal number does not overflow");
}

#[test]
fn the_smallest_and_the_largest_resize_round_trip() {
    for (rows, cols) in [(0, 0), (u16::MAX, u16::MAX), (0, u16::MAX)] {
        let resize = Message::Resize(Resize { rows, cols });
        round_trip(&resize, StreamId(7), |out| assert_eq!(out, resize));
    }
}

#[test]
fn a_resize_past_16_bits_or_below_zero_is_invalid() {
    for payload in
        [r#"{"rows":65536,"cols":1}"#, r#"{"rows":-1,"cols":1}"#, r#"{"rows":1.5,"cols":1}"#, r#"{"rows":1}"#]
    {
        let error = Message::parse(frame(Kind::RESIZE, payload.as_bytes())).expect_err(payload);
        assert_eq!(error.fault().code, ErrorCode::InvalidRequest);
    }
}

#[test]
fn data_may_be_empty_or_fill_a_frame_but_not_exceed_it() {
    let most = vec![0xa5; PAYLOAD_MAX];
    for data in [&[][..], &most] {
        for channel in [Channel::In, Channel::Out, Channel::Err] {
            let message = Message::Data(channel, data);
            round_trip(&message, StreamId(1), |out| assert_eq!(out, message));
        }
    }
    let over = vec![0; PAYLOAD_MAX + 1];
    let mut out = b"before".to_vec();
    let refused = Message::Data(Channel::In, &over).encode(StreamId(1), &mut out);
    assert!(matches!(refused, Err(FrameError::TooLong(_))));
    assert_eq!(out, b"before");
}

#[test]
fn credit_is_exactly_four_bytes() {
    for bytes in [0, 1, u32::MAX] {
        round_trip(&Message::Credit(bytes), StreamId(1), |out| assert_eq!(out, Message::Credit(bytes)));
    }
    for payload in [&[][..], &[0; 3], &[0; 5]] {
        let error = Message::parse(frame(Kind::CREDIT, payload)).expect_err("not four bytes");
        assert_eq!(error.fault().code, ErrorCode::InvalidRequest);
    }
}

#[test]
fn only_kinds_without_a_name_are_unsupported() {
    for value in 0..=u8::MAX {
        let kind = Kind(value);
        let unsupported =
            Message::parse(frame(kind, b"")).is_err_and(|error| error.fault().code == ErrorCode::Unsupported);
        assert_eq!(unsupported, kind.name().is_none(), "{kind:?}");
    }
}

#[test]
fn the_fault_for_a_payload_of_a_mebibyte_still_fits_into_a_frame() {
    // The parser's message quotes field and variant names, and the quotes make them even longer.
    let name = "\u{1}".repeat(PAYLOAD_MAX / 8);
    let payload = format!("{{\"argv\":[],{}:1}}", serde_json::to_string(&name).expect("a string is JSON"));
    assert!(payload.len() <= PAYLOAD_MAX);
    let error = Message::parse(frame(Kind::EXEC, payload.as_bytes())).expect_err("an unknown field");
    let mut out = Vec::new();
    assert_eq!(Message::Error(error.fault()).encode(StreamId(1), &mut out), Ok(()));
    assert!(out.len() < 16 << 10, "{} bytes of error", out.len());
}

#[test]
fn the_message_of_a_fault_is_cut_between_characters() {
    let fault = Fault::new(ErrorCode::Io, format!("x{}", "ü".repeat(1 << 20)));
    assert!(fault.message.starts_with("xüü") && fault.message.ends_with("ü…"), "cut between characters, and marked");
    let short = Fault::new(ErrorCode::Io, "`/tmp/ü` is full");
    assert_eq!(short.message, "`/tmp/ü` is full");
}

#[test]
fn a_goodbye_with_an_unknown_reason_is_still_a_goodbye() {
    for payload in [r#"{"reason":"sun_spots"}"#, r#"{"reason":{"sun_spots":{"many":7}}}"#] {
        let message = Message::parse(frame(Kind::GOODBYE, payload.as_bytes())).expect(payload);
        assert_eq!(message, Message::Goodbye(Goodbye { reason: GoodbyeReason::Unknown }));
    }
}

#[test]
fn deeply_nested_json_is_an_error() {
    for kind in [Kind::EXEC, Kind::FILES, Kind::REPLY, Kind::HELLO] {
        let payload = "[".repeat(PAYLOAD_MAX);
        Message::parse(frame(kind, payload.as_bytes())).expect_err("no message nests that deep");
        let payload = format!("{{\"x\":{}", "{\"x\":".repeat(100_000));
        Message::parse(frame(kind, payload.as_bytes())).expect_err("no message nests that deep");
    }
}
