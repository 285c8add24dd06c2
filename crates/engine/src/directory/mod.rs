//! Directories of the host as read-only disks. All functions block, and none needs root.
//!
//! ```text
//!   path ──▶ facts ── cache/directories/<digest>.erofs exists ──▶ lock it together ──▶ DirectoryDisk
//!              └── read: Tree, Spool ──▶ EROFS in <random>.partial ──▶ facts again
//!                                                     ├── the same ──▶ link as <digest>.erofs ──▶ DirectoryDisk
//!                                                     └── it changed meanwhile ──▶ used once, then removed
//! ```
//! A guest gets the state of one moment: each file is whole, and what changes later on the host is not seen. Nothing of
//! the guest comes back. No program of the host mounts the image, and the host has written all of it.
//!
//! # When an image is used again
//! The digest covers names, inodes, sizes, owners and change times of all that is in the directory, see
//! [`kiln_rootfs::directory::facts`]. The kernel's time moves in steps, so a directory is read only when the step of
//! its last change has passed: every later change has another time. The name also covers the boot of the host, because
//! nothing is synced: a host that lost power may have cut the file.
//!
//! # One size
//! The guest of a ready-made snapshot boots with a placeholder of the same size, see the engine's `blank`. So the disks
//! of all directories have [`DIRECTORY_DISK_BYTES`], and one snapshot serves all of them. Behind the image the file is a
//! hole.

mod error;
mod store;

pub use error::DirectoryDiskError;
pub use store::{DIRECTORY_DISK_BYTES, DirectoryDisk, DirectoryStore};
