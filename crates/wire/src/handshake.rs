//! How a link starts and ends.
//!
//! ```text
//!   host                                   agent
//!    │ reset marker (virtio-serial only) ──▶ │  drops the old link: streams end, sessions stay
//!    │ ◀── the marker again                  │
//!    │ Hello ───────────────────────────────▶ │
//!    │ ◀─────────────────────────────── Hello │  or Goodbye{version} with both versions
//!    │ Auth{token} ─────────────────────────▶ │  if the agent's Hello has `auth`; within 5 s; has its own stream
//!    │ ◀───────────────────────── Done | Error │
//!    │ Sync ────────────────────────────────▶ │  after a restore, before anything else; thaws a frozen guest; has its
//!    │ ◀───────────────────────── Done | Error │  own stream
//!    │ streams …                              │
//!    │ Goodbye ─────────────────────────────▶ │
//! ```

use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::fault::cut_words;
use crate::text::Text;

/// Version of the protocol that this crate implements.
pub const VERSION: u16 = 2;
/// An agent that requires a token closes the link after this long without one.
pub const AUTH_DEADLINE: Duration = Duration::from_secs(5);

/// First frame of each side. Unknown fields are ignored here, so that a later version can still be read and refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the sender.
    pub version: u16,
    /// Program and version, for people.
    #[serde(deserialize_with = "cut_words")]
    pub agent: String,
    /// What the sender can do. Unknown capabilities are ignored.
    #[serde(default)]
    pub capabilities: Vec<Capability>,
    /// The kernel's boot id; empty from the host.
    #[serde(default, deserialize_with = "cut_words")]
    pub boot_id: String,
}

/// A feature that not every agent has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// A token is required.
    Auth,
    /// Limits by cgroup v2: memory, cpu, pids. Without it commands can't be frozen.
    Cgroups,
    /// The agent is PID 1 and can sync the clock, randomness and identity.
    Init,
    /// Code streams.
    Code,
    /// Trace streams.
    Trace,
    /// A command whose timeout expires gets a SIGTERM first; see [`Limits::grace_ms`](crate::Limits::grace_ms).
    Grace,
    /// `Sync` can connect interfaces and mount disks.
    Setup,
    /// A command whose timeout expires gets the signal that its request names; see
    /// [`Limits::stop_signal`](crate::Limits::stop_signal).
    StopSignal,
    /// The root is that of an image, and [`FileRequest::Changes`](crate::FileRequest::Changes) packs its changes.
    Changes,
    /// A capability that this version does not have.
    #[serde(other)]
    Unknown,
}

/// Payload of `Auth`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Auth {
    /// The secret.
    pub token: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Auth { token: … }")
    }
}

/// The most interfaces whose addresses an [`Identity`] sets.
pub const MACS_MAX: usize = 8;

/// Payload of `Sync`: what makes a fork its own machine. A frozen guest is thawed after all of it is done, so no
/// command runs between a restore and its new identity. If any part fails, the guest stays frozen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sync {
    /// The host's clock, nanoseconds since 1970. It arrives late by its transfer time. So the agent does not set a
    /// clock back by less than a second if commands have already read it.
    pub host_time_ns: u64,
    /// Randomness for the guest's kernel, base64 of 32 to 512 bytes.
    pub seed: String,
    /// Names of the machine; unchanged if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// What the interfaces are connected to; unchanged if absent. Needs [`Capability::Setup`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Disks to mount, in this order. One that is mounted there already is grown to the size of its device. Needs
    /// [`Capability::Setup`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
}

/// The most name servers that a C library asks.
pub const NAMESERVERS_MAX: usize = 3;
/// The most disks that one [`Sync`] mounts.
pub const MOUNTS_MAX: usize = 16;

/// The networks of a machine. A second one with the same content changes nothing, so that it costs a fork little.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// One for each of the guest's Ethernet interfaces, in the kernel's order; at most [`MACS_MAX`] and no more than
    /// there are interfaces. The remaining interfaces stay as they are.
    pub interfaces: Vec<Interface>,
    /// The name servers of `/etc/resolv.conf`, at most [`NAMESERVERS_MAX`]. If there is none, the file is left as it
    /// is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<Ipv4Addr>,
}

/// The addresses of one interface. It is brought up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Its address.
    pub address: Ipv4Addr,
    /// Bits of the address that name the network, at most 32.
    pub prefix: u8,
    /// The next hop to all other networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// Bytes of its largest packet: 68 to 65535. If absent, the kernel's default of 1500.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
}

