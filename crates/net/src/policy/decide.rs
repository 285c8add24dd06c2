//! The decisions of a policy, in the order of the table in [`crate::policy`].

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use super::class::{Class, unwrapped};
use super::decision::{DecidedBy, Decision, Destination, NameDecision};
use super::domain::Domain;
use super::learned::Learned;
use super::rule::{Ports, Protocol, Protocols, Rule, Target};
use super::rules::{Policy, PolicyDefault};
use crate::inner::{GATEWAY, RESOLVER_PORT};

/// Ports of resolvers: DNS, and DNS over TLS or QUIC.
const RESOLVER_PORTS: [u16; 2] = [RESOLVER_PORT, 853];

impl Policy {
    /// Whether a guest may reach a destination.
    pub fn decide(&self, to: &Destination, learned: &Learned, now: Instant) -> Decision {
        let class = Class::of(to.address);
        let is_public = class == Class::Public && !learned.is_host_address(to.address);
        self.fixed(to, class)
            .or_else(|| self.denied(to))
            .or_else(|| self.allowed(to, class, learned.is_host_address(to.address)))
            .or_else(|| self.without_ipv6(to.address))
            .or_else(|| self.learned(to, learned, now).filter(|_| is_public))
            .or_else(|| self.elsewhere(to))
            .unwrap_or_else(|| self.by_default(class, is_public))
            .into()
    }

    /// Whether a name may be resolved, and the rules that open ports of its addresses.
    pub fn decide_name(&self, name: &Domain) -> NameDecision {
        let everything = |rule: &&Rule| rule.ports == Ports::All && rule.protocols == Protocols::All;
        if let Some(rule) = self.deny.by_name(name).chain(self.deny.any().filter(everything)).next() {
            return NameDecision::Denied { rule: rule.clone() };
        }
        let rules: Vec<Rule> = self.allow.by_name(name).cloned().collect();
        let is_open = self.default_rule() == PolicyDefault::Public || self.allow.any().next().is_some();
        if rules.is_empty() && !is_open { NameDecision::NoRule } else { NameDecision::Allowed { rules } }
    }

    /// Whether a guest may reach a port of a name, if its address is public and no rule is about that address.
    pub fn decide_name_and_port(&self, name: &Domain, protocol: Protocol, port: u16) -> Decision {
        let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let to = Destination { address: unspecified, protocol, port };
        let denied = self.deny.by_name(name).chain(self.deny.any().filter(|rule| rule.is_for(&to))).next();
        let any = || self.allow.any().find(|rule| rule.is_for(&to)).cloned().map(DecidedBy::AllowRule);
        let by_name = || {
            let rule = self.allow.by_name(name).find(|rule| rule.is_for(&to))?;
            Some(DecidedBy::AllowName { rule: rule.clone(), name: name.clone() })
        };
        denied
            .cloned()
            .map(DecidedBy::DenyRule)
            .or_else(any)
            .or_else(by_name)
            .or_else(|| self.elsewhere(&to))
            .unwrap_or_else(|| self.by_default(Class::Public, true))
            .into()
    }

    /// Whether some port of an address is open by address: by a rule, a rule with `*`, or the default. The resolver
    /// leaves such addresses in its answers, also if they are private.
    pub fn may_reach(&self, address: IpAddr, learned: &Learned) -> bool {
        let class = Class::of(address);
        let is_public = class == Class::Public && !learned.is_host_address(address);
        if class.never_opens() {
            return false;
        }
        let has_version = |rule: &Rule| self.has_version(address) || is_ipv6(rule);
        let is_own = learned.is_host_address(address);
        let rules = self.allow.by_network(address).any(|rule| opens(rule, class, is_own) && has_version(rule));
        let any = is_public && self.allow.any().next().is_some();
        rules || ((any || self.default_rule() == PolicyDefault::Public) && is_public && self.has_version(address))
    }

    /// Whether some IPv6 address may be open.
    pub fn may_use_ipv6(&self) -> bool {
        self.has_ipv6() || self.allow().iter().any(is_ipv6)
    }

