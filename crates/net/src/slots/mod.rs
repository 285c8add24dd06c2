//! Networks of VMs as root: a network namespace per VM, the same inside each.
//!
//! ```text
//!   namespace of the VM                                          host
//!   ┌───────────────────────────────────────────────┐
//!   │ guest 169.254.0.21 ── tap0 169.254.0.22       │
//!   │                         │  table `kiln`       │
//!   │                       up0 10.213.x.y+1 ───────┼── kiln-ID 10.213.x.y ── table `kiln-ID` ── uplink
//!   └───────────────────────────────────────────────┘
//! ```
//! All guests have the same addresses, so a fork changes nothing in its guest. The rules for a VM are in its own
//! namespace and end with it. The host has one link and one small table per VM.
//!
//! [`Slots`] makes and removes slots, and removes those of dead owners. A [`Slot`] is one VM's network: a TAP device for
//! the engine, a policy, sockets for the resolver. Everything here blocks for milliseconds, so async callers use a
//! thread.
//!
//! [`Networks`] are for labs: several VMs on one bridge, in a namespace that is made like that of a slot.

mod build;
mod device;
mod error;
mod expression;
mod home;
mod host;
mod journal;
mod lab;
mod link;
mod namespace;
mod netlink;
mod nftables;
mod pool;
mod program;
mod rules;
mod slot;
mod steps;

pub use error::{NftError, SlotError};
pub use home::{About, Recovered, Slots, SlotsConfig, Step};
pub use host::{Obstacle, RANGES, SlotRange};
pub use journal::{NotASlotId, SlotId};
pub use lab::{Member, MemberAbout, MemberNames, Network, Networks};
pub use pool::SlotPool;
pub use slot::{Counter, Denial, RulesFault, Slot, SlotTap};
pub use steps::TooManyShapes;
