//! What peers treat differently. Each is tried on a connection of its own, and looked at from outside: an answer, silence,
//! the end of the connection, the end of the backend.

use std::io::PipeReader;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::ask::{Asker, left, words};
use crate::protocol::frontend::{GetFeatures, SetFeatures, SetOwner, SetProtocolFeatures, SetVringNum};
use crate::protocol::{Empty, Flags, FrontendRequest, Message, Payload as _, ProtocolFeatures, VringState};
use crate::socket::{SocketError, wait_readable};
use crate::virtio::feature;

/// How long silence is waited for.
const PATIENCE: Duration = Duration::from_millis(200);
/// A request that does not exist.
const UNKNOWN_REQUEST: u32 = 200;
/// More than any backend has.
const FAR_RING: u32 = 9999;
const STRAY_DESCRIPTORS: usize = 4;

/// What is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QuirkId {
    /// A connection comes while another is open.
    SecondConnection,
    /// The first client has left.
    AfterClientLeft,
    /// `need_reply` before `REPLY_ACK` was negotiated.
    EarlyNeedReply,
    /// A request that does not exist.
    UnknownRequest,
    /// `SET_FEATURES` with a bit that was not offered.
    FeatureNotOffered,
    /// `SET_PROTOCOL_FEATURES` with a bit that was not offered.
    ProtocolFeatureNotOffered,
    /// A header of another version.
    AnotherVersion,
    /// A reserved flag.
    ReservedFlag,
    /// A ring without entries.
    EmptyRing,
    /// Descriptors with a message that has none.
    StrayDescriptors,
    /// A ring far beyond those that there are.
    FarRing,
}

/// How a backend behaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quirk {
    /// What was tried.
    pub id: QuirkId,
    /// What was tried, for people.
    pub tried: &'static str,
    /// What happened.
    pub behaviour: String,
    /// Whether the backend had ended afterwards.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_deadly: bool,
}

impl QuirkId {
    const fn tried(self) -> &'static str {
        match self {
            Self::SecondConnection => "a second connection while one is open",
            Self::AfterClientLeft => "after its client disconnects",
            Self::EarlyNeedReply => "need_reply before REPLY_ACK is negotiated",
            Self::UnknownRequest => "an unknown request with need_reply",
            Self::FeatureNotOffered => "SET_FEATURES with a bit that was not offered",
            Self::ProtocolFeatureNotOffered => "SET_PROTOCOL_FEATURES with a bit that was not offered",
            Self::AnotherVersion => "a message of version 2",
            Self::ReservedFlag => "a message with a reserved flag",
            Self::EmptyRing => "a ring of size 0",
            Self::StrayDescriptors => "descriptors with GET_FEATURES",
            Self::FarRing => "SET_VRING_NUM of ring 9999",
        }
    }
}

struct Finder {
    first: Asker,
    features: u64,
    protocol: Option<ProtocolFeatures>,
    quirks: Vec<Quirk>,
}

type Trial = fn(&Finder, &mut Asker) -> Result<String, SocketError>;

/// Tries what is harmless, and the rest on request. If the time is over, the list ends early.
pub(super) fn find(first: Asker, protocol: Option<ProtocolFeatures>, features: u64, with_harm: bool) -> Vec<Quirk> {
    let mut finder = Finder { first, features, protocol, quirks: Vec::new() };
    finder.connections();
    let gentle: [(QuirkId, Trial); 2] =
        [(QuirkId::EarlyNeedReply, early_need_reply), (QuirkId::UnknownRequest, unknown_request)];
    let harmful: [(QuirkId, Trial); 7] = [
        (QuirkId::FeatureNotOffered, feature_not_offered),
        (QuirkId::ProtocolFeatureNotOffered, protocol_feature_not_offered),
        (QuirkId::AnotherVersion, another_version),
        (QuirkId::ReservedFlag, reserved_flag),
        (QuirkId::EmptyRing, empty_ring),
        (QuirkId::StrayDescriptors, stray_descriptors),
        (QuirkId::FarRing, far_ring),
    ];
    for (id, trial) in gentle.into_iter().chain(harmful.into_iter().filter(|_| with_harm)) {
        let is_gone = finder.quirks.iter().any(|quirk| quirk.is_deadly);
        if is_gone || Instant::now() >= finder.first.deadline() {
            break;
        }
        finder.run(id, trial);
    }
    finder.quirks
}

