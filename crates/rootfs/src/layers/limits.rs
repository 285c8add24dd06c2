//! What layers may cost, and how much of it is used.

use super::error::Refusal;

/// Bytes of a name in a directory: what Linux allows.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of a path from the root, and of the target of a symlink: what Linux allows, without the NUL at the end.
pub const PATH_BYTES_MAX: usize = 4095;
/// Directories that a node may be below, itself included.
pub const DEPTH_MAX: usize = 255;
/// Symlinks that one path may pass: what Linux allows.
pub const LINKS_MAX: usize = 40;
/// Size of a file, holes included: what ext4 allows.
pub const FILE_BYTES_MAX: u64 = 1 << 44;
/// Bytes of all extended attributes of a node, names included.
pub const XATTR_BYTES_MAX: usize = 64 << 10;

/// What extended attributes cost in memory in addition to their bytes: the map of a node, and an attribute in it.
const XATTR_MAP_BYTES: usize = 400;
const XATTR_ENTRY_BYTES: usize = 64;

/// What the layers of an image may cost together. Contents of files have limits of their own: see
/// [`SpoolLimits`](crate::SpoolLimits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the layers, unpacked: all that is read.
    pub bytes_max: u64,
    /// Entries, and directories that have no entry.
    pub entries_max: u64,
    /// Bytes of paths and targets of links. A path that is in the same directory as the one before counts only its name.
    pub text_bytes_max: u64,
    /// Bytes of extended attributes, with what they cost in memory.
    pub xattr_bytes_max: u64,
    /// Names in the targets of symlinks that all paths pass together.
    ///
    /// Without this a path of a few bytes could pass 40 symlinks, each with a target of 2000 names, and so could each of a
    /// million entries. An honest image passes one or two symlinks for an entry (`lib` that leads to `usr/lib`).
    pub link_names_max: u64,
}

impl Default for Limits {
    /// 16 GiB, 4 million entries, 512 MiB each of text and of extended attributes, 64 million names in symlinks.
    fn default() -> Self {
        Self {
            bytes_max: 16 << 30,
            entries_max: 4_000_000,
            text_bytes_max: 512 << 20,
            xattr_bytes_max: 512 << 20,
            link_names_max: 1 << 26,
        }
    }
}

/// What is left of the limits.
#[derive(Debug)]
pub(super) struct Budget {
    limits: Limits,
    /// Bytes of layers that may still be read.
    pub(super) bytes_left: u64,
    entries_left: u64,
    text_bytes_left: u64,
    xattr_bytes_left: u64,
    link_names_left: u64,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            bytes_left: limits.bytes_max,
            // Numbers of entries and places in the text are stored in 32 bits.
            entries_left: limits.entries_max.min(u64::from(u32::MAX)),
            text_bytes_left: limits.text_bytes_max.min(u64::from(u32::MAX)),
            xattr_bytes_left: limits.xattr_bytes_max,
            link_names_left: limits.link_names_max,
        }
    }

    pub(super) fn too_many_bytes(&self) -> Refusal {
        Refusal::TooManyBytes { bytes_max: self.limits.bytes_max }
    }

    pub(super) fn take_entry(&mut self) -> Result<(), Refusal> {
        take(&mut self.entries_left, 1).ok_or(Refusal::TooManyEntries { entries_max: self.limits.entries_max })
    }

    pub(super) fn take_text(&mut self, bytes: usize) -> Result<(), Refusal> {
        take(&mut self.text_bytes_left, bytes).ok_or(Refusal::TooMuchText { bytes_max: self.limits.text_bytes_max })
    }

    pub(super) fn take_xattrs(&mut self, bytes: usize, count: usize) -> Result<(), Refusal> {
        let cost = bytes + XATTR_MAP_BYTES + count * XATTR_ENTRY_BYTES;
        take(&mut self.xattr_bytes_left, cost).ok_or(Refusal::TooManyXattrs { bytes_max: self.limits.xattr_bytes_max })
    }

    pub(super) fn take_link_name(&mut self) -> Result<(), Refusal> {
        take(&mut self.link_names_left, 1).ok_or(Refusal::TooManyLinkNames { names_max: self.limits.link_names_max })
    }
}

fn take(left: &mut u64, count: usize) -> Option<()> {
    *left = left.checked_sub(count as u64)?;
    Some(())
}
