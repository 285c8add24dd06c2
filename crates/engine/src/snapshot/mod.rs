//! Snapshots: a VM saved whole, restored any number of times.
//!
//! ```text
//!   Vm::snapshot ──▶ Draft (x.partial) ──rename──▶ snapshots/<id>/ ──seal: fsync, checksums──▶ sealed
//!                                                      │
//!   Engine::restore ◀── Snapshot (chain, locks) ◀──open, check──┘
//! ```
//! A full snapshot holds all memory; a diff holds the pages that differ from its parent's. A chain is a full snapshot and
//! the diffs on it.

mod chain;
mod check;
mod compact;
mod digest;
mod draft;
mod error;
mod id;
mod listing;
mod locked_dir;
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

pub use chain::{CHAIN_MAX, Link, Snapshot};
pub use check::{DEVICE_FILE, MEMORY_FILE, PAGES_FILE};
pub use compact::Compacted;
pub use draft::{Draft, NewSnapshot};
pub use error::SnapshotError;
pub use id::SnapshotId;
pub use listing::Listed;
pub use manifest::{
    DiskLayer, ExternalDisk, FileEntry, MACHINE_FIELDS, MANIFEST_FILE, MachineIdentity, Manifest, MemoryKind,
    SNAPSHOT_FORMAT, Seal,
};
pub use memory::MemoryError;
#[doc(hidden)]
pub use memory::read_page_file;
pub use ready::{NoReadyKey, ReadyKey, ReadyLock};
pub(crate) use request::SaveOrder;
pub use request::{AfterSave, SnapshotRequest};
pub use store::{SnapshotStore, VerifyReport};
