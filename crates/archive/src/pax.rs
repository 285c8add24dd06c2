//! pax records: they come before a member and replace parts of its header.

use crate::error::{ArchiveError, malformed};
use crate::extents::{EXTENTS_MAX, Extent};
use crate::numbers::{decimal, signed, time};
use crate::xattrs::{Xattr, xattr};

/// Longest name or set of attributes before a member.
pub const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// The record after a file that became shorter while it was packed.
pub(crate) const SHORTER: &str = "KILN.size";

/// Bytes of extended attributes that global headers may have in all. They count again for each member that follows, so
/// the bound keeps a small archive from costing much.
const GLOBAL_XATTR_BYTES_MAX: usize = 4096;

/// A time with nanoseconds.
pub(crate) type Time = (i64, i64);

/// How an archive is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rules {
    /// Files between host and guest: see [`Members::new`](crate::Members::new).
    Copy,
    /// A layer of an image: see [`Members::of_layer`](crate::Members::of_layer).
    Layer,
}

/// The replaced parts of a member's header.
#[derive(Debug, Default)]
pub(crate) struct Extension {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) modified: Option<Time>,
    pub(crate) device: (Option<u32>, Option<u32>),
    pub(crate) xattrs: Vec<Xattr>,
    pub(crate) sparse: Sparse,
}

/// The map of a sparse file, in one of the three forms that GNU tar has for pax.
#[derive(Debug, Default)]
pub(crate) struct Sparse {
    /// Versions 0.1 and 1.0: the file's name. The member's own name is made up there.
    name: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    /// Version 1.0: the parts are at the start of the data.
    pub(crate) in_data: bool,
    /// Versions 0.0 and 0.1: the parts; `None` without such a record.
    pub(crate) extents: Option<Vec<Extent>>,
    /// Version 0.0: an offset whose length has not been read yet.
    offset: Option<u64>,
    /// Another version than 0 and 1.
    is_unknown: bool,
}

impl Extension {
    /// Reads the records before a member. If a key is there twice, the last one counts.
    pub(crate) fn read(&mut self, records: &[u8], rules: Rules) -> Result<(), ArchiveError> {
        for_each(records, rules, |key, value| match rules {
            Rules::Layer if value.is_empty() && is_plain(key) => self.forget(key),
            Rules::Layer if matches!(key, b"path" | b"linkpath" | b"GNU.sparse.name") && value.contains(&0) => None,
            _ => self.record(key, value, rules),
        })
    }

    /// Reads records that apply to all members after them.
    ///
    /// A name or a size for all members has no sense, and programs disagree about it, so it is refused.
    pub(crate) fn read_global(&mut self, records: &[u8]) -> Result<(), ArchiveError> {
        let mut unfit = None;
        for_each(records, Rules::Layer, |key, value| {
            match key {
                b"path" | b"linkpath" | b"size" | b"SCHILY.devmajor" | b"SCHILY.devminor" => unfit = Some(key.to_vec()),
                key if key.starts_with(b"GNU.sparse.") => unfit = Some(key.to_vec()),
                key if value.is_empty() && is_plain(key) => return self.forget(key),
                key => return self.record(key, value, Rules::Layer),
            }
            Some(())
        })?;
        if let Some(key) = unfit {
            let key = key.escape_ascii();
            return Err(malformed(format!("the archive has a global pax header with `{key}`, which is of one member")));
        }
        if self.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > GLOBAL_XATTR_BYTES_MAX {
            let problem = format!("the archive has more than {GLOBAL_XATTR_BYTES_MAX} bytes of global xattrs");
            return Err(ArchiveError::TooLarge(problem));
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8], rules: Rules) -> Option<()> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(signed(value)?),
            b"gid" => self.gid = Some(signed(value)?),
            b"mtime" => self.modified = Some(time(value)?),
            b"SCHILY.devmajor" if rules == Rules::Layer => self.device.0 = Some(decimal(value)?.try_into().ok()?),
            b"SCHILY.devminor" if rules == Rules::Layer => self.device.1 = Some(decimal(value)?.try_into().ok()?),
            key => {
                if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    return self.sparse.read(key, value);
                }
                if rules == Rules::Layer {
                    self.xattrs.extend(xattr(key, value).ok()?);
                }
            }
        }
        Some(())
    }

    /// An empty value takes back what was there under its key.
    fn forget(&mut self, key: &[u8]) -> Option<()> {
        match key {
            b"path" => self.path = None,
            b"linkpath" => self.link = None,
            b"size" => self.size = None,
            b"uid" => self.uid = None,
            b"gid" => self.gid = None,
            _ => self.modified = None,
        }
        Some(())
    }

    /// The names that this has so far.
    pub(crate) fn names(&self) -> [Option<Vec<u8>>; 3] {
        [self.path.clone(), self.link.clone(), self.sparse.name.clone()]
    }

    /// The name of the unpacked file.
    pub(crate) fn take_path(&mut self) -> Option<Vec<u8>> {
        let path = self.path.take();
        self.sparse.name.take().or(path)
    }
}

