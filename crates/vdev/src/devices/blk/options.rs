//! What a disk is to be, and why there is no such disk.

use std::io;
use std::path::PathBuf;

/// Where a disk's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// In a file, or a block device.
    File(PathBuf),
    /// Nowhere: it reads as zeros, and forgets what is written.
    Null {
        /// How large it is.
        bytes: u64,
    },
}

/// What a disk is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlkOptions {
    /// Where its bytes are.
    pub backing: Backing,
    /// Whether it can't be written.
    pub read_only: bool,
    /// Its serial number, at most 20 bytes.
    pub serial: String,
    /// The smallest piece that a driver should read or write: a power of two, 512 to 65536.
    pub block_bytes: u32,
    /// How many queues it has, at most 64.
    pub queues: u16,
}

impl BlkOptions {
    /// A disk of these bytes, with 4 queues and blocks of 512 bytes.
    pub fn new(backing: Backing) -> Self {
        Self { backing, read_only: false, serial: "kiln".to_owned(), block_bytes: 512, queues: 4 }
    }
}

/// Why there is no such disk.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// The file is of no use.
    #[error("failed to open the disk `{path}`")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process uses it.
    #[error("the disk `{path}` is in use by another process")]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// An option that no disk has.
    #[error("a disk's {option} cannot be `{value}`")]
    Option {
        /// Which.
        option: &'static str,
        /// What it was.
        value: String,
    },
}
