//! The bytes of an archive: blocks, the data of the current member, and what is behind the end.

use std::io::{ErrorKind, Read};

use crate::error::{ArchiveError, malformed};
use crate::{BLOCK_BYTES, padding};

/// Bytes that are read at once to skip them.
const SKIP_BUFFER_BYTES: usize = 16 * 1024;

/// An archive's bytes in order, and where the current member's data ends.
#[derive(Debug)]
pub(crate) struct Input<R> {
    pub(crate) input: R,
    /// Bytes that were read so far.
    pub(crate) bytes: u64,
    /// Unread data of the current member, as it is in the archive.
    pub(crate) data_left: u64,
    padding_left: u64,
}

impl<R: Read> Input<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, bytes: 0, data_left: 0, padding_left: 0 }
    }

    /// Starts the data of a member.
    pub(crate) fn start_data(&mut self, size: u64) -> Result<(), ArchiveError> {
        if size > i64::MAX.unsigned_abs() {
            return Err(malformed(format!("the archive has a member of {size} bytes, more than a file can have")));
        }
        (self.data_left, self.padding_left) = (size, padding(size));
        Ok(())
    }

    /// Reads data of the current member as it is in the archive. At least one byte must be left, or the buffer is
    /// empty.
    pub(crate) fn data(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let want = buffer.len().min(usize::try_from(self.data_left).unwrap_or(usize::MAX));
        let count = self.read_some(&mut buffer[..want])?;
        if count == 0 {
            return Err(malformed("the archive ends inside a member"));
        }
        self.data_left -= count as u64;
        Ok(count)
    }

    /// Fills a buffer with data of the current member, which must have that much left.
    pub(crate) fn fill_from_data(&mut self, buffer: &mut [u8]) -> Result<(), ArchiveError> {
        let mut filled = 0;
        while filled < buffer.len() {
            filled += self.data(&mut buffer[filled..])?;
        }
        Ok(())
    }

    /// Skips what is left of the current member, its padding included.
    pub(crate) fn skip_data(&mut self) -> Result<(), ArchiveError> {
        if self.data_left > 0 {
            let mut buffer = [0; SKIP_BUFFER_BYTES];
            while self.data_left > 0 {
                self.data(&mut buffer)?;
            }
        }
        let mut padding = [0; BLOCK_BYTES];
        let (padding, _) = padding.split_at_mut(usize::try_from(self.padding_left).unwrap_or(0));
        self.padding_left = 0;
        self.block(padding)
    }

    /// Fills a whole block.
    pub(crate) fn block(&mut self, block: &mut [u8]) -> Result<(), ArchiveError> {
        if self.fill(block)? < block.len() {
            return Err(malformed("the archive ends without its end mark"));
        }
        Ok(())
    }

    /// Fills a buffer as far as the input goes.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read_some(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(filled)
    }

    /// Reads what is behind the end mark, so that the sender does not block and the caller's hash sees all bytes.
    /// Programs fill archives up to 10 KiB or more.
    pub(crate) fn drain(&mut self) -> Result<(), ArchiveError> {
        let mut buffer = [0; SKIP_BUFFER_BYTES];
        while self.read_some(&mut buffer)? > 0 {}
        Ok(())
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        loop {
            match self.input.read(buffer) {
                Ok(count) => {
                    self.bytes += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(ArchiveError::Input(error)),
            }
        }
    }
}
