//! Why a layer is refused.

use std::error::Error;
use std::fmt;

use kiln_archive::ArchiveError;

use super::limits::{FILE_BYTES_MAX, LINKS_MAX, PATH_BYTES_MAX, XATTR_BYTES_MAX};
use super::names::PathFault;
use crate::spool::SpoolError;

/// A layer that was refused, with the place in it.
#[derive(Debug)]
pub struct LayerError {
    /// Number of the layer; the lowest one is 1.
    pub layer: usize,
    /// Number of the entry in the layer; the first one is 1.
    pub entry: u64,
    /// The entry's path, escaped and bounded. `None` if the entry can't be read so far.
    pub path: Option<String>,
    /// What is wrong with it. In a box, so that results stay small.
    pub reason: Box<Refusal>,
}

/// What is wrong with an entry of a layer.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The archive can't be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Its content can't be stored.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Its path is not one of Linux.
    #[error("its path {0}")]
    Path(PathFault),
    /// It is not a directory and has no name, so it would replace the root.
    #[error("it has the path of the root, and is not a directory")]
    Root,
    /// A mark without a name.
    #[error("it is a whiteout without a name")]
    MarkOfNothing,
    /// An entry below a mark.
    #[error("a directory in its path has the name of a whiteout")]
    MarkAsDirectory,
    /// A part of its path is a file.
    #[error("`{name}` in its path is not a directory")]
    NotADirectory {
        /// The part, escaped.
        name: String,
    },
    /// Its path goes around in a circle.
    #[error("its path passes more than {LINKS_MAX} symlinks")]
    LinkLoop,
    /// A user or group that Linux can't store.
    #[error("its owner is {uid}:{gid}, and an id is at most 4294967294")]
    Owner {
        /// The user.
        uid: i64,
        /// The group.
        gid: i64,
    },
    /// A device that Linux can't store.
    #[error("it is the device {major}:{minor}, and the highest one is 4095:1048575")]
    Device {
        /// Number of the driver.
        major: u32,
        /// Number of the device.
        minor: u32,
    },
    /// The fraction of its time.
    #[error("its time has {nanoseconds} nanoseconds")]
    Time {
        /// The fraction.
        nanoseconds: i64,
    },
    /// A file that no filesystem stores.
    #[error("it is a file of {size} bytes, and the largest one has {FILE_BYTES_MAX}")]
    FileTooLarge {
        /// Its size.
        size: u64,
    },
    /// A symlink to nothing, or to too much.
    #[error("it is a symlink whose target has {bytes} bytes, not 1 to {PATH_BYTES_MAX}")]
    SymlinkTarget {
        /// Length of the target.
        bytes: usize,
    },
    /// A symlink whose target has a byte that ends a path.
    #[error("it is a symlink whose target has a NUL byte")]
    SymlinkNul,
    /// A hard link with a path that is not one of Linux.
    #[error("it is a hard link, and the path of its target {0}")]
    LinkPath(PathFault),
    /// A hard link to nothing.
    #[error("it is a hard link to `{target}`, which does not exist")]
    LinkToNothing {
        /// The target, escaped.
        target: String,
    },
    /// A hard link to a directory.
    #[error("it is a hard link to `{target}`, which is a directory")]
    LinkToDirectory {
        /// The target, escaped.
        target: String,
    },
    /// A hard link to its own name.
    #[error("it is a hard link to itself")]
    LinkToItself,
    /// An extended attribute with a name that Linux can't store.
    #[error("it has an xattr with a name of {bytes} bytes, not 1 to 255")]
    XattrName {
        /// Length of the name.
        bytes: usize,
    },
    /// Too many extended attributes.
    #[error("its xattrs have more than {XATTR_BYTES_MAX} bytes")]
    XattrsTooLarge,
    /// The layers are too long.
    #[error("the layers have more than {bytes_max} bytes")]
    TooManyBytes {
        /// The limit.
        bytes_max: u64,
    },
    /// The layers have too many entries.
    #[error("the layers have more than {entries_max} entries, directories without an entry included")]
    TooManyEntries {
        /// The limit.
        entries_max: u64,
    },
    /// The layers have too much text.
    #[error("the paths and targets of links have more than {bytes_max} bytes in all")]
    TooMuchText {
        /// The limit.
        bytes_max: u64,
    },
    /// The layers have too many extended attributes.
    #[error("the xattrs take more than {bytes_max} bytes in all")]
    TooManyXattrs {
        /// The limit.
        bytes_max: u64,
    },
    /// The layers make paths pass too many symlinks.
    #[error("the paths pass symlinks with more than {names_max} names in all")]
    TooManyLinkNames {
        /// The limit.
        names_max: u64,
    },
}

impl LayerError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self.reason.as_ref() {
            Refusal::Spool(error) => error.hint(),
            _ => None,
        }
    }
}

impl fmt::Display for LayerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {}, entry {}", self.layer, self.entry)?;
        if let Some(path) = &self.path {
            write!(f, ", `{path}`")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// The reason is in the text, so the chain continues with the reason's own source.
impl Error for LayerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.reason.source()
    }
}
