//! What a mock is to do wrong, in a file (`misbehave.toml`).
//!
//! ```toml
//! [offer]                        # what it offers
//! features.add = ["RING_PACKED", "bit 60"]
//! protocol_features.remove = ["CONFIG"]
//! queues = 99
//!
//! [serve]                        # how it goes about its clients
//! start_delay_ms = 100           # listens late
//! accept_delay_ms = 2000         # accepts late
//! pause_ms = 300                 # so long after a client has left, new connections are closed
//! clients = 1                    # ends after so many
//!
//! [[config]]                     # bytes of the configuration
//! at = 0
//! bytes = "ff ff"
//!
//! [[message]]                    # when this message has come …
//! name = "GET_VRING_BASE"        # a name, or any number
//! nth = 2                        # only the second time; without it, each time
//! after = "SET_FEATURES"         # and only after this one
//! delay_ms = 200                 # … wait,
//! crash_after_ms = 50            # handle it, and die a little later
//! do = "ignore"                  # and instead of handling it: ignore, close, crash, nack, ack
//! reply.size = 4                 # or answer wrong: number, flags, size, payload, descriptors, twice, silent, cut
//! backend_channel = { number = 99, payload = "00" }
//!
//! [[ring]]                       # when this happens on a ring …
//! on = "completion"              # kick, completion, call, stop
//! queue = 0
//! nth = 3
//! after = 200                    # only once this message has come
//! sector = 8                     # a request of a disk for this sector
//! written = 4096                 # … return another length, or id, or times; jump, status, corrupt, delay_ms
//! ```

use std::str::FromStr;

use serde::Deserialize;

use super::hint::nearest;
use crate::protocol::{FrontendRequest, PROTOCOL_FEATURES};

/// The longest delay, in milliseconds.
const DELAY_MS_MAX: u64 = 60_000;
/// The most descriptors that come with a reply.
const DESCRIPTORS_MAX: usize = 60;
/// The most calls for one.
const CALLS_MAX: u32 = 100_000;

/// What a mock is to do wrong. Without a word in it, nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    pub(super) offer: OfferRule,
    pub(super) serve: ServeRule,
    pub(super) config: Vec<ConfigRule>,
    pub(super) message: Vec<MessageRule>,
    pub(super) ring: Vec<RingRule>,
}

/// Changes of what a backend offers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct OfferRule {
    pub features: Names,
    pub protocol_features: Names,
    pub queues: Option<u64>,
}

/// How clients are served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ServeRule {
    pub start_delay_ms: u64,
    pub accept_delay_ms: u64,
    pub pause_ms: u64,
    pub clients: Option<u64>,
}

/// Bits that come or go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Names {
    pub add: Vec<String>,
    pub remove: Vec<String>,
}

/// Bytes of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigRule {
    pub at: usize,
    pub bytes: Hex,
}

/// What is done wrong about a message.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MessageRule {
    pub name: Number,
    pub nth: Option<u64>,
    pub after: Option<Number>,
    #[serde(default)]
    pub delay_ms: u64,
    pub crash_after_ms: Option<u64>,
    #[serde(rename = "do")]
    pub instead: Option<InsteadRule>,
    /// The code of a nack.
    pub code: Option<u64>,
    #[serde(default)]
    pub reply: ReplyRule,
    pub backend_channel: Option<ChannelRule>,
}

/// What is done instead of handling a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum InsteadRule {
    Ignore,
    Close,
    Crash,
    Nack,
    Ack,
}

/// What is wrong with an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ReplyRule {
    pub number: Option<Number>,
    pub flags: Option<u32>,
    pub size: Option<u32>,
    pub payload: Option<Hex>,
    pub descriptors: usize,
    pub twice: bool,
    pub silent: bool,
    pub cut: Option<usize>,
}

/// What is sent on the backend's channel.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChannelRule {
    pub number: u32,
    #[serde(default)]
    pub payload: Hex,
}

/// What is done wrong about a ring.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RingRule {
    pub on: RingOn,
    pub queue: Option<u16>,
    pub nth: Option<u64>,
    pub after: Option<Number>,
    pub sector: Option<u64>,
    #[serde(default)]
    pub delay_ms: u64,
    pub written: Option<u32>,
    pub id: Option<u16>,
    pub times: Option<u32>,
    pub jump: Option<u16>,
    pub status: Option<u8>,
    #[serde(default)]
    pub corrupt: bool,
}

/// What happens on a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum RingOn {
    Kick,
    Completion,
    Call,
    Stop,
}

