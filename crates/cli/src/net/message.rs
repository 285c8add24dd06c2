//! What is said on the socket of a VM's network: a line of JSON each way.

use kiln_engine::network::NetworkKind;
use kiln_net::policy::{Change, Policy, Protocol};
use serde::{Deserialize, Serialize};

/// The longest line: a policy with all the rules that it may have.
pub const LINE_BYTES_MAX: u64 = 32 << 20;

/// A request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// What it is and what it denied.
    Status,
    /// What decides about a destination.
    Explain {
        /// A name or an address.
        host: String,
        /// The port.
        port: u16,
        /// The protocol.
        protocol: Protocol,
    },
    /// Another policy.
    Change(Change),
}

/// The reply.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// To `Status` and `Change`.
    Status(Box<Status>),
    /// To `Explain`.
    Explained {
        /// Whether the VM can reach it.
        is_allowed: bool,
        /// For people.
        text: String,
        /// For programs.
        report: serde_json::Value,
    },
    /// It was refused.
    Refused {
        /// Why.
        error: String,
        /// What the user can do about it.
        hint: Option<String>,
    },
}

/// A VM's network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The VM's id.
    pub vm: String,
    /// The name of its run.
    pub name: Option<String>,
    /// How it gets out.
    pub kind: NetworkKind,
    /// The network that it shares with other VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// What it may reach.
    pub policy: Policy,
    /// How often it was denied something.
    pub denied: u64,
    /// The last things that it was denied, the newest first.
    pub denials: Vec<String>,
}
