//! Maps of sparse files: which parts of a file have data, in the formats that have their map outside of the pax records.

use std::io::Read;

use tar::{GnuExtSparseHeader, GnuHeader, GnuSparseHeader};

use crate::BLOCK_BYTES;
use crate::error::{ArchiveError, malformed};
use crate::extents::{EXTENTS_MAX, Extent};
use crate::input::Input;
use crate::numbers::{decimal, number};

/// The old GNU format: four parts in the header, 21 in each block after it.
pub(crate) fn in_headers<R: Read>(input: &mut Input<R>, header: &GnuHeader) -> Result<Vec<Extent>, ArchiveError> {
    let mut extents = Vec::new();
    push_parts(&mut extents, &header.sparse)?;
    // Some writers set the flag to the digit 1, so anything but 0 counts.
    let mut more = header.isextended[0] != 0;
    while more {
        let mut block = GnuExtSparseHeader::new();
        input.block(block.as_mut_bytes())?;
        push_parts(&mut extents, block.sparse())?;
        more = block.isextended[0] != 0;
    }
    Ok(extents)
}

/// pax version 1.0: decimal lines at the start of the data, filled up to a block. First the number of parts, then offset
/// and length of each.
pub(crate) fn in_data<R: Read>(input: &mut Input<R>) -> Result<Vec<Extent>, ArchiveError> {
    let mut lines = Lines::default();
    let count: usize = number_in_data(input, &mut lines)?.try_into().map_err(|_| bad_map())?;
    if count > EXTENTS_MAX {
        return Err(too_many());
    }
    let mut extents = Vec::new();
    for _ in 0..count {
        let (offset, bytes) = (number_in_data(input, &mut lines)?, number_in_data(input, &mut lines)?);
        extents.push(Extent { offset, bytes });
    }
    Ok(extents)
}

fn number_in_data<R: Read>(input: &mut Input<R>, lines: &mut Lines) -> Result<u64, ArchiveError> {
    loop {
        if let Some(line) = lines.take() {
            return decimal(line).ok_or_else(bad_map);
        }
        let mut block = [0; BLOCK_BYTES];
        if input.data_left < BLOCK_BYTES as u64 {
            return Err(malformed("the archive has a sparse file whose map does not end"));
        }
        input.fill_from_data(&mut block)?;
        lines.add(&block)?;
    }
}

fn push_parts(extents: &mut Vec<Extent>, parts: &[GnuSparseHeader]) -> Result<(), ArchiveError> {
    let field = |field: &[u8]| number(field).and_then(|value| u64::try_from(value).ok()).ok_or_else(bad_map);
    for part in parts.iter().filter(|part| !part.is_empty()) {
        extents.push(Extent { offset: field(&part.offset)?, bytes: field(&part.numbytes)? });
    }
    if extents.len() > EXTENTS_MAX { Err(too_many()) } else { Ok(()) }
}

fn bad_map() -> ArchiveError {
    malformed("the archive has a sparse file with a malformed map")
}

fn too_many() -> ArchiveError {
    ArchiveError::TooLarge(format!("the archive has a sparse file of more than {EXTENTS_MAX} parts"))
}

/// Decimal lines that arrive in blocks.
#[derive(Debug, Default)]
struct Lines {
    text: Vec<u8>,
    at: usize,
}

impl Lines {
    /// The next whole line.
    fn take(&mut self) -> Option<&[u8]> {
        let rest = &self.text[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        self.at += end + 1;
        Some(&rest[..end])
    }

    /// Adds a block. The rest of the last block is part of a line, and a line with a number is shorter than a block.
    fn add(&mut self, block: &[u8]) -> Result<(), ArchiveError> {
        self.text.drain(..self.at);
        self.at = 0;
        if self.text.len() >= BLOCK_BYTES {
            return Err(bad_map());
        }
        self.text.extend_from_slice(block);
        Ok(())
    }
}
