//! Members of a tar archive as they arrive: ustar, GNU long names, pax. Nothing is believed before it is checked.

use std::io::Read;

use kiln_wire::{ErrorCode, Fault, Text};
use rustix::fs::Timespec;
use tar::{EntryType, Header};

use super::archive::{BLOCK_BYTES, padding};
use super::fault::{fault_from_stream, invalid};

/// Longest name or set of attributes that comes before a member.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// Bytes that are read at once to get rid of them.
const SKIP_BUFFER_BYTES: usize = 16 * 1024;

/// What a member's header says.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) path: Text,
    pub(super) link: Text,
    pub(super) kind: EntryType,
    pub(super) permissions: u32,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) modified: Timespec,
}

/// The members of an archive, in turn. What is not read of one is skipped.
#[derive(Debug)]
pub(super) struct Members<R> {
    input: R,
    bytes: u64,
    /// Of the current member.
    data_left: u64,
    padding_left: u64,
    ended: bool,
}

/// What came before a member to replace parts of its header.
#[derive(Debug, Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<i64>,
    gid: Option<i64>,
    modified: Option<Timespec>,
}

impl<R: Read> Members<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, bytes: 0, data_left: 0, padding_left: 0, ended: false }
    }

    /// Bytes that came so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next member; `None` once the archive said that it ends, and all that came after that was read.
    pub(super) fn next(&mut self) -> Result<Option<Member>, Fault> {
        let mut extension = Extension::default();
        while !self.ended {
            self.skip_data()?;
            let Some(header) = self.header()? else { break };
            let kind = header.entry_type();
            let size = number(&header.as_old().size).and_then(|size| u64::try_from(size).ok());
            let size = size.ok_or_else(|| invalid("a tar header has no size"))?;
            match kind {
                EntryType::GNULongName => extension.path = Some(self.text(size)?),
                EntryType::GNULongLink => extension.link = Some(self.text(size)?),
                EntryType::XHeader => extension.read_pax(&self.body(size)?)?,
                EntryType::XGlobalHeader => drop(self.body(size)?),
                kind => return self.member(&header, kind, size, extension).map(Some),
            }
        }
        self.drain()?;
        Ok(None)
    }

    /// Reads data of the current member; 0 at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        let want = buffer.len().min(usize::try_from(self.data_left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let count = self.read_some(&mut buffer[..want])?;
        if count == 0 {
            return Err(invalid("the archive ends inside a member"));
        }
        self.data_left -= count as u64;
        Ok(count)
    }

    fn member(&mut self, header: &Header, kind: EntryType, size: u64, extension: Extension) -> Result<Member, Fault> {
        let size = extension.size.unwrap_or(size);
        let path = extension.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link =
            extension.link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned)).unwrap_or_default();
        // Before directories had a kind of their own they were files with a slash.
        let kind = match kind {
            EntryType::Regular if path.ends_with(b"/") => EntryType::Directory,
            EntryType::Continuous => EntryType::Regular,
            kind => kind,
        };
        // Links carry the size of their target in some archives, and no data.
        let has_data = !matches!(kind, EntryType::Link | EntryType::Symlink);
        let size = if has_data { size } else { 0 };
        self.set_data(size)?;
        let old = header.as_old();
        let seconds = number(&old.mtime).unwrap_or(0);
        Ok(Member {
            path: path.into(),
            link: link.into(),
            kind,
            permissions: u32::try_from(number(&old.mode).unwrap_or(0o644) & 0o7777).unwrap_or(0o644),
            uid: extension.uid.or(number(&old.uid)).unwrap_or(0),
            gid: extension.gid.or(number(&old.gid)).unwrap_or(0),
            modified: extension.modified.unwrap_or(Timespec { tv_sec: seconds, tv_nsec: 0 }),
        })
    }

    /// A header that is one; `None` at the archive's end mark.
    fn header(&mut self) -> Result<Option<Header>, Fault> {
        let mut block = [0; BLOCK_BYTES];
        self.block(&mut block)?;
        if block == [0; BLOCK_BYTES] {
            // Two are the mark; some programs write one and stop.
            self.ended = true;
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let mut expected = header.clone();
        expected.set_cksum();
        if number(&header.as_old().cksum) != number(&expected.as_old().cksum) {
            return Err(invalid(format!("no tar header at byte {}", self.bytes - BLOCK_BYTES as u64)));
        }
        Ok(Some(header))
    }

    fn text(&mut self, size: u64) -> Result<Vec<u8>, Fault> {
        let mut text = self.body(size)?;
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        text.truncate(end);
        Ok(text)
    }

    /// The whole data of a member that describes another.
    fn body(&mut self, size: u64) -> Result<Vec<u8>, Fault> {
        if size > EXTENSION_BYTES_MAX {
            let message = format!("the archive has a name or attributes of {size} bytes, over {EXTENSION_BYTES_MAX}");
            return Err(Fault::new(ErrorCode::LimitExceeded, message));
        }
        self.set_data(size)?;
        let mut body = vec![0; usize::try_from(size).unwrap_or(0)];
        let mut filled = 0;
        while filled < body.len() {
            filled += self.read(&mut body[filled..])?;
        }
        Ok(body)
    }

    fn set_data(&mut self, size: u64) -> Result<(), Fault> {
        if size > i64::MAX.unsigned_abs() {
            return Err(invalid(format!("a member of the archive says it has {size} bytes")));
        }
        (self.data_left, self.padding_left) = (size, padding(size));
        Ok(())
    }

    fn skip_data(&mut self) -> Result<(), Fault> {
        let mut buffer = [0; SKIP_BUFFER_BYTES];
        while self.read(&mut buffer)? > 0 {}
        let (padding, _) = buffer.split_at_mut(usize::try_from(self.padding_left).unwrap_or(0));
        self.padding_left = 0;
        self.block(padding)
    }

    /// Reads what is behind the end mark, so that the sender can finish; programs fill up to 10 KiB and more.
    fn drain(&mut self) -> Result<(), Fault> {
        let mut buffer = [0; SKIP_BUFFER_BYTES];
        while self.read_some(&mut buffer)? > 0 {}
        Ok(())
    }

    fn block(&mut self, block: &mut [u8]) -> Result<(), Fault> {
        let mut filled = 0;
        while filled < block.len() {
            match self.read_some(&mut block[filled..])? {
                0 => return Err(invalid("the archive ends without its end mark")),
                count => filled += count,
            }
        }
        Ok(())
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        loop {
            match self.input.read(buffer) {
                Ok(count) => {
                    self.bytes += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(fault_from_stream("archive", error)),
            }
        }
    }
}

impl Extension {
    /// Records of `length key=value\n`; values may hold anything, so only the length tells where they end.
    fn read_pax(&mut self, mut records: &[u8]) -> Result<(), Fault> {
        let bad = || invalid("the archive has a malformed pax header");
        while !records.is_empty() && records.iter().any(|byte| *byte != 0) {
            let space = records.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
            let length: usize = parse(&records[..space]).ok_or_else(bad)?;
            if length <= space + 1 || length > records.len() {
                return Err(bad());
            }
            let (record, rest) = records.split_at(length);
            let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(parse(value).ok_or_else(bad)?),
                b"uid" => self.uid = Some(parse(value).ok_or_else(bad)?),
                b"gid" => self.gid = Some(parse(value).ok_or_else(bad)?),
                b"mtime" => self.modified = Some(time(value).ok_or_else(bad)?),
                key if key.starts_with(b"GNU.sparse.") => {
                    return Err(Fault::new(ErrorCode::Unsupported, "the archive has a sparse file"));
                }
                _ => {}
            }
            records = rest;
        }
        Ok(())
    }
}

/// A header's number: octal, or big-endian after a byte of 0x80 or 0xff. `None` where it is neither or does not fit.
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

fn parse<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Seconds with a fraction, rounded down to nanoseconds.
fn time(value: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i64 = digits.parse().ok().filter(|nanoseconds| *nanoseconds >= 0)?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some(Timespec { tv_sec: seconds.checked_sub(1)?, tv_nsec: 1_000_000_000 - nanoseconds });
    }
    Some(Timespec { tv_sec: seconds, tv_nsec: nanoseconds })
}
