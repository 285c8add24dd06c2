//! One header of an archive, with the pax records that it needs.

use crate::tree::{Attributes, Time};

/// Size of a tar block.
pub(super) const BLOCK_LEN: usize = 512;
/// Bytes of the fields for a name and for the target of a link.
const NAME_LEN: usize = 100;
/// The largest number in a field of 7 octal digits: for owners and devices.
const SMALL_MAX: u64 = 0o7_777_777;
/// The largest number in a field of 11 octal digits: for sizes and times.
const LARGE_MAX: u64 = 0o77_777_777_777;
/// The name in headers whose real name is in a pax record.
const ELSEWHERE: &[u8] = b"pax";

/// The type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TypeFlag {
    File = b'0' as isize,
    Link = b'1' as isize,
    Symlink = b'2' as isize,
    CharacterDevice = b'3' as isize,
    BlockDevice = b'4' as isize,
    Directory = b'5' as isize,
    Fifo = b'6' as isize,
}

/// An entry, up to its contents.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    header: Header,
    attributes: &'a Attributes,
    has_xattrs: bool,
    records: Vec<u8>,
    /// What is between the header and the data: the map of holes.
    map: Vec<u8>,
}

impl<'a> Entry<'a> {
    pub(super) fn new(path: &[u8], attributes: &'a Attributes, flag: TypeFlag) -> Self {
        let mut records = Vec::new();
        let mut header = Header::new(flag as u8);
        if !header.name(path) {
            append_record(b"path", path, &mut records);
        }
        header.number(100, 7, u64::from(attributes.permissions));
        for (key, at, number) in [(b"uid", 108, attributes.uid), (b"gid", 116, attributes.gid)] {
            if !header.number(at, 7, u64::from(number)) {
                append_record(key, number.to_string().as_bytes(), &mut records);
            }
        }
        let Time { seconds, nanoseconds } = attributes.modified;
        let plain = u64::try_from(seconds).ok().filter(|seconds| nanoseconds == 0 && header.number(136, 11, *seconds));
        if plain.is_none() {
            append_record(b"mtime", decimal(attributes.modified).as_bytes(), &mut records);
        }
        Self { header, attributes, has_xattrs: true, records, map: Vec::new() }
    }

    /// The target of a symlink, or the first name of a file.
    pub(super) fn with_link(mut self, target: &[u8]) -> Self {
        match target.len() {
            0..=NAME_LEN if target.is_ascii() => self.header.put(157, target),
            _ => append_record(b"linkpath", target, &mut self.records),
        }
        self
    }

    /// The numbers of a device. `None` if the header has no room for them.
    pub(super) fn with_device(mut self, major: u32, minor: u32) -> Option<Self> {
        let fits = self.header.number(329, 7, u64::from(major)) && self.header.number(337, 7, u64::from(minor));
        fits.then_some(self)
    }

    /// The size of a file.
    pub(super) fn with_size(mut self, bytes: u64) -> Self {
        if !self.header.number(124, 11, bytes) {
            append_record(b"size", bytes.to_string().as_bytes(), &mut self.records);
        }
        self
    }

    /// The size of a file with holes, and what is stored of it: the map and the data.
    pub(super) fn with_holes(mut self, size: u64, stored: u64, map: Vec<u8>) -> Self {
        for (key, number) in [("GNU.sparse.major", 1), ("GNU.sparse.minor", 0), ("GNU.sparse.realsize", size)] {
            append_record(key.as_bytes(), number.to_string().as_bytes(), &mut self.records);
        }
        self.map = map;
        self.with_size(stored)
    }

    /// Leaves the extended attributes out.
    pub(super) fn without_xattrs(mut self) -> Self {
        self.has_xattrs = false;
        self
    }

    /// The blocks of the entry, up to the data.
    pub(super) fn encode(mut self) -> Vec<u8> {
        for (name, value) in self.attributes.xattrs.iter().filter(|_| self.has_xattrs) {
            append_xattr(name, value, &mut self.records);
        }
        let mut blocks = Vec::with_capacity(BLOCK_LEN);
        if !self.records.is_empty() {
            let mut header = Header::new(b'x');
            header.name(ELSEWHERE);
            header.number(100, 7, 0o644);
            header.number(124, 11, self.records.len() as u64);
            blocks.extend_from_slice(&header.finish());
            blocks.append(&mut self.records);
            blocks.resize(blocks.len().next_multiple_of(BLOCK_LEN), 0);
        }
        blocks.extend_from_slice(&self.header.finish());
        blocks.append(&mut self.map);
        blocks
    }
}

