//! The rule that decides about a destination, in words: what `kiln net explain VM HOST PORT` prints.
//!
//! A [`Question`] names a host by address or by name. The [`Explanation`] is for people as text and for programs as
//! data. It comes from the same decisions that flows and names get, so it can't differ from them.

use std::fmt;
use std::net::IpAddr;
use std::time::Instant;

use serde::Serialize;

use crate::gate::Gate;
use crate::policy::{
    DecidedBy, Decision, Destination, Domain, DomainFault, Learned, NameDecision, Policy, Protocol, Verdict,
};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    host: Host,
    protocol: Protocol,
    /// 0 for echo.
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    Name(Domain),
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// The host is neither an address nor a name.
    #[error("the host `{host}` is not a name: {fault}")]
    Host {
        /// The text.
        host: String,
        /// What is wrong with it.
        fault: DomainFault,
    },
    /// TCP and UDP have ports, and echo has none.
    #[error("the question about `{host}` for {protocol} has {}", if *has_port { "a port" } else { "no port" })]
    Port {
        /// The host.
        host: String,
        /// The protocol.
        protocol: Protocol,
        /// Whether there is a port.
        has_port: bool,
    },
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The host that was asked for.
    pub host: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The port, absent for echo.
    pub port: Option<u16>,
    /// `allow` or `deny`.
    pub verdict: Verdict,
    /// What decides.
    pub by: String,
    /// For a name: what the resolver does, and the addresses that it has learned.
    pub name: Option<NameExplanation>,
    /// A rule that would open it, if a rule can.
    pub rule_to_allow: Option<String>,
}

/// What is known about a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NameExplanation {
    /// Whether the resolver answers.
    pub is_resolved: bool,
    /// Why.
    pub by: String,
    /// Addresses that the resolver has learned for the name, and that are open for it now.
    pub addresses: Vec<AddressExplanation>,
}

/// One address of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AddressExplanation {
    /// The address.
    pub address: IpAddr,
    /// `allow` or `deny`.
    pub verdict: Verdict,
    /// What decides about it.
    pub by: String,
    /// How long the name opens it, if it is not used. Use makes it longer.
    pub seconds: u64,
}

impl QuestionError {
    /// What the user can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Host { .. } => "name a host such as `example.org` or `192.0.2.1`, without a port",
            Self::Port { has_port: true, .. } => "echo requests have no ports: leave the port out",
            Self::Port { .. } => "add a port, such as 443",
        }
    }
}

impl Question {
    /// A question about a host.
    pub fn new(host: &str, protocol: Protocol, port: Option<u16>) -> Result<Self, QuestionError> {
        if (protocol == Protocol::Icmp) == port.is_some() {
            return Err(QuestionError::Port { host: host.to_owned(), protocol, has_port: port.is_some() });
        }
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let host = match bare.parse() {
            Ok(address) => Host::Address(address),
            Err(_) => {
                Host::Name(Domain::new(host).map_err(|fault| QuestionError::Host { host: host.to_owned(), fault })?)
            }
        };
        Ok(Self { host, protocol, port: port.unwrap_or(0) })
    }

    fn to(&self, address: IpAddr) -> Destination {
        Destination { address, protocol: self.protocol, port: self.port }
    }
}

/// Answers a question as the gate decides at this moment.
pub fn explain(gate: &Gate, question: &Question, now: Instant) -> Explanation {
    let (policy, learned) = (gate.policy(), gate.learned());
    let (decision, name) = match &question.host {
        Host::Address(address) => (policy.decide(&question.to(*address), &learned, now), None),
        Host::Name(domain) => {
            let (decision, name) = about_name(&policy, &learned, question, domain, now);
            (decision, Some(name))
        }
    };
    Explanation {
        host: question.host.to_string(),
        protocol: question.protocol,
        port: (question.protocol != Protocol::Icmp).then_some(question.port),
        verdict: decision.verdict,
        by: decision.by.to_string(),
        name,
        rule_to_allow: rule_to_allow(question, &decision.by),
    }
}

fn about_name(
    policy: &Policy,
    learned: &Learned,
    question: &Question,
    name: &Domain,
    now: Instant,
) -> (Decision, NameExplanation) {
    let decision = policy.decide_name_and_port(name, question.protocol, question.port);
    let (is_resolved, by) = match policy.decide_name(name) {
        NameDecision::Denied { rule } => (false, format!("rule `--deny {rule}`")),
        NameDecision::NoRule => (false, "no rule allows the name".to_owned()),
        NameDecision::Allowed { rules } => match rules.first() {
            Some(rule) => (true, format!("rule `--allow {rule}`")),
            None => (true, "public addresses are open".to_owned()),
        },
    };
    let address = |(address, until): (IpAddr, Instant)| {
        let decision = policy.decide(&question.to(address), learned, now);
        let seconds = until.saturating_duration_since(now).as_secs();
        AddressExplanation { address, verdict: decision.verdict, by: decision.by.to_string(), seconds }
    };
    let addresses = learned.addresses(name, now).into_iter().map(address).collect();
    (decision, NameExplanation { is_resolved, by, addresses })
}

