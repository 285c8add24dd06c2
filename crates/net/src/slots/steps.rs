//! A policy as a list of steps: conditions with a verdict, in the order of the policy's grounds, and the sets that they
//! ask. `rules.rs` writes each step twice, once for each direction of a flow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use super::expression::{Side, accept, count, go_to, has_ports, protocol, set_mark};
use super::nftables::Element;
use crate::inner::RESOLVER_PORT;
use crate::policy::{
    Cidr, Class, NameDecision, Opening, Policy, PolicyDefault, Ports, Protocols, Rule, Target, unwrapped,
};

/// Different combinations of ports and protocols in one list. Each costs two rules that a new flow passes.
pub(super) const SHAPES_MAX: usize = 512;
/// Addresses that are open for names, for each combination of ports.
pub(super) const LEARNED_MAX: u32 = 4096;
/// The start of the names of their sets.
pub(super) const LEARNED: &str = "learned";
/// The sets of addresses that never open, that are private, and that are the host's own.
pub(super) const NEVER: &str = "never";
pub(super) const PRIVATE: &str = "private";
pub(super) const OWN: &str = "own";
/// DNS, and DNS over TLS or QUIC.
const RESOLVER_PORTS: [u16; 2] = [RESOLVER_PORT, 853];

/// Why a policy has no rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the policy has {count} different combinations of ports and protocols in one list")]
pub struct TooManyShapes {
    /// How many.
    pub count: usize,
}

/// What a policy is applied with.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) policy: &'a Policy,
    /// Addresses of the host.
    pub(super) own: &'a [Ipv4Addr],
    /// Addresses that are open for names now.
    pub(super) openings: &'a [Opening],
    /// The mark of this application: a random number.
    pub(super) mark: u32,
}

/// The ports and protocols of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape {
    ports: Ports,
    protocols: Protocols,
}

impl Shape {
    const ALL: Self = Self { ports: Ports::All, protocols: Protocols::All };

    fn of(rule: &Rule) -> Self {
        Self { ports: rule.ports.clone(), protocols: rule.protocols }
    }

    pub(super) fn expressions(&self, side: Side) -> Vec<Value> {
        let ports = side.ports(&self.ports);
        let protocol = match self.protocols {
            Protocols::One(one) => Some(protocol(one)),
            // A rule with a port is for protocols that have ports.
            Protocols::All => ports.as_ref().map(|_| has_ports()),
        };
        protocol.into_iter().chain(ports).collect()
    }
}

/// One condition with its verdict.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) comment: &'static str,
    within: Option<String>,
    without: &'static [&'static str],
    shape: Shape,
    opens: bool,
    counter: &'static str,
}

#[derive(Debug, Default)]
pub(super) struct Steps {
    pub(super) list: Vec<Step>,
    pub(super) sets: Vec<(String, Vec<Value>)>,
}

impl Step {
    pub(super) fn expressions(&self, side: Side, mark: u32) -> Vec<Value> {
        let mut rule: Vec<Value> = self.within.iter().map(|set| side.is_in(set)).collect();
        rule.extend(self.without.iter().map(|set| side.is_not_in(set)));
        rule.extend(self.shape.expressions(side));
        rule.push(count(self.counter));
        match (self.opens, side) {
            (true, _) => rule.extend([set_mark(mark), accept()]),
            (false, Side::Destination) => rule.push(go_to("refuse")),
            (false, Side::Source) => rule.push(go_to("end")),
        }
        rule
    }
}

