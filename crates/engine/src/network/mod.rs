//! The network of one VM: its way out, the rules for it, and the resolver that its guest asks.
//!
//! ```text
//!   NetworkRequest ──▶ VmNetwork ──▶ nic()    what the VMM's card is connected to
//!                          │     └─▶ guest()  the addresses that the guest's Sync sets
//!                          ├── nat: a network namespace with a TAP device, rules of nftables (root)
//!                          ├── user: a stream socket, each connection made by this process (no root)
//!                          ├── lab: a place on a bridge with other VMs, names for each of them (root)
//!                          └── Gate: the policy; the resolver and `explain` ask it
//! ```
//! Without a network a VM has no card at all. All guests have the same addresses inside, so a fork changes nothing in
//! its guest. There are two ready-made snapshots of an image, because a guest on a TAP device uses its offloads: one with
//! an idle card for `nat`, and one with an unplugged card for `user`.
//!
//! A network exists before its VM starts, with its rules in place. If they can't be applied, there is no network and no
//! VM. It ends with the value: namespaces, links and rules are removed on drop, and the next start removes those of a
//! process that was killed.

mod error;
mod lab;
mod labs;
mod nat;
mod resolver;
mod user;
mod vm_network;

pub use self::error::NetworkError;
pub use self::labs::Labs;
pub use self::vm_network::{NetworkKind, NetworkRequest, NetworkStatus, VmNetwork};
