//! The image as it is written: front to back, in large pieces, its digest computed on the way.

use std::io::{self, Write};

use super::error::WriteError;
use crate::source::Source;

/// Bytes that are hashed and written at once.
const BUFFER_LEN: usize = 1 << 20;

/// An image that is being written.
pub(super) struct Output<W> {
    writer: W,
    hasher: blake3::Hasher,
    buffer: Box<[u8]>,
    filled: usize,
    /// Bytes before those in the buffer.
    flushed: u64,
}

/// Why data was not copied.
#[derive(Debug)]
pub(super) enum CopyError {
    Source(io::Error),
    Output(io::Error),
}

impl<W: Write> Output<W> {
    pub(super) fn new(writer: W) -> Self {
        Self { writer, hasher: blake3::Hasher::new(), buffer: vec![0; BUFFER_LEN].into(), filled: 0, flushed: 0 }
    }

    /// Bytes so far.
    pub(super) fn position(&self) -> u64 {
        self.flushed + self.filled as u64
    }

    /// Adds bytes.
    pub(super) fn bytes(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            self.filled += count;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Adds zeros up to a position.
    pub(super) fn zeros_to(&mut self, position: u64) -> io::Result<()> {
        debug_assert!(position >= self.position(), "the image is written front to back");
        while self.position() < position {
            let left = position - self.position();
            let room = self.room()?;
            let count = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            room[..count].fill(0);
            self.filled += count;
        }
        Ok(())
    }

    /// Adds bytes of a source.
    pub(super) fn copy(&mut self, source: &(impl Source + ?Sized), offset: u64, bytes: u64) -> Result<(), CopyError> {
        let mut done = 0;
        while done < bytes {
            let room = self.room().map_err(CopyError::Output)?;
            let count = room.len().min(usize::try_from(bytes - done).unwrap_or(usize::MAX));
            source.read_exact_at(&mut room[..count], offset + done).map_err(CopyError::Source)?;
            self.filled += count;
            done += count as u64;
        }
        Ok(())
    }

    /// Writes what is left, and returns the digest of all.
    pub(super) fn finish(mut self) -> Result<[u8; 32], WriteError> {
        self.flush().and_then(|()| self.writer.flush()).map_err(WriteError::Output)?;
        Ok(*self.hasher.finalize().as_bytes())
    }

    /// The free part of the buffer, which is never empty.
    fn room(&mut self) -> io::Result<&mut [u8]> {
        if self.filled == self.buffer.len() {
            self.flush()?;
        }
        Ok(&mut self.buffer[self.filled..])
    }

    fn flush(&mut self) -> io::Result<()> {
        let bytes = &self.buffer[..self.filled];
        self.hasher.update(bytes);
        self.writer.write_all(bytes)?;
        self.flushed += self.filled as u64;
        self.filled = 0;
        Ok(())
    }
}