/// Keys of which an empty value takes back an earlier one.
fn is_plain(key: &[u8]) -> bool {
    matches!(key, b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime")
}

impl Sparse {
    /// Whether any record was about holes.
    pub(crate) fn is_used(&self) -> bool {
        self.in_data || self.extents.is_some() || self.size.is_some()
    }

    /// Whether there is more than one map, or one of an unknown version: programs then read different files.
    pub(crate) fn is_ambiguous(&self, map_in_header: bool) -> bool {
        let maps = [self.in_data, self.extents.is_some(), map_in_header];
        self.is_unknown || self.offset.is_some() || maps.into_iter().filter(|map| *map).count() > 1
    }

    fn read(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"major" => {
                let version = decimal(value)?;
                (self.in_data, self.is_unknown) = (version == 1, version > 1);
            }
            b"numblocks" => {
                self.extents.get_or_insert_default();
            }
            b"offset" => self.offset = Some(decimal(value)?),
            b"numbytes" => {
                let extent = Extent { offset: self.offset.take()?, bytes: decimal(value)? };
                self.extents.get_or_insert_default().push(extent);
            }
            b"map" => {
                let mut numbers = value.split(|byte| *byte == b',');
                let extents = self.extents.get_or_insert_default();
                while let Some(offset) = numbers.next() {
                    extents.push(Extent { offset: decimal(offset)?, bytes: decimal(numbers.next()?)? });
                }
            }
            _ => {}
        }
        // One set of records is bounded by its size; this bounds a map that is spread over several sets.
        (self.extents.as_ref().map_or(0, Vec::len) <= EXTENTS_MAX).then_some(())
    }
}

/// The length in a global header after a file that became shorter; `None` for any other global header.
pub(crate) fn shorter(records: &[u8]) -> Result<Option<u64>, ArchiveError> {
    let mut size = None;
    for_each(records, Rules::Copy, |key, value| {
        if key == SHORTER.as_bytes() {
            size = Some(decimal(value)?);
        }
        Some(())
    })?;
    Ok(size)
}

/// One record as bytes: its length, which counts itself, then `key=value`.
pub(crate) fn record(key: &str, value: &str) -> Vec<u8> {
    record_of(key.as_bytes(), value.as_bytes())
}

/// [`record`] of any bytes.
pub(crate) fn record_of(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key, b"=", value, b"\n"].concat();
    let mut length = rest.len();
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    [length.to_string().as_bytes(), &rest].concat()
}

/// Calls `each` for each record `length key=value\n`. A value may have any bytes, so only the length shows its end.
fn for_each<'a>(
    mut records: &'a [u8],
    rules: Rules,
    mut each: impl FnMut(&'a [u8], &'a [u8]) -> Option<()>,
) -> Result<(), ArchiveError> {
    let bad = || malformed("the archive has a malformed pax header");
    // Some writers fill up the records with zeros. Other readers stop there, or refuse that.
    while !records.is_empty() && (rules == Rules::Layer || records.iter().any(|byte| *byte != 0)) {
        let space = records.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
        let length = decimal(&records[..space]).and_then(|length| usize::try_from(length).ok()).ok_or_else(bad)?;
        if length <= space + 1 || length > records.len() {
            return Err(bad());
        }
        let (record, rest) = records.split_at(length);
        let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(bad)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if rules == Rules::Layer && (key.is_empty() || key.contains(&0)) {
            return Err(bad());
        }
        each(key, value).ok_or_else(bad)?;
        records = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for digits in 0..12 {
            let bytes = record("KILN.size", &"1".repeat(digits + 1));
            let text = String::from_utf8(bytes.clone()).expect("text");
            let length: usize = text.split_once(' ').expect("a space").0.parse().expect("a number");
            assert_eq!(length, bytes.len());
        }
        assert_eq!(record("path", "x"), b"9 path=x\n");
    }

    #[test]
    fn the_length_of_a_shorter_file_is_found_among_other_records() {
        let records = [record("comment", "x"), record(SHORTER, "42")].concat();
        assert_eq!(shorter(&records).expect("records"), Some(42));
        assert_eq!(shorter(&record("comment", "x")).expect("records"), None);
        shorter(&record(SHORTER, "many")).expect_err("it is not a number");
    }
}
