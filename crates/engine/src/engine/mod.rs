//! What every engine does, whichever driver it has.
//!
//! ```text
//!   Engine ─┬▶ launch                     a spec's VM
//!           ├▶ ready                      a spec's snapshot, made once
//!           ├▶ restore ◀── pool           a snapshot's forks; some of them ready in advance
//!           ├▶ adopt                      a VM that outlived its owner
//!           └▶ recover, before any of it  VMs whose owner is gone
//! ```

mod interface;
mod pool;

mod adopt;
mod blank;
mod launch;
mod ready;
mod restore;

#[expect(clippy::disallowed_methods, reason = "what blocks in it is called by `operation` or `blocking`")]
mod fork;
#[expect(clippy::disallowed_methods, reason = "what blocks in it is called by `operation` or `blocking`")]
mod recover;

pub use self::fork::{Fork, ForkIdentity, ForkPart, ForkSpec, NicPart, VolumeFile};
pub use self::interface::Engine;
pub use self::pool::{ForkPool, MakePart, POOL_MAX, PoolSpec, PoolStatus};
pub use self::ready::{READY_SNAPSHOTS_MAX, ReadyError, ReadyRequest, ReadyStep, Renew};
pub(crate) use self::recover::discard_with_stops;
pub use self::recover::{Outcome, Recovered, discard, recover};
pub use self::restore::Template;