/// A message by its name or number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "NumberText")]
pub(super) struct Number(pub u32);

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberText {
    Number(u32),
    Name(String),
}

impl TryFrom<NumberText> for Number {
    type Error = String;

    fn try_from(text: NumberText) -> Result<Self, String> {
        match text {
            NumberText::Number(number) => Ok(Self(number)),
            NumberText::Name(name) => {
                let known = FrontendRequest::from_name(&name.to_ascii_uppercase());
                known.map(|request| Self(request.number())).ok_or_else(|| {
                    let names = FrontendRequest::ALL.iter().map(|request| request.name());
                    unknown("message", &name, nearest(&name, names))
                })
            }
        }
    }
}

/// Bytes as pairs of hexadecimal digits, with or without spaces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Hex(pub Vec<u8>);

impl TryFrom<String> for Hex {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let wrong = || format!("`{text}` is not pairs of hexadecimal digits");
        let pairs = digits.chunks(2).map(|pair| match pair {
            [_, _] => std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()),
            _ => None,
        });
        pairs.collect::<Option<_>>().map(Self).ok_or_else(wrong)
    }
}

/// Why a text is no script.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// It can't be read.
    #[error("{text}{hint}")]
    Text {
        /// What is wrong, and where.
        text: String,
        /// What may have been meant.
        hint: String,
    },
    /// A rule that can't be followed.
    #[error("{rule}: {problem}")]
    Rule {
        /// Which, counted from 1.
        rule: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A feature that there isn't.
    #[error("{0}")]
    Feature(String),
}

impl FromStr for Script {
    type Err = ScriptError;

    fn from_str(text: &str) -> Result<Self, ScriptError> {
        let script: Self = toml::from_str(text).map_err(|error| {
            let text = error.to_string().trim_end().to_owned();
            let hint = hint_for(&text).map_or_else(String::new, |meant| format!("\nhint: did you mean `{meant}`?"));
            ScriptError::Text { text, hint }
        })?;
        script.check()?;
        Ok(script)
    }
}

impl Script {
    /// Refuses rules that have no action, or too many.
    fn check(&self) -> Result<(), ScriptError> {
        refuse("[serve]".to_owned(), self.serve.problem().map(str::to_owned))?;
        for (rule, number) in self.message.iter().zip(1..) {
            let problem = rule.problem().map(str::to_owned);
            refuse(format!("[[message]] {number}"), problem)?;
        }
        for (rule, number) in self.ring.iter().zip(1..) {
            let problem = rule.problem().map(str::to_owned);
            refuse(format!("[[ring]] {number}"), problem)?;
        }
        for name in self.offer.protocol_features.add.iter().chain(&self.offer.protocol_features.remove) {
            protocol_bit(name)?;
        }
        Ok(())
    }
}

fn refuse(rule: String, problem: Option<String>) -> Result<(), ScriptError> {
    problem.map_or(Ok(()), |problem| Err(ScriptError::Rule { rule, problem }))
}

impl ServeRule {
    fn problem(self) -> Option<&'static str> {
        let delays = [self.start_delay_ms, self.accept_delay_ms, self.pause_ms];
        match self {
            _ if delays.iter().any(|delay| *delay > DELAY_MS_MAX) => Some("a delay is over a minute"),
            Self { clients: Some(0), .. } => Some("`clients` counts from 1"),
            _ => None,
        }
    }
}

impl MessageRule {
    fn problem(&self) -> Option<&'static str> {
        let says_nothing = self.delay_ms == 0
            && self.crash_after_ms.is_none()
            && self.instead.is_none()
            && self.reply == ReplyRule::default()
            && self.backend_channel.is_none();
        match self {
            _ if says_nothing => Some("has no action"),
            Self { nth: Some(0), .. } => Some("`nth` counts from 1"),
            Self { delay_ms, .. } if *delay_ms > DELAY_MS_MAX => Some("`delay_ms` is over a minute"),
            Self { crash_after_ms: Some(delay), .. } if *delay > DELAY_MS_MAX => {
                Some("`crash_after_ms` is over a minute")
            }
            Self { code: Some(_), instead, .. } if *instead != Some(InsteadRule::Nack) => {
                Some("`code` belongs to `do = \"nack\"`")
            }
            Self { code: Some(0), .. } => Some("a nack's `code` is not 0"),
            Self { reply, .. } if reply.descriptors > DESCRIPTORS_MAX => Some("`reply.descriptors` is over 60"),
            _ => None,
        }
    }
}

