//! Networks of VMs as root: a network namespace per VM, the same inside each.

mod device;
mod error;
mod expression;
mod journal;
mod link;
mod namespace;
mod netlink;
mod nftables;
mod program;
mod rules;

pub use error::{NftError, SlotError};
pub use journal::{NotASlotId, SlotId};
pub use rules::TooManyShapes;
