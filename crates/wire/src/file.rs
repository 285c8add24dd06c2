//! Files of the guest.
//!
//! | request | data | ends with |
//! |---|---|---|
//! | read | `Reply::Stat`, then `DataOut`, `Eof` | `Done{bytes, truncated}` |
//! | write, append | `DataIn`, `Eof` | `Done{bytes}` once it is durable |
//! | tar_in | `DataIn` (a tar archive), `Eof` | `Done{bytes, entries}` |
//! | tar_out, changes | `DataOut` (a tar archive), `Eof` | `Done{bytes, entries}` |
//! | stat | `Reply::Stat` | `Done` |
//! | list | `Reply::Page` | `Done` |
//! | all others | | `Done` |

use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::text::Text;

/// Payload of `Files`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesRequest {
    /// Paths are resolved inside this directory and may not leave it, by `..` or by symlink. Absent: the whole guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jail: Option<Text>,
    /// What to do.
    #[serde(flatten)]
    pub request: FileRequest,
}

/// One operation on files. Relative paths start at the jail, or at `/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum FileRequest {
    /// Reads a plain file; bytes are never altered.
    Read {
        /// The file.
        path: Text,
        /// Which part of it.
        #[serde(default)]
        range: ReadRange,
    },
    /// Replaces a file as a whole: a reader sees either the old file or the new one.
    Write {
        /// The file.
        path: Text,
        /// What may exist before.
        #[serde(default)]
        mode: WriteMode,
        /// Permission bits. If absent: those of the replaced file, or 0644.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        permissions: Option<u32>,
        /// Owner. If absent: that of the replaced file, or the agent's user.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<Owner>,
    },
    /// Adds to the end of a file. A missing file is created.
    Append {
        /// The file.
        path: Text,
    },
    /// Returns what is at a path; for a symlink the symlink itself, unless `follow`.
    Stat {
        /// The path.
        path: Text,
        /// Follows a symlink at the end.
        #[serde(default)]
        follow: bool,
    },
    /// Returns one page of a directory, sorted by name.
    List {
        /// The directory.
        path: Text,
        /// Continues after this name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Text>,
        /// Entries on the page: 1 ..= 10,000; 10,000 if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<u32>,
    },
    /// Makes a directory.
    Mkdir {
        /// The directory.
        path: Text,
        /// Makes missing parents, and accepts a directory that exists.
        #[serde(default)]
        parents: bool,
        /// Permission bits; 0755 if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        permissions: Option<u32>,
    },
    /// Removes a file, a symlink or an empty directory.
    Remove {
        /// The path.
        path: Text,
        /// Removes what is in a directory first; symlinks are not followed.
        #[serde(default)]
        recursive: bool,
    },
    /// Renames, and replaces the target like rename(2).
    Rename {
        /// From here.
        from: Text,
        /// To here.
        to: Text,
    },
    /// Copies a plain file with its permission bits.
    Copy {
        /// From here.
        from: Text,
        /// To here; replaced as a whole, like `Write`.
        to: Text,
    },
    /// Makes a symlink.
    Symlink {
        /// What it points to.
        target: Text,
        /// The symlink's own path.
        path: Text,
    },
    /// Sets permission bits.
    Chmod {
        /// The path; a symlink is followed.
        path: Text,
        /// Permission bits, 0 ..= 0o7777.
        permissions: u32,
    },
    /// Sets the owner.
    Chown {
        /// The path; a symlink itself is changed.
        path: Text,
        /// The new owner.
        owner: Owner,
    },
    /// Unpacks a tar archive into a directory. A missing directory is made.
    TarIn {
        /// The directory.
        path: Text,
    },
    /// Packs a path into a tar archive. Names start with the last part of the path.
    TarOut {
        /// The file or directory.
        path: Text,
    },
    /// Packs what was changed in the guest's root since its image, as a layer of an image. Needs
    /// [`Capability::Changes`](crate::Capability::Changes). A jail has no effect.
    Changes {},
}

/// Which part of a file to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "unit", rename_all = "snake_case")]
pub enum ReadRange {
    /// By bytes.
    Bytes {
        /// First byte. Signed, so that a negative offset is refused by name.
        #[serde(default)]
        offset: i64,
        /// How many; to the end if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<i64>,
    },
    /// By lines, each with its own end of line.
    Lines {
        /// First line, from 0.
        #[serde(default)]
        offset_line: i64,
        /// How many; to the end if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit_lines: Option<i64>,
        /// Stops after this many bytes, even inside a line.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_bytes: Option<i64>,
    },
}

impl Default for ReadRange {
    fn default() -> Self {
        Self::Bytes { offset: 0, limit: None }
    }
}

/// What may exist before a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteMode {
    /// A file is replaced or created.
    #[default]
    Replace,
    /// Nothing: fails with `already_exists` if the path exists.
    Exclusive,
}

/// Numeric owner of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A plain file.
    File,
    /// A directory.
    Directory,
    /// A symlink.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// What it is.
    pub kind: FileKind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits.
    pub permissions: u32,
    /// Its owner.
    pub owner: Owner,
    /// Last change of content, nanoseconds since 1970.
    pub modified_ns: i64,
    /// Hard links.
    pub links: u64,
    /// Inode number.
    pub inode: u64,
    /// Where a symlink points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Text>,
}

/// One name of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The name.
    pub name: Text,
    /// What it is.
    pub kind: FileKind,
    /// Size in bytes.
    pub size: u64,
}

/// One page of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListPage {
    /// Sorted by name, as bytes.
    pub entries: Vec<Entry>,
    /// The name to continue after; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Text>,
}

/// Payload of `Done`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Done {
    /// Data bytes that were transferred in the stream's direction.
    #[serde(default)]
    pub bytes: u64,
    /// Files, directories and links of an archive.
    #[serde(default)]
    pub entries: u64,
    /// A bound of the request cut the data.
    #[serde(default)]
    pub truncated: bool,
    /// What the archive lacks, each with its name. `not_a_file` is for entries without content to copy (devices, FIFOs,
    /// sockets, mounts of the kernel's file systems). All other codes are files that could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<Fault>,
    /// How many more the archive lacks, beyond the room in `left_out`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out_more: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}
