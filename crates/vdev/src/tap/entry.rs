//! A recording: one JSON object a line, so that `grep`, `jq` and a crash in the middle of a write are all survived.
//!
//! ```text
//! {"kiln_vhost_recording":1,"started_unix_ms":…,"listen":"a.sock","connect":"b.sock"}
//! {"time_us":12,"session":1,"event":"connected"}
//! {"time_us":40,"session":1,"event":"message","channel":"main","from":"frontend","request":1,"name":"GET_FEATURES","flags":1}
//! {"time_us":71,"session":1,"event":"message","channel":"main","from":"backend","request":1,…,"payload":"0000…","fds":[…]}
//! {"time_us":99,"session":1,"event":"ended","channel":"main","from":"frontend","how":"closed"}
//! {"time_us":120,"session":1,"event":"over"}
//! ```
//! A reader skips fields and events that it does not know; another number after `kiln_vhost_recording` is another format.

use serde::{Deserialize, Serialize};

use super::descriptor::Descriptor;

/// The format that is written and read.
pub(super) const RECORDING_VERSION: u32 = 1;

/// The first line of a recording, and of each recording that was appended to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Opening {
    /// [`RECORDING_VERSION`].
    pub kiln_vhost_recording: u32,
    /// When it began.
    #[serde(default)]
    pub started_unix_ms: u64,
    /// The socket that frontends connected to.
    #[serde(default)]
    pub listen: String,
    /// The backend's socket.
    #[serde(default)]
    pub connect: String,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Microseconds since the recording began.
    pub time_us: u64,
    /// Which frontend: 1 for the first that came.
    pub session: u32,
    /// What it was.
    #[serde(flatten)]
    pub event: TapEvent,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TapEvent {
    /// A frontend came and the backend took it.
    Connected,
    /// A frontend came and the backend could not be reached.
    Unreachable {
        /// Why.
        error: String,
    },
    /// A whole message passed.
    Message(Recorded),
    /// Bytes passed that are no message: what came before an end, or all that followed a wrong header.
    Bytes {
        /// On which connection.
        #[serde(default)]
        channel: TapChannel,
        /// Who sent them.
        from: Side,
        /// The bytes, of which at most the first few thousand are kept.
        #[serde(with = "hex")]
        payload: Vec<u8>,
        /// How many there were.
        bytes: u64,
        /// What came with them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        fds: Vec<Descriptor>,
        /// Why they are no message.
        reason: String,
    },
    /// One side will send no more.
    Ended {
        /// On which connection.
        #[serde(default)]
        channel: TapChannel,
        /// Which side.
        from: Side,
        /// How it ended.
        how: Ending,
    },
    /// Nothing more will come of this session.
    Over,
    /// The recording has the size that it may have; what followed was forwarded and not recorded.
    Full,
    /// Anything that a later version writes.
    #[serde(other)]
    Unknown,
}

/// A message as it passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// On which connection.
    #[serde(default)]
    pub channel: TapChannel,
    /// Who sent it.
    pub from: Side,
    /// Its number.
    pub request: u32,
    /// What the specification calls it; for people, readers go by the number.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Its flags, as they were.
    pub flags: u32,
    /// The bytes after its header.
    #[serde(default, with = "hex", skip_serializing_if = "Vec::is_empty")]
    pub payload: Vec<u8>,
    /// The descriptors that came with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fds: Vec<Descriptor>,
}

/// Which connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TapChannel {
    /// The one for requests of the frontend.
    #[default]
    Main,
    /// The one for requests of the backend.
    Backend,
}

/// Who sent something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The driver's side, such as a VMM.
    Frontend,
    /// The device's side.
    Backend,
}

impl Side {
    /// The other one.
    #[must_use]
    pub(super) const fn peer(self) -> Self {
        match self {
            Self::Frontend => Self::Backend,
            Self::Backend => Self::Frontend,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Frontend => "frontend",
            Self::Backend => "backend",
        }
    }
}

impl TapChannel {
    /// The side that sends requests on it.
    pub(super) const fn asker(self) -> Side {
        match self {
            Self::Main => Side::Frontend,
            Self::Backend => Side::Backend,
        }
    }
}

/// How a side stopped sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It closed its end, and receives nothing either.
    Closed,
    /// It shut down its sending and still receives.
    HalfClosed,
    /// Its peer had disconnected when something was to be passed on to it.
    PeerGone,
    /// The tap was stopped.
    Stopped,
    /// The connection failed.
    Failed,
}

mod hex {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    const DIGITS: &[u8; 16] = b"0123456789abcdef";

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            text.push(DIGITS[usize::from(byte >> 4)].into());
            text.push(DIGITS[usize::from(byte & 15)].into());
        }
        to.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
            return Err(D::Error::custom("an odd number of hexadecimal digits"));
        };
        let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
        pairs.iter().map(byte).collect::<Option<_>>().ok_or_else(|| D::Error::custom("a digit that is not hexadecimal"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(event: TapEvent) -> String {
        let entry = Entry { time_us: 7, session: 1, event };
        let line = serde_json::to_string(&entry).expect("it is plain data");
        assert_eq!(serde_json::from_str::<Entry>(&line).expect("it was just written"), entry);
        line
    }

    #[test]
    fn an_entry_is_what_it_was_when_it_is_read_again() {
        let line = round_trip(TapEvent::Message(Recorded {
            channel: TapChannel::Main,
            from: Side::Frontend,
            request: 12,
            name: "SET_VRING_KICK".into(),
            flags: 9,
            payload: vec![0, 1, 0xfe, 0xff],
            fds: vec![Descriptor::Eventfd, Descriptor::Memfd { bytes: 4096 }],
        }));
        assert!(line.contains(r#""payload":"0001feff""#), "{line}");
        assert!(line.contains(r#""fds":[{"kind":"eventfd"},{"kind":"memfd","bytes":4096}]"#), "{line}");
        round_trip(TapEvent::Over);
        round_trip(TapEvent::Ended { channel: TapChannel::Backend, from: Side::Backend, how: Ending::HalfClosed });
    }

    #[test]
    fn what_a_later_version_writes_is_no_error() {
        let later = r#"{"time_us":1,"session":1,"event":"teleported","where":"mars"}"#;
        let entry: Entry = serde_json::from_str(later).expect("an unknown event");
        assert_eq!(entry.event, TapEvent::Unknown);
    }

    #[test]
    fn hexadecimal_digits_are_checked() {
        let line = |payload: &str| {
            let line = format!(
                r#"{{"time_us":1,"session":1,"event":"message","from":"backend","request":1,"flags":5,"payload":"{payload}"}}"#
            );
            serde_json::from_str::<Entry>(&line)
        };
        assert!(line("00ff").is_ok());
        for bad in ["0", "0g", "é0", "+1"] {
            assert!(line(bad).is_err(), "{bad}");
        }
    }
}
