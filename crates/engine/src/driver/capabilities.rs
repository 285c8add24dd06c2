//! What guests of an engine have.

use serde::Serialize;

/// How far a guest is from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// None: the guest is a process of this user.
    Process,
    /// A VMM in user space alone.
    Emulated,
    /// Hardware virtualisation below the VMM.
    Hardware,
}

/// What guests of an engine have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Name of the driver.
    pub driver: &'static str,
    /// The guest has a kernel of its own.
    pub kernel: bool,
    /// The guest has a console that gives [`VmEvent::Console`](crate::VmEvent::Console).
    pub console: bool,
    /// The guest can be paused.
    pub pause: bool,
    /// The guest can have disks.
    pub disks: bool,
    /// The guest can have network cards.
    pub nics: bool,
    /// The guest can be saved and forked.
    pub snapshots: bool,
    /// What every guest of this engine has at least.
    pub isolation: Isolation,
}
