//! What is asked of a restore, and what comes of it.

use std::time::Duration;

use kiln_wire::Identity;

use crate::deadlines::BOOT_DEADLINE;
use crate::link::GuestLink;
use crate::mac_address::MacAddress;
use crate::vm::Vm;
use crate::vm_dir::VmId;
use crate::vm_spec::{OwnerLoss, VmSpec};

/// Forks of one request; more than this is a mistake, whatever the host can hold.
pub const FORKS_MAX: usize = 1000;

/// How to restore a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkSpec {
    /// How many VMs; all of them start, or none.
    pub count: usize,
    /// Who they are.
    pub identity: ForkIdentity,
    /// What becomes of them when their owner is lost.
    pub owner_loss: OwnerLoss,
    /// For each of them, from the start of its VMM to its own clock, randomness and names.
    pub deadline: Duration,
}

/// Who a restored VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForkIdentity {
    /// A machine of its own: new machine id, host name and addresses.
    Fresh,
    /// The machine that was saved: for a VM that stood still and goes on. Its clock and randomness are new all the same.
    Keep,
}

impl Default for ForkSpec {
    fn default() -> Self {
        Self { count: 1, identity: ForkIdentity::Fresh, owner_loss: OwnerLoss::Kill, deadline: BOOT_DEADLINE }
    }
}

/// A restored VM that is its own machine: clock, randomness and names were set before any of its commands went on.
#[derive(Debug)]
pub struct Fork {
    /// The VM.
    pub vm: Vm,
    /// The link to its agent.
    pub link: GuestLink,
}

/// Names for a new machine.
pub(crate) fn fresh_identity(vm: &VmId, spec: &VmSpec) -> Identity {
    Identity {
        hostname: format!("kiln-{vm}"),
        machine_id: machine_id(),
        macs: spec.nics.iter().map(|_| MacAddress::random().to_string()).collect(),
    }
}

fn machine_id() -> String {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .expect("getrandom has no way to fail for sixteen bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