/// The grounds of [`crate::policy`], in their order.
pub(super) fn steps(context: &Context<'_>) -> Result<Steps, TooManyShapes> {
    let policy = context.policy;
    let mut steps = Steps::default();
    let step = |comment, within: Option<&str>, without, shape, opens, counter| Step {
        comment,
        within: within.map(str::to_owned),
        without,
        shape,
        opens,
        counter,
    };
    steps.list.push(step("never open", Some(NEVER), &[], Shape::ALL, false, "never"));
    for rule in policy.deny().iter().filter(|rule| rule.target == Target::Any) {
        steps.list.push(step("deny all", None, &[], Shape::of(rule), false, "denied"));
    }
    for (shape, networks) in by_shape(policy.deny(), |_| true)? {
        let name = steps.set("deny", networks);
        steps.list.push(step("deny", Some(&name), &[], shape, false, "denied"));
    }
    for (scope, without) in [(Scope::Exact, &[][..]), (Scope::Inside, &[OWN]), (Scope::Wide, &[PRIVATE, OWN])] {
        for (shape, networks) in by_shape(policy.allow(), |cidr| Scope::of(cidr) == scope)? {
            let name = steps.set("allow", networks);
            steps.list.push(step("allow", Some(&name), without, shape, true, "allowed"));
        }
    }
    for rule in policy.allow().iter().filter(|rule| rule.target == Target::Any) {
        steps.list.push(step("allow all", None, &[PRIVATE, OWN], Shape::of(rule), true, "allowed"));
    }
    for shape in name_shapes(policy)? {
        let set = learned_set(&shape);
        steps.list.push(step("allow by name", Some(&set), &[PRIVATE, OWN], shape, true, "learned"));
    }
    if policy.default_rule() == PolicyDefault::Public {
        for port in RESOLVER_PORTS.into_iter().filter(|_| policy.has_names()) {
            let shape = Shape { ports: Ports::Range(port, port), protocols: Protocols::All };
            steps.list.push(step("resolvers elsewhere", None, &[], shape, false, "elsewhere"));
        }
        steps.list.push(step("public", None, &[PRIVATE, OWN], Shape::ALL, true, "public"));
    }
    steps.list.push(step("the host itself", Some(OWN), &[], Shape::ALL, false, "own"));
    steps.list.push(step("the default", None, &[], Shape::ALL, false, "default"));
    Ok(steps)
}

impl Steps {
    /// Adds a set and returns its name.
    fn set(&mut self, kind: &str, networks: Vec<Cidr>) -> String {
        let name = format!("{kind}_{}", self.sets.len());
        self.sets.push((name.clone(), intervals(networks)));
        name
    }
}

/// The elements that open an address for a name, under this policy.
pub(super) fn elements(policy: &Policy, openings: &[Opening]) -> Vec<Element> {
    let mut elements = Vec::new();
    for opening in openings {
        let IpAddr::V4(address) = unwrapped(opening.address) else { continue };
        if Class::of(address.into()) != Class::Public {
            continue;
        }
        let NameDecision::Allowed { rules } = policy.decide_name(&opening.name) else { continue };
        let sets = rules.iter().map(|rule| learned_set(&Shape::of(rule)));
        elements.extend(sets.map(|set| Element { set, address, lasts: opening.lasts }));
    }
    elements
}

/// The addresses of the host that rules of this policy name one by one.
pub(super) fn own_open(policy: &Policy, own: &[Ipv4Addr]) -> BTreeMap<Shape, Vec<Cidr>> {
    let mut open: BTreeMap<Shape, Vec<Cidr>> = BTreeMap::new();
    for rule in policy.allow() {
        if let Target::Network(cidr) = rule.target
            && cidr.is_host()
            && own.iter().any(|address| cidr.address() == IpAddr::V4(*address))
        {
            open.entry(Shape::of(rule)).or_default().push(cidr);
        }
    }
    open
}

/// How far a rule about a network reaches, see [`crate::policy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// One address. It opens also if it is private, or the host's.
    Exact,
    /// A network inside a private range.
    Inside,
    /// Any other network. Only its public addresses open.
    Wide,
}

impl Scope {
    fn of(cidr: Cidr) -> Self {
        match Class::around(cidr) {
            _ if cidr.is_host() => Self::Exact,
            Some(Class::Private | Class::Shared) => Self::Inside,
            _ => Self::Wide,
        }
    }
}

fn by_shape(rules: &[Rule], wanted: impl Fn(Cidr) -> bool) -> Result<BTreeMap<Shape, Vec<Cidr>>, TooManyShapes> {
    let mut shapes: BTreeMap<Shape, Vec<Cidr>> = BTreeMap::new();
    for rule in rules {
        if let Target::Network(cidr) = rule.target
            && cidr.address().is_ipv4()
            && wanted(cidr)
        {
            shapes.entry(Shape::of(rule)).or_default().push(cidr);
        }
    }
    bounded(shapes.len())?;
    Ok(shapes)
}

pub(super) fn name_shapes(policy: &Policy) -> Result<Vec<Shape>, TooManyShapes> {
    let by_name = policy.allow().iter().filter(|rule| matches!(rule.target, Target::Name(_)));
    let shapes: BTreeSet<Shape> = by_name.map(Shape::of).collect();
    bounded(shapes.len())?;
    Ok(shapes.into_iter().collect())
}

fn bounded(count: usize) -> Result<(), TooManyShapes> {
    if count > SHAPES_MAX { Err(TooManyShapes { count }) } else { Ok(()) }
}

