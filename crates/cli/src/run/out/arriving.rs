//! Reads an archive from the link and counts its bytes.

use std::io::{self, Read};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::budget::Budget;

/// A piece of an archive, or its end. A channel that closes without an end was cut off.
#[derive(Debug)]
pub enum Piece {
    /// The next bytes.
    Bytes(Bytes),
    /// The agent confirmed the end of the archive.
    End,
}

/// A reader of bytes from the link. Every byte counts against the budget, headers too.
pub struct Arriving<'a> {
    pieces: mpsc::Receiver<Piece>,
    rest: Bytes,
    ended: bool,
    pub budget: &'a mut Budget,
}

impl<'a> Arriving<'a> {
    pub fn new(pieces: mpsc::Receiver<Piece>, budget: &'a mut Budget) -> Self {
        Self { pieces, rest: Bytes::new(), ended: false, budget }
    }
}

impl Read for Arriving<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.rest = bytes,
                Some(Piece::End) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive was cut off")),
            }
        }
        let count = buffer.len().min(self.rest.len());
        self.budget.bytes(count as u64)?;
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}
