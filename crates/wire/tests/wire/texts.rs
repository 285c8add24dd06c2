//! Every text of this crate that people read, in one snapshot for each type.
//!
//! Each list is a chain in which every variant names the next one. So a new variant does not compile until it has a
//! place in the chain, and from then on its text is in the snapshot.

use std::fmt::Display;
use std::iter::successors;

use kiln_wire::credit::ReceiveWindow;
use kiln_wire::{
    EndError, ErrorCode, Fault, Frame, FrameError, GoodbyeReason, ID_MAX, Kind, LENGTH_MAX, Message, MessageError,
    StreamId, UserRef, UserRefError,
};

fn lines<T: Display>(texts: impl IntoIterator<Item = T>) -> String {
    texts.into_iter().map(|text| format!("{text}\n")).collect()
}

#[test]
fn errors_of_the_byte_stream_read_like_this() {
    let frames = successors(Some(FrameError::TooLong(u64::from(LENGTH_MAX) + 1)), |last| match last {
        FrameError::TooLong(_) => Some(FrameError::TooShort(4)),
        FrameError::TooShort(_) => None,
    });
    let ends = successors(Some(EndError::UnexpectedEof { have: 3, need: 9 }), |last| match last {
        EndError::UnexpectedEof { .. } => Some(EndError::Frame(FrameError::TooShort(0))),
        EndError::Frame(_) => None,
    });
    let overrun = ReceiveWindow::default().received(1 << 20).expect_err("over the window");
    insta::assert_snapshot!(format!("{}{}{overrun}", lines(frames), lines(ends)));
}

#[test]
fn errors_of_messages_read_like_this() {
    let bad =
        |kind, payload: &[u8]| Message::parse(Frame { kind, stream: StreamId(1), payload }).expect_err("a bad payload");
    let errors = successors(Some(MessageError::Unknown(Kind(0x7f))), |last| match last {
        MessageError::Unknown(_) => Some(bad(Kind::CREDIT, b"abc")),
        MessageError::Payload { .. } => None,
    });
    let more = [bad(Kind::EXEC, b"{}"), bad(Kind::EXEC, b"\xff"), bad(Kind::FILES, br#"{"op":"fly"}"#)];
    insta::assert_snapshot!(lines(errors.chain(more).map(|error| error.fault())));
}

#[test]
fn reasons_to_end_a_link_read_like_this() {
    let reasons = successors(Some(GoodbyeReason::Version { ours: 2, theirs: 1 }), |last| match last {
        GoodbyeReason::Version { .. } => Some(GoodbyeReason::Unauthorized),
        GoodbyeReason::Unauthorized => Some(GoodbyeReason::Protocol(FrameError::TooShort(4).to_string())),
        GoodbyeReason::Protocol(_) => Some(GoodbyeReason::Replaced),
        GoodbyeReason::Replaced => Some(GoodbyeReason::Shutdown),
        GoodbyeReason::Shutdown => Some(GoodbyeReason::Unknown),
        GoodbyeReason::Unknown => None,
    });
    insta::assert_snapshot!(lines(reasons));
}

#[test]
fn errors_of_users_read_like_this() {
    let parse = |text: &str| text.parse::<UserRef>().expect_err("not a user");
    let errors = successors(Some(parse("a:b:c")), |last| match last {
        UserRefError::Form(_) => Some(parse(&(u64::from(ID_MAX) + 1).to_string())),
        UserRefError::Id(_) => None,
    });
    insta::assert_snapshot!(lines(errors));
}

#[test]
fn every_code_of_a_fault_has_a_name() {
    let faults = ErrorCode::ALL.iter().map(|code| Fault::new(*code, format!("{code:?}")));
    insta::assert_snapshot!(lines(faults));
}
