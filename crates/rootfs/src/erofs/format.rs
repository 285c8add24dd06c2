//! The structures of EROFS as bytes: superblock, inode, the addresses of both. All numbers are little-endian.
//!
//! Source: `fs/erofs/erofs_fs.h` of Linux, and its documentation page "EROFS - Enhanced Read-Only File System".

use crate::tree::Time;

/// Size of a block. Linux 5.15 supports only that of a page.
pub(super) const BLOCK_BYTES: u64 = 4096;
/// The same, for buffers.
pub(super) const BLOCK_LEN: usize = 4096;
const BLOCK_BITS: u8 = 12;
/// Blocks an image can have. The address 2^32 - 1 means a hole.
pub(super) const BLOCKS_MAX: u64 = HOLE as u64;
/// The address of a chunk without data.
pub(super) const HOLE: u32 = u32::MAX;

/// Inodes begin at multiples of this, and are numbered by it.
pub(super) const SLOT_BYTES: u64 = 32;
/// Size of an inode as we write it. It has room for a time and for owners of 32 bits.
pub(super) const INODE_BYTES: u64 = 64;
/// Size of the short form of an inode.
const COMPACT_BYTES: u64 = 32;

/// Where the superblock begins. Before it is room for a boot sector.
const SUPERBLOCK_OFFSET: usize = 1024;
const MAGIC: u32 = 0xE0F5_E1E2;

/// The superblock has a checksum.
const COMPAT_CHECKSUM: u32 = 1;
/// Times are those of the last change of the contents.
const COMPAT_MODIFIED: u32 = 2;
/// Compressed data starts with zeros. Without compression it means nothing, and old versions of mkfs.erofs set it.
const INCOMPAT_ZERO_PADDING: u32 = 1;
/// Some files are lists of chunks. Since Linux 5.15.
const INCOMPAT_CHUNKS: u32 = 4;

/// Bits of the format of a chunk list: the size of a chunk, and whether its entries have 8 bytes instead of 4.
const CHUNK_BITS_MASK: u32 = 0x1f;
const CHUNK_ENTRIES_LONG: u32 = 0x20;
/// The largest chunk is 2^31 blocks.
pub(super) const CHUNK_BITS_MAX: u8 = 31;

/// Bits of a mode that give the kind of a file.
const MODE_KIND: u16 = 0o170_000;
pub(super) const MODE_FIFO: u16 = 0o010_000;
pub(super) const MODE_CHARACTER: u16 = 0o020_000;
pub(super) const MODE_DIRECTORY: u16 = 0o040_000;
pub(super) const MODE_BLOCK: u16 = 0o060_000;
pub(super) const MODE_FILE: u16 = 0o100_000;
pub(super) const MODE_SYMLINK: u16 = 0o120_000;
pub(super) const MODE_SOCKET: u16 = 0o140_000;

/// Numbers of a device that fit: 12 bits and 20 bits.
pub(super) const DEVICE_MAJOR_MAX: u32 = (1 << 12) - 1;
pub(super) const DEVICE_MINOR_MAX: u32 = (1 << 20) - 1;
/// The longest target of a symlink: a path of Linux without its NUL. It is shorter than a block.
pub(super) const SYMLINK_BYTES_MAX: usize = 4095;

/// What is wrong with bytes that are no structure of EROFS.
pub(super) type Problem = &'static str;

/// The parts of a superblock that we use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    /// Number of the root's inode.
    pub(super) root: u16,
    /// Number of inodes.
    pub(super) inodes: u64,
    /// Blocks of the image.
    pub(super) blocks: u32,
    /// Block from which inodes are numbered.
    pub(super) metadata_block: u32,
    /// Block from which shared extended attributes are numbered.
    pub(super) xattr_block: u32,
    /// Identifies the contents.
    pub(super) uuid: [u8; 16],
    /// Whether a file is a list of chunks.
    pub(super) has_chunks: bool,
    /// The time of inodes without one.
    pub(super) built: Time,
}

impl Superblock {
    /// The first block of an image.
    pub(super) fn encode(&self) -> [u8; BLOCK_LEN] {
        let mut block = [0; BLOCK_LEN];
        let fields = &mut block[SUPERBLOCK_OFFSET..];
        put(fields, 0, &MAGIC.to_le_bytes());
        put(fields, 8, &(COMPAT_CHECKSUM | COMPAT_MODIFIED).to_le_bytes());
        put(fields, 12, &[BLOCK_BITS]);
        put(fields, 14, &self.root.to_le_bytes());
        put(fields, 16, &self.inodes.to_le_bytes());
        put(fields, 24, &self.built.seconds.to_le_bytes());
        put(fields, 32, &self.built.nanoseconds.to_le_bytes());
        put(fields, 36, &self.blocks.to_le_bytes());
        put(fields, 40, &self.metadata_block.to_le_bytes());
        put(fields, 44, &self.xattr_block.to_le_bytes());
        put(fields, 48, &self.uuid);
        put(fields, 80, &if self.has_chunks { INCOMPAT_CHUNKS } else { 0 }.to_le_bytes());
        let checksum = crc32c(fields);
        put(fields, 4, &checksum.to_le_bytes());
        block
    }