pub(super) fn learned_set(shape: &Shape) -> String {
    let protocol = match shape.protocols {
        Protocols::All => "all".to_owned(),
        Protocols::One(protocol) => protocol.to_string(),
    };
    let ports = shape.ports.range();
    format!("{LEARNED}_{protocol}_{}_{}", ports.start(), ports.end())
}

pub(super) fn with_elements(definition: Value, shape: &Shape, context: &Context<'_>) -> Value {
    let set = learned_set(shape);
    // An address of two names stays as long as the one that ends last.
    let mut lasting: BTreeMap<Ipv4Addr, u64> = BTreeMap::new();
    for element in elements(context.policy, context.openings).into_iter().filter(|element| element.set == set) {
        let seconds = element.lasts.as_secs().max(1);
        let known = lasting.entry(element.address).or_default();
        *known = seconds.max(*known);
    }
    let list: Vec<Value> = lasting
        .into_iter()
        .take(usize::try_from(LEARNED_MAX).expect("64 bits"))
        .map(|(address, seconds)| json!({ "elem": { "val": address.to_string(), "timeout": seconds } }))
        .collect();
    let mut definition = definition;
    if !list.is_empty() {
        definition["elem"] = list.into();
    }
    definition
}

pub(super) fn set_of(elements: Vec<Value>) -> Value {
    let mut definition = json!({ "type": "ipv4_addr", "flags": ["interval"] });
    if !elements.is_empty() {
        definition["elem"] = elements.into();
    }
    definition
}

