//! Archives, header by header.

use kiln_archive::EntryType;
use tar::Header;

pub const BLOCK: usize = 512;

/// An archive that is being built.
#[derive(Debug, Clone, Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn file(self, name: &str, data: impl AsRef<[u8]>) -> Self {
        self.member(EntryType::Regular, name, data.as_ref(), |_| {})
    }

    pub fn dir(self, name: &str) -> Self {
        self.member(EntryType::Directory, name, b"", |header| header.set_mode(0o755))
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, name, target)
    }

    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Link, name, target)
    }

    pub fn fifo(self, name: &str) -> Self {
        self.member(EntryType::Fifo, name, b"", |_| {})
    }

    pub fn device(self, kind: EntryType, name: &str, major: u32, minor: u32) -> Self {
        self.member(kind, name, b"", |header| {
            header.set_device_major(major).expect("a header has it");
            header.set_device_minor(minor).expect("a header has it");
        })
    }

    /// A mark: an empty file, as programs write it.
    pub fn mark(self, name: &str) -> Self {
        self.file(name, b"")
    }

    /// pax records for the next member.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let records: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.member(EntryType::XHeader, "pax", &records, |_| {})
    }

    /// A member. The change comes before the sum of the header. Names of more than 100 bytes get a header of their own.
    pub fn member(self, kind: EntryType, name: &str, data: &[u8], change: impl FnOnce(&mut Header)) -> Self {
        let mut tar = if name.len() > 100 { self.long(EntryType::GNULongName, name.as_bytes()) } else { self };
        let mut header = Header::new_gnu();
        let short = &name.as_bytes()[..name.len().min(100)];
        header.as_old_mut().name[..short.len()].copy_from_slice(short);
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        change(&mut header);
        header.set_cksum();
        tar.0.extend_from_slice(header.as_bytes());
        tar.blocks(data)
    }

    /// A name of any bytes for the next member.
    pub fn long(mut self, kind: EntryType, name: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
        header.set_entry_type(kind);
        header.set_size(name.len() as u64 + 1);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.blocks(&[name, b"\0"].concat())
    }

    /// Data, filled up to a whole block.
    pub fn blocks(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// The archive without an end mark.
    pub fn open_end(self) -> Vec<u8> {
        self.0
    }

    /// The archive with its end mark.
    pub fn end(self) -> Vec<u8> {
        [self.0, vec![0; 2 * BLOCK]].concat()
    }

    fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        let tar = if target.len() > 100 { self.long(EntryType::GNULongLink, target.as_bytes()) } else { self };
        tar.member(kind, name, b"", |header| {
            let short = &target.as_bytes()[..target.len().min(100)];
            header.as_old_mut().linkname[..short.len()].copy_from_slice(short);
        })
    }
}

/// A pax record: its length, which counts itself, then `key=value`.
pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..).find(|length: &usize| *length == rest + length.to_string().len()).expect("every record has one");
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}
