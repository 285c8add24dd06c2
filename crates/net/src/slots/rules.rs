//! A policy as rules of nftables: a table inside the namespace of the slot, and a small one on the host.
//!
//! ```text
//!   guest ─▶ TAP ─▶ [forward: spoofed? of a flow that this policy opened? ─▶ asked ─▶ open, or refuse] ─▶ veth ─▶
//!         ─▶ host: [prerouting: not to the host itself] [forward: not to other slots] [masquerade] ─▶ uplink
//!   guest ◀─ TAP ◀─ [forward: of a flow that this policy opened? ─▶ answered ─▶ open, or end the flow] ◀─
//! ```
//! **Live changes.** Each application of a policy has a mark, a random number. A flow that a rule opens gets this mark,
//! and packets of marked flows pass without further checks. So an address that ends in a set keeps its flows. A new
//! policy has a new mark, so all flows are judged again at their next packet, in both directions: `asked` and `answered`
//! have the same rules, one by destination and one by source. A flow that is no longer open ends at once: a packet of
//! the guest is answered with RST. A segment for the guest becomes an RST itself, because its number is the one that the
//! guest expects. The next one is answered to the peer with RST.
//!
//! **The host's own addresses** are closed twice. Inside they are a set. On the host, the kernel's own lookup decides
//! (`fib daddr type`), so an address that the host gets later is closed as well.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use super::expression::{
    Hook, Side, Transaction, accept, count, ct, direction, drop, echo_request, from_link, go_to, has_ports, is_ipv6,
    mark_is, masquerade, matches, meta, not_to_link, payload, prohibit, protocol, reset, set_mark, state, to_link,
};
use super::journal::PREFIX;
use super::nftables::Element;
use crate::inner::{GATEWAY, GUEST, RESOLVER_PORT};
use crate::policy::{BLOCKS, Cidr, Class, Opening, Policy, PolicyDefault, Ports, Protocol, Protocols, Rule, Target};

/// The table inside a namespace.
pub(super) const TABLE: &str = "kiln";
/// The TAP device of a slot, the bridge of a lab network, and the way out, inside a namespace.
pub(super) const TAP: &str = "tap0";
pub(super) const BRIDGE: &str = "br0";
pub(super) const UPLINK: &str = "up0";
/// Different combinations of ports and protocols in one list. Each costs two rules that a new flow passes.
pub(super) const SHAPES_MAX: usize = 512;
/// Addresses that are open for names, for each combination of ports.
const LEARNED_MAX: u32 = 4096;
/// Destinations that were refused lately.
const DENIED_MAX: u32 = 1024;
const DENIED_SECONDS: u64 = 60;
pub(super) const DENIED: &str = "denied";
pub(super) const LEARNED: &str = "learned";
const PORTS: &str = "ports";
const PORTS_MAX: u32 = 512;
const NEVER: &str = "never";
const PRIVATE: &str = "private";
const OWN: &str = "own";
/// The mark of a flow whose guest got its RST. Marks of policies are larger.
const ENDED: u32 = 1;
/// DNS, and DNS over TLS or QUIC.
const RESOLVER_PORTS: [u16; 2] = [RESOLVER_PORT, 853];
/// Headers of IPv4 and TCP without options.
const HEADERS_BYTES: u32 = 40;

/// The counters of a slot, each with what it counts.
pub(super) const COUNTERS: [(&str, &str); 12] = [
    ("allowed", "an allow rule opened it"),
    ("learned", "an allow rule by name opened it"),
    ("public", "the default `public` opened it"),
    ("never", "the address never opens"),
    ("denied", "a deny rule closed it"),
    ("own", "the address is one of the host's own"),
    ("elsewhere", "a resolver other than the gateway"),
    ("default", "no rule opened it"),
    ("protocol", "neither TCP, UDP nor an echo request"),
    ("gateway", "a closed port of the gateway"),
    ("spoofed", "the sender was not the guest's address"),
    ("ipv6", "IPv6 is closed"),
];

