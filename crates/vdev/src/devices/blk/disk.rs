//! Where a disk's bytes are: in a file, or nowhere.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::sync::atomic::AtomicBool;

use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::Errno;

use super::device::{SECTOR_BYTES, SERIAL_BYTES_MAX};
use super::lock;
use super::options::{Backing, BlkError, BlkOptions};
use crate::memory::{GuestMemory, Span, file_io};
use crate::queue::Chain;

/// A disk, as its queues share it.
#[derive(Debug)]
pub(super) struct Disk {
    /// Absent if the bytes are nowhere.
    file: Option<File>,
    sectors: u64,
    read_only: bool,
    serial: [u8; SERIAL_BYTES_MAX],
    /// Whether writes may be kept for later until a flush, as far as the driver decides that.
    pub writeback: AtomicBool,
}

/// Zeros that are written if the file system cannot make a range zeros.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl Disk {
    pub(super) fn open(options: &BlkOptions) -> Result<Self, BlkError> {
        let (file, bytes) = match &options.backing {
            Backing::Null { bytes } => (None, *bytes),
            Backing::File(path) => {
                let failed = |source| BlkError::Open { path: path.clone(), source };
                let mut file = File::options().read(true).write(!options.read_only).open(path).map_err(failed)?;
                if !lock::lock(&file, !options.read_only).map_err(failed)? {
                    return Err(BlkError::InUse { path: path.clone() });
                }
                // The size of a block device is its end, which its metadata does not have.
                let bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
                (Some(file), bytes)
            }
        };
        let block = u64::from(options.block_bytes);
        let mut serial = [0; SERIAL_BYTES_MAX];
        serial[..options.serial.len()].copy_from_slice(options.serial.as_bytes());
        Ok(Self {
            file,
            sectors: bytes / block * block / SECTOR_BYTES,
            read_only: options.read_only,
            serial,
            writeback: AtomicBool::new(true),
        })
    }

    pub(super) const fn sectors(&self) -> u64 {
        self.sectors
    }

    pub(super) const fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(super) const fn serial(&self) -> &[u8; SERIAL_BYTES_MAX] {
        &self.serial
    }

    /// Fills so many writable bytes of a chain from an offset. A file that has become shorter reads as zeros beyond
    /// its new end.
    pub(super) fn read(&self, offset: u64, chain: &Chain, bytes: u64) -> io::Result<()> {
        let done = match &self.file {
            Some(file) => file_io::read_at(file, offset, chain.memory(), chain.writable_part(0, bytes))?,
            None => 0,
        };
        for span in chain.writable_part(done, bytes - done) {
            zero(chain.memory(), span)?;
        }
        Ok(())
    }

    /// Writes so many readable bytes of a chain, from `skip` on, at an offset.
    pub(super) fn write(&self, offset: u64, chain: &Chain, skip: u64, bytes: u64) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let written = file_io::write_at(file, offset, chain.memory(), chain.readable_part(skip, bytes))?;
        if written == bytes { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Has all that was written on the medium.
    pub(super) fn flush(&self) -> io::Result<()> {
        match &self.file {
            Some(file) => Ok(fdatasync(file)?),
            None => Ok(()),
        }
    }

    /// Gives a range up. What it reads as afterwards is anyone's guess, so a file that can't is no failure.
    pub(super) fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        match fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, bytes) {
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a range zeros; its room may be freed if `unmap` is set.
    pub(super) fn write_zeroes(&self, offset: u64, bytes: u64, unmap: bool) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let way = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        match fallocate(file, way | FallocateFlags::KEEP_SIZE, offset, bytes) {
            Ok(()) => return Ok(()),
            Err(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
        let mut done = 0;
        while done < bytes {
            let here = (bytes - done).min(ZEROS.len() as u64);
            let zeros = &ZEROS[..here as usize];
            std::os::unix::fs::FileExt::write_all_at(file, zeros, offset + done)?;
            done += here;
        }
        Ok(())
    }
}

/// Fills a span with zeros.
pub(super) fn zero(memory: &GuestMemory, span: Span) -> io::Result<()> {
    let mut done = 0;
    while done < span.bytes() {
        let part = span.part(done, ZEROS.len());
        memory.slice(part).map_err(io::Error::other)?.copy_from(&ZEROS[..part.bytes()]);
        done += part.bytes();
    }
    Ok(())
}
