//! Snapshots: a VM is saved whole and restored any number of times.
//!
//! ```text
//!   Vm::snapshot ──▶ Draft (x.partial) ──rename──▶ snapshots/<id>/ ──seal: fsync, checksums──▶ sealed
//!                                                      │
//!   Engine::restore ◀── Snapshot (chain, locks) ◀──open, check──┘
//! ```
//! A full snapshot holds all memory. A diff holds the pages that differ from its parent's. A chain is a full snapshot
//! and its diffs, each the parent of the next.

mod chain;
mod check;
mod compact;
mod digest;
mod draft;
mod error;
mod id;
mod listing;
pub(crate) mod locked_dir;
mod manifest;
pub(crate) mod memory;
pub(crate) mod overlay;
mod ready;
mod request;
mod seal;
mod store;
#[cfg(test)]
pub(crate) mod testing;
mod verified;

pub use chain::{Link, Snapshot};
pub(crate) use check::{DEVICE_FILE, MEMORY_FILE, PAGES_FILE};
pub use compact::Compacted;
pub(crate) use draft::{Draft, NewSnapshot};
pub use error::SnapshotError;
pub use id::SnapshotId;
pub use listing::Listed;
#[cfg(test)]
pub(crate) use manifest::SNAPSHOT_FORMAT;
pub use manifest::{DiskLayer, ExternalDisk, FileEntry, MANIFEST_FILE, MachineIdentity, Manifest, MemoryKind, Seal};
pub use memory::MemoryError;
#[doc(hidden)]
pub use memory::read_page_file;
pub use ready::ReadyKey;
pub(crate) use ready::ReadyLock;
pub(crate) use request::SaveOrder;
pub use request::{AfterSave, SnapshotRequest};
pub use store::{SnapshotStore, VerifyReport};
