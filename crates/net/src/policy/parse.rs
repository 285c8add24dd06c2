//! Reads a rule: `[PROTOCOL/]TARGET[:PORT]`.
//!
//! ```text
//!   example.org              a name, all ports          *.example.org:443   all names below it, one port
//!   10.1.0.0/16:5432         a network, one port        udp/192.0.2.1:53    one protocol
//!   [2001:db8::/32]:8000-8080   IPv6, several ports     *:443               all addresses, one port
//! ```

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use super::cidr::Cidr;
use super::class::unwrapped_network;
use super::domain::{DomainFault, Pattern};
use super::rule::{Ports, Protocol, Protocols, Rule, Target};

/// A longer text is no rule: a name, a protocol and two ports fit.
const RULE_BYTES_MAX: usize = 300;

/// Why a text is not a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// There is no text, or no target in it.
    #[error("the rule `{rule}` has no target")]
    Empty {
        /// The text.
        rule: String,
    },
    /// The text is longer than any rule.
    #[error("a rule of {bytes} bytes is too long")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It is the address of a page.
    #[error("the rule `{rule}` is a URL")]
    Url {
        /// The text.
        rule: String,
        /// The host in it.
        host: String,
    },
    /// The protocol stands after the port.
    #[error("the rule `{rule}` has its protocol at the end")]
    ProtocolLast {
        /// The text.
        rule: String,
        /// The same rule in the right order.
        right: String,
    },
    /// The part after the last `:` is not a port.
    #[error("`{port}` in the rule `{rule}` is not a port")]
    Port {
        /// The text.
        rule: String,
        /// The part.
        port: String,
    },
    /// The last port is below the first.
    #[error("the ports `{ports}` in the rule `{rule}` are not in order")]
    PortOrder {
        /// The text.
        rule: String,
        /// The ports.
        ports: String,
    },
    /// Echo has no ports.
    #[error("the rule `{rule}` is for icmp and has a port")]
    IcmpPort {
        /// The text.
        rule: String,
    },
    /// The part after `/` is not the length of a prefix.
    #[error("`{prefix}` in the rule `{rule}` is not a length of a prefix")]
    Prefix {
        /// The text.
        rule: String,
        /// The part.
        prefix: String,
        /// The longest prefix of such an address.
        max: u8,
    },
    /// Brackets around something else than an IPv6 address.
    #[error("the rule `{rule}` has brackets without an IPv6 address in them")]
    Brackets {
        /// The text.
        rule: String,
    },
    /// The target is neither an address nor a name.
    #[error("the target `{target}` is not a name: {fault}")]
    Name {
        /// The target.
        target: String,
        /// What is wrong with it.
        fault: DomainFault,
    },
    /// A name has a length of a prefix.
    #[error("the rule `{rule}` has a prefix after something that is not an address")]
    PrefixOfName {
        /// The text.
        rule: String,
    },
}

impl RuleError {
    /// What the user can write instead.
    pub fn hint(&self) -> Option<String> {
        const FORM: &str = "write [tcp/|udp/|icmp/]TARGET[:PORT], as in `example.org:443`";
        match self {
            Self::Empty { .. } | Self::TooLong { .. } => Some(FORM.into()),
            Self::Url { host, .. } => Some(format!("a rule names a host, not a page: write `{host}`")),
            Self::ProtocolLast { right, .. } => Some(format!("write `{right}`")),
            Self::Port { .. } => Some(
                "a port is a number from 1 to 65535, or a range such as `8000-8080`; for more ports, write more rules"
                    .into(),
            ),
            Self::PortOrder { .. } => Some("write the lower port first".into()),
            Self::IcmpPort { .. } => Some("echo requests have no ports: leave the port out".into()),
            Self::Prefix { max, .. } => Some(format!("write a number from 0 to {max}")),
            Self::Brackets { .. } => Some("brackets hold an IPv6 address, as in `[2001:db8::1]:443`".into()),
            Self::Name { fault: DomainFault::Number, .. } => {
                Some("an IPv4 address has four numbers, as in `192.0.2.1`; a name does not end in a number".into())
            }
            Self::Name { .. } => {
                Some("write a name such as `example.org`, or `*.example.org` for all names below it".into())
            }
            Self::PrefixOfName { .. } => {
                Some("write a network as ADDRESS/LENGTH, such as `10.1.0.0/16`; protocols are tcp, udp and icmp".into())
            }
        }
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let rule = || text.to_owned();
        if text.len() > RULE_BYTES_MAX {
            return Err(RuleError::TooLong { bytes: text.len() });
        }
        if let Some((_, rest)) = text.split_once("://") {
            let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
            return Err(RuleError::Url { rule: rule(), host: host.to_owned() });
        }
        let (protocols, rest) = protocols(text);
        if let Some((right, last @ ("tcp" | "udp" | "icmp"))) = rest.rsplit_once('/') {
            return Err(RuleError::ProtocolLast { rule: rule(), right: format!("{last}/{right}") });
        }
        let (target, ports) = split(rest, text)?;
        let ports = ports.map_or(Ok(Ports::All), |ports| read_ports(ports, text))?;
        if protocols == Protocols::One(Protocol::Icmp) && ports != Ports::All {
            return Err(RuleError::IcmpPort { rule: rule() });
        }
        Ok(Self { target: read_target(target, text)?, ports, protocols })
    }
}