impl Finder {
    /// What becomes of a second connection, and of the backend once the first has ended.
    fn connections(&mut self) {
        let mut behaviour = None;
        let mut waiting = None;
        if self.first.is_over
            && let Ok(mut again) = self.connect_again()
            && again.begin().is_ok()
        {
            self.first = again;
        }
        if !self.first.is_over {
            behaviour = Some(match self.first.another().map(|mut second| (second.ask_briefly(), second)) {
                Ok((Outcome::Answered(_), _)) => "served beside the first",
                Ok((Outcome::Closed, _)) | Err(_) => "refused",
                Ok((Outcome::Silent, second)) => {
                    waiting = Some(second);
                    "queued"
                }
            });
        }
        self.first.channel.shut_down();
        if let Some(second) = &mut waiting {
            behaviour = Some(match second.is_answered() {
                true => "queued until the first ends",
                false => "queued, and not served when the first ends",
            });
        }
        if let Some(behaviour) = behaviour {
            self.add(QuirkId::SecondConnection, behaviour, false);
        }
        drop(waiting);
        match self.is_alive() {
            true => self.add(QuirkId::AfterClientLeft, "keeps listening", false),
            false => self.add(QuirkId::AfterClientLeft, "accepts no more connections", true),
        }
    }

    fn run(&mut self, id: QuirkId, trial: Trial) {
        let behaviour = self.connect_again().and_then(|mut asker| trial(self, &mut asker));
        let mut behaviour = behaviour.unwrap_or_else(|error| words(&error));
        let is_deadly = !self.is_alive();
        if is_deadly {
            behaviour.push_str(", and the backend is gone");
        }
        self.add(id, behaviour, is_deadly);
    }

    fn add(&mut self, id: QuirkId, behaviour: impl Into<String>, is_deadly: bool) {
        self.quirks.push(Quirk { id, tried: id.tried(), behaviour: behaviour.into(), is_deadly });
    }

