//! The first words, and who answers what: headers, replies, acknowledgements.

use std::os::fd::AsFd as _;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::prelude::*;
use crate::check::guest::Guest;
use crate::check::ring::SplitRing;
use crate::protocol::Header;

const ACK: Need = Need::Protocol(ProtocolFeatures::REPLY_ACK);
const PROTOCOL: Need = Need::Feature(feature::PROTOCOL_FEATURES, "VHOST_USER_F_PROTOCOL_FEATURES");

const REPLY_ACK: &str = "VHOST_USER_PROTOCOL_F_REPLY_ACK";
const MUST_RESPOND: &str = "need_reply on \"any command\": the backend MUST respond, with zero on success";

/// Between the pieces of a message: the backend has taken what came before, or has closed.
const IN_PIECES: Duration = Duration::from_millis(25);

cases! {
    "handshake.features-answered" Must [] features_answered,
        "VHOST_USER_GET_FEATURES" => "every session begins with GET_FEATURES, whose reply has 8 bytes";
    "handshake.features-before-owner" Should [] features_before_owner,
        "VHOST_USER_SET_OWNER" => "QEMU sends GET_FEATURES before SET_OWNER";
    "handshake.reply-flag" Must [] reply_flag,
        "Header" => "bit 2 \"needs to be sent on each reply from the back-end\"";
    "handshake.reply-version" Must [] reply_version,
        "Header" => "the lower 2 bits of a reply's flags are the version, 1";
    "handshake.reply-asks-nothing" Should [ACK] reply_asks_nothing,
        "Header" =>
            "a reply has no reply of its own, so need_reply must not be copied into it; undefined flags must be 0";
    "handshake.features-stable" Should [] features_stable,
        "VHOST_USER_GET_FEATURES" => "a device offers the same features each time GET_FEATURES is sent";
    "handshake.header-in-pieces" Should [] header_in_pieces,
        "Message Specification" => "a stream has no message boundaries: a header may arrive byte by byte";
    "handshake.payload-apart" Should [ACK] payload_apart,
        "Message Specification" =>
            "a stream has no message boundaries: a payload may arrive after its header, in pieces";
    "handshake.messages-in-one-piece" Must [] messages_in_one_piece,
        "Communication" => "most requests have no reply, so a frontend may send the next one in the same write";
    "handshake.many-questions-ahead" Should [] many_questions_ahead,
        "Communication" => "pipelined requests get their replies one by one, in order";
    "handshake.owner-silent" Must [] owner_silent,
        "Communication" =>
            "SET_OWNER is not in the list of messages that have a reply, so a reply is taken for that of the next \
             request";
    "handshake.owner-twice" May [] owner_twice,
        "VHOST_USER_SET_OWNER" => "a second SET_OWNER on the same session changes nothing";
    "handshake.protocol-features-early" Must [PROTOCOL] protocol_features_early,
        "VHOST_USER_GET_PROTOCOL_FEATURES" =>
            "backends \"must support this message even before VHOST_USER_SET_FEATURES was called\"";
    "handshake.set-protocol-features-early" Must [ACK] set_protocol_features_early,
        "VHOST_USER_SET_PROTOCOL_FEATURES" =>
            "backends \"must support this message even before VHOST_USER_SET_FEATURES was called\"";
    "handshake.no-ack-before-negotiation" Should [] no_ack_before_negotiation,
        REPLY_ACK =>
            "need_reply means something only \"with this protocol extension negotiated\"; an unexpected reply is \
             taken for that of the next request";
    "handshake.no-ack-unless-asked" Must [ACK] no_ack_unless_asked,
        REPLY_ACK => "a reply that was not requested is taken for that of the next request";
    "handshake.question-answered-once" Must [ACK] question_answered_once,
        REPLY_ACK =>
            "for messages that have a reply, need_reply \"brings no behavioural change\"";
    "handshake.ack-owner" Must [ACK] ack_owner,
        REPLY_ACK => MUST_RESPOND;
    "handshake.ack-features" Must [ACK] ack_features,
        REPLY_ACK => MUST_RESPOND;
    "handshake.ack-mem-table" Must [ACK] ack_mem_table,
        REPLY_ACK => "without the reply a frontend cannot know when memory is mapped";
    "handshake.ack-vring-num" Must [ACK] ack_vring_num,
        REPLY_ACK => MUST_RESPOND;
    "handshake.ack-vring-base" Must [ACK] ack_vring_base,
        REPLY_ACK => MUST_RESPOND;
    "handshake.ack-vring-addr" Must [ACK] ack_vring_addr,
        REPLY_ACK => MUST_RESPOND;
    "handshake.ack-vring-call" Must [ACK] ack_vring_call,
        REPLY_ACK => MUST_RESPOND;
    "handshake.ack-vring-err" Must [ACK] ack_vring_err,
        REPLY_ACK => MUST_RESPOND;
    "handshake.ack-vring-kick" Must [ACK] ack_vring_kick,
        REPLY_ACK => MUST_RESPOND;
    "handshake.ack-vring-enable" Must [ACK] ack_vring_enable,
        REPLY_ACK => MUST_RESPOND;
    "handshake.unknown-request-fails" Should [ACK] unknown_request_fails,
        REPLY_ACK =>
            "the reply indicates success or failure; an unknown request cannot succeed";
    "handshake.other-version" May [ACK] |context| odd_flags(context, 0b1010),
        "Header" => "the version is \"currently 0x01\"; a message of another version may have another layout";
    "handshake.unknown-flag" May [ACK] |context| odd_flags(context, 1 << 31 | 0b1001),
        "Header" => "a reserved flag may get a meaning that the backend does not implement";
    "handshake.ack-reset-owner" Must [ACK] ack_reset_owner,
        "VHOST_USER_RESET_OWNER" =>
            "need_reply on \"any command\" requires a reply, even if the backend ignores the command, as is \
             recommended";
    "handshake.reset-owner-harmless" Should [ACK] reset_owner_harmless,
        "VHOST_USER_RESET_OWNER" =>
            "\"It is recommended that back-ends either ignore this message, or use it to disable all rings\"";
}