fn protocols(text: &str) -> (Protocols, &str) {
    let all = (Protocols::All, text);
    let Some((name, rest)) = text.split_once('/') else { return all };
    match name {
        "tcp" => (Protocols::One(Protocol::Tcp), rest),
        "udp" => (Protocols::One(Protocol::Udp), rest),
        "icmp" => (Protocols::One(Protocol::Icmp), rest),
        _ => all,
    }
}

/// Parts a target from its ports. An IPv6 address without brackets has no ports: its colons would be ambiguous.
fn split<'a>(text: &'a str, rule: &str) -> Result<(&'a str, Option<&'a str>), RuleError> {
    let brackets = || RuleError::Brackets { rule: rule.to_owned() };
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or_else(brackets)?;
        let address = inside.split('/').next().unwrap_or_default();
        address.parse::<Ipv6Addr>().map_err(|_| brackets())?;
        return match after.strip_prefix(':') {
            Some(ports) => Ok((inside, Some(ports))),
            None if after.is_empty() => Ok((inside, None)),
            None => Err(brackets()),
        };
    }
    let address = text.split('/').next().unwrap_or_default();
    if address.parse::<Ipv6Addr>().is_ok() {
        return Ok((text, None));
    }
    if text.matches(':').count() > 1 {
        return Err(brackets());
    }
    Ok(text.split_once(':').map_or((text, None), |(target, ports)| (target, Some(ports))))
}

fn read_ports(ports: &str, rule: &str) -> Result<Ports, RuleError> {
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last) = (read_port(first, rule)?, read_port(last, rule)?);
    if first > last {
        return Err(RuleError::PortOrder { rule: rule.to_owned(), ports: ports.to_owned() });
    }
    Ok(Ports::Range(first, last))
}

fn read_port(port: &str, rule: &str) -> Result<u16, RuleError> {
    let number = number(port).and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0);
    number.ok_or_else(|| RuleError::Port { rule: rule.to_owned(), port: port.to_owned() })
}

fn read_target(target: &str, rule: &str) -> Result<Target, RuleError> {
    if target.is_empty() {
        return Err(RuleError::Empty { rule: rule.to_owned() });
    }
    if target == "*" {
        return Ok(Target::Any);
    }
    let (address, prefix) = target.split_once('/').map_or((target, None), |(address, prefix)| (address, Some(prefix)));
    match (address.parse::<IpAddr>(), prefix) {
        (Ok(address), prefix) => network(address, prefix, rule).map(Target::Network),
        (Err(_), Some(_)) => Err(RuleError::PrefixOfName { rule: rule.to_owned() }),
        (Err(_), None) => {
            Pattern::new(target).map(Target::Name).map_err(|fault| RuleError::Name { target: target.to_owned(), fault })
        }
    }
}

/// A network in its one form: bits after the prefix are 0, and forms of IPv6 that lead to IPv4 are IPv4.
fn network(address: IpAddr, prefix: Option<&str>, rule: &str) -> Result<Cidr, RuleError> {
    let Some(prefix) = prefix else { return Ok(unwrapped_network(Cidr::host(address))) };
    let max = Cidr::host(address).prefix();
    let length = number(prefix).and_then(|length| u8::try_from(length).ok());
    let cidr = length.and_then(|length| Cidr::new(address, length));
    cidr.map(unwrapped_network).ok_or_else(|| RuleError::Prefix {
        rule: rule.to_owned(),
        prefix: prefix.to_owned(),
        max,
    })
}

/// A number of digits only: the parser of std also reads `+1`.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}