    /// A new connection that is served. Some backends make their socket again when a client has left, so one that was
    /// taken a moment before is closed without a word.
    fn connect_again(&self) -> Result<Asker, SocketError> {
        let until = (Instant::now() + 5 * PATIENCE).min(self.first.deadline());
        loop {
            let connected = self.first.another();
            let served = connected.map(|mut asker| (asker.is_answered(), asker));
            match served {
                Ok((true, asker)) => return Ok(asker),
                Ok((false, asker)) if Instant::now() >= until => return Ok(asker),
                Err(error) if Instant::now() >= until => return Err(error),
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Whether the backend replies.
    fn is_alive(&self) -> bool {
        self.connect_again().is_ok_and(|mut asker| asker.is_answered())
    }

    fn offers(&self, feature: ProtocolFeatures) -> bool {
        self.protocol.is_some_and(|offered| offered.contains(feature))
    }
}

enum Outcome {
    Answered(Vec<u8>),
    Closed,
    Silent,
}

impl Asker {
    fn is_answered(&mut self) -> bool {
        matches!(self.ask_briefly(), Outcome::Answered(_))
    }

    fn ask_briefly(&mut self) -> Outcome {
        match self.send_flags(&GetFeatures(Empty), Flags::request()) {
            Ok(()) => self.outcome(),
            Err(_) => Outcome::Closed,
        }
    }

    fn send_flags<M: Message>(&mut self, message: &M, flags: Flags) -> Result<(), SocketError> {
        self.channel.set_timeout(left(self.deadline()));
        self.channel.send_with(message, flags, &[])
    }

    fn outcome(&mut self) -> Outcome {
        self.channel.set_timeout(PATIENCE.min(left(self.deadline())));
        match self.channel.receive_unchecked() {
            Ok(reply) => Outcome::Answered(reply.payload),
            Err(error) if error.is_timeout() => Outcome::Silent,
            Err(_) => Outcome::Closed,
        }
    }

    /// What came of a message that should be answered with success or an error.
    fn acknowledgement(&mut self) -> String {
        match self.outcome() {
            Outcome::Closed => "closes".to_owned(),
            Outcome::Silent => "no reply".to_owned(),
            Outcome::Answered(payload) => {
                let verdict = match u64::decode(&payload) {
                    Ok(0) => "replies 0 (success)".to_owned(),
                    Ok(code) => format!("replies {code} (failure)"),
                    Err(_) => format!("replies with {} bytes", payload.len()),
                };
                let then = match self.ask_briefly() {
                    Outcome::Closed => ", then closes",
                    Outcome::Silent => ", then sends no reply",
                    Outcome::Answered(_) => "",
                };
                verdict + then
            }
        }
    }
}

fn early_need_reply(_: &Finder, asker: &mut Asker) -> Result<String, SocketError> {
    asker.send_flags(&SetOwner(Empty), Flags::request_with_reply())?;
    Ok(asker.acknowledgement())
}

fn unknown_request(_: &Finder, asker: &mut Asker) -> Result<String, SocketError> {
    asker.begin()?;
    asker.channel.send_raw(UNKNOWN_REQUEST, Flags::request_with_reply(), &[], &[])?;
    Ok(asker.acknowledgement())
}

fn feature_not_offered(finder: &Finder, asker: &mut Asker) -> Result<String, SocketError> {
    asker.begin()?;
    let basics = finder.features & (feature::VERSION_1 | feature::PROTOCOL_FEATURES);
    // One that no device has a meaning for yet.
    let Some(bit) = (50..64).rev().find(|bit| finder.features >> bit & 1 == 0) else {
        return Ok("offers every bit".to_owned());
    };
    asker.send_flags(&SetFeatures(basics | 1 << bit), Flags::request_with_reply())?;
    Ok(asker.acknowledgement())
}

fn protocol_feature_not_offered(finder: &Finder, asker: &mut Asker) -> Result<String, SocketError> {
    asker.begin()?;
    let offered = finder.protocol.unwrap_or_default();
    let reply_ack = offered.intersection(ProtocolFeatures::REPLY_ACK).bits();
    asker.send_flags(&SetProtocolFeatures(reply_ack | 1 << 63), Flags::request_with_reply())?;
    Ok(asker.acknowledgement())
}

fn another_version(_: &Finder, asker: &mut Asker) -> Result<String, SocketError> {
    get_features_with(asker, Flags::from_bits(2))
}

fn reserved_flag(_: &Finder, asker: &mut Asker) -> Result<String, SocketError> {
    get_features_with(asker, Flags::from_bits(Flags::request().bits() | 1 << 31))
}

fn get_features_with(asker: &mut Asker, flags: Flags) -> Result<String, SocketError> {
    asker.channel.send_raw(FrontendRequest::GetFeatures.number(), flags, &[], &[])?;
    Ok(match asker.outcome() {
        Outcome::Answered(_) => "replies as if it were valid".to_owned(),
        Outcome::Closed => "closes".to_owned(),
        Outcome::Silent => "no reply".to_owned(),
    })
}

fn empty_ring(finder: &Finder, asker: &mut Asker) -> Result<String, SocketError> {
    set_ring_size(finder, asker, VringState { index: 0, num: 0 })
}

fn far_ring(finder: &Finder, asker: &mut Asker) -> Result<String, SocketError> {
    set_ring_size(finder, asker, VringState { index: FAR_RING, num: 256 })
}

fn set_ring_size(finder: &Finder, asker: &mut Asker, state: VringState) -> Result<String, SocketError> {
    asker.begin()?;
    let basics = finder.features & (feature::VERSION_1 | feature::PROTOCOL_FEATURES);
    asker.say(&SetFeatures(basics))?;
    if finder.offers(ProtocolFeatures::REPLY_ACK) {
        asker.send_flags(&SetVringNum(state), Flags::request_with_reply())?;
        return Ok(asker.acknowledgement());
    }
    asker.say(&SetVringNum(state))?;
    Ok(match asker.ask_briefly() {
        Outcome::Answered(_) => "continues".to_owned(),
        Outcome::Closed => "closes".to_owned(),
        Outcome::Silent => "then sends no reply".to_owned(),
    })
}

/// Descriptors that belong to no message must be closed. The other ends of their pipes show whether they were.
fn stray_descriptors(_: &Finder, asker: &mut Asker) -> Result<String, SocketError> {
    let failed =
        |source| SocketError::Io { socket: asker.channel.name().to_owned(), doing: "making pipes".to_owned(), source };
    let mut ends = Vec::new();
    let mut strays = Vec::new();
    for _ in 0..STRAY_DESCRIPTORS {
        let (end, stray) = std::io::pipe().map_err(failed)?;
        ends.push(end);
        strays.push(stray);
    }
    let fds: Vec<_> = strays.iter().map(std::os::fd::AsFd::as_fd).collect();
    asker.channel.send(&GetFeatures(Empty), &fds)?;
    drop(fds);
    drop(strays);
    let outcome = asker.outcome();
    let is_closed = |end: &PipeReader| wait_readable([end.as_fd()], Some(PATIENCE)).is_ok_and(|[ready]| ready);
    let kept = ends.iter().filter(|end| !is_closed(end)).count();
    asker.channel.shut_down();
    let leaked = ends.iter().filter(|end| !is_closed(end)).count();
    let then = match (kept, leaked) {
        (0, _) => "closes them at once",
        (_, 0) => "keeps them until the connection ends",
        _ => "leaks them",
    };
    let said = match outcome {
        Outcome::Answered(_) => "answers",
        Outcome::Closed => "closes",
        Outcome::Silent => "no reply",
    };
    Ok(format!("{said}, {then}"))
}
