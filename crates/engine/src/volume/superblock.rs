//! The superblock of an ext4 filesystem: 1 KiB that a guest may have written, so each field is checked before it is used.
//!
//! The layout is that of the kernel's `Documentation/filesystems/ext4/super.rst`. All numbers are little-endian.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use serde::Serialize;

/// Where the superblock begins.
const OFFSET: u64 = 1024;
const BYTES: usize = 1024;
const MAGIC: u16 = 0xef53;
const AT_BLOCKS_LOW: usize = 0x04;
const AT_FREE_BLOCKS_LOW: usize = 0x0c;
const AT_LOG_BLOCK_SIZE: usize = 0x18;
const AT_MAGIC: usize = 0x38;
const AT_STATE: usize = 0x3a;
const AT_INCOMPATIBLE: usize = 0x60;
const AT_UUID: usize = 0x68;
const AT_BLOCKS_HIGH: usize = 0x150;
const AT_FREE_BLOCKS_HIGH: usize = 0x158;
/// Blocks have 1 KiB to 64 KiB.
const LOG_BLOCK_SIZE_MAX: u32 = 6;
/// `s_state`: unmounted cleanly.
const STATE_CLEAN: u16 = 1;
/// `s_state`: the kernel has found errors.
const STATE_ERRORS: u16 = 2;
/// Incompatible feature: the journal has to be replayed.
const NEEDS_RECOVERY: u32 = 0x4;
/// Incompatible feature: numbers of blocks have 64 bits.
const WIDE: u32 = 0x80;

/// What the superblock of a volume reports. A guest may have written anything there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Filesystem {
    /// Its id, as in `/dev/disk/by-uuid`.
    pub uuid: String,
    /// Its size.
    pub bytes: u64,
    /// Bytes that its files do not use.
    pub free_bytes: u64,
    /// Whether it was unmounted, and its kernel found no errors.
    pub clean: bool,
    /// Whether its kernel found errors.
    pub errors: bool,
    /// Whether its journal has to be replayed: it was mounted when its VM ended.
    pub needs_recovery: bool,
}

impl Filesystem {
    /// Reads a superblock. `None` if the block is not one.
    ///
    /// # Errors
    /// The file can't be read.
    pub(super) fn read(file: &File) -> io::Result<Option<Self>> {
        let mut bytes = [0; BYTES];
        match file.read_exact_at(&mut bytes, OFFSET) {
            Ok(()) => Ok(Self::parse(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn parse(bytes: &[u8; BYTES]) -> Option<Self> {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let log_block_size = u32_at(AT_LOG_BLOCK_SIZE);
        if u16_at(AT_MAGIC) != MAGIC || log_block_size > LOG_BLOCK_SIZE_MAX {
            return None;
        }
        let incompatible = u32_at(AT_INCOMPATIBLE);
        let size = |low: usize, high: usize| {
            let high = if incompatible & WIDE != 0 { u64::from(u32_at(high)) << 32 } else { 0 };
            (high | u64::from(u32_at(low))).saturating_mul(1024 << log_block_size)
        };
        let state = u16_at(AT_STATE);
        let needs_recovery = incompatible & NEEDS_RECOVERY != 0;
        Some(Self {
            uuid: uuid(&bytes[AT_UUID..AT_UUID + 16]),
            bytes: size(AT_BLOCKS_LOW, AT_BLOCKS_HIGH),
            free_bytes: size(AT_FREE_BLOCKS_LOW, AT_FREE_BLOCKS_HIGH),
            clean: state & STATE_CLEAN != 0 && state & STATE_ERRORS == 0 && !needs_recovery,
            errors: state & STATE_ERRORS != 0,
            needs_recovery,
        })
    }
}

fn uuid(bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_superblock_of_a_guest_makes_it_panic(mut bytes in prop::array::uniform32(any::<[u8; 32]>())) {
            bytes[1][AT_MAGIC - 32..AT_STATE - 32].copy_from_slice(&MAGIC.to_le_bytes());
            let log_block_size = u32::from(bytes[2][0]) % 8;
            bytes[0][AT_LOG_BLOCK_SIZE..AT_LOG_BLOCK_SIZE + 4].copy_from_slice(&log_block_size.to_le_bytes());
            let flat: [u8; BYTES] = bytes.concat().try_into().expect("1 KiB");
            prop_assert_eq!(Filesystem::parse(&flat).is_some(), log_block_size <= LOG_BLOCK_SIZE_MAX);
        }
    }

    #[test]
    fn zeros_and_short_files_have_no_filesystem() {
        assert_eq!(Filesystem::parse(&[0; BYTES]), None);
        let file = tempfile::tempfile().expect("a file");
        assert_eq!(Filesystem::read(&file).expect("reads"), None);
        file.set_len(1 << 20).expect("sparse");
        assert_eq!(Filesystem::read(&file).expect("reads"), None);
    }
}
