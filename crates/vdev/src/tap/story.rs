//! A recording as text, entry by entry: fields by name, replies with their latency, what breaks the specification; and
//! a summary.
//!
//! Reads entries in the order of the recording and keeps only what has a bound, so it works for recordings of any
//! size.

use std::collections::BTreeMap;

use serde::Serialize;

use super::decode::{Shown, ShownFields, decode};
use super::descriptor::Descriptor;
use super::entry::{Ending, Entry, Recorded, Side, TapChannel, TapEvent};
use super::relay::request_name;
use super::witness::{Violation, Witness};
use crate::protocol::Flags;
use crate::virtio::DeviceKind;

/// Sessions that are followed at once; a tap has one at a time.
const SESSIONS_MAX: usize = 16;
/// Latencies that are kept for each request; those after have no part in the percentiles.
const LATENCIES_KEPT: usize = 1 << 16;
/// Different rules that the summary lists.
const RULES_KEPT: usize = 256;

/// One entry, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Told {
    /// Microseconds since the recording began.
    pub time_us: u64,
    /// Which frontend.
    pub session: u32,
    /// What happened.
    pub what: ToldWhat,
    /// On which connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<TapChannel>,
    /// Who did it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Side>,
    /// The message's number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<u32>,
    /// What the specification calls it.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub name: &'static str,
    /// Its flags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<u32>,
    /// Whether it has `need_reply`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub need_reply: bool,
    /// Its content.
    pub fields: ShownFields,
    /// What came with it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fds: Vec<Descriptor>,
    /// How long after its request an answer came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<u64>,
    /// What it breaks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<Violation>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ToldWhat {
    /// A frontend came.
    Connected,
    /// A frontend came and the backend was not there.
    Unreachable,
    /// A request.
    Request,
    /// A message that answers.
    Reply,
    /// A reply that reports success or a refusal.
    Acknowledgement,
    /// Bytes that are no message.
    Bytes,
    /// A side ended.
    Ended,
    /// A session is over.
    Over,
    /// The recording ends here, the session did not.
    Full,
    /// Written by a later version.
    Unknown,
}

/// What a recording holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Frontends.
    pub sessions: u32,
    /// Messages.
    pub messages: u64,
    /// The time from the first entry to the last.
    pub duration_us: u64,
    /// The kind of device, given or guessed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Why it was guessed, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_guess: Option<String>,
    /// Each request that was made.
    pub requests: Vec<RequestSummary>,
    /// Each rule that was broken.
    pub violations: Vec<ViolationSummary>,
}

/// How often a request was made, and how it was answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RequestSummary {
    /// On which connection.
    pub channel: TapChannel,
    /// What the specification calls it.
    pub name: String,
    /// How often it was made.
    pub count: u64,
    /// How often it was answered.
    pub answered: u64,
    /// How often it was refused (`REPLY_ACK`).
    pub refused: u64,
    /// Half of the answers came within this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<u64>,
    /// 99 of 100 answers came within this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
}

/// A rule, who broke it and how often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ViolationSummary {
    /// The first time.
    #[serde(flatten)]
    pub first: Violation,
    /// The message that broke it.
    pub message: &'static str,
    /// How often it was broken.
    pub count: u64,
}

/// Turns a recording into text.
#[derive(Debug)]
pub struct Story {
    kind: Option<DeviceKind>,
    sessions: BTreeMap<u32, Witness>,
    requests: BTreeMap<(u8, u32, &'static str), Counted>,
    violations: BTreeMap<(u8, &'static str, &'static str), ViolationSummary>,
    summary: Summary,
    first_us: Option<u64>,
}

#[derive(Debug, Default)]
struct Counted {
    count: u64,
    answered: u64,
    refused: u64,
    latencies_us: Vec<u64>,
}

impl Story {
    /// A story of backends of this kind; if it is not given, the kind is guessed from their messages.
    pub fn new(kind: Option<DeviceKind>) -> Self {
        Self {
            kind,
            sessions: BTreeMap::new(),
            requests: BTreeMap::new(),
            violations: BTreeMap::new(),
            summary: Summary::default(),
            first_us: None,
        }
    }

