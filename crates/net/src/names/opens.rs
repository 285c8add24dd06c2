//! What the resolver opens, and who makes it so.

use std::io;
use std::net::IpAddr;

use crate::policy::{Domain, Opening, Rule};

/// An address of a name that rules allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The name, its address, and for how long.
    pub opening: Opening,
    /// The rules of the allow list that match the name: only their ports and protocols open.
    pub rules: Vec<Rule>,
}

/// Receives what the resolver learned.
///
/// The guest connects as soon as it has the answer. So when [`Opens::open`] returns, connections to the address must
/// pass; if it fails, the guest gets no answer. It may block.
///
/// An opening that ends must not end a connection that was made through it, and one that is used should last longer.
pub trait Opens: Send + Sync {
    /// Opens each address on the ports of its rules. An address that is open already lasts at least this long.
    fn open(&self, grants: &[Grant]) -> io::Result<()>;
}

/// Knows the VMs of the same network by name. They are answered without the policy and open nothing: the network already
/// connects them.
pub trait Neighbours: Send + Sync {
    /// The addresses of a VM. Empty if no VM has the name. It may block.
    fn addresses(&self, name: &Domain) -> Vec<IpAddr>;
}

/// For networks that ask the gate about each flow: what was learned is there already.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSink;

impl Opens for NoSink {
    fn open(&self, _: &[Grant]) -> io::Result<()> {
        Ok(())
    }
}