    /// The superblock in the first block of an image.
    pub(super) fn decode(block: &[u8; BLOCK_LEN]) -> Result<Self, Problem> {
        let mut fields = [0; BLOCK_LEN - SUPERBLOCK_OFFSET];
        fields.copy_from_slice(&block[SUPERBLOCK_OFFSET..]);
        if u32_at(&fields, 0) != MAGIC {
            return Err("it has no superblock of EROFS");
        }
        let (checksum, compat, incompat) = (u32_at(&fields, 4), u32_at(&fields, 8), u32_at(&fields, 80));
        put(&mut fields, 4, &[0; 4]);
        if compat & COMPAT_CHECKSUM != 0 && crc32c(&fields) != checksum {
            return Err("the checksum of its superblock is wrong");
        }
        if incompat & !(INCOMPAT_CHUNKS | INCOMPAT_ZERO_PADDING) != 0 || u16_at(&fields, 86) != 0 {
            return Err("it uses a feature that is not supported, such as compression or several devices");
        }
        if fields[12] != BLOCK_BITS || fields[13] != 0 || fields[90] != 0 {
            return Err("its blocks do not have 4096 bytes");
        }
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&fields[48..64]);
        Ok(Self {
            root: u16_at(&fields, 14),
            inodes: u64_at(&fields, 16),
            blocks: u32_at(&fields, 36),
            metadata_block: u32_at(&fields, 40),
            xattr_block: u32_at(&fields, 44),
            uuid,
            has_chunks: incompat & INCOMPAT_CHUNKS != 0,
            built: Time { seconds: u64_at(&fields, 24).cast_signed(), nanoseconds: u32_at(&fields, 32) },
        })
    }
}

/// How the data of an inode is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Storage {
    /// In blocks one after the other.
    Blocks,
    /// The same, but what the last block would have is behind the inode.
    Tail,
    /// In chunks of 2^bits blocks each, whose addresses are behind the inode.
    Chunks {
        /// Logarithm of the number of blocks.
        bits: u8,
        /// Whether an address has 8 bytes instead of 4. We write 4.
        long: bool,
    },
}

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inode {
    pub(super) storage: Storage,
    /// Size of the extended attributes behind the inode, in units of 4 bytes after a header of 12; 0 without.
    pub(super) xattr_count: u16,
    pub(super) mode: u16,
    pub(super) size: u64,
    /// First block of the data, or the number of a device.
    pub(super) address: u32,
    /// A number for programs with 32 bits.
    pub(super) number: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified: Time,
    pub(super) links: u32,
}

impl Inode {
    /// The inode as it is written, in its long form.
    pub(super) fn encode(&self) -> [u8; INODE_BYTES as usize] {
        let mut bytes = [0; INODE_BYTES as usize];
        let (storage, address) = match self.storage {
            Storage::Blocks => (0, self.address),
            Storage::Tail => (2, self.address),
            Storage::Chunks { bits, long } => (4, u32::from(bits) | if long { CHUNK_ENTRIES_LONG } else { 0 }),
        };
        put(&mut bytes, 0, &(1_u16 | storage << 1).to_le_bytes());
        put(&mut bytes, 2, &self.xattr_count.to_le_bytes());
        put(&mut bytes, 4, &self.mode.to_le_bytes());
        put(&mut bytes, 8, &self.size.to_le_bytes());
        put(&mut bytes, 16, &address.to_le_bytes());
        put(&mut bytes, 20, &self.number.to_le_bytes());
        put(&mut bytes, 24, &self.uid.to_le_bytes());
        put(&mut bytes, 28, &self.gid.to_le_bytes());
        put(&mut bytes, 32, &self.modified.seconds.to_le_bytes());
        put(&mut bytes, 40, &self.modified.nanoseconds.to_le_bytes());
        put(&mut bytes, 44, &self.links.to_le_bytes());
        bytes
    }

    /// Size of the inode that begins with these bytes: 32 or 64.
    pub(super) fn size_of(start: &[u8; COMPACT_BYTES as usize]) -> u64 {
        if start[0] & 1 == 0 { COMPACT_BYTES } else { INODE_BYTES }
    }

