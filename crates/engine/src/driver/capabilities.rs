//! Features of an engine's guests.

use serde::Serialize;

/// What isolates a guest from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// Nothing: the guest is a process of this user.
    Process,
    /// A VMM that emulates the CPU in user space.
    Emulated,
    /// Hardware virtualisation and a VMM.
    Hardware,
}

/// The features of an engine's guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Name of the driver.
    pub driver: &'static str,
    /// The guest has a kernel of its own.
    pub kernel: bool,
    /// The guest has a console, whose output is sent as [`VmEvent::Console`](crate::VmEvent::Console).
    pub console: bool,
    /// The guest can be paused.
    pub pause: bool,
    /// The guest can have disks.
    pub disks: bool,
    /// The guest can have network cards.
    pub nics: bool,
    /// The guest can be saved and forked.
    pub snapshots: bool,
    /// The least isolation of its guests.
    pub isolation: Isolation,
}
