//! Reads the members of a tar archive as they arrive: ustar, GNU, pax. Everything is checked before it is used.
//!
//! ```text
//!   next() ──▶ Member ──▶ read() … until None ──▶ length() ──▶ next() …
//! ```
//!
//! # What an archive can cost
//! Sizes in headers are claims. Memory is reserved only for names, attributes and maps of holes, and each has a bound
//! that is checked before: [`EXTENSION_BYTES_MAX`] for one name or one set of attributes, [`EXTENTS_MAX`] for a map.
//! Several extensions before one member replace each other, and a map that is spread over several is counted as a
//! whole. Data of files is never collected: [`Members::read`] fills the caller's buffer, so a file that claims to have
//! 8 EiB costs only the bytes that really arrive, and its end is found as "the archive ends inside a member".
//!
//! # Why the length comes after the data
//! The length of a file that shrank while it was packed is in a record behind its data, because the packer wrote the
//! header before it knew. So [`Members::length`] reads one header ahead. If that header is not such a record, it
//! belongs to the next member and is kept for the next call of [`Members::next`]. A reader that ignores the record gets
//! a file that ends in zeros.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use crate::error::{ArchiveError, malformed};
use crate::extents::{EXTENTS_MAX, Extent, check};
use crate::pax::{EXTENSION_BYTES_MAX, Extension, parse, shorter};
use crate::{BLOCK_BYTES, padding};

/// Bytes that are read at once to skip them.
const SKIP_BUFFER_BYTES: usize = 16 * 1024;

/// One member, from its header.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name, of any bytes.
    pub path: Vec<u8>,
    /// The target of a link; empty for others.
    pub link: Vec<u8>,
    /// What it is. A sparse file is `Regular` like any other file.
    pub kind: EntryType,
    /// Its permission bits, at most 0o7777.
    pub permissions: u32,
    /// Its owner.
    pub uid: i64,
    /// Its group.
    pub gid: i64,
    /// Last change, in seconds since 1970 and nanoseconds.
    pub modified: (i64, i64),
    /// Size of a file, holes included.
    pub size: u64,
}

/// The next bytes of a file, which are at the start of the caller's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data {
    /// Their offset in the file. Gaps between two of them are holes.
    pub offset: u64,
    /// How many bytes; never 0.
    pub bytes: usize,
}

/// The members of an archive, in order. Unread data of a member is skipped.
#[derive(Debug)]
pub struct Members<R> {
    input: R,
    bytes: u64,
    /// Unread data of the current member, as it is in the archive.
    data_left: u64,
    padding_left: u64,
    /// Unread parts of the current file.
    extents: VecDeque<Extent>,
    /// Size of the current file, holes included.
    size: u64,
    /// A header that was read to check whether it belongs to the current file, and does not.
    ahead: Option<Box<Header>>,
    ended: bool,
}

impl<R: Read> Members<R> {
    /// Starts at an archive's first byte.
    pub fn new(input: R) -> Self {
        Self {
            input,
            bytes: 0,
            data_left: 0,
            padding_left: 0,
            extents: VecDeque::new(),
            size: 0,
            ahead: None,
            ended: false,
        }
    }

    /// Bytes of the archive that were read so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The input, so that the caller can query it.
    pub fn input(&mut self) -> &mut R {
        &mut self.input
    }

    /// The next member. `None` after the archive's end mark, once all input behind it was read.
    ///
    /// # Errors
    /// If the input is not a whole archive, a name or a map of holes is too long, or the input returns an error.
    #[expect(clippy::should_implement_trait, reason = "an error ends an archive, and the data is read between two")]
    pub fn next(&mut self) -> Result<Option<Member>, ArchiveError> {
        let mut extension = Extension::default();
        let mut described = false;
        while !self.ended {
            let Some(header) = self.next_header()? else { break };
            let kind = header.entry_type();
            let size = size_of(&header)?;
            described |= matches!(kind, EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader);
            match kind {
                EntryType::GNULongName => extension.path = Some(self.text(size)?),
                EntryType::GNULongLink => extension.link = Some(self.text(size)?),
                EntryType::XHeader => extension.read(&self.body(size)?)?,
                EntryType::XGlobalHeader => drop(self.body(size)?),
                kind => return self.member(&header, kind, size, extension).map(Some),
            }
        }
        if described {
            return Err(malformed("the archive ends after a name without a member"));
        }
        self.drain()?;
        Ok(None)
    }

