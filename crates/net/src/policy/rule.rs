//! One rule: a target, its ports and its protocols.
//!
//! A rule is written as `[PROTOCOL/]TARGET[:PORT]`, and its `Display` writes that form again.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::cidr::Cidr;
use super::decision::Destination;
use super::domain::Pattern;
use super::parse::RuleError;

/// What a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// The echo requests of ICMP. No other message of a guest is forwarded.
    Icmp,
}

/// The protocols of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocols {
    /// A rule without a protocol: TCP and UDP, and also echo if the rule has no port.
    All,
    /// One protocol.
    One(Protocol),
}

/// The ports of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ports {
    /// A rule without a port.
    All,
    /// From one port to another, both included.
    Range(u16, u16),
}

/// Who a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// `*`: to allow, all public addresses. To deny, all addresses.
    Any,
    /// An address or a network.
    Network(Cidr),
    /// Addresses that the resolver learned for such a name.
    Name(Pattern),
}

/// A rule of an allow or a deny list. Its serialised form is its text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    /// Who it is about.
    pub target: Target,
    /// Which ports.
    pub ports: Ports,
    /// Which protocols.
    pub protocols: Protocols,
}

impl Rule {
    /// Whether the rule is for the port and the protocol of this destination. The target is not compared.
    pub fn is_for(&self, destination: &Destination) -> bool {
        let protocol = match self.protocols {
            Protocols::All => true,
            Protocols::One(protocol) => protocol == destination.protocol,
        };
        protocol && self.ports.is_for(destination)
    }
}

impl Ports {
    /// The ports as a range.
    pub fn range(&self) -> RangeInclusive<u16> {
        match self {
            Self::All => 0..=u16::MAX,
            Self::Range(first, last) => *first..=*last,
        }
    }

    fn is_for(&self, destination: &Destination) -> bool {
        match self {
            Self::All => true,
            // Echo has no ports, so a rule with a port is not for it.
            Self::Range(first, last) => {
                destination.protocol != Protocol::Icmp && (*first..=*last).contains(&destination.port)
            }
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Protocols::One(protocol) = self.protocols {
            write!(f, "{protocol}/")?;
        }
        match &self.target {
            Target::Any => f.write_str("*")?,
            Target::Network(cidr) if cidr.address().is_ipv6() && self.ports != Ports::All => write!(f, "[{cidr}]")?,
            Target::Network(cidr) => write!(f, "{cidr}")?,
            Target::Name(pattern) => write!(f, "{pattern}")?,
        }
        match self.ports {
            Ports::All => Ok(()),
            Ports::Range(first, last) if first == last => write!(f, ":{first}"),
            Ports::Range(first, last) => write!(f, ":{first}-{last}"),
        }
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> Self {
        rule.to_string()
    }
}

impl TryFrom<String> for Rule {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse()
    }
}

impl From<IpAddr> for Target {
    fn from(address: IpAddr) -> Self {
        Self::Network(Cidr::host(address))
    }
}
