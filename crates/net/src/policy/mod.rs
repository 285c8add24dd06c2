//! What a VM may reach. Everything here is a value or a function of values, without I/O.
//!
//! Rules are read from text such as `example.org:443` ([`Rule`]). A [`Policy`] is a default and two lists of rules, and
//! [`Policy::decide`] answers for one destination. These grounds are tried in this order, and the first one decides:
//!
//! | | ground | verdict |
//! |---|---|---|
//! | 1 | the resolver and the echo of the VM's own gateway | allow |
//! | 2 | addresses that never open: loopback, link-local, metadata services, multicast, reserved ([`Class::never_opens`]) | deny |
//! | 3 | a deny rule by address, or `*` | deny |
//! | 4 | an allow rule by address, or `*` for public addresses | allow |
//! | 5 | IPv6 in a policy that did not ask for it | deny |
//! | 6 | an allow rule by name, if the resolver learned this public address for the name | allow |
//! | 7 | ports 53 and 853, if the policy has rules by name: resolvers elsewhere would go around them | deny |
//! | 8 | the default: `public` allows public addresses, `deny` allows nothing | |
//!
//! So a deny rule always wins over an allow rule, however narrow the allow rule is.
//!
//! **Private addresses** open only for a rule that names them: its network must be inside a private range. The rule
//! `10.1.0.0/16` opens them, and `0.0.0.0/0` opens only public addresses. An answer of the resolver never opens one.
//!
//! **Names** are decided before they are forwarded ([`Policy::decide_name`]): a deny rule wins, then an allow rule, then
//! the default. Under `public` a denied name is not resolved, but its address stays reachable by number: addresses are
//! shared by many names, so a rule by name can't close one.

mod change;
mod cidr;
mod class;
mod decide;
mod decision;
mod domain;
mod index;
mod learned;
mod parse;
mod rule;
mod rules;
#[cfg(test)]
mod tests;

pub use change::Change;
pub use cidr::Cidr;
pub use class::{BLOCKS, Block, Class, unwrapped};
pub use decision::{DecidedBy, Decision, Destination, NameDecision, Verdict};
pub use domain::{Domain, DomainFault, NAME_BYTES_MAX, Pattern};
pub use learned::{LEARNED_ADDRESSES_MAX, LEARNED_NAMES_MAX, Learned, Opening};
pub use parse::RuleError;
pub use rule::{Ports, Protocol, Protocols, Rule, Target};
pub use rules::{Policy, PolicyDefault, PolicyError, RULES_MAX};
