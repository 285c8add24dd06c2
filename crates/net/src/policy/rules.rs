//! The policy of a VM: a default and two lists of rules.

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::class::Class;
use super::index::Index;
use super::rule::{Ports, Protocols, Rule, Target};

/// Rules that one list may have.
pub const RULES_MAX: usize = 65_536;

/// What is open without a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyDefault {
    /// Nothing.
    #[default]
    Deny,
    /// Public addresses.
    Public,
}

/// What a VM may reach. See [`crate::policy`] for the order of its grounds.
///
/// Its serialised form has the rules as text:
/// `{"default":"deny","ipv6":false,"allow":["example.org:443"],"deny":[]}`.
///
/// ```
/// use std::time::Instant;
/// use kiln_net::policy::{Destination, Learned, Policy, PolicyDefault};
///
/// let policy = Policy::new(PolicyDefault::Public, false, vec!["10.1.0.0/16:5432".parse()?], vec!["*:25".parse()?])?;
/// let decide = |to: &str| policy.decide(&Destination::tcp(to.parse().unwrap()), &Learned::default(), Instant::now());
/// assert!(decide("192.0.2.1:443").is_allowed());
/// assert!(decide("10.1.2.3:5432").is_allowed());
/// assert_eq!(decide("192.0.2.1:25").by.to_string(), "rule `--deny *:25`");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(try_from = "Form", into = "Form")]
pub struct Policy {
    default: PolicyDefault,
    ipv6: bool,
    pub(super) allow: Index,
    pub(super) deny: Index,
}

/// Why rules make no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// An allow rule would open what never opens.
    #[error("no rule can open `{rule}`: it is {class}")]
    NeverOpens {
        /// The rule.
        rule: Rule,
        /// What it is for.
        class: Class,
    },
    /// A deny rule by name has a port or a protocol.
    #[error("the deny rule `{rule}` is for a part of a name")]
    DenyPart {
        /// The rule.
        rule: Rule,
    },
    /// A list is too long.
    #[error("a policy can't have {count} rules in one list")]
    TooMany {
        /// Rules in the list.
        count: usize,
    },
}

impl PolicyError {
    /// What the user can do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NeverOpens { class: Class::Loopback, .. } => {
                Some("let the service listen on another address of the host, and allow that address".into())
            }
            Self::NeverOpens { .. } => None,
            Self::DenyPart { rule } => {
                let Target::Name(pattern) = &rule.target else { return None };
                let everywhere = Rule { target: Target::Any, ..rule.clone() };
                Some(format!(
                    "a denied name is not resolved at all: deny `{pattern}`, or deny the port everywhere with `{everywhere}`"
                ))
            }
            Self::TooMany { .. } => Some(format!("a list holds up to {RULES_MAX} rules; use `*.` or a wider network")),
        }
    }
}

impl Policy {
    /// A policy of these rules. A rule that is in a list twice counts once.
    pub fn new(default: PolicyDefault, ipv6: bool, allow: Vec<Rule>, deny: Vec<Rule>) -> Result<Self, PolicyError> {
        for rule in &allow {
            check_allow(rule)?;
        }
        for rule in &deny {
            check_deny(rule)?;
        }
        Ok(Self { default, ipv6, allow: Index::new(once(allow)?), deny: Index::new(once(deny)?) })
    }

    /// What is open without a rule.
    pub fn default_rule(&self) -> PolicyDefault {
        self.default
    }

    /// Whether names and the default may lead to IPv6 addresses.
    pub fn has_ipv6(&self) -> bool {
        self.ipv6
    }

    /// The allow list, in the order it was written in.
    pub fn allow(&self) -> &[Rule] {
        self.allow.rules()
    }

    /// The deny list, in the order it was written in.
    pub fn deny(&self) -> &[Rule] {
        self.deny.rules()
    }

    /// Whether a rule is about names. Such a policy needs its own resolver to be the only one.
    pub fn has_names(&self) -> bool {
        self.allow.has_names() || self.deny.has_names()
    }
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        (self.default, self.ipv6, self.allow(), self.deny()) == (other.default, other.ipv6, other.allow(), other.deny())
    }
}

impl Eq for Policy {}

impl fmt::Display for PolicyDefault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Deny => "deny",
            Self::Public => "public",
        })
    }
}

/// The serialised form. A field that is absent has the value that opens least.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    #[serde(default)]
    default: PolicyDefault,
    #[serde(default)]
    ipv6: bool,
    #[serde(default)]
    allow: Vec<Rule>,
    #[serde(default)]
    deny: Vec<Rule>,
}

impl TryFrom<Form> for Policy {
    type Error = PolicyError;

    fn try_from(form: Form) -> Result<Self, PolicyError> {
        Self::new(form.default, form.ipv6, form.allow, form.deny)
    }
}

impl From<Policy> for Form {
    fn from(policy: Policy) -> Self {
        let (allow, deny) = (policy.allow().to_vec(), policy.deny().to_vec());
        Self { default: policy.default, ipv6: policy.ipv6, allow, deny }
    }
}

fn check_allow(rule: &Rule) -> Result<(), PolicyError> {
    let Target::Network(cidr) = rule.target else { return Ok(()) };
    match Class::around(cidr).filter(|class| class.never_opens()) {
        Some(class) => Err(PolicyError::NeverOpens { rule: rule.clone(), class }),
        None => Ok(()),
    }
}

/// A name is denied by not resolving it. Its addresses are not known before, and are shared by many names, so single
/// ports of it can't be closed.
fn check_deny(rule: &Rule) -> Result<(), PolicyError> {
    let is_part = rule.ports != Ports::All || rule.protocols != Protocols::All;
    match rule.target {
        Target::Name(_) if is_part => Err(PolicyError::DenyPart { rule: rule.clone() }),
        Target::Name(_) | Target::Network(_) | Target::Any => Ok(()),
    }
}

fn once(rules: Vec<Rule>) -> Result<Vec<Rule>, PolicyError> {
    let mut seen = HashSet::new();
    let rules: Vec<Rule> = rules.into_iter().filter(|rule| seen.insert(rule.clone())).collect();
    if rules.len() > RULES_MAX {
        return Err(PolicyError::TooMany { count: rules.len() });
    }
    Ok(rules)
}
