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
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::expression::{
    Hook, Side, Transaction, accept, count, ct, direction, drop, echo_request, from_link, go_to, has_ports, is_ipv6,
    mark_is, masquerade, matches, meta, not_to_link, payload, prohibit, protocol, reset, set_mark, state, to_link,
};
use super::journal::PREFIX;
use super::steps::{
    Context, LEARNED_MAX, NEVER, OWN, PRIVATE, Shape, TooManyShapes, intervals, learned_set, name_shapes, set_of,
    steps, with_elements,
};
use crate::inner::{GATEWAY, GUEST, RESOLVER_PORT};
use crate::policy::{BLOCKS, Cidr, Ports, Protocol};

/// The table inside a namespace.
pub(super) const TABLE: &str = "kiln";
/// The TAP device of a slot, the bridge of a lab network, and the way out, inside a namespace.
pub(super) const TAP: &str = "tap0";
pub(super) const BRIDGE: &str = "br0";
pub(super) const UPLINK: &str = "up0";
/// Destinations that were refused lately.
const DENIED_MAX: u32 = 1024;
const DENIED_SECONDS: u64 = 60;
pub(super) const DENIED: &str = "denied";
const PORTS: &str = "ports";
const PORTS_MAX: u32 = 512;
/// The mark of a flow whose guest got its RST. Marks of policies are larger.
const ENDED: u32 = 1;
/// Headers of IPv4 and TCP without options.
const HEADERS_BYTES: u32 = 40;

/// The counters of what was let through. All others are of refusals.
pub(super) const OPENING_COUNTERS: [&str; 3] = ["allowed", "learned", "public"];

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

/// The table of a slot on the host. `guarded` are links that forward only because of us.
pub(super) fn host(slot: &HostSide<'_>) -> String {
    let mut table = Transaction::new(slot.link);
    if slot.replaces {
        // Made and deleted first, so that the transaction replaces what is there, if anything is. A new slot does
        // without, because `nft` waits until the kernel has freed what was deleted.
        table.add_table();
        table.delete_table();
    }
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
    /// Whether there may be such a table.
    pub(super) replaces: bool,
    /// The address from which its packets come.
    pub(super) address: Ipv4Addr,
    /// Links that forward only because of us.
    pub(super) guarded: &'a [String],
    /// Addresses of the host that rules name.
    pub(super) own_open: &'a BTreeMap<Shape, Vec<Cidr>>,
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