    /// Whether the policy has the address's version of IP.
    fn has_version(&self, address: IpAddr) -> bool {
        self.has_ipv6() || unwrapped(address).is_ipv4() && !is_translated(address)
    }

    fn fixed(&self, to: &Destination, class: Class) -> Option<DecidedBy> {
        let is_resolver = to.protocol != Protocol::Icmp && to.port == RESOLVER_PORT;
        if to.address == IpAddr::V4(GATEWAY) && (is_resolver || to.protocol == Protocol::Icmp) {
            return Some(DecidedBy::Gateway);
        }
        class.never_opens().then_some(DecidedBy::Never(class))
    }

    fn denied(&self, to: &Destination) -> Option<DecidedBy> {
        let any = self.deny.any().find(|rule| rule.is_for(to));
        let by_address = self.deny.by_network(to.address).find(|rule| rule.is_for(to));
        by_address.or(any).cloned().map(DecidedBy::DenyRule)
    }

    fn allowed(&self, to: &Destination, class: Class, is_own: bool) -> Option<DecidedBy> {
        let is_public = class == Class::Public && !is_own;
        let by_address = self.allow.by_network(to.address).filter(|rule| opens(rule, class, is_own));
        // A rule with an IPv6 network asks for IPv6. The address of NAT64 matches rules for IPv4, which do not.
        let by_address = by_address.filter(|rule| self.has_version(to.address) || is_ipv6(rule));
        let any = self.allow.any().filter(|_| is_public && self.has_version(to.address));
        by_address.chain(any).find(|rule| rule.is_for(to)).cloned().map(DecidedBy::AllowRule)
    }

    fn without_ipv6(&self, address: IpAddr) -> Option<DecidedBy> {
        (!self.has_version(address)).then_some(DecidedBy::Ipv6)
    }

    fn learned(&self, to: &Destination, learned: &Learned, now: Instant) -> Option<DecidedBy> {
        learned.names(to.address, now).find_map(|(name, _)| {
            if self.deny.by_name(name).next().is_some() {
                return None;
            }
            let rule = self.allow.by_name(name).find(|rule| rule.is_for(to))?;
            Some(DecidedBy::AllowName { rule: rule.clone(), name: name.clone() })
        })
    }

    fn elsewhere(&self, to: &Destination) -> Option<DecidedBy> {
        let is_resolver = to.protocol != Protocol::Icmp && RESOLVER_PORTS.contains(&to.port);
        (self.default_rule() == PolicyDefault::Public && self.has_names() && is_resolver)
            .then_some(DecidedBy::ResolverElsewhere)
    }

    fn by_default(&self, class: Class, is_public: bool) -> DecidedBy {
        match self.default_rule() {
            PolicyDefault::Public if is_public => DecidedBy::Default(PolicyDefault::Public),
            PolicyDefault::Public if class == Class::Public => DecidedBy::HostAddress,
            PolicyDefault::Public => DecidedBy::NotPublic(class),
            PolicyDefault::Deny => DecidedBy::Default(PolicyDefault::Deny),
        }
    }
}

/// Whether a rule about a network opens an address of this kind in it. An address of the host opens only for a rule with
/// this address alone, and a private one only for a rule inside a private range: a rule with a wide network means the
/// internet.
fn opens(rule: &Rule, class: Class, is_own: bool) -> bool {
    let Target::Network(cidr) = rule.target else { return false };
    let is_named = !is_own || cidr.is_host();
    match class {
        Class::Public => is_named,
        Class::Private | Class::Shared => is_named && Class::around(cidr).is_some(),
        Class::Loopback | Class::LinkLocal | Class::Metadata | Class::Multicast | Class::Reserved => false,
    }
}

fn is_ipv6(rule: &Rule) -> bool {
    matches!(rule.target, Target::Network(cidr) if cidr.address().is_ipv6())
}

/// Whether an IPv6 address leads to an IPv4 address through a translator (NAT64). The packet is one of IPv6.
fn is_translated(address: IpAddr) -> bool {
    address.to_canonical().is_ipv6() && unwrapped(address).is_ipv4()
}
