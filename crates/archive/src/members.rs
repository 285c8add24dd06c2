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
//!
//! # Layers of images
//! A layer is read by other programs too, and it may be hostile. Where programs read different files from the same
//! bytes, a check by one of them is worth nothing for the other. So [`Members::of_layer`] refuses what programs disagree
//! about:
//!
//! - a block of zeros that is followed by another member;
//! - a link, device, directory or FIFO with data: some skip it, some take it for the next member;
//! - types that are unknown, and headers with numbers that are not numbers;
//! - pax records with malformed lengths, keys or values; two headers of one kind before a member; a pax name that is not
//!   the GNU name; two maps of one sparse file; a global header with a name or a size.
//!
//! A pax size is always that of the member, never that of a header between the two. In addition, such a reader returns
//! extended attributes, and applies global pax headers to the members after them. The record for files that shrank is
//! ignored, since other programs ignore it.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::Read;

use tar::{EntryType, Header};

use crate::error::{ArchiveError, malformed};
use crate::extents::{Extent, check};
use crate::input::Input;
use crate::numbers::number;
use crate::pax::{EXTENSION_BYTES_MAX, Extension, Rules, Sparse, shorter};
use crate::xattrs::Xattr;
use crate::{BLOCK_BYTES, maps};

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
    /// Numbers of a device: that of its driver, and its own. 0 for others.
    pub device: (u32, u32),
    /// Names and values of extended attributes, in the archive's order. If a name is there twice, the last one counts.
    /// Empty if the archive is not read as a layer.
    pub xattrs: Vec<Xattr>,
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
    input: Input<R>,
    rules: Rules,
    /// What global headers replace in all members after them.
    global: Extension,
    /// Unread parts of the current file.
    extents: VecDeque<Extent>,
    /// Size of the current file, holes included.
    size: u64,
    /// A header that was read to check whether it belongs to the current file, and does not.
    ahead: Option<Box<Header>>,
    ended: bool,
}

impl<R: Read> Members<R> {
    /// Starts at the first byte of an archive of files that are copied.
    pub fn new(input: R) -> Self {
        Self::with_rules(input, Rules::Copy)
    }

    /// Starts at the first byte of a layer of an image, which is read by stricter rules.
    pub fn of_layer(input: R) -> Self {
        Self::with_rules(input, Rules::Layer)
    }

    /// Bytes of the archive that were read so far.
    pub fn bytes(&self) -> u64 {
        self.input.bytes
    }

    /// The input, so that the caller can query it.
    pub fn input(&mut self) -> &mut R {
        &mut self.input.input
    }

    /// The next member. `None` after the archive's end mark, once all input behind it was read.
    ///
    /// # Errors
    /// If the input is not a whole archive, a name or a map of holes is too long, or the input returns an error.
    #[expect(clippy::should_implement_trait, reason = "an error ends an archive, and the data is read between two")]
    pub fn next(&mut self) -> Result<Option<Member>, ArchiveError> {
        let mut extension = Extension::default();
        let mut described = Vec::new();
        while !self.ended {
            let Some(header) = self.next_header()? else { break };
            let kind = header.entry_type();
            let size = size_of(&header)?;
            match kind {
                EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader => {
                    let body = self.body(size)?;
                    self.describe(kind, body, &mut extension, &described)?;
                    described.push(kind);
                }
                EntryType::XGlobalHeader => {
                    let body = self.body(size)?;
                    if self.rules == Rules::Layer {
                        self.global.read_global(&body)?;
                    }
                }
                kind => return self.member(&header, kind, size, extension).map(Some),
            }
        }
        if !described.is_empty() {
            return Err(malformed("the archive ends after a name without a member"));
        }
        self.input.drain()?;
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
        let bytes = self.input.data(&mut buffer[..want])?;
        if let Some(extent) = self.extents.front_mut() {
            extent.offset += bytes as u64;
            extent.bytes -= bytes as u64;
        }
        Ok(Some(Data { offset, bytes }))
    }