fn features_answered(context: &mut Context<'_>) -> Outcome {
    let mut link = context.connect()?;
    link.send(&SetOwner(Empty), &[])?;
    link.send(&GetFeatures(Empty), &[])?;
    let reply = link.receive()?;
    if reply.header.request != 1 {
        return Stop::fail(format!("the reply to GET_FEATURES (1) is message {}", reply.header.request));
    }
    if reply.payload.len() != 8 {
        return Stop::fail(format!("the reply to GET_FEATURES has {} bytes, not 8", reply.payload.len()));
    }
    if !reply.fds.is_empty() {
        return Stop::fail(format!("the reply to GET_FEATURES has {} descriptors, not 0", reply.fds.len()));
    }
    Ok(())
}

fn features_before_owner(context: &mut Context<'_>) -> Outcome {
    context.connect()?.features().map(drop)
}

fn first_reply_flags(context: &mut Context<'_>) -> Outcome<Flags> {
    let mut link = context.connect()?;
    link.send(&SetOwner(Empty), &[])?;
    link.send(&GetFeatures(Empty), &[])?;
    Ok(link.receive()?.header.flags)
}

fn reply_flag(context: &mut Context<'_>) -> Outcome {
    let flags = first_reply_flags(context)?;
    if flags.is_reply() {
        Ok(())
    } else {
        Stop::fail(format!("the flags of a reply are {:#x}, without bit 2", flags.bits()))
    }
}

fn reply_version(context: &mut Context<'_>) -> Outcome {
    let flags = first_reply_flags(context)?;
    if flags.version() == 1 {
        Ok(())
    } else {
        Stop::fail(format!("the version of a reply is {}, not 1", flags.version()))
    }
}

fn reply_asks_nothing(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open()?;
    link.send_raw(2, Flags::request_with_reply(), &usual_features(link.offered).to_ne_bytes(), &[])?;
    let acknowledgement = link.receive()?.header.flags;
    link.send_raw(1, Flags::request_with_reply(), &[], &[])?;
    let reply = link.receive()?.header.flags;
    for flags in [acknowledgement, reply] {
        if flags.needs_reply() || flags.reserved() != 0 {
            return Stop::fail(format!("the flags of a reply are {:#x}, not 0x5", flags.bits()));
        }
    }
    Ok(())
}

fn features_stable(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open()?;
    let again = link.features()?;
    if again != link.offered {
        return Stop::fail(format!("GET_FEATURES returned {:#x}, then {again:#x}", link.offered));
    }
    Ok(())
}

fn header_in_pieces(context: &mut Context<'_>) -> Outcome {
    let mut link = context.connect()?;
    // Bytes that come before the connection is accepted are in the socket as one piece.
    link.features()?;
    let header = Header { request: 1, flags: Flags::request(), payload_bytes: 0 }.encode();
    for (place, byte) in header.iter().enumerate() {
        link.send_bytes(&[*byte], &[], &format!("byte {place} of GET_FEATURES"))?;
        if place % 4 == 0 {
            waits_for_more(&mut link)?;
        }
    }
    link.reply_to(1)?;
    link.features().map(drop)
}