/// A disk's filesystem, mounted in the guest. Its directory is created if it does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// The disk, such as `/dev/vdb`.
    pub device: String,
    /// An absolute path.
    pub target: Text,
    /// The type of the filesystem, such as `ext4`.
    pub fstype: String,
    /// Whether nothing can be written to it.
    #[serde(default)]
    pub read_only: bool,
}

/// Names of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// 1 to 64 of `[A-Za-z0-9-.]`.
    pub hostname: String,
    /// 32 lower-case hexadecimal digits.
    pub machine_id: String,
    /// Unicast addresses like `52:54:00:12:34:56`, in lower case, for the guest's Ethernet interfaces in the kernel's
    /// order; at most [`MACS_MAX`] and no more than there are interfaces. The remaining interfaces keep their
    /// addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub macs: Vec<String>,
}

/// Payload of `Goodbye`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
pub struct Goodbye {
    /// Why.
    #[serde(deserialize_with = "reason_of_any_version")]
    pub reason: GoodbyeReason,
}

/// `serde(other)` accepts an unknown variant only as a plain string, not with data, so such a reason is mapped here.
fn reason_of_any_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<GoodbyeReason, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(GoodbyeReason::deserialize(value).unwrap_or(GoodbyeReason::Unknown))
}

/// Why a side ends the link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum GoodbyeReason {
    /// The sender can't serve the receiver's version.
    #[error("protocol version {theirs} can't be served, only {ours}")]
    Version {
        /// Version of the sender.
        ours: u16,
        /// Version of the receiver, as the sender saw it.
        theirs: u16,
    },
    /// No token, or a wrong one, within [`AUTH_DEADLINE`].
    #[error("not authorized")]
    Unauthorized,
    /// The byte stream can't be split into frames any more.
    #[error("protocol error: {0}")]
    Protocol(#[serde(deserialize_with = "cut_words")] String),
    /// A newer link has replaced this one.
    #[error("replaced by a newer link")]
    Replaced,
    /// The sender shuts down.
    #[error("shutting down")]
    Shutdown,
    /// A reason that this version does not have.
    #[serde(other)]
    #[error("a reason that this version does not know")]
    Unknown,
}

/// Checks the peer's Hello.
///
/// # Errors
/// If the versions differ: the refusal to send, which has both versions.
pub fn negotiate(theirs: &Hello) -> Result<(), Goodbye> {
    if theirs.version == VERSION {
        Ok(())
    } else {
        Err(Goodbye { reason: GoodbyeReason::Version { ours: VERSION, theirs: theirs.version } })
    }
}

/// Compares tokens in a time that depends only on the length of `given`. A comparison that stops at the first wrong
/// byte would let a peer find the token byte by byte from the time that a refusal takes. Each byte of `given` is
/// therefore compared, past the end of `expected` too, and `black_box` keeps the compiler from returning early.
pub fn token_matches(expected: &str, given: &str) -> bool {
    let (expected, given) = (expected.as_bytes(), given.as_bytes());
    let mut difference = u8::from(expected.len() != given.len());
    for (index, byte) in given.iter().enumerate() {
        let other = if expected.is_empty() { !byte } else { expected[index % expected.len()] };
        difference |= byte ^ other;
    }
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(version: u16) -> Hello {
        Hello { version, agent: "test".into(), capabilities: vec![], boot_id: String::new() }
    }

    #[test]
    fn another_version_is_refused_and_both_are_named() {
        let refusal = negotiate(&hello(VERSION + 1)).expect_err("a later version is refused");
        let words = refusal.to_string();
        assert!(words.contains(&VERSION.to_string()) && words.contains(&(VERSION + 1).to_string()), "{words}");
        assert_eq!(negotiate(&hello(VERSION)), Ok(()));
    }

    #[test]
    fn a_hello_with_unknown_fields_is_read() {
        let json = r#"{"version":9,"agent":"x","capabilities":["auth","teleport"],"boot_id":"b","more":1}"#;
        let hello: Hello = serde_json::from_str(json).expect("unknown fields are ignored");
        assert_eq!(hello.capabilities, [Capability::Auth, Capability::Unknown]);
    }

    #[test]
    fn only_the_same_token_matches() {
        assert!(token_matches("secret", "secret"));
        for wrong in ["", "secre", "secret2", "secretsecret", "Secret"] {
            assert!(!token_matches("secret", wrong), "{wrong}");
        }
        assert!(!token_matches("", "x"));
        assert!(token_matches("", ""));
    }

    #[test]
    fn a_token_is_not_printed() {
        assert!(!format!("{:?}", Auth { token: "hush".into() }).contains("hush"));
    }
}