    /// Turns the next entry into text.
    pub fn tell(&mut self, entry: Entry) -> Told {
        let Entry { time_us, session, event } = entry;
        let first = *self.first_us.get_or_insert(time_us);
        self.summary.duration_us = self.summary.duration_us.max(time_us.saturating_sub(first));
        let mut told = Told::new(time_us, session, ToldWhat::Unknown);
        match event {
            TapEvent::Connected => {
                told.what = ToldWhat::Connected;
                self.summary.sessions += 1;
                self.sessions.insert(session, Witness::new(self.kind));
            }
            TapEvent::Unreachable { error } => {
                told.what = ToldWhat::Unreachable;
                told.fields.0.push(("error", Shown::Text(error)));
            }
            TapEvent::Message(message) => self.tell_message(&message, &mut told),
            TapEvent::Bytes { channel, from, payload: _, bytes, fds, reason } => {
                told.what = ToldWhat::Bytes;
                told.channel = Some(channel);
                told.from = Some(from);
                told.fds = fds;
                told.fields = ShownFields(vec![("size", Shown::Size(bytes)), ("reason", Shown::Text(reason.clone()))]);
                told.violations.push(Violation { by: from, section: "Header", what: reason });
            }
            TapEvent::Ended { channel, from, how } => {
                told.what = ToldWhat::Ended;
                told.channel = Some(channel);
                told.from = Some(from);
                told.fields.0.push(("how", Shown::Text(how.words().into())));
            }
            TapEvent::Over => {
                told.what = ToldWhat::Over;
                if let Some(mut witness) = self.sessions.remove(&session) {
                    witness.end(&mut told.violations);
                    self.note_device(&witness);
                }
            }
            TapEvent::Full => told.what = ToldWhat::Full,
            TapEvent::Unknown => {}
        }
        self.count_violations(&told);
        told
    }

    fn tell_message(&mut self, message: &Recorded, told: &mut Told) {
        let Recorded { channel, from, request, flags, .. } = *message;
        while self.sessions.len() >= SESSIONS_MAX && !self.sessions.contains_key(&told.session) {
            self.sessions.pop_first();
        }
        let kind = self.kind;
        let witness = self.sessions.entry(told.session).or_insert_with(|| Witness::new(kind));
        let answered = witness.see(told.time_us, message, &mut told.violations);
        let is_answer = from != channel.asker();
        told.what = match (is_answer, answered) {
            (false, _) => ToldWhat::Request,
            (true, Some(answered)) if answered.is_acknowledgement => ToldWhat::Acknowledgement,
            (true, _) => ToldWhat::Reply,
        };
        told.channel = Some(channel);
        told.from = Some(from);
        told.request = Some(request);
        told.flags = Some(flags);
        told.need_reply = Flags::from_bits(flags).needs_reply();
        told.name = request_name(channel, request);
        told.fields = match told.what {
            ToldWhat::Acknowledgement => acknowledged(&message.payload),
            _ => decode(message, witness.known()).fields,
        };
        told.fds.clone_from(&message.fds);
        told.latency_us = answered.map(|answered| told.time_us.saturating_sub(answered.asked_us));

        self.summary.messages += 1;
        // Numbers that are no request's are one row, however many of them a recording has.
        let number = if told.name.is_empty() { u32::MAX } else { request };
        let counted = self.requests.entry((channel as u8, number, told.name)).or_default();
        if is_answer {
            counted.answered += 1;
            let is_done = told.fields.0.iter().all(|(name, value)| *name != "result" || *value == Shown::Number(0));
            counted.refused += u64::from(!is_done);
            if counted.latencies_us.len() < LATENCIES_KEPT {
                counted.latencies_us.extend(told.latency_us);
            }
        } else {
            counted.count += 1;
        }
    }

    fn count_violations(&mut self, told: &Told) {
        for violation in &told.violations {
            let key = (violation.by as u8, violation.section, told.name);
            if let Some(known) = self.violations.get_mut(&key) {
                known.count += 1;
            } else if self.violations.len() < RULES_KEPT {
                let first = ViolationSummary { first: violation.clone(), message: told.name, count: 1 };
                self.violations.insert(key, first);
            }
        }
    }

    fn note_device(&mut self, witness: &Witness) {
        if self.summary.device.is_none() {
            self.summary.device = witness.kind().map(|kind| kind.name().to_owned());
            self.summary.device_guess =
                witness.guess().filter(|_| self.kind.is_none()).map(|candidate| candidate.reason);
        }
    }

