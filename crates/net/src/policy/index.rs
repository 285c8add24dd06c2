//! Look-ups in a list of rules that take the same time for ten rules and for ten thousand.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use super::cidr::network;
use super::class::unwrapped;
use super::domain::{Domain, Pattern};
use super::rule::{Rule, Target};

/// A list of rules by what they are about. Of several rules that match, the first of the list is found.
#[derive(Debug, Clone, Default)]
pub(super) struct Index {
    rules: Vec<Rule>,
    any: Vec<usize>,
    networks: HashMap<(IpAddr, u8), Vec<usize>>,
    /// Lengths of prefixes that networks have, the longest first: as many look-ups find the networks of an address.
    prefixes: Vec<u8>,
    exact: HashMap<String, Vec<usize>>,
    below: HashMap<String, Vec<usize>>,
}

impl Index {
    pub(super) fn new(rules: Vec<Rule>) -> Self {
        let mut index = Self::default();
        let mut prefixes = BTreeSet::new();
        for (number, rule) in rules.iter().enumerate() {
            let numbers = match &rule.target {
                Target::Any => &mut index.any,
                Target::Network(cidr) => {
                    prefixes.insert(cidr.prefix());
                    index.networks.entry((cidr.address(), cidr.prefix())).or_default()
                }
                Target::Name(Pattern::Exact(name)) => index.exact.entry(name.as_str().to_owned()).or_default(),
                Target::Name(Pattern::Below(name)) => index.below.entry(name.as_str().to_owned()).or_default(),
            };
            numbers.push(number);
        }
        index.prefixes = prefixes.into_iter().rev().collect();
        index.rules = rules;
        index
    }

    pub(super) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    pub(super) fn has_names(&self) -> bool {
        !self.exact.is_empty() || !self.below.is_empty()
    }

    /// Rules with `*`.
    pub(super) fn any(&self) -> impl Iterator<Item = &Rule> {
        self.any.iter().map(|number| &self.rules[*number])
    }

    /// All rules about networks that have this address. The narrowest network is first.
    pub(super) fn by_network(&self, address: IpAddr) -> impl Iterator<Item = &Rule> {
        let address = unwrapped(address);
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefixes = self.prefixes.iter().copied().filter(move |prefix| *prefix <= longest);
        let numbers = prefixes.filter_map(move |prefix| self.networks.get(&(network(address, prefix), prefix)));
        numbers.flatten().map(|number| &self.rules[*number])
    }

    /// All rules whose pattern stands for this name. The narrowest pattern is first.
    pub(super) fn by_name<'a>(&'a self, name: &'a Domain) -> impl Iterator<Item = &'a Rule> {
        let exact = self.exact.get(name.as_str());
        let below = name.parents().filter_map(|parent| self.below.get(parent));
        exact.into_iter().chain(below).flatten().map(|number| &self.rules[*number])
    }
}