impl RingRule {
    fn problem(&self) -> Option<&'static str> {
        let is_completion = self.on == RingOn::Completion;
        let of_completions = self.sector.is_some()
            || self.written.is_some()
            || self.id.is_some()
            || self.jump.is_some()
            || self.status.is_some()
            || self.corrupt;
        match self {
            Self { nth: Some(0), .. } => Some("`nth` counts from 1"),
            Self { delay_ms, .. } if *delay_ms > DELAY_MS_MAX => Some("`delay_ms` is over a minute"),
            Self { times: Some(times), .. } if *times > CALLS_MAX => Some("`times` is over 100000"),
            _ if of_completions && !is_completion => {
                Some("`sector`, `written`, `id`, `jump`, `status` and `corrupt` belong to `on = \"completion\"`")
            }
            Self { on: RingOn::Call, times: None, .. } => Some("`on = \"call\"` needs `times`"),
            _ if is_completion && !of_completions && self.times.is_none() && self.delay_ms == 0 => {
                Some("has no action")
            }
            _ => None,
        }
    }
}

/// A bit by its name, or as `bit N`.
pub(super) fn protocol_bit(name: &str) -> Result<u64, ScriptError> {
    if let Some(bit) = numbered_bit(name) {
        return Ok(bit);
    }
    let known = name.parse::<crate::protocol::ProtocolFeatures>();
    known.map(crate::protocol::ProtocolFeatures::bits).map_err(|_| {
        let names = PROTOCOL_FEATURES.iter().map(|(known, _)| *known);
        ScriptError::Feature(unknown("protocol feature", name, nearest(name, names)))
    })
}

/// `bit 60`.
pub(super) fn numbered_bit(name: &str) -> Option<u64> {
    let bit: u32 = name.strip_prefix("bit ")?.parse().ok()?;
    1_u64.checked_shl(bit)
}

pub(super) fn unknown(kind: &str, name: &str, meant: Option<&str>) -> String {
    let hint = meant.map_or_else(String::new, |meant| format!(", did you mean `{meant}`?"));
    format!("unknown {kind} `{name}`{hint}")
}

/// The nearest to an unknown key among those that the parser lists.
fn hint_for(error: &str) -> Option<String> {
    let rest = error.split("unknown field `").nth(1).or_else(|| error.split("unknown variant `").nth(1))?;
    let mut quoted = rest.split('`').step_by(2);
    let name = quoted.next()?;
    nearest(name, quoted).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        text.parse::<Script>().expect_err(text).to_string()
    }

    #[test]
    fn a_script_without_a_word_is_right_about_everything() {
        assert_eq!("".parse::<Script>(), Ok(Script::default()));
    }

    #[test]
    fn a_key_that_there_is_not_is_named_with_the_nearest() {
        let text = error("[[message]]\nname = \"GET_FEATURES\"\nreply.sise = 4\n");
        assert!(text.contains("sise") && text.ends_with("hint: did you mean `size`?"), "{text}");
        let text = error("[[message]]\nname = \"GET_FEATURS\"\nreply.size = 4\n");
        assert!(text.contains("did you mean `GET_FEATURES`?"), "{text}");
        let text = error("[[ring]]\non = \"complete\"\n");
        assert!(text.contains("`complete`"), "{text}");
        assert!(error("[offer]\nprotocol_features.add = [\"REPLYACK\"]\n").contains("did you mean `REPLY_ACK`?"));
    }

    #[test]
    fn a_rule_that_can_not_be_followed_is_named() {
        let rule = |body: &str| error(&format!("[[message]]\nname = 200\n{body}\n"));
        assert_eq!(rule(""), "[[message]] 1: has no action");
        assert!(rule("nth = 0\ndo = \"close\"").contains("counts from 1"));
        assert!(rule("delay_ms = 60001").contains("a minute"));
        assert!(rule("crash_after_ms = 60001").contains("a minute"));
        assert!(error("[serve]\npause_ms = 60001\n").starts_with("[serve]: "));
        assert!(error("[serve]\nclients = 0\n").contains("counts from 1"));
        assert!(rule("code = 3\ndo = \"ack\"").contains("nack"));
        assert!(rule("reply.payload = \"0g\"").contains("hexadecimal"));
        assert!(rule("reply.payload = \"000\"").contains("hexadecimal"));
        assert!(error("[[ring]]\non = \"kick\"\nid = 3\n").starts_with("[[ring]] 1: "));
        assert!(error("[[ring]]\non = \"call\"\n").contains("`times`"));
    }
}
