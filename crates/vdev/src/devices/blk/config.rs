//! The configuration space of a disk (`struct virtio_blk_config`).

use std::sync::atomic::Ordering;

use super::disk::Disk;
use crate::backend::{ConfigWrite, DeviceError};
use crate::virtio::feature;

/// Up to and with the fields of `WRITE_ZEROES`.
const CONFIG_BYTES: usize = 60;

/// The longest buffer of a request.
const SIZE_MAX: u32 = 4 << 20;
/// Buffers of a request without header and status: what fits a ring of 128, the usual size.
const SEGMENTS_MAX: u32 = 126;
/// Sectors of one discard or zeroing: 2 GiB.
pub(super) const RANGE_SECTORS_MAX: u32 = 1 << 22;
/// Ranges of one request.
pub(super) const RANGES_MAX: u32 = 32;

const WRITEBACK: usize = 32;

/// The space as a driver reads it.
pub(super) fn encode(disk: &Disk, block_bytes: u32, queues: u16) -> [u8; CONFIG_BYTES] {
    let mut config = [0; CONFIG_BYTES];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &disk.sectors().to_le_bytes());
    put(8, &SIZE_MAX.to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    put(20, &block_bytes.to_le_bytes());
    put(WRITEBACK, &[u8::from(disk.writeback.load(Ordering::Acquire))]);
    put(34, &queues.to_le_bytes());
    if !disk.is_read_only() {
        let alignment = block_bytes / 512;
        for (at, value) in [(36, RANGE_SECTORS_MAX), (40, RANGES_MAX), (44, alignment), (48, RANGE_SECTORS_MAX)] {
            put(at, &value.to_le_bytes());
        }
        put(52, &RANGES_MAX.to_le_bytes());
        put(56, &[1]);
    }
    config
}

/// What a write to the space changes: `writeback`, if anything. A driver may write nothing else; a migration may write
/// more, as long as it is what is there already, for it can't be changed.
///
/// # Errors
/// If it would change anything else.
pub(super) fn check_write(config: &[u8], write: &ConfigWrite<'_>) -> Result<Option<bool>, DeviceError> {
    let read_only = DeviceError::ReadOnly { offset: write.offset, bytes: write.bytes.len() };
    let end = write.offset.checked_add(write.bytes.len()).filter(|end| *end <= config.len());
    let Some(end) = end else { return Err(read_only) };
    let has_writeback = (write.offset..end).contains(&WRITEBACK);
    let may_write_it = write.migration || write.features & feature::blk::CONFIG_WCE != 0;
    if !has_writeback || !may_write_it || (!write.migration && write.bytes.len() != 1) {
        return if write.migration && config[write.offset..end] == *write.bytes { Ok(None) } else { Err(read_only) };
    }
    let place = WRITEBACK - write.offset;
    let rest = |bytes: &[u8]| [&bytes[..place], &bytes[place + 1..]].concat();
    if rest(write.bytes) != rest(&config[write.offset..end]) {
        return Err(read_only);
    }
    match write.bytes[place] {
        0 => Ok(Some(false)),
        1 => Ok(Some(true)),
        other => Err(DeviceError::Value { field: "writeback", value: other.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: usize, bytes: &[u8], migration: bool) -> Result<Option<bool>, DeviceError> {
        let mut config = [7; CONFIG_BYTES];
        config[WRITEBACK] = 1;
        check_write(&config, &ConfigWrite { offset, bytes, migration, features: feature::blk::CONFIG_WCE })
    }

    #[test]
    fn a_driver_may_write_writeback_and_nothing_else() {
        assert_eq!(write(32, &[0], false), Ok(Some(false)));
        assert_eq!(write(32, &[1], false), Ok(Some(true)));
        assert!(matches!(write(32, &[2], false), Err(DeviceError::Value { value: 2, .. })));
        for (offset, bytes) in
            [(0, &[7; 8][..]), (33, &[7]), (31, &[7, 1]), (32, &[1, 7]), (60, &[0]), (usize::MAX, &[0])]
        {
            assert!(matches!(write(offset, bytes, false), Err(DeviceError::ReadOnly { .. })), "{offset}");
        }
        let config = [1; CONFIG_BYTES];
        let without = ConfigWrite { offset: 32, bytes: &[0], migration: false, features: 0 };
        assert!(check_write(&config, &without).is_err(), "not negotiated");
    }

    #[test]
    fn a_migration_may_write_what_is_there_already() {
        let mut whole = [7; CONFIG_BYTES];
        whole[WRITEBACK] = 0;
        assert_eq!(write(0, &whole, true), Ok(Some(false)));
        assert_eq!(write(0, &[7; 8], true), Ok(None));
        assert!(write(0, &[8; 8], true).is_err());
        whole[0] = 8;
        assert!(write(0, &whole, true).is_err());
    }
}
