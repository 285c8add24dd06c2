//! Requests to a block device, as bytes, and its replies.

/// Bytes of a request's header.
pub(super) const HEADER_BYTES: u32 = 16;
/// Bytes of the segment that a discard or a write of zeroes is about.
pub(super) const RANGE_BYTES: u32 = 16;
/// Bytes of a device's id.
pub(super) const ID_BYTES: u32 = 20;
/// In the status byte before the device has written it.
pub(super) const NO_STATUS: u8 = 0xff;

/// A request to a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "testing"), expect(dead_code, reason = "our tools only read and write"))]
pub enum BlkRequest {
    /// So many bytes from this sector on.
    Read {
        /// The first sector.
        sector: u64,
        /// How much, a multiple of 512.
        bytes: u32,
    },
    /// The slot's data, to this sector on.
    Write {
        /// The first sector.
        sector: u64,
        /// How much, a multiple of 512.
        bytes: u32,
    },
    /// What was written before is to survive a loss of power.
    Flush,
    /// The device's id, 20 bytes.
    GetId,
    /// These sectors are of no use any more.
    Discard {
        /// The first sector.
        sector: u64,
        /// How many.
        sectors: u32,
    },
    /// These sectors are to be zeroes.
    WriteZeroes {
        /// The first sector.
        sector: u64,
        /// How many.
        sectors: u32,
        /// They may be given back as well.
        unmap: bool,
    },
    /// A request of any type at all, with this much data to be read by the device and to be written by it.
    Raw {
        /// The type.
        kind: u32,
        /// The sector field.
        sector: u64,
        /// Bytes of the slot's data that the device reads.
        readable: u32,
        /// Bytes behind them that it writes.
        writable: u32,
    },
}

impl BlkRequest {
    /// What it is called in errors.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Flush => "flush",
            Self::GetId => "get id",
            Self::Discard { .. } => "discard",
            Self::WriteZeroes { .. } => "write zeroes",
            Self::Raw { .. } => "raw request",
        }
    }

    /// Bytes of data that the device reads.
    pub(super) const fn readable(&self) -> u32 {
        match self {
            Self::Write { bytes, .. } | Self::Raw { readable: bytes, .. } => *bytes,
            Self::Discard { .. } | Self::WriteZeroes { .. } => RANGE_BYTES,
            Self::Read { .. } | Self::Flush | Self::GetId => 0,
        }
    }

    /// Bytes of data that the device writes.
    pub(super) const fn writable(&self) -> u32 {
        match self {
            Self::Read { bytes, .. } | Self::Raw { writable: bytes, .. } => *bytes,
            Self::GetId => ID_BYTES,
            Self::Write { .. } | Self::Flush | Self::Discard { .. } | Self::WriteZeroes { .. } => 0,
        }
    }

    /// The header that the device reads first.
    pub(super) fn header(&self) -> [u8; HEADER_BYTES as usize] {
        let (kind, sector): (u32, u64) = match *self {
            Self::Read { sector, .. } => (0, sector),
            Self::Write { sector, .. } => (1, sector),
            Self::Flush => (4, 0),
            Self::GetId => (8, 0),
            Self::Discard { .. } => (11, 0),
            Self::WriteZeroes { .. } => (13, 0),
            Self::Raw { kind, sector, .. } => (kind, sector),
        };
        let mut header = [0; HEADER_BYTES as usize];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        header
    }

    /// The segment that a discard or a write of zeroes is about.
    pub(super) fn range(&self) -> Option<[u8; RANGE_BYTES as usize]> {
        let (sector, sectors, flags) = match *self {
            Self::Discard { sector, sectors } => (sector, sectors, 0_u32),
            Self::WriteZeroes { sector, sectors, unmap } => (sector, sectors, unmap.into()),
            _ => return None,
        };
        let mut range = [0; RANGE_BYTES as usize];
        range[..8].copy_from_slice(&sector.to_le_bytes());
        range[8..12].copy_from_slice(&sectors.to_le_bytes());
        range[12..].copy_from_slice(&flags.to_le_bytes());
        Some(range)
    }
}

/// What the device made of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlkStatus {
    /// It is done.
    Ok,
    /// It failed (`VIRTIO_BLK_S_IOERR`).
    IoError,
    /// The device does not support such a request (`VIRTIO_BLK_S_UNSUPP`).
    Unsupported,
}

impl BlkStatus {
    pub(super) const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Ok),
            1 => Some(Self::IoError),
            2 => Some(Self::Unsupported),
            _ => None,
        }
    }

    /// What the specification calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ok => "VIRTIO_BLK_S_OK",
            Self::IoError => "VIRTIO_BLK_S_IOERR",
            Self::Unsupported => "VIRTIO_BLK_S_UNSUPP",
        }
    }
}

/// A request that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Done {
    /// Its slot, which is the request's until it is released.
    pub slot: super::queue::Slot,
    /// The request.
    pub request: BlkRequest,
    /// What the device made of it.
    pub status: BlkStatus,
    /// How many bytes the device reports as written, status included.
    pub written: u32,
}

impl Done {
    /// Whether the device reports fewer written bytes than a request that succeeded has: data and status. A driver may
    /// not rely on the rest.
    pub const fn is_short(&self) -> bool {
        matches!(self.status, BlkStatus::Ok) && self.written <= self.request.writable()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_its_type_and_sector() {
        let header = BlkRequest::Write { sector: 0x0102, bytes: 512 }.header();
        assert_eq!(header, [1, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        let range = BlkRequest::WriteZeroes { sector: 1, sectors: 2, unmap: true }.range();
        assert_eq!(range, Some([1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0]));
        assert_eq!(BlkRequest::Flush.range(), None);
    }

    #[test]
    fn a_device_that_says_it_wrote_less_is_short() {
        let done = |written, status| Done {
            slot: super::super::Slot(0),
            request: BlkRequest::Read { sector: 0, bytes: 512 },
            status,
            written,
        };
        assert!(done(512, BlkStatus::Ok).is_short() && !done(513, BlkStatus::Ok).is_short());
        assert!(!done(1, BlkStatus::IoError).is_short());
    }
}
