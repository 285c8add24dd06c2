//! Networks of VMs as root: a network namespace per VM, the same inside each.

mod device;
mod journal;
mod link;
mod namespace;
mod netlink;
mod nftables;

pub use journal::{NotASlotId, SlotId};