/// Where guests are inside a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The link that they are behind.
    pub(super) link: &'static str,
    /// Their addresses: the first one, and the length of the prefix.
    pub(super) guests: (Ipv4Addr, u8),
    /// The address of that link, and the prefix that it shares with guests.
    pub(super) gateway: (Ipv4Addr, u8),
}

impl Place {
    /// One guest.
    pub(super) const SLOT: Self = Self { link: TAP, guests: (GUEST, 32), gateway: (GATEWAY, crate::inner::PREFIX) };
    /// Guests that see each other.
    pub(super) const LAB: Self = Self {
        link: BRIDGE,
        guests: (crate::inner::LAB_NETWORK, crate::inner::LAB_PREFIX),
        gateway: (crate::inner::LAB_GATEWAY, crate::inner::LAB_PREFIX),
    };
}

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

/// Adds the table of a namespace, without a policy. Nothing passes.
pub(super) fn close(table: &mut Transaction, place: Place, mtu: u32) {
    table.add_table();
    COUNTERS.iter().for_each(|(name, _)| table.add_counter(name));
    let triple = json!(["ipv4_addr", "inet_proto", "inet_service"]);
    let denied = json!({ "type": triple, "flags": ["timeout"], "timeout": DENIED_SECONDS, "size": DENIED_MAX });
    table.add_set(DENIED, denied);
    let blocks = |never: bool| {
        let of = BLOCKS.iter().filter(move |block| block.class.never_opens() == never);
        intervals(of.map(|block| block.cidr))
    };
    table.add_set(NEVER, set_of(blocks(true)));
    table.add_set(PRIVATE, set_of(blocks(false)));
    ["asked", "answered", "refuse", "end"].into_iter().for_each(|chain| table.add_chain(chain));
    refusals(table);
    forward(table, place, mtu);
    input(table, place);
    let hook = Hook { name: "leaving", kind: "nat", hook: "postrouting", priority: 100, policy: "accept" };
    table.add_base_chain(&hook);
    table.add_rule("leaving", "behind the slot's address", vec![to_link(UPLINK), masquerade()]);
    if place.link == BRIDGE {
        table.join(ports());
    }
}

/// Adds a port of the bridge, or deletes it. Only frames of its guest's own addresses pass it.
pub(super) fn port(command: &str, tap: &str, (address, mac): (Ipv4Addr, [u8; 6])) -> String {
    let mut table = Transaction::of_bridge(TABLE);
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    table.change_element(command, PORTS, json!({ "concat": [tap, mac, address.to_string()] }));
    table.into_json()
}

/// What passes the bridge of a lab network: IPv4 and ARP of members under their own addresses.
fn ports() -> Transaction {
    let mut table = Transaction::of_bridge(TABLE);
    table.add_table();
    table.add_set(PORTS, json!({ "type": ["ifname", "ether_addr", "ipv4_addr"], "size": PORTS_MAX }));
    let hook = Hook { name: "arriving", kind: "filter", hook: "prerouting", priority: -200, policy: "drop" };
    table.add_base_chain(&hook);
    for (kind, protocol, field) in [("ip", "ip", "saddr"), ("arp", "arp", "saddr ip")] {
        let sender = [meta("iifname"), payload("ether", "saddr"), payload(protocol, field)];
        let is_kind = matches("==", payload("ether", "type"), kind);
        let is_member = matches("==", json!({ "concat": sender }), format!("@{PORTS}"));
        table.add_rule("arriving", "members under their own addresses", vec![is_kind, is_member, accept()]);
    }
    table
}