    /// Reads data of the current file into a buffer; `None` at its end.
    ///
    /// # Errors
    /// If the archive ends before the file does, or the input returns an error.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<Option<Data>, ArchiveError> {
        while self.extents.front().is_some_and(|extent| extent.bytes == 0) {
            self.extents.pop_front();
        }
        let Some(extent) = self.extents.front_mut() else { return Ok(None) };
        let want = buffer.len().min(usize::try_from(extent.bytes).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(None);
        }
        let offset = extent.offset;
        let bytes = self.raw(&mut buffer[..want])?;
        if let Some(extent) = self.extents.front_mut() {
            extent.offset += bytes as u64;
            extent.bytes -= bytes as u64;
        }
        Ok(Some(Data { offset, bytes }))
    }

    /// Length of the current file, holes at its end included. Call this after its data was read. It is less than the
    /// size if the file became shorter while it was packed.
    ///
    /// # Errors
    /// If the header after the file can't be read, or has a length over the file's size.
    pub fn length(&mut self) -> Result<u64, ArchiveError> {
        let size = self.size;
        if self.ended {
            return Ok(size);
        }
        let Some(header) = self.next_header()? else { return Ok(size) };
        if header.entry_type() == EntryType::XGlobalHeader {
            // A global header without a length for this file is for other programs.
            let records = self.body(size_of(&header)?)?;
            return match shorter(&records)? {
                Some(length) if length > size => Err(malformed("the archive has a file that is longer than its size")),
                length => Ok(length.unwrap_or(size)),
            };
        }
        self.ahead = Some(Box::new(header));
        Ok(size)
    }

    fn member(
        &mut self,
        header: &Header,
        kind: EntryType,
        size: u64,
        mut extension: Extension,
    ) -> Result<Member, ArchiveError> {
        let size = extension.size.unwrap_or(size);
        let path = extension.take_path().unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extension.link.take().or_else(|| header.link_name_bytes().map(Cow::into_owned)).unwrap_or_default();
        // In some archives a link has the size of its target, but no data.
        let has_data = !matches!(kind, EntryType::Link | EntryType::Symlink);
        self.set_data(if has_data { size } else { 0 })?;
        let sparse = kind == EntryType::GNUSparse || extension.sparse.is_used();
        // In the oldest archives a directory is a file whose name ends with a slash.
        let kind = match kind {
            EntryType::Regular if path.ends_with(b"/") => EntryType::Directory,
            EntryType::Continuous | EntryType::GNUSparse => EntryType::Regular,
            kind => kind,
        };
        if sparse && kind == EntryType::Regular {
            self.sparse(header, extension.sparse)?;
        } else {
            self.size = self.data_left;
            self.extents = VecDeque::from([Extent { offset: 0, bytes: self.data_left }]);
        }
        let old = header.as_old();
        Ok(Member {
            path,
            link,
            kind,
            permissions: u32::try_from(number(&old.mode).unwrap_or(0o644) & 0o7777).unwrap_or(0o644),
            uid: extension.uid.or(number(&old.uid)).unwrap_or(0),
            gid: extension.gid.or(number(&old.gid)).unwrap_or(0),
            modified: extension.modified.unwrap_or((number(&old.mtime).unwrap_or(0), 0)),
            size: self.size,
        })
    }

    /// Reads which parts of the current file have data, in the format that the archive uses.
    fn sparse(&mut self, header: &Header, sparse: crate::pax::Sparse) -> Result<(), ArchiveError> {
        let no_size = || malformed("the archive has a sparse file without a size");
        let (extents, size) = if let Some(extents) = sparse.extents {
            (extents, sparse.size.ok_or_else(no_size)?)
        } else if sparse.in_data {
            (self.map_in_data()?, sparse.size.ok_or_else(no_size)?)
        } else {
            let gnu = header.as_gnu().ok_or_else(no_size)?;
            let size = number(&gnu.realsize).and_then(|size| u64::try_from(size).ok()).ok_or_else(no_size)?;
            (self.map_in_headers(&gnu.sparse, gnu.isextended[0] == 1)?, size)
        };
        if size > i64::MAX.unsigned_abs() {
            return Err(malformed(format!("the archive has a file of {size} bytes, more than a file can have")));
        }
        check(&extents, size, self.data_left)?;
        (self.extents, self.size) = (extents.into(), size);
        Ok(())
    }

    /// The old GNU format: four parts in the header, 21 in each block after it.
    fn map_in_headers(&mut self, first: &[GnuSparseHeader], mut more: bool) -> Result<Vec<Extent>, ArchiveError> {
        let mut extents = Vec::new();
        push_parts(&mut extents, first)?;
        while more {
            let mut block = GnuExtSparseHeader::new();
            self.block(block.as_mut_bytes())?;
            push_parts(&mut extents, block.sparse())?;
            more = block.is_extended();
        }
        Ok(extents)
    }

    /// pax version 1.0: decimal lines at the start of the data, filled up to a block. First the number of parts, then
    /// offset and length of each.
    fn map_in_data(&mut self) -> Result<Vec<Extent>, ArchiveError> {
        let bad = || malformed("the archive has a sparse file with a malformed map");
        let mut lines = Lines::default();
        let count: usize = self.number_in_data(&mut lines)?.try_into().map_err(|_| bad())?;
        if count > EXTENTS_MAX {
            return Err(too_many());
        }
        let mut extents = Vec::new();
        for _ in 0..count {
            let (offset, bytes) = (self.number_in_data(&mut lines)?, self.number_in_data(&mut lines)?);
            extents.push(Extent { offset, bytes });
        }
        Ok(extents)
    }

    fn number_in_data(&mut self, lines: &mut Lines) -> Result<u64, ArchiveError> {
        loop {
            if let Some(line) = lines.take() {
                return parse(line).ok_or_else(|| malformed("the archive has a sparse file with a malformed map"));
            }
            let mut block = [0; BLOCK_BYTES];
            if self.data_left < BLOCK_BYTES as u64 {
                return Err(malformed("the archive has a sparse file whose map does not end"));
            }
            let mut filled = 0;
            while filled < block.len() {
                filled += self.raw(&mut block[filled..])?;
            }
            lines.add(&block)?;
        }
    }

    /// The next header of any kind; `None` at the archive's end mark.
    fn next_header(&mut self) -> Result<Option<Header>, ArchiveError> {
        if let Some(header) = self.ahead.take() {
            return Ok(Some(*header));
        }
        self.skip_data()?;
        let mut block = [0; BLOCK_BYTES];
        self.block(&mut block)?;
        if block == [0; BLOCK_BYTES] {
            // The end mark has two of them, but some programs write only one.
            self.ended = true;
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let mut expected = header.clone();
        expected.set_cksum();
        if number(&header.as_old().cksum) != number(&expected.as_old().cksum) {
            return Err(malformed(format!("no tar header at byte {}", self.bytes - BLOCK_BYTES as u64)));
        }
        Ok(Some(header))
    }

    fn text(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        let mut text = self.body(size)?;
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        text.truncate(end);
        Ok(text)
    }

    /// The whole data of a member that describes the next one.
    fn body(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > EXTENSION_BYTES_MAX {
            let problem = format!("the archive has a name or attributes of {size} bytes, over {EXTENSION_BYTES_MAX}");
            return Err(ArchiveError::TooLarge(problem));
        }
        self.set_data(size)?;
        let mut body = vec![0; usize::try_from(size).unwrap_or(0)];
        let mut filled = 0;
        while filled < body.len() {
            filled += self.raw(&mut body[filled..])?;
        }
        Ok(body)
    }

    fn set_data(&mut self, size: u64) -> Result<(), ArchiveError> {
        if size > i64::MAX.unsigned_abs() {
            return Err(malformed(format!("the archive has a member of {size} bytes, more than a file can have")));
        }
        (self.data_left, self.padding_left) = (size, padding(size));
        (self.extents, self.size) = (VecDeque::new(), 0);
        Ok(())
    }

    fn skip_data(&mut self) -> Result<(), ArchiveError> {
        let mut buffer = [0; SKIP_BUFFER_BYTES];
        while self.data_left > 0 {
            self.raw(&mut buffer)?;
        }
        let (padding, _) = buffer.split_at_mut(usize::try_from(self.padding_left).unwrap_or(0));
        self.padding_left = 0;
        self.extents.clear();
        self.block(padding)
    }

    /// Reads data of the current member as it is in the archive. At least one byte must be left, or the buffer is
    /// empty.
    fn raw(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let want = buffer.len().min(usize::try_from(self.data_left).unwrap_or(usize::MAX));
        let count = self.read_some(&mut buffer[..want])?;
        if count == 0 {
            return Err(malformed("the archive ends inside a member"));
        }
        self.data_left -= count as u64;
        Ok(count)
    }

    /// Reads what is behind the end mark, so that the sender does not block. Programs fill archives up to 10 KiB or
    /// more.
    fn drain(&mut self) -> Result<(), ArchiveError> {
        let mut buffer = [0; SKIP_BUFFER_BYTES];
        while self.read_some(&mut buffer)? > 0 {}
        Ok(())
    }

    fn block(&mut self, block: &mut [u8]) -> Result<(), ArchiveError> {
        let mut filled = 0;
        while filled < block.len() {
            match self.read_some(&mut block[filled..])? {
                0 => return Err(malformed("the archive ends without its end mark")),
                count => filled += count,
            }
        }
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
            return Err(malformed("the archive has a sparse file with a malformed map"));
        }
        self.text.extend_from_slice(block);
        Ok(())
    }
}