/// A header of the format ustar.
#[derive(Debug)]
struct Header([u8; BLOCK_LEN]);

impl Header {
    fn new(flag: u8) -> Self {
        let mut header = Self([0; BLOCK_LEN]);
        header.0[156] = flag;
        header.put(257, b"ustar\x0000");
        for (at, digits) in [(100, 7), (108, 7), (116, 7), (124, 11), (136, 11), (329, 7), (337, 7)] {
            header.number(at, digits, 0);
        }
        header
    }

    /// Puts a name into its field. False if it does not fit; then the field has a stand-in.
    fn name(&mut self, name: &[u8]) -> bool {
        let fits = name.len() <= NAME_LEN && name.is_ascii();
        self.put(0, if fits { name } else { ELSEWHERE });
        fits
    }

    /// Puts a number into a field. False if it has too many digits; then the field is not changed.
    fn number(&mut self, at: usize, digits: usize, number: u64) -> bool {
        let fits = number <= if digits == 7 { SMALL_MAX } else { LARGE_MAX };
        if fits {
            self.put(at, format!("{number:0digits$o}").as_bytes());
        }
        fits
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn finish(mut self) -> [u8; BLOCK_LEN] {
        self.put(148, b"        ");
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.put(148, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

/// An attribute as GNU tar and most others write it. A name with `=` has no such form, so that one is written as
/// libarchive does.
fn append_xattr(name: &[u8], value: &[u8], records: &mut Vec<u8>) {
    if name.contains(&b'=') {
        let encoded: String = name.iter().map(|byte| format!("%{byte:02X}")).collect();
        append_record(format!("LIBARCHIVE.xattr.{encoded}").as_bytes(), base64(value).as_bytes(), records);
    } else {
        append_record(&[b"SCHILY.xattr.", name].concat(), value, records);
    }
}

/// Base64 without `=` at the end.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for letter in 0..=group.len() {
            text.push(char::from(LETTERS[(bits >> (18 - 6 * letter)) as usize & 63]));
        }
    }
    text
}

/// A time as a decimal number. Nanoseconds count upwards, also before 1970: half a second before it is -1 s and
/// 500,000,000 ns, and is written as -0.5.
fn decimal(time: Time) -> String {
    let nanoseconds = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let (seconds, fraction) = (nanoseconds.abs() / 1_000_000_000, nanoseconds.abs() % 1_000_000_000);
    match fraction {
        0 => format!("{sign}{seconds}"),
        _ => format!("{sign}{seconds}.{fraction:09}").trim_end_matches('0').to_owned(),
    }
}

/// A pax record, which begins with its own length.
fn append_record(key: &[u8], value: &[u8], records: &mut Vec<u8>) {
    // The space, the `=` and the end of the line.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    for part in [key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for bytes in 0..1200 {
            let mut record = Vec::new();
            append_record(b"key", &vec![b'v'; bytes], &mut record);
            let digits = record.iter().position(|byte| *byte == b' ').expect("a space");
            let length: usize = std::str::from_utf8(&record[..digits]).expect("digits").parse().expect("a number");
            assert_eq!(length, record.len());
        }
    }

    #[test]
    fn times_before_1970_have_their_fraction_on_the_right_side() {
        let text = |seconds, nanoseconds| decimal(Time { seconds, nanoseconds });
        assert_eq!(text(5, 0), "5");
        assert_eq!(text(5, 250_000_000), "5.25");
        assert_eq!(text(-1, 500_000_000), "-0.5");
        assert_eq!(text(-2, 999_999_999), "-1.000000001");
        assert_eq!(text(-2, 0), "-2");
        assert_eq!(text(i64::MIN, 0), "-9223372036854775808");
    }

    #[test]
    fn base64_is_that_of_the_standard_without_its_end() {
        let cases = [(&b""[..], ""), (b"f", "Zg"), (b"fo", "Zm8"), (b"foo", "Zm9v"), (b"\xfb\xff\xbf", "+/+/")];
        for (bytes, text) in cases {
            assert_eq!(base64(bytes), text);
        }
    }
}