/// The IPv4 networks as ranges that do not touch. nft refuses ranges that overlap.
pub(super) fn intervals(networks: impl IntoIterator<Item = Cidr>) -> Vec<Value> {
    let ranges = networks.into_iter().filter_map(|cidr| {
        let IpAddr::V4(first) = cidr.address() else { return None };
        let last = first.to_bits() | u32::MAX.checked_shr(cidr.prefix().into()).unwrap_or(0);
        Some((first.to_bits(), last))
    });
    let mut ranges: Vec<(u32, u32)> = ranges.collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u32, u32)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    let text = |bits| Ipv4Addr::from_bits(bits).to_string();
    let element = |(first, last)| {
        if first == last { text(first).into() } else { json!({ "range": [text(first), text(last)] }) }
    };
    merged.into_iter().map(element).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::inner::GATEWAY;
    use crate::policy::{BLOCKS, Destination, Domain, Learned, Protocol};

    const OWN_ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 113, 5), Ipv4Addr::new(10, 1, 2, 3)];

    /// The bounds of each element of a set.
    fn bounds(elements: &[Value]) -> Vec<(u32, u32)> {
        let bits = |value: &Value| value.as_str().expect("text").parse::<Ipv4Addr>().expect("an address").to_bits();
        let bound = |element: &Value| match element["range"].as_array() {
            Some(range) => (bits(&range[0]), bits(&range[1])),
            None => (bits(element), bits(element)),
        };
        elements.iter().map(bound).collect()
    }

    /// What the kernel does with the steps.
    fn carried_out(steps: &Steps, to: &Destination, openings: &[Element]) -> bool {
        let IpAddr::V4(address) = to.address else { panic!("the rules are for IPv4") };
        let of_blocks = |never: bool| {
            intervals(BLOCKS.iter().filter(|block| block.class.never_opens() == never).map(|block| block.cidr))
        };
        let is_in = |set: &str| {
            let elements = match set {
                NEVER => of_blocks(true),
                PRIVATE => of_blocks(false),
                OWN => intervals(OWN_ADDRESSES.map(|address| Cidr::host(address.into()))),
                _ if set.starts_with(LEARNED) => {
                    let of_set = openings.iter().filter(|element| element.set == set);
                    intervals(of_set.map(|element| Cidr::host(element.address.into())))
                }
                _ => steps.sets.iter().find(|(name, _)| name == set).expect("is made").1.clone(),
            };
            bounds(&elements).iter().any(|(first, last)| (*first..=*last).contains(&address.to_bits()))
        };
        let shape = |shape: &Shape| {
            let rule = Rule { target: Target::Any, ports: shape.ports.clone(), protocols: shape.protocols };
            rule.is_for(to)
        };
        let matching = steps.list.iter().find(|step| {
            step.within.as_deref().is_none_or(is_in) && !step.without.iter().any(|set| is_in(set)) && shape(&step.shape)
        });
        matching.expect("the last step is for all").opens
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let network = (address(), 0_u8..=32).prop_map(|(address, prefix)| format!("{address}/{prefix}"));
        let target = prop_oneof![network, address().prop_map(|address| address.to_string()), Just("*".to_owned())];
        let ports = prop_oneof![Just(""), Just(":80"), Just(":53"), Just(":75-85")];
        let protocol = prop_oneof![Just(""), Just("tcp/"), Just("udp/")];
        (protocol, target, ports)
            .prop_map(|(protocol, target, ports)| format!("{protocol}{target}{ports}").parse().expect("is a rule"))
    }

    fn address() -> impl Strategy<Value = Ipv4Addr> {
        let near =
            [[203, 0, 113, 5], [203, 0, 113, 6], [10, 1, 2, 3], [10, 1, 2, 4], [127, 0, 0, 1], [169, 254, 169, 254]];
        let others = [[100, 64, 0, 1], [192, 168, 7, 7], [198, 51, 100, 7], [224, 0, 0, 1], [172, 16, 5, 5]];
        let known = near.into_iter().chain(others).map(Ipv4Addr::from).collect::<Vec<_>>();
        prop_oneof![4 => prop::sample::select(known), 1 => any::<u32>().prop_map(Ipv4Addr::from_bits)]
    }

    fn destination() -> impl Strategy<Value = Destination> {
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Icmp)];
        let port = prop_oneof![Just(80_u16), Just(53), Just(853), Just(443)];
        (address(), protocol, port).prop_map(|(address, protocol, port)| Destination {
            address: address.into(),
            protocol,
            port: if protocol == Protocol::Icmp { 0 } else { port },
        })
    }

    proptest! {
        /// `explain` answers with the policy, and packets meet the rules. Both must decide the same.
        #[test]
        fn the_rules_decide_as_the_policy_does(
            public: bool,
            allow in prop::collection::vec(rule(), 0..5),
            deny in prop::collection::vec(rule(), 0..3),
            with_name: bool,
            learned_at in address(),
            to in destination(),
        ) {
            let default = if public { PolicyDefault::Public } else { PolicyDefault::Deny };
            let named = with_name.then(|| "example.org:80".parse().expect("is a rule"));
            // Rules that would open what never opens make no policy.
            let valid = |rule: &Rule| Policy::new(default, false, vec![rule.clone()], vec![]).is_ok();
            let allow: Vec<Rule> = allow.into_iter().filter(valid).chain(named).collect();
            let policy = Policy::new(default, false, allow, deny).expect("is a policy");
            let name = Domain::new("example.org").expect("is a name");
            let opening = Opening { name, address: learned_at.into(), lasts: std::time::Duration::from_secs(60) };
            let mut learned = Learned::default();
            learned.set_host_addresses(OWN_ADDRESSES.map(IpAddr::from));
            learned.learn(&opening, Instant::now());

            let context = Context { policy: &policy, own: &OWN_ADDRESSES, openings: &[], mark: 7 };
            let steps = steps(&context).expect("few shapes");
            let openings = elements(&policy, &[opening]);
            // The gateway has rules of its own.
            prop_assume!(to.address != IpAddr::V4(GATEWAY));
            let decided = policy.decide(&to, &learned, Instant::now());
            prop_assert_eq!(carried_out(&steps, &to, &openings), decided.is_allowed(), "{} {:?}", to, decided);
        }
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let networks = ["10.0.0.0/9", "10.128.0.0/9", "11.0.0.0", "255.255.255.255", "10.3.0.0/16", "2001:db8::/32"];
        let cidr = |text: &&str| match text.parse::<Rule>().expect("is a rule").target {
            Target::Network(cidr) => cidr,
            other => panic!("{other:?}"),
        };
        let found = intervals(networks.iter().map(cidr));
        assert_eq!(found, [json!({ "range": ["10.0.0.0", "11.0.0.0"] }), json!("255.255.255.255")]);
    }

    #[test]
    fn a_list_with_too_many_shapes_is_refused() {
        let rules = (1..=u16::try_from(SHAPES_MAX).expect("is small") + 1).map(|port| format!("192.0.2.1:{port}"));
        let rules = rules.map(|rule| rule.parse().expect("is a rule")).collect();
        let policy = Policy::new(PolicyDefault::Deny, false, rules, vec![]).expect("is a policy");
        let context = Context { policy: &policy, own: &[], openings: &[], mark: 7 };
        let error = steps(&context).expect_err("too many");
        assert_eq!(error, TooManyShapes { count: SHAPES_MAX + 1 });
    }
}
