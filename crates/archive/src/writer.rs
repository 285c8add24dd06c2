//! Writes an archive: GNU tar, with holes as holes and the sizes that were really read.
//!
//! ```text
//!   file shorter than the buffer ──▶ header with the size that was read
//!   size larger than the buffer  ──▶ header with the size, data part by part; zeros and `KILN.size` if it gets shorter
//!   size too small (`/proc`)     ──▶ read to its end into memory first
//! ```

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use tar::{EntryType, GnuExtSparseHeader, Header};

use crate::error::WriteError;
use crate::extents::{Extent, of_file};
use crate::pax::{SHORTER, record, record_of};
use crate::{BLOCK_BYTES, padding};

/// The most bytes that are kept in memory of a file that is longer than its size.
pub const SPOOL_BYTES_MAX: u64 = 32 << 20;
/// Size of the buffer. So many bytes of a file are read before its header is written.
const BUFFER_BYTES: usize = 64 * 1024;
/// Name of the entries that have a name too long for a header.
const LONG_NAME: &[u8] = b"././@LongLink";
/// The start of the key of an extended attribute in a pax record.
const XATTR: &[u8] = b"SCHILY.xattr.";
/// Name of the members with details of the next one.
const DETAILS_NAME: &[u8] = b"pax";
/// Parts of a sparse file that its header has room for.
const PARTS_IN_HEADER: usize = 4;
/// Bytes that [`Writer::finish`] adds.
pub const END_BYTES: u64 = 2 * BLOCK_BYTES as u64;

/// What an archive keeps of a file in addition to its name and content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Permission bits; bits over 0o7777 are left out.
    pub permissions: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Last change, in seconds since 1970. An earlier time is written as 0, since not every program reads negative
    /// ones.
    pub modified: i64,
}

/// A member without content that is neither a directory nor a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// A character device: the numbers of its driver and of the device.
    CharacterDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
    /// A FIFO.
    Fifo,
}

/// An archive that is being written.
#[derive(Debug)]
pub struct Writer<W> {
    output: W,
    bytes: u64,
    entries: u64,
    buffer: Vec<u8>,
}

/// A file whose size is known.
struct Content<'a> {
    file: &'a mut File,
    extents: Vec<Extent>,
    size: u64,
    /// Bytes of its start that are in the buffer. If 0, the file is read by offset.
    filled: usize,
}

impl<W: Write> Writer<W> {
    /// Starts an archive.
    pub fn new(output: W) -> Self {
        Self { output, bytes: 0, entries: 0, buffer: vec![0; BUFFER_BYTES] }
    }

    /// Bytes of the archive so far; its end has [`END_BYTES`] more.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Files, directories and symlinks so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Adds a directory. A slash is appended to its name.
    ///
    /// # Errors
    /// If the output returns an error.
    pub fn directory(&mut self, name: &[u8], attributes: &Attributes) -> io::Result<()> {
        let name = [name, b"/"].concat();
        self.entry(plain(EntryType::Directory, 0), &name, b"", attributes)
    }

    /// Adds a symlink.
    ///
    /// # Errors
    /// If the output returns an error.
    pub fn symlink(&mut self, name: &[u8], target: &[u8], attributes: &Attributes) -> io::Result<()> {
        self.entry(plain(EntryType::Symlink, 0), name, target, attributes)
    }

    /// Adds another name of a file that is in the archive already.
    ///
    /// # Errors
    /// If the output returns an error.
    pub fn hard_link(&mut self, name: &[u8], first: &[u8], attributes: &Attributes) -> io::Result<()> {
        self.entry(plain(EntryType::Link, 0), name, first, attributes)
    }