/// Replaces the policy of a namespace. `sets` are the names of those that it has.
pub(super) fn replace(table: &mut Transaction, context: &Context<'_>, sets: &[String]) -> Result<(), TooManyShapes> {
    let steps = steps(context)?;
    for chain in ["asked", "answered"] {
        table.flush_chain(chain);
    }
    for set in sets.iter().filter(|name| ![DENIED, NEVER, PRIVATE].contains(&name.as_str())) {
        table.delete_set(set);
    }
    table.add_set(OWN, set_of(intervals(context.own.iter().map(|address| Cidr::host((*address).into())))));
    for shape in name_shapes(context.policy)? {
        let definition = json!({ "type": "ipv4_addr", "flags": ["timeout"], "size": LEARNED_MAX });
        table.add_set(&learned_set(&shape), with_elements(definition, &shape, context));
    }
    for (name, networks) in steps.sets {
        table.add_set(&name, set_of(networks));
    }
    for (chain, side) in [("asked", Side::Destination), ("answered", Side::Source)] {
        let rule = vec![mark_is(context.mark), accept()];
        table.add_rule(chain, "a flow that this policy opened", rule);
        if side == Side::Destination {
            let others = json!({ "set": ["tcp", "udp", "icmp"] });
            let rule = vec![matches("!=", meta("l4proto"), others), count("protocol"), go_to("refuse")];
            table.add_rule(chain, "no other protocols", rule);
            let others = matches("!=", payload("icmp", "type"), "echo-request");
            table.add_rule(chain, "of icmp only echo", vec![others, count("protocol"), go_to("refuse")]);
        }
        for step in &steps.list {
            table.add_rule(chain, step.comment, step.expressions(side, context.mark));
        }
    }
    Ok(())
}

/// The elements that open an address for a name, under this policy.
pub(super) fn elements(policy: &Policy, openings: &[Opening]) -> Vec<Element> {
    let mut elements = Vec::new();
    for opening in openings {
        let IpAddr::V4(address) = crate::policy::unwrapped(opening.address) else { continue };
        if Class::of(address.into()) != Class::Public {
            continue;
        }
        let crate::policy::NameDecision::Allowed { rules } = policy.decide_name(&opening.name) else { continue };
        let sets = rules.iter().map(|rule| learned_set(&Shape::of(rule)));
        elements.extend(sets.map(|set| Element { set, address, lasts: opening.lasts }));
    }
    elements
}

/// The table of a slot on the host. `guarded` are links that forward only because of us.
pub(super) fn host(slot: &HostSide<'_>) -> String {
    let mut table = Transaction::new(slot.link);
    // Made and deleted first, so that the transaction replaces what is there.
    table.add_table();
    table.delete_table();
    table.add_table();
    let hook = Hook { name: "arriving", kind: "filter", hook: "prerouting", priority: -250, policy: "accept" };
    table.add_base_chain(&hook);
    table.add_chain("local");
    let from = || from_link(slot.link);
    table.add_rule("arriving", "no ipv6", vec![from(), is_ipv6(), drop()]);
    table.add_rule("arriving", "only the slot's address", vec![from(), Side::Source.is_not(slot.address), drop()]);
    let kind = |operator| matches(operator, json!({ "fib": { "result": "type", "flags": ["daddr"] } }), "unicast");
    table.add_rule("arriving", "to the host itself", vec![from(), kind("!="), go_to("local")]);
    for (number, (shape, addresses)) in slot.own_open.iter().enumerate() {
        let name = format!("open_{number}");
        table.add_set(&name, set_of(intervals(addresses.iter().copied())));
        let mut rule = vec![Side::Destination.is_in(&name)];
        rule.extend(shape.expressions(Side::Destination));
        rule.push(accept());
        table.add_rule("local", "named by a rule", rule);
    }
    table.add_rule("local", "closed", vec![protocol(Protocol::Tcp), reset()]);
    table.add_rule("local", "closed", vec![prohibit()]);
    let hook = Hook { name: "forward", kind: "filter", hook: "forward", priority: 0, policy: "accept" };
    table.add_base_chain(&hook);
    let slots = format!("{PREFIX}*");
    table.add_rule("forward", "not to other slots", vec![from(), to_link(&slots), prohibit()]);
    let answers = vec![to_link(slot.link), state(&["established", "related"]), accept()];
    table.add_rule("forward", "answers", answers);
    table.add_rule("forward", "nothing else to the slot", vec![to_link(slot.link), drop()]);
    for link in slot.guarded {
        // The host does not route for this network, except for slots. Addresses that another program translated, such
        // as published ports of containers, stay as they are.
        let translated = matches("in", ct("status"), "dnat");
        let new = vec![from_link(link), not_to_link(&slots), state(&["new"]), translated, accept()];
        table.add_rule("forward", "translated by another program", new);
        let new = vec![from_link(link), not_to_link(&slots), state(&["new"]), drop()];
        table.add_rule("forward", "the host is not a router", new);
    }
    let hook = Hook { name: "leaving", kind: "nat", hook: "postrouting", priority: 100, policy: "accept" };
    table.add_base_chain(&hook);
    table.add_rule("leaving", "behind the host's address", vec![Side::Source.is(slot.address), masquerade()]);
    table.into_json()
}