/// In the middle of a message, a backend neither answers nor closes.
fn waits_for_more(link: &mut Link) -> Outcome {
    if link.is_silent_for(IN_PIECES)? {
        return Ok(());
    }
    Err(Stop::Closed("closed the connection in the middle of a message".to_owned()))
}

fn payload_apart(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open()?;
    let header = Header { request: 2, flags: Flags::request_with_reply(), payload_bytes: 8 }.encode();
    let payload = usual_features(link.offered).to_ne_bytes();
    link.send_bytes(&header, &[], "the header of SET_FEATURES")?;
    waits_for_more(&mut link)?;
    link.send_bytes(&payload[..3], &[], "3 bytes of its payload")?;
    waits_for_more(&mut link)?;
    link.send_bytes(&payload[3..], &[], "the rest of its payload")?;
    require_success(&link.reply_to(2)?.payload)
}

fn messages_in_one_piece(context: &mut Context<'_>) -> Outcome {
    let mut link = context.connect()?;
    let message = |request| Header { request, flags: Flags::request(), payload_bytes: 0 }.encode();
    let bytes = [message(3), message(1), message(1)].concat();
    link.send_bytes(&bytes, &[], "SET_OWNER, GET_FEATURES, GET_FEATURES in one piece")?;
    link.reply_to(1)?;
    link.reply_to(1).map(drop)
}

fn many_questions_ahead(context: &mut Context<'_>) -> Outcome {
    let mut link = context.connect()?;
    link.send(&SetOwner(Empty), &[])?;
    for _ in 0..32 {
        link.send(&GetFeatures(Empty), &[])?;
    }
    for _ in 0..32 {
        link.reply_to(1)?;
    }
    Ok(())
}

fn owner_silent(context: &mut Context<'_>) -> Outcome {
    let mut link = context.connect()?;
    let answer = link.ask_raw(3, Flags::request(), &[], &[])?;
    if answer == (Answer { code: None, closed: false }) {
        Ok(())
    } else {
        Stop::fail(format!("the backend {answer} at SET_OWNER"))
    }
}

fn owner_twice(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open()?;
    link.require(&SetOwner(Empty), &[])
}

fn protocol_features_early(context: &mut Context<'_>) -> Outcome {
    let mut link = context.connect()?;
    link.features()?;
    link.call(&GetProtocolFeatures(Empty)).map(drop)
}

fn set_protocol_features_early(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_with(ProtocolFeatures::REPLY_ACK)?;
    // That it took hold is seen by an answer that only REPLY_ACK brings.
    let features = usual_features(link.offered);
    acknowledged(&mut link, &SetFeatures(features), &[])
}

fn no_ack_before_negotiation(context: &mut Context<'_>) -> Outcome {
    let mut link = context.connect()?;
    let answer = link.ask_raw(3, Flags::request_with_reply(), &[], &[])?;
    match answer {
        Answer { code: None, closed: false } => Ok(()),
        Answer { code: None, closed: true } => {
            Stop::fail("need_reply on SET_OWNER without REPLY_ACK: the backend closed the connection")
        }
        answer => Stop::fail(format!("need_reply on SET_OWNER without REPLY_ACK: the backend {answer}")),
    }
}

fn no_ack_unless_asked(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open()?;
    let features = usual_features(link.offered);
    let answer = link.ask_raw(2, Flags::request(), &features.to_ne_bytes(), &[])?;
    if answer == (Answer { code: None, closed: false }) {
        Ok(())
    } else {
        Stop::fail(format!("the backend {answer} at SET_FEATURES without need_reply"))
    }
}

fn question_answered_once(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open()?;
    link.send_raw(1, Flags::request_with_reply(), &[], &[])?;
    let reply = link.reply_to(1)?;
    if reply.payload != link.offered.to_ne_bytes() {
        return Stop::fail("the reply to GET_FEATURES with need_reply is not the features");
    }
    // A second reply would come before that of the next question.
    link.call(&GetProtocolFeatures(Empty)).map(drop)
}

fn require_success(payload: &[u8]) -> Outcome {
    match <[u8; 8]>::try_from(payload).map(u64::from_ne_bytes) {
        Ok(0) => Ok(()),
        Ok(code) => Stop::fail(format!("a valid message was acknowledged with {code:#x}, not 0")),
        Err(_) => Stop::fail(format!("an acknowledgement has {} bytes, not 8", payload.len())),
    }
}