    /// What it all was.
    pub fn end(mut self) -> Summary {
        let sessions = std::mem::take(&mut self.sessions);
        for witness in sessions.values() {
            self.note_device(witness);
        }
        let requests = self.requests.into_iter().map(|((channel, _, name), mut counted)| {
            counted.latencies_us.sort_unstable();
            RequestSummary {
                channel: if channel == 0 { TapChannel::Main } else { TapChannel::Backend },
                name: if name.is_empty() { "unknown".into() } else { name.into() },
                count: counted.count,
                answered: counted.answered,
                refused: counted.refused,
                p50_us: percentile(&counted.latencies_us, 50),
                p99_us: percentile(&counted.latencies_us, 99),
            }
        });
        self.summary.requests = requests.collect();
        self.summary.violations = self.violations.into_values().collect();
        self.summary
    }
}

impl Told {
    const fn new(time_us: u64, session: u32, what: ToldWhat) -> Self {
        Self {
            time_us,
            session,
            what,
            channel: None,
            from: None,
            request: None,
            name: "",
            flags: None,
            need_reply: false,
            fields: ShownFields(Vec::new()),
            fds: Vec::new(),
            latency_us: None,
            violations: Vec::new(),
        }
    }
}

impl Ending {
    /// In words.
    const fn words(self) -> &'static str {
        match self {
            Self::Closed => "closed its end",
            Self::HalfClosed => "shut down its side",
            Self::PeerGone => "its peer had closed the connection",
            Self::Stopped => "the tap was stopped",
            Self::Failed => "the connection failed",
        }
    }
}

fn acknowledged(payload: &[u8]) -> ShownFields {
    let code = payload.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
    ShownFields(code.map(|code| ("result", Shown::Number(code))).into_iter().collect())
}