/// What the host's table of a slot is made of.
#[derive(Debug)]
pub(super) struct HostSide<'a> {
    /// The link, and the name of the table.
    pub(super) link: &'a str,
    /// The address from which its packets come.
    pub(super) address: Ipv4Addr,
    /// Links that forward only because of us.
    pub(super) guarded: &'a [String],
    /// Addresses of the host that rules name.
    pub(super) own_open: &'a BTreeMap<Shape, Vec<Cidr>>,
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

    fn expressions(&self, side: Side) -> Vec<Value> {
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
struct Step {
    comment: &'static str,
    within: Option<String>,
    without: &'static [&'static str],
    shape: Shape,
    opens: bool,
    counter: &'static str,
}

#[derive(Debug, Default)]
struct Steps {
    list: Vec<Step>,
    sets: Vec<(String, Vec<Value>)>,
}

impl Step {
    fn expressions(&self, side: Side, mark: u32) -> Vec<Value> {
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
fn steps(context: &Context<'_>) -> Result<Steps, TooManyShapes> {
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

fn name_shapes(policy: &Policy) -> Result<Vec<Shape>, TooManyShapes> {
    let by_name = policy.allow().iter().filter(|rule| matches!(rule.target, Target::Name(_)));
    let shapes: std::collections::BTreeSet<Shape> = by_name.map(Shape::of).collect();
    bounded(shapes.len())?;
    Ok(shapes.into_iter().collect())
}

fn bounded(count: usize) -> Result<(), TooManyShapes> {
    if count > SHAPES_MAX { Err(TooManyShapes { count }) } else { Ok(()) }
}

fn learned_set(shape: &Shape) -> String {
    let protocol = match shape.protocols {
        Protocols::All => "all".to_owned(),
        Protocols::One(protocol) => protocol.to_string(),
    };
    let ports = shape.ports.range();
    format!("{LEARNED}_{protocol}_{}_{}", ports.start(), ports.end())
}

fn with_elements(definition: Value, shape: &Shape, context: &Context<'_>) -> Value {
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

fn set_of(elements: Vec<Value>) -> Value {
    let mut definition = json!({ "type": "ipv4_addr", "flags": ["interval"] });
    if !elements.is_empty() {
        definition["elem"] = elements.into();
    }
    definition
}

/// The IPv4 networks as ranges that do not touch. nft refuses ranges that overlap.
fn intervals(networks: impl IntoIterator<Item = Cidr>) -> Vec<Value> {
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

fn refusals(table: &mut Transaction) {
    let note = vec![has_ports(), Side::Destination.note_in(DENIED, DENIED_SECONDS)];
    table.add_rule("refuse", "for `kiln net explain`", note);
    table.add_rule("refuse", "the guest learns it at once", vec![protocol(Protocol::Tcp), reset()]);
    table.add_rule("refuse", "the guest learns it at once", vec![prohibit()]);
    let told = vec![protocol(Protocol::Tcp), mark_is(ENDED), reset()];
    table.add_rule("end", "the guest knows, so the peer is next", told);
    let flags = json!({ "mangle": { "key": payload("tcp", "flags"), "value": "rst" } });
    let tell = vec![protocol(Protocol::Tcp), flags, set_mark(ENDED), accept()];
    table.add_rule("end", "the guest learns it at once", tell);
    table.add_rule("end", "no flow to end", vec![drop()]);
}

fn forward(table: &mut Transaction, place: Place, mtu: u32) {
    let hook = Hook { name: "forward", kind: "filter", hook: "forward", priority: 0, policy: "drop" };
    table.add_base_chain(&hook);
    let mut rule = |comment: &str, rule: Vec<Value>| table.add_rule("forward", comment, rule);
    let from_guest = || from_link(place.link);
    let to_guest = || vec![from_link(UPLINK), to_link(place.link)];
    rule("no ipv6", vec![is_ipv6(), count("ipv6"), drop()]);
    rule("only the guest", vec![from_guest(), Side::Source.is_not_within(place.guests), count("spoofed"), drop()]);
    // An uplink can be narrower than the guest's card, and the messages about that are often lost on the way.
    let segment = json!({ "tcp option": { "name": "maxseg", "field": "size" } });
    let clamp = json!({ "mangle": { "key": segment, "value": mtu.saturating_sub(HEADERS_BYTES) } });
    rule("segments fit the uplink", vec![matches("in", payload("tcp", "flags"), "syn"), clamp]);
    // After a fork the guest has sockets of a life before, and no flow is known. With RST it learns that at once.
    rule("flows of a life before", vec![from_guest(), state(&["invalid"]), protocol(Protocol::Tcp), reset()]);
    rule("invalid", vec![state(&["invalid"]), drop()]);
    rule("errors of open flows", vec![state(&["related"]), protocol(Protocol::Icmp), accept()]);
    rule("of the guest", vec![from_guest(), to_link(UPLINK), direction("original"), go_to("asked")]);
    let mut answers = to_guest();
    answers.extend([direction("reply"), go_to("answered")]);
    rule("to the guest", answers);
}

fn input(table: &mut Transaction, place: Place) {
    let hook = Hook { name: "input", kind: "filter", hook: "input", priority: 0, policy: "drop" };
    table.add_base_chain(&hook);
    let mut rule = |comment: &str, rule: Vec<Value>| table.add_rule("input", comment, rule);
    let to_gateway = || vec![from_link(place.link), Side::Destination.is(place.gateway.0)];
    let port = Ports::Range(RESOLVER_PORT, RESOLVER_PORT);
    rule("itself", vec![from_link("lo"), accept()]);
    rule("no ipv6", vec![is_ipv6(), count("ipv6"), drop()]);
    rule(
        "only the guest",
        vec![from_link(place.link), Side::Source.is_not_within(place.guests), count("spoofed"), drop()],
    );
    rule("answers", vec![state(&["established", "related"]), accept()]);
    let mut resolver = to_gateway();
    resolver.extend([has_ports()].into_iter().chain(Side::Destination.ports(&port)).chain([accept()]));
    rule("the resolver", resolver);
    let mut echo = to_gateway();
    echo.extend([echo_request(), accept()]);
    rule("echo", echo);
    rule("closed", vec![from_link(place.link), count("gateway"), go_to("refuse")]);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::policy::{Destination, Learned};

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
            let name = crate::policy::Domain::new("example.org").expect("is a name");
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
        let error = replace(&mut Transaction::new(TABLE), &context, &[]).expect_err("too many");
        assert_eq!(error, TooManyShapes { count: SHAPES_MAX + 1 });
    }
}
