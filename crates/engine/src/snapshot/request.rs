//! A request to save a VM.

use crate::link::GuestLink;

/// How to save a VM.
#[derive(Debug)]
pub struct SnapshotRequest<'a> {
    /// The link to its agent, which freezes the guest's commands meanwhile. Without a link, programs of the guest run
    /// in its forks before these have their own names and randomness.
    pub link: Option<&'a GuestLink>,
    /// What happens to the VM afterwards.
    pub then: AfterSave,
    /// A name for users.
    pub label: String,
}

/// What happens to a VM that was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterSave {
    /// It continues.
    GoOn,
    /// It stops: its VMM ends. [`Engine::resume`](crate::Engine::resume) continues it later under the same id.
    Stop,
    /// It ends, and only the snapshot is left.
    End,
}

/// A [`SnapshotRequest`] on its way to the task that owns the VM.
#[derive(Debug)]
pub(crate) struct SaveOrder {
    pub(crate) then: AfterSave,
    pub(crate) label: String,
    pub(crate) frozen: bool,
}
