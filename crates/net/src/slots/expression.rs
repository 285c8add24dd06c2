//! Rules of nftables as the JSON that `nft -j -f -` reads (libnftables-json(5)).
//!
//! Everything here is built from numbers, addresses and names of ours, so no text of a user gets into a rule.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::policy::{Ports, Protocol};

/// The table of a slot. Its chains, sets and rules are added through it.
#[derive(Debug)]
pub(super) struct Transaction {
    family: &'static str,
    table: String,
    commands: Vec<Value>,
}

/// One side of a packet: where it goes to, or where it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Destination,
    Source,
}

/// A base chain: where it is in the path of packets.
pub(super) struct Hook {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) hook: &'static str,
    pub(super) priority: i32,
    pub(super) policy: &'static str,
}

impl Transaction {
    /// For packets of IP.
    pub(super) fn new(table: &str) -> Self {
        Self { family: "inet", table: table.to_owned(), commands: Vec::new() }
    }

    /// For frames that a bridge forwards.
    pub(super) fn of_bridge(table: &str) -> Self {
        Self { family: "bridge", ..Self::new(table) }
    }

    /// Adds another transaction to this one. Both happen at once.
    pub(super) fn join(&mut self, other: Self) {
        self.commands.extend(other.commands);
    }

    /// The whole transaction as text.
    pub(super) fn into_json(self) -> String {
        json!({ "nftables": self.commands }).to_string()
    }

    pub(super) fn add_table(&mut self) {
        let table = json!({ "family": self.family, "name": self.table });
        self.commands.push(json!({ "add": { "table": table } }));
    }

    pub(super) fn delete_table(&mut self) {
        let table = json!({ "family": self.family, "name": self.table });
        self.commands.push(json!({ "delete": { "table": table } }));
    }

    pub(super) fn add_base_chain(&mut self, hook: &Hook) {
        let more = json!({
            "type": hook.kind, "hook": hook.hook, "prio": hook.priority, "policy": hook.policy, "name": hook.name,
        });
        self.add("chain", more);
    }

    pub(super) fn add_chain(&mut self, name: &str) {
        self.add("chain", json!({ "name": name }));
    }

    pub(super) fn flush_chain(&mut self, name: &str) {
        let chain = json!({ "family": self.family, "table": self.table, "name": name });
        self.commands.push(json!({ "flush": { "chain": chain } }));
    }

    pub(super) fn delete_set(&mut self, name: &str) {
        let set = json!({ "family": self.family, "table": self.table, "name": name });
        self.commands.push(json!({ "delete": { "set": set } }));
    }

    pub(super) fn add_counter(&mut self, name: &str) {
        self.add("counter", json!({ "name": name }));
    }

    /// A set with this definition.
    pub(super) fn add_set(&mut self, name: &str, definition: Value) {
        let mut definition = definition;
        definition["name"] = name.into();
        self.add("set", definition);
    }

    /// Adds or deletes an element of a set.
    pub(super) fn change_element(&mut self, command: &str, set: &str, element: Value) {
        let elements = [
            ("family", self.family.into()),
            ("table", self.table.as_str().into()),
            ("name", set.into()),
            ("elem", Value::Array(vec![element])),
        ];
        self.commands.push(object([(command, object([("element", object(elements))]))]));
    }

    /// A rule at the end of a chain. `comment` is for people who list the table.
    pub(super) fn add_rule(&mut self, chain: &str, comment: &str, expressions: Vec<Value>) {
        let rule = [("chain", chain.into()), ("comment", comment.into()), ("expr", expressions.into())];
        self.add("rule", object(rule));
    }

    fn add(&mut self, kind: &str, more: Value) {
        let mut object = more;
        object["family"] = self.family.into();
        object["table"] = self.table.as_str().into();
        self.commands.push(json!({ "add": { kind: object } }));
    }
}

impl Side {
    fn address(self) -> Value {
        let field = if self == Self::Destination { "daddr" } else { "saddr" };
        payload("ip", field)
    }