/// Sends a correct message with `need_reply`: exactly one acknowledgement comes, and it is 0.
fn acknowledged<M: Message>(link: &mut Link, message: &M, fds: &[BorrowedFd<'_>]) -> Outcome {
    let number = M::REQUEST.number();
    link.send_raw(number, Flags::request_with_reply(), &message.payload(), fds)?;
    // Waiting for a backend that does not reply would end in a timeout: the reply to the next request comes instead.
    link.send(&GetFeatures(Empty), &[])?;
    let reply = link.receive()?;
    if reply.header.request == 1 {
        return Stop::fail(format!("{} with need_reply got no reply", M::REQUEST));
    }
    if reply.header.request != number {
        return Stop::fail(format!("the reply to {} is message {}", M::REQUEST, reply.header.request));
    }
    require_success(&reply.payload)?;
    link.reply_to(1).map(drop)
}

fn ack_owner(context: &mut Context<'_>) -> Outcome {
    // Protocol features may come first, as from QEMU; a second SET_OWNER would be another matter.
    let mut link = context.connect()?;
    link.features()?;
    link.call(&GetProtocolFeatures(Empty))?;
    link.send(&SetProtocolFeatures(ProtocolFeatures::REPLY_ACK.bits()), &[])?;
    acknowledged(&mut link, &SetOwner(Empty), &[])
}

fn ack_features(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open()?;
    let features = usual_features(link.offered);
    acknowledged(&mut link, &SetFeatures(features), &[])
}

fn ack_mem_table(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    let guest = Guest::new()?;
    acknowledged(&mut link, &guest.table(), &guest.fds())
}

/// A session up to the point where rings are set up.
fn ring(context: &mut Context<'_>) -> Outcome<(Link, Guest, SplitRing)> {
    let mut link = context.open_device()?;
    let mut guest = Guest::new()?;
    guest.share(&mut link)?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    Ok((link, guest, ring))
}

fn ack_vring_num(context: &mut Context<'_>) -> Outcome {
    let (mut link, _guest, ring) = ring(context)?;
    acknowledged(&mut link, &SetVringNum(ring.state(64)), &[])
}

fn ack_vring_base(context: &mut Context<'_>) -> Outcome {
    let (mut link, _guest, ring) = ring(context)?;
    link.require(&SetVringNum(ring.state(64)), &[])?;
    acknowledged(&mut link, &SetVringBase(ring.state(0)), &[])
}

fn ack_vring_addr(context: &mut Context<'_>) -> Outcome {
    let (mut link, _guest, ring) = ring(context)?;
    link.require(&SetVringNum(ring.state(64)), &[])?;
    acknowledged(&mut link, &SetVringAddr(ring.address()), &[])
}

fn ack_vring_call(context: &mut Context<'_>) -> Outcome {
    let (mut link, _guest, ring) = ring(context)?;
    ring.place(&mut link)?;
    acknowledged(&mut link, &SetVringCall(VringFile::with_descriptor(0)), &[ring.call.as_fd()])
}

fn ack_vring_err(context: &mut Context<'_>) -> Outcome {
    let (mut link, _guest, ring) = ring(context)?;
    ring.place(&mut link)?;
    acknowledged(&mut link, &SetVringErr(VringFile::with_descriptor(0)), &[ring.call.as_fd()])
}

fn ack_vring_kick(context: &mut Context<'_>) -> Outcome {
    let (mut link, _guest, ring) = ring(context)?;
    ring.place(&mut link)?;
    link.require(&SetVringCall(VringFile::with_descriptor(0)), &[ring.call.as_fd()])?;
    acknowledged(&mut link, &SetVringKick(VringFile::with_descriptor(0)), &[ring.kick.as_fd()])
}

fn ack_vring_enable(context: &mut Context<'_>) -> Outcome {
    let (mut link, _guest, ring) = ring(context)?;
    ring.place(&mut link)?;
    ring.connect(&mut link)?;
    acknowledged(&mut link, &SetVringEnable(ring.state(1)), &[])
}

fn unknown_request_fails(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open()?;
    let answer = link.ask_raw(200, Flags::request_with_reply(), &[], &[])?;
    link.judge_refusal(answer, "request 200, which does not exist")
}

/// A right message with wrong flags.
fn odd_flags(context: &mut Context<'_>, flags: u32) -> Outcome {
    let mut link = context.open()?;
    let features = usual_features(link.offered);
    let answer = link.ask_raw(2, Flags::from_bits(flags), &features.to_ne_bytes(), &[])?;
    link.judge_refusal(answer, &format!("SET_FEATURES with the flags {flags:#x}"))
}

fn ack_reset_owner(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    acknowledged(&mut link, &ResetOwner(Empty), &[])
}

fn reset_owner_harmless(context: &mut Context<'_>) -> Outcome {
    let mut link = context.open_device()?;
    link.send(&ResetOwner(Empty), &[])?;
    // The negotiated features still hold: the message after it is acknowledged.
    link.send_raw(2, Flags::request_with_reply(), &usual_features(link.offered).to_ne_bytes(), &[])?;
    require_success(&link.reply_to(2)?.payload)
}