/// The smallest of the sorted numbers that at least so many of 100 do not exceed.
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Message, VringState, frontend};
    use crate::virtio::feature;

    fn message<M: Message>(time_us: u64, message: &M, flags: Flags) -> Entry {
        entry(time_us, Side::Frontend, M::REQUEST.number(), flags, message.payload())
    }

    fn entry(time_us: u64, from: Side, request: u32, flags: Flags, payload: Vec<u8>) -> Entry {
        let (channel, name, flags) = (TapChannel::Main, String::new(), flags.bits());
        let message = Recorded { channel, from, request, name, flags, payload, fds: Vec::new() };
        Entry { time_us, session: 1, event: TapEvent::Message(message) }
    }

    fn reply(time_us: u64, request: u32, number: u64) -> Entry {
        entry(time_us, Side::Backend, request, Flags::reply(), number.to_ne_bytes().to_vec())
    }

    #[test]
    fn an_answer_has_its_latency_and_names() {
        let mut story = Story::new(Some(DeviceKind::Blk));
        let told = story.tell(message(100, &frontend::GetFeatures(crate::protocol::Empty), Flags::request()));
        assert_eq!((told.what, told.name, told.violations.len()), (ToldWhat::Request, "GET_FEATURES", 0));
        let told = story.tell(reply(142, 1, 1 << 32 | 1 << 9));
        assert_eq!((told.what, told.latency_us), (ToldWhat::Reply, Some(42)));
        assert_eq!(told.fields.to_string(), "features 0x100000200: FLUSH VERSION_1");
        let summary = story.end();
        assert_eq!((summary.messages, summary.requests[0].p50_us), (2, Some(42)));
    }

    #[test]
    fn what_was_not_negotiated_is_found() {
        let mut story = Story::new(None);
        let ring = VringState { index: 0, num: 100 };
        let told = story.tell(message(1, &frontend::SetVringNum(ring), Flags::request_with_reply()));
        let sections: Vec<_> = told.violations.iter().map(|violation| violation.section).collect();
        assert_eq!(sections, ["VHOST_USER_PROTOCOL_F_REPLY_ACK", "SET_VRING_NUM"]);
        let told = story.tell(reply(2, 8, 0));
        assert_eq!(told.what, ToldWhat::Acknowledgement);
        assert_eq!(told.violations[0].by, Side::Backend);
        let told = story.tell(reply(3, 8, 0));
        assert_eq!(told.violations[0].what, "replies to request 8, which was not sent");
    }

    /// What a message breaks after these features were offered and taken.
    fn broken_after<M: Message>(features: u64, kind: DeviceKind, one: &M) -> Vec<String> {
        let mut story = Story::new(Some(kind));
        story.tell(message(1, &frontend::SetFeatures(features), Flags::request()));
        let size = VringState { index: 0, num: 8 };
        story.tell(message(2, &frontend::SetVringNum(size), Flags::request()));
        let told = story.tell(message(3, one, Flags::request()));
        told.violations.iter().map(|violation| violation.what.clone()).collect()
    }

    #[test]
    fn what_a_stop_asks_is_judged() {
        let stop = |num| {
            broken_after(feature::VERSION_1, DeviceKind::Blk, &frontend::GetVringBase(VringState { index: 0, num }))
        };
        assert_eq!(stop(0), Vec::<String>::new());
        assert_eq!(stop(3), ["num is 3, but it is reserved and must be 0"]);
    }

    #[test]
    fn a_base_has_16_bits_in_a_split_ring_and_32_in_a_packed_one() {
        let base = |features, num| {
            broken_after(features, DeviceKind::Blk, &frontend::SetVringBase(VringState { index: 0, num }))
        };
        assert_eq!(base(0, 0xffff), Vec::<String>::new());
        assert_eq!(base(0, 0x1_0000), ["the index of split ring 0 is 0x10000, but bits 16 to 31 are reserved"]);
        assert_eq!(base(feature::RING_PACKED, 0x8007_8007), Vec::<String>::new());
        let words =
            "packed ring 0 has 8 entries, but its indices are available 8 (wrap counter 0), used 8 (wrap counter 0)";
        assert_eq!(base(feature::RING_PACKED, 0x0008_0008), [words]);
    }

    #[test]
    fn a_packed_base_is_told_field_by_field() {
        let mut story = Story::new(Some(DeviceKind::Blk));
        story.tell(message(1, &frontend::SetFeatures(feature::RING_PACKED), Flags::request()));
        let base = VringState { index: 2, num: 0x8005_0003 };
        let told = story.tell(message(2, &frontend::SetVringBase(base), Flags::request()));
        let words = "index 2, available 3, available_wrap_counter 0, used 5, used_wrap_counter 1";
        assert_eq!(told.fields.to_string(), words);
    }

    #[test]
    fn features_without_those_that_they_require_are_found() {
        let accepts = frontend::SetFeatures(feature::net::HOST_ECN | feature::net::CSUM);
        let words = "accepts HOST_ECN without HOST_TSO4 or HOST_TSO6";
        assert_eq!(broken_after(0, DeviceKind::Net, &accepts), [words]);
        let mut story = Story::new(Some(DeviceKind::Net));
        story.tell(message(1, &frontend::GetFeatures(crate::protocol::Empty), Flags::request()));
        let told = story.tell(reply(2, 1, feature::net::GUEST_TSO4));
        assert_eq!(told.violations[0].what, "offers GUEST_TSO4 without GUEST_CSUM");
    }

    #[test]
    fn a_request_without_an_answer_is_found_at_the_end() {
        let mut story = Story::new(None);
        story.tell(message(1, &frontend::GetFeatures(crate::protocol::Empty), Flags::request()));
        let told = story.tell(Entry { time_us: 2, session: 1, event: TapEvent::Over });
        assert_eq!(told.violations[0].what, "GET_FEATURES got no reply");
        assert_eq!(story.end().violations.len(), 1);
    }

    #[test]
    fn a_hostile_recording_grows_nothing() {
        let mut story = Story::new(None);
        for number in 0..200_000_u32 {
            let mut one = entry(number.into(), Side::Frontend, number, Flags::from_bits(number), vec![0; 3]);
            one.session = number;
            story.tell(one);
        }
        assert!(story.sessions.len() <= SESSIONS_MAX && story.violations.len() <= RULES_KEPT);
        assert!(story.requests.len() <= 46);
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_samples() {
        let samples: Vec<u64> = (1..=200).collect();
        assert_eq!((percentile(&samples, 50), percentile(&samples, 99)), (Some(100), Some(198)));
        assert_eq!((percentile(&[7], 50), percentile(&[], 99)), (Some(7), None));
    }
}