    fn port(self) -> Value {
        let field = if self == Self::Destination { "dport" } else { "sport" };
        payload("th", field)
    }

    /// The address is in this set.
    pub(super) fn is_in(self, set: &str) -> Value {
        matches("==", self.address(), format!("@{set}"))
    }

    /// The address is not in this set.
    pub(super) fn is_not_in(self, set: &str) -> Value {
        matches("!=", self.address(), format!("@{set}"))
    }

    pub(super) fn is(self, address: Ipv4Addr) -> Value {
        matches("==", self.address(), address.to_string())
    }

    pub(super) fn is_not(self, address: Ipv4Addr) -> Value {
        matches("!=", self.address(), address.to_string())
    }

    pub(super) fn is_not_within(self, (address, prefix): (Ipv4Addr, u8)) -> Value {
        let network = json!({ "prefix": { "addr": address.to_string(), "len": prefix } });
        matches("!=", self.address(), network)
    }

    /// The port is in this range.
    pub(super) fn ports(self, ports: &Ports) -> Option<Value> {
        match ports {
            Ports::All => None,
            Ports::Range(first, last) if first == last => Some(matches("==", self.port(), *first)),
            Ports::Range(first, last) => Some(matches("==", self.port(), json!({ "range": [first, last] }))),
        }
    }

    /// Notes the peer, the protocol and the port in a set of such triples.
    pub(super) fn note_in(self, set: &str, seconds: u64) -> Value {
        let triple = json!({ "concat": [self.address(), meta("l4proto"), self.port()] });
        let element = json!({ "elem": { "val": triple, "timeout": seconds } });
        json!({ "set": { "op": "update", "elem": element, "set": format!("@{set}") } })
    }
}

fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

pub(super) fn matches(operator: &str, left: Value, right: impl Into<Value>) -> Value {
    object([("match", object([("op", operator.into()), ("left", left), ("right", right.into())]))])
}

pub(super) fn payload(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

pub(super) fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
}

pub(super) fn ct(key: &str) -> Value {
    json!({ "ct": { "key": key } })
}

pub(super) fn from_link(name: &str) -> Value {
    matches("==", meta("iifname"), name)
}

pub(super) fn to_link(name: &str) -> Value {
    matches("==", meta("oifname"), name)
}

pub(super) fn not_to_link(name: &str) -> Value {
    matches("!=", meta("oifname"), name)
}

pub(super) fn is_ipv6() -> Value {
    matches("==", meta("nfproto"), "ipv6")
}

pub(super) fn protocol(protocol: Protocol) -> Value {
    let name = match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Icmp => "icmp",
    };
    matches("==", meta("l4proto"), name)
}

/// TCP or UDP.
pub(super) fn has_ports() -> Value {
    matches("==", meta("l4proto"), json!({ "set": ["tcp", "udp"] }))
}

pub(super) fn echo_request() -> Value {
    matches("==", payload("icmp", "type"), "echo-request")
}

/// The state of the flow is one of these.
pub(super) fn state(states: &[&str]) -> Value {
    matches("in", ct("state"), states.to_vec())
}

pub(super) fn direction(direction: &str) -> Value {
    matches("==", ct("direction"), direction)
}

pub(super) fn mark_is(mark: u32) -> Value {
    matches("==", ct("mark"), mark)
}

pub(super) fn set_mark(mark: u32) -> Value {
    json!({ "mangle": { "key": ct("mark"), "value": mark } })
}

pub(super) fn count(counter: &str) -> Value {
    json!({ "counter": counter })
}

pub(super) fn go_to(chain: &str) -> Value {
    json!({ "goto": { "target": chain } })
}

pub(super) fn accept() -> Value {
    json!({ "accept": null })
}

pub(super) fn drop() -> Value {
    json!({ "drop": null })
}

pub(super) fn reset() -> Value {
    json!({ "reject": { "type": "tcp reset" } })
}

pub(super) fn prohibit() -> Value {
    json!({ "reject": { "type": "icmpx", "expr": "admin-prohibited" } })
}

pub(super) fn masquerade() -> Value {
    json!({ "masquerade": null })
}