    /// Length of the current file, holes at its end included. Call this after its data was read. It is less than the
    /// size if the file became shorter while it was packed. In a layer it is always the size.
    ///
    /// # Errors
    /// If the header after the file can't be read, or has a length over the file's size.
    pub fn length(&mut self) -> Result<u64, ArchiveError> {
        let size = self.size;
        if self.ended || self.rules == Rules::Layer {
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

    fn with_rules(input: R, rules: Rules) -> Self {
        Self {
            input: Input::new(input),
            rules,
            global: Extension::default(),
            extents: VecDeque::new(),
            size: 0,
            ahead: None,
            ended: false,
        }
    }

    /// Takes what a header of this kind has about the next member. `before` are the kinds that came before it.
    fn describe(
        &self,
        kind: EntryType,
        body: Vec<u8>,
        extension: &mut Extension,
        before: &[EntryType],
    ) -> Result<(), ArchiveError> {
        let names = (self.rules == Rules::Layer && !before.is_empty()).then(|| extension.names());
        if names.is_some() && before.contains(&kind) {
            let kind = char::from(kind.as_byte());
            return Err(malformed(format!("the archive has two headers of type `{kind}` before one member")));
        }
        match kind {
            EntryType::GNULongName => extension.path = Some(text(body)),
            EntryType::GNULongLink => extension.link = Some(text(body)),
            _ => extension.read(&body, self.rules)?,
        }
        let replaced = names.into_iter().flatten().zip(extension.names());
        if replaced.into_iter().any(|(before, after)| before.is_some() && before != after) {
            return Err(malformed("the archive has two different names for one member"));
        }
        Ok(())
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
        let in_header = kind == EntryType::GNUSparse;
        // In the oldest archives a directory is a file whose name ends with a slash.
        let kind = match kind {
            EntryType::Regular if path.ends_with(b"/") => EntryType::Directory,
            EntryType::Continuous | EntryType::GNUSparse => EntryType::Regular,
            kind => kind,
        };
        if self.rules == Rules::Layer {
            expect_agreement(kind, size, &extension.sparse, in_header)?;
        }
        // In some archives a link has the size of its target, but no data.
        let has_data = !matches!(kind, EntryType::Link | EntryType::Symlink);
        self.start_data(if has_data { size } else { 0 })?;
        if (in_header || extension.sparse.is_used()) && kind == EntryType::Regular {
            self.sparse(header, std::mem::take(&mut extension.sparse))?;
        } else {
            self.size = size * u64::from(has_data);
            self.extents.push_back(Extent { offset: 0, bytes: self.size });
        }
        self.with_attributes(
            header,
            extension,
            Member {
                path,
                link,
                kind,
                permissions: 0o644,
                uid: 0,
                gid: 0,
                modified: (0, 0),
                size: self.size,
                device: (0, 0),
                xattrs: Vec::new(),
            },
        )
    }

    /// Adds what is the same for members of all types.
    fn with_attributes(
        &self,
        header: &Header,
        extension: Extension,
        mut member: Member,
    ) -> Result<Member, ArchiveError> {
        let old = header.as_old();
        let field = |name: &str, field: &[u8], default: i64| match number(field) {
            Some(value) => Ok(value),
            None if self.rules == Rules::Copy => Ok(default),
            None => Err(malformed(format!("a tar header has a malformed {name}"))),
        };
        member.permissions = u32::try_from(field("mode", &old.mode, 0o644)? & 0o7777).unwrap_or(0o644);
        member.uid = match extension.uid.or(self.global.uid) {
            Some(uid) => uid,
            None => field("owner", &old.uid, 0)?,
        };
        member.gid = match extension.gid.or(self.global.gid) {
            Some(gid) => gid,
            None => field("group", &old.gid, 0)?,
        };
        member.modified = match extension.modified.or(self.global.modified) {
            Some(time) => time,
            None => (field("time", &old.mtime, 0)?, 0),
        };
        if matches!(member.kind, EntryType::Char | EntryType::Block) {
            // Both formats have these fields in the same place. The oldest one has no devices.
            let fields = header.as_ustar().map(|ustar| (ustar.dev_major, ustar.dev_minor));
            let fields = fields.or_else(|| header.as_gnu().map(|gnu| (gnu.dev_major, gnu.dev_minor)));
            let of_header = |name, bytes: Option<[u8; 8]>| {
                let number = field(name, &bytes.unwrap_or([b'?'; 8]), 0)?;
                u32::try_from(number).map_err(|_| malformed(format!("a tar header has a malformed {name}")))
            };
            let (major, minor) = extension.device;
            let major = major.map_or_else(|| of_header("device number", fields.map(|fields| fields.0)), Ok)?;
            let minor = minor.map_or_else(|| of_header("device number", fields.map(|fields| fields.1)), Ok)?;
            member.device = (major, minor);
        }
        member.xattrs = extension.xattrs;
        if !self.global.xattrs.is_empty() {
            member.xattrs.splice(..0, self.global.xattrs.iter().cloned());
        }
        Ok(member)
    }

    /// Reads which parts of the current file have data, in the format that the archive uses.
    fn sparse(&mut self, header: &Header, sparse: Sparse) -> Result<(), ArchiveError> {
        let no_size = || malformed("the archive has a sparse file without a size");
        let (extents, size) = if let Some(extents) = sparse.extents {
            (extents, sparse.size.ok_or_else(no_size)?)
        } else if sparse.in_data {
            (maps::in_data(&mut self.input)?, sparse.size.ok_or_else(no_size)?)
        } else {
            let gnu = header.as_gnu().ok_or_else(no_size)?;
            let size = number(&gnu.realsize).and_then(|size| u64::try_from(size).ok()).ok_or_else(no_size)?;
            (maps::in_headers(&mut self.input, gnu)?, size)
        };
        if size > i64::MAX.unsigned_abs() {
            return Err(malformed(format!("the archive has a file of {size} bytes, more than a file can have")));
        }
        check(&extents, size, self.input.data_left)?;
        (self.extents, self.size) = (extents.into(), size);
        Ok(())
    }

    /// The next header of any kind; `None` at the archive's end mark.
    fn next_header(&mut self) -> Result<Option<Header>, ArchiveError> {
        if let Some(header) = self.ahead.take() {
            return Ok(Some(*header));
        }
        self.input.skip_data()?;
        self.extents.clear();
        let mut block = [0; BLOCK_BYTES];
        self.input.block(&mut block)?;
        if block == [0; BLOCK_BYTES] {
            self.end()?;
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block);
        let sum: u32 = block.iter().copied().map(u32::from).sum();
        // The field of the sum itself counts as spaces.
        let field = &header.as_old().cksum;
        let sum = sum - field.iter().copied().map(u32::from).sum::<u32>() + 8 * u32::from(b' ');
        if number(field) != Some(i64::from(sum)) {
            return Err(malformed(format!("no tar header at byte {}", self.input.bytes - BLOCK_BYTES as u64)));
        }
        Ok(Some(header.clone()))
    }

    /// The first block of the end mark was read. The mark has two of them, but some programs write only one.
    fn end(&mut self) -> Result<(), ArchiveError> {
        self.ended = true;
        if self.rules == Rules::Layer {
            let mut block = [0; BLOCK_BYTES];
            self.input.fill(&mut block)?;
            if block != [0; BLOCK_BYTES] {
                return Err(malformed("the archive continues after a block of zeros"));
            }
        }
        Ok(())
    }

    /// The whole data of a member that describes the next one.
    fn body(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > EXTENSION_BYTES_MAX {
            let problem = format!("the archive has a name or attributes of {size} bytes, over {EXTENSION_BYTES_MAX}");
            return Err(ArchiveError::TooLarge(problem));
        }
        self.start_data(size)?;
        let mut body = vec![0; usize::try_from(size).unwrap_or(0)];
        self.input.fill_from_data(&mut body)?;
        Ok(body)
    }

    fn start_data(&mut self, size: u64) -> Result<(), ArchiveError> {
        self.extents.clear();
        self.size = 0;
        self.input.start_data(size)
    }
}

/// Refuses members that programs read in different ways.
fn expect_agreement(kind: EntryType, size: u64, sparse: &Sparse, in_header: bool) -> Result<(), ArchiveError> {
    match kind {
        EntryType::Regular if sparse.is_ambiguous(in_header) => {
            Err(malformed("the archive has a sparse file with more than one map, or a map of an unknown version"))
        }
        EntryType::Regular => Ok(()),
        EntryType::Link
        | EntryType::Symlink
        | EntryType::Char
        | EntryType::Block
        | EntryType::Directory
        | EntryType::Fifo => match size {
            0 => Ok(()),
            _ => Err(malformed(format!("the archive has {size} bytes of data for a member that is not a file"))),
        },
        kind => {
            let kind = kind.as_byte().escape_ascii();
            Err(malformed(format!("the archive has a member of type `{kind}`, which is unknown")))
        }
    }
}

/// A name, which ends at its first NUL.
fn text(mut body: Vec<u8>) -> Vec<u8> {
    body.truncate(body.iter().position(|byte| *byte == 0).unwrap_or(body.len()));
    body
}

fn size_of(header: &Header) -> Result<u64, ArchiveError> {
    let size = number(&header.as_old().size).and_then(|size| u64::try_from(size).ok());
    size.ok_or_else(|| malformed("a tar header has no size"))
}