/// A rule helps against a default. Against a deny rule or an address that never opens it does not.
fn rule_to_allow(question: &Question, by: &DecidedBy) -> Option<String> {
    match by {
        DecidedBy::Default(default) if *default == crate::policy::PolicyDefault::Public => return None,
        DecidedBy::Default(_) | DecidedBy::NotPublic(_) | DecidedBy::HostAddress => {}
        DecidedBy::Ipv6 | DecidedBy::ResolverElsewhere if matches!(question.host, Host::Address(_)) => {}
        _ => return None,
    }
    Some(match (question.protocol, &question.host) {
        (Protocol::Icmp, host) => format!("icmp/{host}"),
        (protocol, Host::Address(IpAddr::V6(address))) => format!("{protocol}/[{address}]:{}", question.port),
        (protocol, host) => format!("{protocol}/{host}:{}", question.port),
    })
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Name(name) => write!(f, "{name}"),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port.map(|port| format!(" port {port}")).unwrap_or_default();
        write!(f, "{} to {}{port}: {}\n  why: {}", self.protocol, self.host, self.verdict, self.by)?;
        if let Some(name) = &self.name {
            let resolved = if name.is_resolved { "resolved" } else { "refused" };
            write!(f, "\n  the name is {resolved}: {}", name.by)?;
            for AddressExplanation { address, verdict, by, seconds } in &name.addresses {
                write!(f, "\n  {address} ({seconds} s left): {verdict}, {by}")?;
            }
            if name.is_resolved && name.addresses.is_empty() && self.by.contains("as an address of") {
                f.write_str("\n  no address is open yet: the guest must ask for the name first")?;
            }
        }
        if let Some(rule) = &self.rule_to_allow {
            write!(f, "\n  `--allow {rule}` would open it")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use insta::assert_snapshot;

    use super::*;
    use crate::policy::{Opening, PolicyDefault};

    fn gate(default: PolicyDefault, allow: &[&str], deny: &[&str]) -> Gate {
        let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a rule")).collect();
        Gate::new(Policy::new(default, false, rules(allow), rules(deny)).expect("a policy"))
    }

    fn text(gate: &Gate, host: &str, port: u16, now: Instant) -> String {
        let question = Question::new(host, Protocol::Tcp, Some(port)).expect("a question");
        explain(gate, &question, now).to_string()
    }

    #[test]
    fn addresses_are_explained_by_the_rule_that_decides() {
        let gate = gate(PolicyDefault::Public, &["10.1.0.0/16:5432", "example.org"], &["*:25"]);
        let now = Instant::now();
        let places = [
            ("203.0.113.1", 443),
            ("203.0.113.1", 25),
            ("203.0.113.1", 53),
            ("10.1.2.3", 5432),
            ("10.1.2.3", 80),
            ("127.0.0.1", 22),
            ("169.254.169.254", 80),
            ("[2001:db8::1]", 443),
            ("169.254.0.22", 53),
        ];
        assert_snapshot!(places.map(|(host, port)| text(&gate, host, port, now)).join("\n\n"));
    }

    #[test]
    fn names_are_explained_with_what_the_resolver_does() {
        let gate = gate(PolicyDefault::Deny, &["example.org:443", "*.example.org:443"], &["ads.example.org"]);
        let now = Instant::now();
        let before = text(&gate, "example.org", 443, now);
        let name = Domain::new("example.org").expect("a name");
        let address = "203.0.113.1".parse().expect("an address");
        gate.learn([&Opening { name, address, lasts: Duration::from_secs(90) }]);
        let places = [("example.org", 443), ("example.org", 80), ("ads.example.org", 443), ("example.com", 443)];
        // The opening was learned a little later than `now`.
        let after = places.map(|(host, port)| text(&gate, host, port, now + Duration::from_millis(1500)));
        assert_snapshot!([&[before][..], &after].concat().join("\n\n"));
    }

    #[test]
    fn names_under_public_are_open_unless_they_are_denied() {
        let gate = gate(PolicyDefault::Public, &[], &["ads.example.org", "*:25"]);
        let now = Instant::now();
        let places = [("example.org", 443), ("example.org", 25), ("example.org", 853), ("ads.example.org", 443)];
        assert_snapshot!(places.map(|(host, port)| text(&gate, host, port, now)).join("\n\n"));
    }

    #[test]
    fn an_explanation_is_data_for_programs() {
        let gate = gate(PolicyDefault::Deny, &["example.org"], &[]);
        let echo = Question::new("example.org", Protocol::Icmp, None).expect("a question");
        let port = Question::new("192.0.2.1", Protocol::Udp, Some(53)).expect("a question");
        let json = [echo, port]
            .map(|question| serde_json::to_string(&explain(&gate, &question, Instant::now())).expect("it is written"));
        assert_snapshot!(json.join("\n"));
    }

    #[test]
    fn errors_of_questions_read_like_this() {
        let errors = [
            Question::new("example.org:443", Protocol::Tcp, Some(443)),
            Question::new("10.1.2", Protocol::Tcp, Some(443)),
            Question::new("example.org", Protocol::Udp, None),
            Question::new("example.org", Protocol::Icmp, Some(1)),
        ];
        let line = |result: Result<Question, QuestionError>| {
            let error = result.expect_err("it is no question");
            format!("{error}\n    hint: {}", error.hint())
        };
        assert_snapshot!(errors.map(line).join("\n"));
    }
}