    /// An inode of either form, from as many bytes as [`Inode::size_of`] reports. `built` is the time of a short one.
    pub(super) fn decode(bytes: &[u8], built: Time) -> Result<Self, Problem> {
        let format = u16_at(bytes, 0);
        let union = u32_at(bytes, 16);
        let storage = match format >> 1 {
            0 => Storage::Blocks,
            2 => Storage::Tail,
            4 if union & !(CHUNK_BITS_MASK | CHUNK_ENTRIES_LONG) == 0 => {
                // No overflow: the mask leaves 5 bits.
                let bits = (union & CHUNK_BITS_MASK) as u8;
                Storage::Chunks { bits, long: union & CHUNK_ENTRIES_LONG != 0 }
            }
            4 => return Err("an inode has an unknown list of chunks"),
            1 | 3 => return Err("a file is compressed, which is not supported"),
            _ => return Err("an inode has an unknown format"),
        };
        let (xattr_count, mode) = (u16_at(bytes, 2), u16_at(bytes, 4));
        let inode = if bytes.len() as u64 == COMPACT_BYTES {
            Self {
                storage,
                xattr_count,
                mode,
                size: u64::from(u32_at(bytes, 8)),
                address: union,
                number: u32_at(bytes, 20),
                uid: u32::from(u16_at(bytes, 24)),
                gid: u32::from(u16_at(bytes, 26)),
                modified: built,
                links: u32::from(u16_at(bytes, 6)),
            }
        } else {
            Self {
                storage,
                xattr_count,
                mode,
                size: u64_at(bytes, 8),
                address: union,
                number: u32_at(bytes, 20),
                uid: u32_at(bytes, 24),
                gid: u32_at(bytes, 28),
                modified: Time { seconds: u64_at(bytes, 32).cast_signed(), nanoseconds: u32_at(bytes, 40) },
                links: u32_at(bytes, 44),
            }
        };
        if inode.modified.nanoseconds > 999_999_999 {
            return Err("a time has more nanoseconds than a second has");
        }
        Ok(inode)
    }

    /// The bits of the mode that give the kind.
    pub(super) fn kind(&self) -> u16 {
        self.mode & MODE_KIND
    }
}

/// The number of a device in an inode.
pub(super) fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | major << 8 | (minor & !0xff) << 12
}

/// The device with this number in an inode.
pub(super) fn device_of(number: u32) -> (u32, u32) {
    (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xfff00)
}

/// The type of a file in a directory, from its mode.
pub(super) fn file_type(mode: u16) -> u8 {
    match mode & MODE_KIND {
        MODE_FILE => 1,
        MODE_DIRECTORY => 2,
        MODE_CHARACTER => 3,
        MODE_BLOCK => 4,
        MODE_FIFO => 5,
        MODE_SOCKET => 6,
        MODE_SYMLINK => 7,
        _ => 0,
    }
}

/// CRC-32C as Linux computes it here: all ones at the start, and not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 })
    })
}

/// Copies a field to its place.
pub(super) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

/// The number of 16 bits at a place that the bytes have.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The number of 32 bits at a place that the bytes have.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The number of 64 bits at a place that the bytes have.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_that_of_the_catalogue_not_inverted() {
        // The check value of CRC-32C is 0xE3069283 for these bytes.
        assert_eq!(crc32c(b"123456789"), !0xE306_9283);
    }

    #[test]
    fn a_superblock_is_read_as_it_was_written() {
        let superblock = Superblock {
            root: 128,
            inodes: 7,
            blocks: 9,
            metadata_block: 1,
            xattr_block: 3,
            uuid: *b"0123456789abcdef",
            has_chunks: true,
            built: Time { seconds: -5, nanoseconds: 6 },
        };
        assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock.clone()));
        let mut broken = superblock.encode();
        broken[4095] ^= 1;
        Superblock::decode(&broken).expect_err("the checksum covers the rest of the block");
    }

    #[test]
    fn an_inode_is_read_as_it_was_written() {
        let modified = Time { seconds: -12, nanoseconds: 999_999_999 };
        for storage in [Storage::Blocks, Storage::Tail, Storage::Chunks { bits: 31, long: true }] {
            let address = if let Storage::Chunks { .. } = storage { 0x3f } else { 77 };
            let inode = Inode {
                storage,
                xattr_count: 65535,
                mode: 0o104_755,
                size: 1 << 40,
                address,
                number: 5,
                uid: 3_000_000_000,
                gid: u32::MAX - 1,
                modified,
                links: 70_000,
            };
            assert_eq!(Inode::decode(&inode.encode(), Time::default()), Ok(inode));
        }
    }

    #[test]
    fn numbers_of_devices_survive() {
        for device in [(0, 0), (1, 3), (8, 255), (259, 256), (DEVICE_MAJOR_MAX, DEVICE_MINOR_MAX)] {
            assert_eq!(device_of(device_number(device.0, device.1)), device);
        }
    }
}
