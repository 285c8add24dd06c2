//! What a policy answers, with the ground for it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::class::Class;
use super::domain::Domain;
use super::rule::{Protocol, Rule};
use super::rules::PolicyDefault;

/// Where a guest wants to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Destination {
    /// The address.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port. Echo has none, and 0 here.
    pub port: u16,
}

/// Whether it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Yes.
    Allow,
    /// No.
    Deny,
}

/// A verdict and its ground.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The verdict.
    pub verdict: Verdict,
    /// What decided.
    pub by: DecidedBy,
}

/// What decided about a destination: the grounds of the table in [`crate::policy`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecidedBy {
    /// The resolver or the echo of the VM's own gateway.
    Gateway,
    /// The address is of a kind that never opens.
    Never(Class),
    /// A rule of the deny list.
    DenyRule(Rule),
    /// A rule of the allow list, by address.
    AllowRule(Rule),
    /// The policy did not ask for IPv6.
    Ipv6,
    /// A rule of the allow list, for a name that has this address.
    AllowName {
        /// The rule.
        rule: Rule,
        /// The name that was asked for.
        name: Domain,
    },
    /// The port of a resolver elsewhere, in a policy with rules by name.
    ResolverElsewhere,
    /// The default is `public`, and the address is not public.
    NotPublic(Class),
    /// The default is `public`, and the address is one of the host's own.
    HostAddress,
    /// The default alone.
    Default(PolicyDefault),
}

/// Whether a name may be resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameDecision {
    /// The name is forwarded. The rules open ports of its addresses.
    Allowed {
        /// Rules of the allow list that match the name. Without any, the name is resolved because public addresses are
        /// open anyway, for the default or for a rule with `*`.
        rules: Vec<Rule>,
    },
    /// The name is refused, by this rule.
    Denied {
        /// The rule of the deny list.
        rule: Rule,
    },
    /// The name is refused, because no rule allows it.
    NoRule,
}

impl Destination {
    /// A destination of TCP.
    pub fn tcp(to: SocketAddr) -> Self {
        Self { address: to.ip(), protocol: Protocol::Tcp, port: to.port() }
    }

    /// A destination of UDP.
    pub fn udp(to: SocketAddr) -> Self {
        Self { address: to.ip(), protocol: Protocol::Udp, port: to.port() }
    }

    /// An echo request to an address.
    pub fn echo(address: IpAddr) -> Self {
        Self { address, protocol: Protocol::Icmp, port: 0 }
    }
}

impl Decision {
    /// Whether the verdict is [`Verdict::Allow`].
    pub fn is_allowed(&self) -> bool {
        self.verdict == Verdict::Allow
    }
}

impl From<DecidedBy> for Decision {
    fn from(by: DecidedBy) -> Self {
        let verdict = match by {
            DecidedBy::Gateway
            | DecidedBy::AllowRule(_)
            | DecidedBy::AllowName { .. }
            | DecidedBy::Default(PolicyDefault::Public) => Verdict::Allow,
            DecidedBy::Never(_)
            | DecidedBy::DenyRule(_)
            | DecidedBy::Ipv6
            | DecidedBy::ResolverElsewhere
            | DecidedBy::NotPublic(_)
            | DecidedBy::HostAddress
            | DecidedBy::Default(PolicyDefault::Deny) => Verdict::Deny,
        };
        Self { verdict, by }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.protocol, self.address) {
            (Protocol::Icmp, address) => write!(f, "icmp/{address}"),
            (protocol, address) => write!(f, "{protocol}/{}", SocketAddr::new(address, self.port)),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

impl fmt::Display for DecidedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway => f.write_str("the gateway of the VM answers names and echo"),
            Self::Never(class) => write!(f, "{class} is never open"),
            Self::DenyRule(rule) => write!(f, "rule `--deny {rule}`"),
            Self::AllowRule(rule) => write!(f, "rule `--allow {rule}`"),
            Self::Ipv6 => f.write_str("the policy does not have IPv6"),
            Self::AllowName { rule, name } => write!(f, "rule `--allow {rule}`, as an address of `{name}`"),
            Self::ResolverElsewhere => {
                f.write_str("the policy has rules by name, so names are resolved only at the gateway")
            }
            Self::NotPublic(class) => write!(f, "the default `public`: {class} is not public"),
            Self::HostAddress => f.write_str("the default `public`: an address of the host itself is not public"),
            Self::Default(default) => write!(f, "the default `{default}`"),
        }
    }
}