    /// Adds a device or a FIFO.
    ///
    /// # Errors
    /// If the output returns an error, or the numbers of a device are too large for a header.
    pub fn special(&mut self, name: &[u8], special: Special, attributes: &Attributes) -> io::Result<()> {
        let (kind, numbers) = match special {
            Special::CharacterDevice(major, minor) => (EntryType::Char, Some((major, minor))),
            Special::BlockDevice(major, minor) => (EntryType::Block, Some((major, minor))),
            Special::Fifo => (EntryType::Fifo, None),
        };
        let mut header = plain(kind, 0);
        if let Some((major, minor)) = numbers {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        self.entry(header, name, b"", attributes)
    }

    /// Adds an empty file of root: a mark in a layer of an image.
    ///
    /// # Errors
    /// If the output returns an error.
    pub fn empty_file(&mut self, name: &[u8]) -> io::Result<()> {
        let attributes = Attributes { permissions: 0o644, ..Attributes::default() };
        self.entry(plain(EntryType::Regular, 0), name, b"", &attributes)
    }

    /// Adds what the header of the next member has no room for: the exact time of its last change, as seconds since 1970
    /// and nanoseconds after that, and its extended attributes. An attribute with `=` in its name is left out, because no
    /// form of pax that other programs read has it.
    ///
    /// # Errors
    /// If the output returns an error.
    pub fn details(&mut self, modified: (i64, i64), xattrs: &[(Vec<u8>, Vec<u8>)]) -> io::Result<()> {
        let mut records = Vec::new();
        if modified.0 < 0 || modified.1 != 0 {
            records.extend(record_of(b"mtime", decimal_time(modified).as_bytes()));
        }
        for (name, value) in xattrs.iter().filter(|(name, _)| !name.contains(&b'=')) {
            records.extend(record_of(&[XATTR, name].concat(), value));
        }
        if records.is_empty() {
            return Ok(());
        }
        let mut header = plain(EntryType::XHeader, records.len() as u64);
        header.as_old_mut().name[..DETAILS_NAME.len()].copy_from_slice(DETAILS_NAME);
        self.describing(header, &records)
    }

    /// Adds a plain file that is open for reading, with its offset at the start.
    ///
    /// # Errors
    /// [`WriteError::File`] if the file can't be read to its end; the archive can continue. [`WriteError::Output`] if
    /// the output returns an error.
    pub fn file(&mut self, name: &[u8], attributes: &Attributes, file: &mut File) -> Result<(), WriteError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let outcome = self.file_through(&mut buffer, name, attributes, file);
        self.buffer = buffer;
        outcome
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// If the output returns an error.
    pub fn finish(mut self) -> io::Result<()> {
        self.zeros(END_BYTES)?;
        self.output.flush()
    }

    fn file_through(
        &mut self,
        buffer: &mut [u8],
        name: &[u8],
        attributes: &Attributes,
        file: &mut File,
    ) -> Result<(), WriteError> {
        let filled = read_full(file, buffer).map_err(WriteError::File)?;
        if filled < buffer.len() {
            return self.small(name, attributes, &buffer[..filled]).map_err(WriteError::Output);
        }
        // The size is read only now, after the first buffer: for a file that grew meanwhile it is the new size.
        let size = file.metadata().map_err(WriteError::File)?.len();
        if size <= filled as u64 {
            let mut spooled = spool(&buffer[..filled], file).map_err(WriteError::File)?;
            let size = spooled.metadata().map_err(WriteError::File)?.len();
            let extents = vec![Extent { offset: 0, bytes: size }];
            return self.large(buffer, name, attributes, Content { file: &mut spooled, extents, size, filled: 0 });
        }
        let extents = of_file(&*file, size);
        let is_sparse = extents.iter().map(|extent| extent.bytes).sum::<u64>() < size;
        let filled = if is_sparse { 0 } else { filled };
        match file.seek(SeekFrom::Start(filled as u64)) {
            // If the file can't seek, the search for holes did not move its offset either.
            Err(error) if error.raw_os_error() != Some(Errno::SPIPE.raw_os_error()) => {
                return Err(WriteError::File(error));
            }
            _ => {}
        }
        self.large(buffer, name, attributes, Content { file, extents, size, filled })
    }

    fn small(&mut self, name: &[u8], attributes: &Attributes, content: &[u8]) -> io::Result<()> {
        self.entry(plain(EntryType::Regular, content.len() as u64), name, b"", attributes)?;
        self.write(content)?;
        self.zeros(padding(content.len() as u64))
    }

    /// Writes a file of a known size.
    fn large(
        &mut self,
        buffer: &mut [u8],
        name: &[u8],
        attributes: &Attributes,
        content: Content<'_>,
    ) -> Result<(), WriteError> {
        let Content { file, extents, size, filled } = content;
        let data: u64 = extents.iter().map(|extent| extent.bytes).sum();
        self.large_header(name, attributes, &extents, size, data).map_err(WriteError::Output)?;
        self.write(&buffer[..filled]).map_err(WriteError::Output)?;
        let (mut left, mut cut) = (data - filled as u64, None);
        'extents: for extent in &extents {
            let mut position = extent.offset.max(filled as u64);
            while position < extent.end() {
                let want = buffer.len().min(usize::try_from(extent.end() - position).unwrap_or(usize::MAX));
                // Some files can be read only from start to end, not at an offset.
                let read = match filled {
                    0 => file.read_at(&mut buffer[..want], position),
                    _ => file.read(&mut buffer[..want]),
                };
                match read {
                    Ok(0) => {
                        cut = Some((position, None));
                        break 'extents;
                    }
                    Ok(count) => {
                        self.write(&buffer[..count]).map_err(WriteError::Output)?;
                        position += count as u64;
                        left -= count as u64;
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => {
                        cut = Some((position, Some(error)));
                        break 'extents;
                    }
                }
            }
        }
        self.zeros(left.saturating_add(padding(data))).map_err(WriteError::Output)?;
        let Some((length, error)) = cut else { return Ok(()) };
        self.shorter(length).map_err(WriteError::Output)?;
        error.map_or(Ok(()), |error| Err(WriteError::File(error)))
    }

    fn large_header(
        &mut self,
        name: &[u8],
        attributes: &Attributes,
        extents: &[Extent],
        size: u64,
        data: u64,
    ) -> io::Result<()> {
        if data == size {
            return self.entry(plain(EntryType::Regular, size), name, b"", attributes);
        }
        // For programs that ignore the real size, an empty part at the end gives the length of the file.
        let end = Extent { offset: size, bytes: 0 };
        let open = extents.last().is_none_or(|last| last.end() < size);
        let mut parts = extents.iter().copied().chain(open.then_some(end)).peekable();
        let mut header = plain(EntryType::GNUSparse, data);
        if let Some(gnu) = header.as_gnu_mut() {
            gnu.set_real_size(size);
            for (field, part) in gnu.sparse.iter_mut().zip(parts.by_ref().take(PARTS_IN_HEADER)) {
                field.set_offset(part.offset);
                field.set_length(part.bytes);
            }
            gnu.set_is_extended(parts.peek().is_some());
        }
        self.entry(header, name, b"", attributes)?;
        while parts.peek().is_some() {
            let mut block = GnuExtSparseHeader::new();
            for field in block.sparse_mut() {
                let Some(part) = parts.next() else { break };
                field.set_offset(part.offset);
                field.set_length(part.bytes);
            }
            block.set_is_extended(parts.peek().is_some());
            self.write(block.as_bytes())?;
        }
        Ok(())
    }

    /// Writes after a file's data how many bytes the file really had.
    fn shorter(&mut self, length: u64) -> io::Result<()> {
        let record = record(SHORTER, &length.to_string());
        let mut header = plain(EntryType::XGlobalHeader, record.len() as u64);
        let name = &mut header.as_old_mut().name;
        name[..SHORTER.len()].copy_from_slice(SHORTER.as_bytes());
        self.describing(header, &record)
    }

    fn entry(&mut self, mut header: Header, name: &[u8], target: &[u8], attributes: &Attributes) -> io::Result<()> {
        header.set_mode(attributes.permissions & 0o7777);
        header.set_uid(u64::from(attributes.uid));
        header.set_gid(u64::from(attributes.gid));
        header.set_mtime(u64::try_from(attributes.modified).unwrap_or(0));
        for (long, text) in [(EntryType::GNULongName, name), (EntryType::GNULongLink, target)] {
            let old = header.as_old_mut();
            let field = if long == EntryType::GNULongName { &mut old.name } else { &mut old.linkname };
            let short = &text[..text.len().min(field.len())];
            field[..short.len()].copy_from_slice(short);
            if text.len() > short.len() {
                self.long(long, text)?;
            }
        }
        header.set_cksum();
        self.write(header.as_bytes())?;
        self.entries += 1;
        Ok(())
    }

    /// An entry before another one, with a name that is too long for its header.
    fn long(&mut self, kind: EntryType, text: &[u8]) -> io::Result<()> {
        let mut header = plain(kind, text.len() as u64 + 1);
        header.as_old_mut().name[..LONG_NAME.len()].copy_from_slice(LONG_NAME);
        self.describing(header, &[text, b"\0"].concat())
    }

    /// A member that describes the next one.
    fn describing(&mut self, mut header: Header, body: &[u8]) -> io::Result<()> {
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        self.write(header.as_bytes())?;
        self.write(body)?;
        self.zeros(padding(body.len() as u64))
    }

    fn zeros(&mut self, mut count: u64) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while count > 0 {
            let some = ZEROS.len().min(usize::try_from(count).unwrap_or(usize::MAX));
            self.write(&ZEROS[..some])?;
            count -= some as u64;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// A time as a decimal number. Nanoseconds count upwards, also before 1970: -1 s and 500,000,000 ns is -0.5.
fn decimal_time((seconds, nanoseconds): (i64, i64)) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    format!("{sign}{}.{:09}", total.abs() / 1_000_000_000, total.abs() % 1_000_000_000)
}

fn plain(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header
}

/// Reads until a buffer is full or the file ends.
fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The whole content of a file without a right size, in memory.
fn spool(start: &[u8], file: &mut File) -> io::Result<File> {
    let mut spooled = File::from(rustix::fs::memfd_create(c"kiln-spool", MemfdFlags::CLOEXEC)?);
    spooled.write_all(start)?;
    let room = SPOOL_BYTES_MAX - start.len() as u64;
    let count = io::copy(&mut file.take(room + 1), &mut spooled)?;
    if count > room {
        let mebibytes = SPOOL_BYTES_MAX >> 20;
        return Err(io::Error::other(format!("it reports no size and has more than {mebibytes} MiB")));
    }
    spooled.rewind()?;
    Ok(spooled)
}