fn push_parts(extents: &mut Vec<Extent>, parts: &[GnuSparseHeader]) -> Result<(), ArchiveError> {
    let field = |field: &[u8]| {
        let value = number(field).and_then(|value| u64::try_from(value).ok());
        value.ok_or_else(|| malformed("the archive has a sparse file with a malformed map"))
    };
    for part in parts.iter().filter(|part| !part.is_empty()) {
        extents.push(Extent { offset: field(&part.offset)?, bytes: field(&part.numbytes)? });
    }
    if extents.len() > EXTENTS_MAX { Err(too_many()) } else { Ok(()) }
}

fn too_many() -> ArchiveError {
    ArchiveError::TooLarge(format!("the archive has a sparse file of more than {EXTENTS_MAX} parts"))
}

fn size_of(header: &Header) -> Result<u64, ArchiveError> {
    let size = number(&header.as_old().size).and_then(|size| u64::try_from(size).ok());
    size.ok_or_else(|| malformed("a tar header has no size"))
}

/// A header's number: octal, or big-endian after a byte of 0x80 or 0xff. `None` if it is neither or does not fit.
fn number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(0x80) => {
            field[1..].iter().try_fold(0_i64, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
        }
        Some(0xff) => {
            field[1..].iter().try_fold(-1_i64, |value, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
        }
        _ => {
            let text = std::str::from_utf8(field).ok()?.trim_matches(|letter| matches!(letter, '\0' | ' '));
            let digits = text.split(['\0', ' ']).next().unwrap_or("");
            if digits.is_empty() { Some(0) } else { i64::from_str_radix(digits, 8).ok() }
        }
    }
}
