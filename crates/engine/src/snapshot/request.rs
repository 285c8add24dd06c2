//! What is asked of a VM that shall be saved.

use crate::link::GuestLink;

/// How to save a VM.
#[derive(Debug)]
pub struct SnapshotRequest<'a> {
    /// The link to its agent, which freezes the guest's commands meanwhile. Without one, what runs in the guest goes on
    /// in its forks before they have names and randomness of their own.
    pub link: Option<&'a GuestLink>,
    /// What becomes of the VM.
    pub then: AfterSave,
    /// For people: what the snapshot is of.
    pub label: String,
}

/// What becomes of a VM that was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterSave {
    /// It goes on.
    GoOn,
    /// It stops: its VMM ends, and [`Engine::resume`](crate::Engine::resume) goes on with it later, under the same id.
    Stop,
    /// It is over, and the snapshot is all that is left of it.
    End,
}

/// A [`SnapshotRequest`] on its way to the VM's owner.
#[derive(Debug)]
pub(crate) struct SaveOrder {
    pub(crate) then: AfterSave,
    pub(crate) label: String,
    pub(crate) frozen: bool,
}
