//! Answers beside each other: the one that was recorded and the one that came now, in words that show only what differs.

use super::decode::{Known, Shown, ShownFields, decode};
use super::descriptor::Descriptor;
use super::entry::{Recorded, Side, TapChannel};
use super::relay::request_name;
use crate::protocol::{FrontendRequest, Payload as _};
use crate::socket::RawMessage;
use crate::virtio::DeviceKind;

/// A message of the backend's as it would be recorded.
pub(super) fn seen(reply: &RawMessage) -> Recorded {
    Recorded {
        channel: TapChannel::Main,
        from: Side::Backend,
        request: reply.header.request,
        name: String::new(),
        flags: reply.header.flags.bits(),
        payload: reply.payload.clone(),
        fds: reply.fds.iter().map(Descriptor::of).collect(),
    }
}

/// What the specification calls it, or its number.
pub(super) fn name_of(message: &Recorded) -> String {
    match request_name(message.channel, message.request) {
        "" => format!("request {}", message.request),
        name => name.to_owned(),
    }
}

/// Whether it is answered without `REPLY_ACK`.
pub(super) fn has_reply(request: u32) -> bool {
    FrontendRequest::from_number(request).is_some_and(FrontendRequest::has_reply)
}

/// What kind of thing each descriptor is; their sizes are in the payload.
pub(super) fn kinds(fds: &[Descriptor]) -> Vec<std::mem::Discriminant<Descriptor>> {
    fds.iter().map(std::mem::discriminant).collect()
}

fn fields(message: &Recorded, kind: Option<DeviceKind>) -> ShownFields {
    // A reply of 8 bytes to a request without a reply of its own is a status.
    match u64::decode(&message.payload) {
        Ok(code) if !has_reply(message.request) => ShownFields(vec![("result", Shown::Number(code))]),
        _ => decode(message, Known { kind, ..Known::default() }).fields,
    }
}

/// An answer, for people.
pub(super) fn words(message: &Recorded, kind: Option<DeviceKind>) -> String {
    let mut words = fields(message, kind).to_string();
    if !message.fds.is_empty() {
        let fds: Vec<_> = message.fds.iter().map(Descriptor::words).collect();
        words = format!("{words} with {}", fds.join(", "));
    }
    if words.is_empty() { "a reply without a payload".to_owned() } else { words }
}

/// The fields that differ, then and now; everything if the difference is not in fields.
pub(super) fn differing(then: &Recorded, now: &Recorded, kind: Option<DeviceKind>) -> (String, String) {
    let (old, new) = (fields(then, kind), fields(now, kind));
    let only = |these: &ShownFields, those: &ShownFields| {
        let others = these.0.iter().filter(|field| !those.0.contains(field));
        ShownFields(others.map(|(name, value)| (*name, only_names(value, name, those))).collect()).to_string()
    };
    let (only_then, only_now) = (only(&old, &new), only(&new, &old));
    if then.flags != now.flags {
        return (format!("flags {:#x}", then.flags), format!("flags {:#x}", now.flags));
    }
    if (only_then.is_empty() && only_now.is_empty()) || kinds(&then.fds) != kinds(&now.fds) {
        return (words(then, kind), words(now, kind));
    }
    let or_nothing = |words: String| if words.is_empty() { "nothing else".to_owned() } else { words };
    (or_nothing(only_then), or_nothing(only_now))
}

/// Of names those that the other side has not; anything else as it is.
fn only_names(value: &Shown, field: &str, those: &ShownFields) -> Shown {
    let theirs = those.0.iter().find_map(|(name, value)| match value {
        Shown::Names(names) if *name == field => Some(names),
        _ => None,
    });
    match (value, theirs) {
        (Shown::Names(names), Some(theirs)) => {
            Shown::Names(names.iter().filter(|name| !theirs.contains(name)).cloned().collect())
        }
        _ => value.clone(),
    }
}
