//! The requests of a disk's queue, one by one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::config::{RANGE_SECTORS_MAX, RANGES_MAX};
use super::device::{SECTOR_BYTES, SERIAL_BYTES_MAX};
use super::disk::{Disk, zero};
use crate::backend::{QueueHandler, Queues, Work};
use crate::queue::{Chain, QueueError};
use crate::virtio::feature;

/// Requests between two looks at what else there is to do.
const REQUESTS_AT_ONCE: u32 = 128;
/// Bytes of requests after which other work has its turn: a request may be long, and this thread may have to stop.
const BYTES_AT_ONCE: u64 = 64 << 20;
/// Requests that the driver sees at once.
const REQUESTS_PER_FLUSH: u32 = 8;

const HEADER_BYTES: u64 = 16;
const STATUS_BYTES: u64 = 1;
const RANGE_BYTES: u64 = 16;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// In the flags of a range: its room may be given up.
const UNMAP: u32 = 1;

/// The last byte of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

impl From<io::Error> for Status {
    fn from(_error: io::Error) -> Self {
        Self::IoError
    }
}

/// Serves the requests of one queue.
pub(crate) struct BlkQueue {
    disk: Arc<Disk>,
    features: u64,
    /// Used again for each request.
    chain: Chain,
}

impl BlkQueue {
    pub(super) fn new(disk: Arc<Disk>, features: u64) -> Self {
        Self { disk, features, chain: Chain::new() }
    }
}

impl QueueHandler for BlkQueue {
    fn process(&mut self, queues: &mut Queues, queue: u16) -> Result<Work, QueueError> {
        let Some(queue) = queues.get(queue) else { return Ok(Work::Left) };
        let mut moved = 0;
        for done in 1..=REQUESTS_AT_ONCE {
            if !queue.pop(&mut self.chain)? {
                return Ok(Work::Drained);
            }
            let request = Request { disk: &self.disk, features: self.features, chain: &self.chain };
            let written = request.serve();
            queue.complete(&self.chain, written);
            moved += self.chain.readable_bytes() + self.chain.writable_bytes();
            if moved > BYTES_AT_ONCE {
                return Ok(Work::More);
            }
            if done % REQUESTS_PER_FLUSH == 0 {
                queue.flush();
            }
        }
        Ok(Work::More)
    }
}

/// A request under way.
struct Request<'a> {
    disk: &'a Disk,
    features: u64,
    chain: &'a Chain,
}

impl Request<'_> {
    /// Does a request, and returns how many bytes were written to the driver's buffers.
    fn serve(&self) -> u32 {
        let Some(room) = self.chain.writable_bytes().checked_sub(STATUS_BYTES) else {
            // There is no room for a status.
            return 0;
        };
        let (status, data) = match self.perform(room) {
            Ok(data) => (Status::Ok, data),
            Err(status) => (status, 0),
        };
        // The used length counts from the first byte on, so what has no data is filled up to the status.
        for span in self.chain.writable_part(data, room - data) {
            if zero(self.chain.memory(), span).is_err() {
                return 0;
            }
        }
        let written = self.chain.write_from(room, &[status as u8]);
        u32::try_from(room + written as u64).unwrap_or(u32::MAX)
    }

    /// Does a request with so much room for data. Returns how much of it was filled.
    fn perform(&self, room: u64) -> Result<u64, Status> {
        let mut header = [0; HEADER_BYTES as usize];
        if self.chain.read_into(0, &mut header) < header.len() {
            return Err(Status::IoError);
        }
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        let data = self.chain.readable_bytes() - HEADER_BYTES;
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            IN => {
                let offset = self.check(sector, room)?;
                self.disk.read(offset, self.chain, room)?;
                Ok(room)
            }
            OUT => {
                let offset = self.check(sector, data)?;
                self.check_writable()?;
                self.disk.write(offset, self.chain, HEADER_BYTES, data)?;
                self.settle()?;
                Ok(0)
            }
            FLUSH => {
                self.disk.flush()?;
                Ok(0)
            }
            GET_ID => {
                let id = self.disk.serial();
                let length = usize::try_from(room).unwrap_or(usize::MAX).min(SERIAL_BYTES_MAX);
                Ok(self.chain.write_from(0, &id[..length]) as u64)
            }
            DISCARD if self.has(feature::blk::DISCARD) => {
                self.for_ranges(data, 0, |offset, bytes, _| self.disk.discard(offset, bytes))
            }
            WRITE_ZEROES if self.has(feature::blk::WRITE_ZEROES) => {
                self.for_ranges(data, UNMAP, |offset, bytes, flags| {
                    self.disk.write_zeroes(offset, bytes, flags & UNMAP != 0)
                })
            }
            _ => Err(Status::Unsupported),
        }
    }

    const fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// The place of bytes from a sector on, if they are whole sectors and on the disk.
    fn check(&self, sector: u64, bytes: u64) -> Result<u64, Status> {
        let end = sector.checked_add(bytes / SECTOR_BYTES).ok_or(Status::IoError)?;
        if !bytes.is_multiple_of(SECTOR_BYTES) || end > self.disk.sectors() {
            return Err(Status::IoError);
        }
        Ok(sector * SECTOR_BYTES)
    }

    const fn check_writable(&self) -> Result<(), Status> {
        if self.disk.is_read_only() { Err(Status::IoError) } else { Ok(()) }
    }

    /// Writes data through to the medium if the driver cannot request that.
    fn settle(&self) -> io::Result<()> {
        let may_keep = self.has(feature::blk::FLUSH)
            && (!self.has(feature::blk::CONFIG_WCE) || self.disk.writeback.load(Ordering::Acquire));
        if may_keep { Ok(()) } else { self.disk.flush() }
    }

    /// Does something to each of the ranges that the data names. All are checked before the first is touched.
    fn for_ranges(
        &self,
        data: u64,
        flags_allowed: u32,
        act: impl Fn(u64, u64, u32) -> io::Result<()>,
    ) -> Result<u64, Status> {
        self.check_writable()?;
        let count = data / RANGE_BYTES;
        if data == 0 || !data.is_multiple_of(RANGE_BYTES) || count > RANGES_MAX.into() {
            return Err(Status::IoError);
        }
        let mut ranges = [(0, 0, 0); RANGES_MAX as usize];
        for (place, range) in (0..count).zip(&mut ranges) {
            let mut bytes = [0; RANGE_BYTES as usize];
            self.chain.read_into(HEADER_BYTES + place * RANGE_BYTES, &mut bytes);
            let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
            let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
            let flags = u32::from_le_bytes(flags);
            if flags & !flags_allowed != 0 {
                return Err(Status::Unsupported);
            }
            if sectors > RANGE_SECTORS_MAX {
                return Err(Status::IoError);
            }
            let length = u64::from(sectors) * SECTOR_BYTES;
            *range = (self.check(sector, length)?, length, flags);
        }
        for (offset, length, flags) in ranges.into_iter().take(count as usize).filter(|(_, length, _)| *length > 0) {
            act(offset, length, flags)?;
        }
        self.settle()?;
        Ok(0)
    }
}
