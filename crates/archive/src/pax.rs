//! pax records: they come before a member and replace parts of its header.

use crate::error::{ArchiveError, malformed};
use crate::extents::{EXTENTS_MAX, Extent};

/// Longest name or set of attributes before a member.
pub const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// The record after a file that became shorter while it was packed.
pub(crate) const SHORTER: &str = "KILN.size";

/// A time with nanoseconds.
pub(crate) type Time = (i64, i64);

/// The replaced parts of a member's header.
#[derive(Debug, Default)]
pub(crate) struct Extension {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) modified: Option<Time>,
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
}

impl Extension {
    pub(crate) fn read(&mut self, records: &[u8]) -> Result<(), ArchiveError> {
        for_each(records, |key, value| {
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(parse(value)?),
                b"uid" => self.uid = Some(parse(value)?),
                b"gid" => self.gid = Some(parse(value)?),
                b"mtime" => self.modified = Some(time(value)?),
                key => {
                    if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                        return self.sparse.read(key, value);
                    }
                }
            }
            Some(())
        })
    }

    /// The name of the unpacked file.
    pub(crate) fn take_path(&mut self) -> Option<Vec<u8>> {
        let path = self.path.take();
        self.sparse.name.take().or(path)
    }
}

impl Sparse {
    /// Whether any record was about holes.
    pub(crate) fn is_used(&self) -> bool {
        self.in_data || self.extents.is_some() || self.size.is_some()
    }

    fn read(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(parse(value)?),
            b"major" => self.in_data = parse::<u64>(value)? == 1,
            b"numblocks" => {
                self.extents.get_or_insert_default();
            }
            b"offset" => self.offset = Some(parse(value)?),
            b"numbytes" => {
                let extent = Extent { offset: self.offset.take()?, bytes: parse(value)? };
                self.extents.get_or_insert_default().push(extent);
            }
            b"map" => {
                let mut numbers = value.split(|byte| *byte == b',');
                let extents = self.extents.get_or_insert_default();
                while let Some(offset) = numbers.next() {
                    extents.push(Extent { offset: parse(offset)?, bytes: parse(numbers.next()?)? });
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
    for_each(records, |key, value| {
        if key == SHORTER.as_bytes() {
            size = Some(parse(value)?);
        }
        Some(())
    })?;
    Ok(size)
}

/// One record as bytes: its length, which counts itself, then `key=value`.
pub(crate) fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len();
    while length != rest.len() + length.to_string().len() {
        length = rest.len() + length.to_string().len();
    }
    format!("{length}{rest}").into_bytes()
}

/// Calls `each` for each record `length key=value\n`. A value may have any bytes, so only the length shows its end.
fn for_each(mut records: &[u8], mut each: impl FnMut(&[u8], &[u8]) -> Option<()>) -> Result<(), ArchiveError> {
    let bad = || malformed("the archive has a malformed pax header");
    while !records.is_empty() && records.iter().any(|byte| *byte != 0) {
        let space = records.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
        let length: usize = parse(&records[..space]).ok_or_else(bad)?;
        if length <= space + 1 || length > records.len() {
            return Err(bad());
        }
        let (record, rest) = records.split_at(length);
        let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(bad)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
        each(&record[..equals], &record[equals + 1..]).ok_or_else(bad)?;
        records = rest;
    }
    Ok(())
}

pub(crate) fn parse<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Seconds with a fraction, rounded down to nanoseconds.
fn time(value: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i64 = digits.parse().ok().filter(|nanoseconds| *nanoseconds >= 0)?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
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

    #[test]
    fn times_have_fractions_and_may_be_before_1970() {
        assert_eq!(time(b"1000.25"), Some((1000, 250_000_000)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"1.-5"), None);
    }
}
