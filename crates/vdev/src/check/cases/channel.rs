//! The channel on which a backend sends requests to its frontend.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::prelude::*;
use crate::check::guest::Guest;
use crate::check::process::wait_until;
use crate::check::ring::SplitRing;
use crate::check::trace::backend_message;
use crate::protocol::{BackendRequest, Header};
use crate::socket::Channel;

const CHANNEL: Need = Need::Protocol(ProtocolFeatures::BACKEND_REQ);
const ACK: Need = Need::Protocol(ProtocolFeatures::REPLY_ACK);
const SECTION: &str = "VHOST_USER_SET_BACKEND_REQ_FD";
const COMMUNICATION: &str = "Back-end communication";

cases! {
    "channel.accepted" Must [CHANNEL, ACK] accepted,
        SECTION => "with REPLY_ACK \"the back-end must respond with zero for success\"";
    "channel.without-fd" Should [CHANNEL, ACK] without_fd,
        SECTION =>
            "\"The fd is provided via ... ancillary data\"; with REPLY_ACK the reply to a failure is \"non-zero \
             otherwise\"";
    "channel.replaced" Should [CHANNEL, ACK] replaced,
        SECTION => "a frontend may set another channel; the backend closes the old one";
    "channel.well-formed" Must [CHANNEL] well_formed,
        COMMUNICATION => "a backend sends only its own requests on the channel, no replies";
    "channel.closed-with-session" Should [CHANNEL] closed_with_session,
        COMMUNICATION => "the channel belongs to the session, and the backend closes it with the session";
    "channel.hung-up" Must [CHANNEL, Need::Harm] hung_up,
        COMMUNICATION => "a frontend that closes the channel does not close the session";
    "channel.noise" Must [CHANNEL, Need::Harm] noise,
        COMMUNICATION => "unexpected replies on the channel must not end the backend";
    "channel.never-read" Must [CHANNEL, Need::Harm] never_read,
        COMMUNICATION => "a frontend that does not read the channel still gets replies on its session";
}

/// A session, and one that can have a channel.
fn open(context: &mut Context<'_>) -> Outcome<Link> {
    let mut link = context.open_with(USUAL | ProtocolFeatures::BACKEND_REQ | ProtocolFeatures::BACKEND_SEND_FD)?;
    let features = usual_features(link.offered);
    link.require(&SetFeatures(features), &[])?;
    Ok(link)
}

/// A session whose backend has a channel; the frontend's end of it.
fn with_channel(context: &mut Context<'_>) -> Outcome<(Link, UnixStream)> {
    let mut link = open(context)?;
    let (ours, theirs) = UnixStream::pair()?;
    link.require(&SetBackendReqFd(Empty), &[theirs.as_fd()])?;
    Ok((link, ours))
}

fn accepted(context: &mut Context<'_>) -> Outcome {
    with_channel(context).map(drop)
}

fn without_fd(context: &mut Context<'_>) -> Outcome {
    open(context)?.require_refusal(&SetBackendReqFd(Empty), &[], "SET_BACKEND_REQ_FD without a descriptor")
}

/// Whether the other end of a channel is closed within this time; what comes before is passed over.
fn ends_within(mut ours: &UnixStream, time: Duration) -> Outcome<bool> {
    ours.set_nonblocking(true)?;
    let mut buffer = [0; 256];
    Ok(wait_until(time, || matches!(ours.read(&mut buffer), Ok(0))))
}

fn replaced(context: &mut Context<'_>) -> Outcome {
    let (mut link, first) = with_channel(context)?;
    let (_ours, theirs) = UnixStream::pair()?;
    link.require(&SetBackendReqFd(Empty), &[theirs.as_fd()])?;
    drop(theirs);
    if ends_within(&first, Duration::from_millis(300))? {
        Ok(())
    } else {
        Stop::fail("a new channel was set, but the old one is still open after 300 ms")
    }
}

fn well_formed(context: &mut Context<'_>) -> Outcome {
    let (mut link, ours) = with_channel(context)?;
    let mut guest = Guest::new()?;
    guest.share(&mut link)?;
    let ring = SplitRing::new(&mut guest, 0, 64)?;
    ring.start(&mut link)?;
    ring.stop(&mut link)?;
    let mut channel = Channel::new(ours, "backend channel", context.timeout());
    // All messages up to now have arrived: the backend has replied since.
    while channel.is_readable(Duration::ZERO)? {
        let message = channel.receive_unchecked()?;
        let Header { request, flags, .. } = message.header;
        link.note(format!("on the channel: {}", backend_message(&message)));
        if message.header.check().is_err() || flags.is_reply() || BackendRequest::from_number(request).is_none() {
            return Stop::fail(format!(
                "the backend sent message {request} with flags {:#x} on the channel",
                flags.bits()
            ));
        }
    }
    Ok(())
}

fn closed_with_session(context: &mut Context<'_>) -> Outcome {
    let (link, ours) = with_channel(context)?;
    drop(link);
    if ends_within(&ours, context.timeout())? {
        Ok(())
    } else {
        Stop::fail("the session is closed, but its channel is still open")
    }
}

fn hung_up(context: &mut Context<'_>) -> Outcome {
    let (mut link, ours) = with_channel(context)?;
    link.done("the frontend's end of the channel is closed");
    drop(ours);
    link.features()?;
    context.survives_rings(link)
}

fn noise(context: &mut Context<'_>) -> Outcome {
    let (link, mut ours) = with_channel(context)?;
    link.done("random bytes on the channel");
    // A backend that has closed it already has made up its mind.
    let _ = ours.write_all(&crate::check::disk::pattern(5, 2048));
    context.survives_rings(link)
}

fn never_read(context: &mut Context<'_>) -> Outcome {
    let (mut link, ours) = with_channel(context)?;
    for _ in 0..100 {
        link.features()?;
    }
    drop(ours);
    context.survives_messages(link)
}
