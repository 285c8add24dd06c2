//! Volumes: disks with names that outlive their VMs. All functions block, and none needs root.
//!
//! ```text
//!   volumes/<name>/  volume.json   what it is, never changed
//!                    data          the disk: a sparse file, ext4 or whatever its guests put there
//!                    in-use        exists from before a VM may write until the VM has ended cleanly
//!                    control       a socket of the process whose VM may write: it grows the volume on request
//!
//!   create, clone, import ──▶ <name>-<random>.partial ──sync, rename──▶ <name> ──rename──▶ …partial ──▶ removed
//!                                                                         │
//!                     VolumeHold: shared or exclusive lock ◀── hold ──────┘
//! ```
//! A name leads to a whole volume or to nothing, whatever is killed at whichever step. All that a crash can leave are
//! partial directories, which the next sweep removes.
//!
//! # Two locks
//! A process that uses a volume locks its directory: together with others to read, alone to write, grow, check or remove
//! it. That lock ends with the process. But a VMM may outlive its Kiln by a moment, and may be writing. So a process
//! that gets the lock alone also waits until no VMM has the file open: QEMU locks a byte range of each disk for as long
//! as it has it open. The first lock decides who is next, the second keeps a repair away from a VMM that still runs.
//! Programs that a Kiln runs on a volume inherit the first lock, so they too keep it when their Kiln is killed.
//!
//! # After a crash
//! `in-use` is written and synced before a VM with write access starts, and removed when the VM has unmounted the volume
//! and ended. If it exists and the volume has no user, there was a crash. Then `e2fsck -p` replays the journal and
//! repairs what is safe to repair, before the volume is used again. If it can't, the volume is refused, and its bytes
//! stay as they are.
//!
//! # Hostile contents
//! Guests write to volumes, so nothing on the host trusts what is in them. No kernel of the host ever mounts one.
//! `superblock.rs` reads one block of 1 KiB. All else is left to e2fsprogs, inside the border that confines VMMs, and to
//! guests.

mod confined;
mod error;
mod hold;
mod listing;
mod locks;
mod name;
mod record;
mod scratch;
mod store;
mod superblock;
#[cfg(test)]
mod tests;
mod tools;
mod transfer;

pub use error::VolumeError;
pub use hold::{Access, Ended, Repair, VolumeHold};
pub use listing::{Inspection, Listed, VolumeState};
pub use name::{NoVolumeName, VolumeName};
pub use record::Content;
pub use store::{Grown, VOLUME_BYTES_MAX, VOLUME_BYTES_MIN, VolumeStore};
pub use superblock::Filesystem;
pub use transfer::{Imported, Target};
