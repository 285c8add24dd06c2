//! `pages`: the pages of a diff snapshot.
//!
//! ```text
//!   0      header: magic, version, page size, pages of the guest, entries, stored pages; zeros up to 4096
//!   4096   the stored pages, 4096 bytes each
//!   ...    index: an entry of 8 bytes for each page, ascending: its number, and bit 63 if it is all zeros (not stored)
//! ```
//! Numbers are little-endian. The n-th stored page belongs to the n-th entry that is stored. The index is at the end,
//! because it is complete only after all pages were found. The header is written last of all: without it the file is
//! not a page file, so a save that was interrupted leaves nothing that could be read as whole.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;

/// A page of the guest and of the host.
pub(crate) const PAGE_BYTES: usize = 4096;

const MAGIC: [u8; 8] = *b"KILNPAGE";
const VERSION: u32 = 1;
/// The bytes of the header that have a meaning.
const HEADER_FIELDS_BYTES: usize = 40;
/// The header and the zeros after it.
const HEADER_BYTES: usize = PAGE_BYTES;
const ENTRY_BYTES: usize = 8;
/// In an entry: the page is all zeros.
const ZERO_BIT: u64 = 1 << 63;
/// Guests have less than 8 TiB, so page numbers fit into 32 bits here.
const GUEST_PAGES_MAX: u64 = 1 << 31;
/// The index is read and written in parts of this size.
const INDEX_CHUNK_BYTES: usize = 64 << 10;
/// In a [`Slot`]: the page is all zeros.
const NO_SLOT: u32 = u32::MAX;

/// Why the index of a page file can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PageFileError {
    /// It is not what was saved. The problem continues the sentence after the file's name.
    #[error("the file {0}")]
    Broken(String),
    /// It can't be read.
    #[error("failed to read it")]
    Io(#[from] io::Error),
}

/// What a page file has for a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// The page is all zeros.
    Zero,
    /// The page is at this offset of the file.
    At(u64),
}

/// The pages of a page file, ascending.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PageIndex {
    guest_pages: u64,
    slots: Vec<Slot>,
}

/// A page, and its index among the stored pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    page: u32,
    slot: u32,
}

impl PageIndex {
    /// Reads and checks the header and the index of a page file, but not its pages. Memory is allocated only for
    /// entries that the file really holds.
    pub(crate) fn read(file: &mut (impl Read + Seek)) -> Result<Self, PageFileError> {
        let bytes = file.seek(SeekFrom::End(0))?;
        file.seek(SeekFrom::Start(0))?;
        let header = Header::read(file, bytes)?;
        file.seek(SeekFrom::Start(header.index_offset()))?;
        let (mut slots, mut stored, mut left) = (Vec::new(), 0, header.entries);
        let mut buffer = vec![0; INDEX_CHUNK_BYTES];
        while left > 0 {
            let count = left.min((INDEX_CHUNK_BYTES / ENTRY_BYTES) as u64);
            let chunk = &mut buffer[..count as usize * ENTRY_BYTES];
            file.read_exact(chunk)?;
            let (entries, _) = chunk.as_chunks();
            for &entry in entries {
                slots.push(next_slot(u64::from_le_bytes(entry), slots.last(), &mut stored, &header)?);
            }
            left -= count;
        }
        if u64::from(stored) != header.stored {
            return Err(broken(format!("has {} pages and an index of {stored}", header.stored)));
        }
        Ok(Self { guest_pages: header.guest_pages, slots })
    }

    /// Pages of the guest's memory. Most of them are not in the file.
    pub(crate) fn guest_pages(&self) -> u64 {
        self.guest_pages
    }

    /// The number of pages in the file.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// What the file has for a page. `None` if the page is the parent's.
    pub(crate) fn find(&self, page: u64) -> Option<Content> {
        let place = self.slots.binary_search_by_key(&page, Slot::page).ok()?;
        Some(self.slots[place].content())
    }

    /// All its pages.
    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }
}

impl Slot {
    /// The page's number.
    pub(super) fn page(&self) -> u64 {
        self.page.into()
    }

    /// What the file has for it.
    pub(super) fn content(self) -> Content {
        match self.slot {
            NO_SLOT => Content::Zero,
            slot => Content::At(HEADER_BYTES as u64 + u64::from(slot) * PAGE_BYTES as u64),
        }
    }
}

/// For the fuzz target: reads the index of a page file and looks up all its pages. Returns their number, or what is
/// wrong.
pub fn read_page_file(bytes: &[u8]) -> Result<usize, String> {
    let index = PageIndex::read(&mut io::Cursor::new(bytes)).map_err(|error| error.to_string())?;
    for slot in index.slots() {
        assert_eq!(index.find(slot.page()), Some(slot.content()), "a page is found");
        if let Content::At(offset) = slot.content() {
            assert!(offset + PAGE_BYTES as u64 <= bytes.len() as u64, "a page is in the file");
        }
    }
    Ok(index.len())
}

fn next_slot(entry: u64, last: Option<&Slot>, stored: &mut u32, header: &Header) -> Result<Slot, PageFileError> {
    let number = entry & !ZERO_BIT;
    if number >= header.guest_pages {
        return Err(broken(format!("has page {number}, but the guest has {} pages", header.guest_pages)));
    }
    if let Some(last) = last.filter(|last| last.page() >= number) {
        return Err(broken(format!("has page {number} after page {}", last.page)));
    }
    let page = u32::try_from(number).expect("GUEST_PAGES_MAX fits");
    if entry & ZERO_BIT != 0 {
        return Ok(Slot { page, slot: NO_SLOT });
    }
    // Numbers ascend and are below GUEST_PAGES_MAX, so they fit.
    let slot = *stored;
    *stored += 1;
    Ok(Slot { page, slot })
}

#[derive(Debug)]
struct Header {
    guest_pages: u64,
    entries: u64,
    stored: u64,
}

impl Header {
    /// Reads the header at the current position. The file has `bytes`.
    fn read(file: &mut impl Read, bytes: u64) -> Result<Self, PageFileError> {
        if bytes < HEADER_BYTES as u64 {
            return Err(broken(format!("has {bytes} bytes, less than a header")));
        }
        let mut header = [0; HEADER_BYTES];
        file.read_exact(&mut header)?;
        if header[..8] != MAGIC {
            return Err(broken("is not a page file".into()));
        }
        let numbers = |range: std::ops::Range<usize>| header[range].as_chunks().0;
        let [version, page_bytes] = [0, 1].map(|place| u32::from_le_bytes(numbers(8..16)[place]));
        if version != VERSION {
            return Err(broken(format!("has version {version}, not {VERSION}")));
        }
        if page_bytes as usize != PAGE_BYTES {
            return Err(broken(format!("has pages of {page_bytes} bytes, not {PAGE_BYTES}")));
        }
        let numbers = header[16..HEADER_FIELDS_BYTES].as_chunks().0;
        let [guest_pages, entries, stored] = [0, 1, 2].map(|place| u64::from_le_bytes(numbers[place]));
        let header_is_padded = header[HEADER_FIELDS_BYTES..].iter().all(|&byte| byte == 0);
        if !header_is_padded || guest_pages > GUEST_PAGES_MAX || entries > guest_pages || stored > entries {
            let counts = format!("{stored} of {entries} pages stored, of a guest with {guest_pages}");
            return Err(broken(format!("has a header that makes no sense: {counts}")));
        }
        let header = Self { guest_pages, entries, stored };
        match header.file_bytes() {
            wanted if wanted == bytes => Ok(header),
            wanted => Err(broken(format!("has {bytes} bytes, but its header requires {wanted}"))),
        }
    }

    fn to_bytes(&self) -> [u8; HEADER_FIELDS_BYTES] {
        let mut bytes = [0; HEADER_FIELDS_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(PAGE_BYTES as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.guest_pages.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.entries.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.stored.to_le_bytes());
        bytes
    }

    /// These sums can't overflow, because the counts are at most [`GUEST_PAGES_MAX`].
    fn index_offset(&self) -> u64 {
        HEADER_BYTES as u64 + self.stored * PAGE_BYTES as u64
    }

    fn file_bytes(&self) -> u64 {
        self.index_offset() + self.entries * ENTRY_BYTES as u64
    }
}

/// Writes a page file, the lowest page first.
#[derive(Debug)]
pub(super) struct PageFileWriter {
    file: File,
    guest_pages: u64,
    entries: Vec<u64>,
    stored: u64,
}

impl PageFileWriter {
    /// Starts an empty file.
    pub(super) fn new(file: File, guest_pages: u64) -> io::Result<Self> {
        match guest_pages {
            ..=GUEST_PAGES_MAX => Ok(Self { file, guest_pages, entries: Vec::new(), stored: 0 }),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "the guest's memory is too large")),
        }
    }

    /// The next page is all zeros.
    pub(super) fn push_zero(&mut self, page: u64) {
        self.push(page, ZERO_BIT);
    }

    /// The next page has content. [`write_stored`](Self::write_stored) has to write it next.
    pub(super) fn push_stored(&mut self, page: u64) {
        self.push(page, 0);
    }

    fn push(&mut self, page: u64, flag: u64) {
        let ascends = self.entries.last().is_none_or(|last| last & !ZERO_BIT < page);
        assert!(ascends && page < self.guest_pages, "pages ascend, and are the guest's");
        self.entries.push(page | flag);
    }

    /// Writes the contents of stored pages, each a whole page.
    pub(super) fn write_stored(&mut self, contents: &[u8]) -> io::Result<()> {
        debug_assert!(contents.len().is_multiple_of(PAGE_BYTES), "whole pages");
        self.file.write_all_at(contents, HEADER_BYTES as u64 + self.stored * PAGE_BYTES as u64)?;
        self.stored += (contents.len() / PAGE_BYTES) as u64;
        Ok(())
    }

    /// Writes the index and the header. Returns the file's size.
    pub(super) fn finish(self) -> io::Result<u64> {
        let header = Header { guest_pages: self.guest_pages, entries: self.entries.len() as u64, stored: self.stored };
        let mut place = header.index_offset();
        for entries in self.entries.chunks(INDEX_CHUNK_BYTES / ENTRY_BYTES) {
            let bytes = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect::<Vec<_>>();
            self.file.write_all_at(&bytes, place)?;
            place += bytes.len() as u64;
        }
        let mut bytes = [0; HEADER_BYTES];
        bytes[..HEADER_FIELDS_BYTES].copy_from_slice(&header.to_bytes());
        self.file.write_all_at(&bytes, 0)?;
        debug_assert_eq!(place, header.file_bytes(), "all pages were written");
        Ok(place.max(HEADER_BYTES as u64))
    }
}

/// Whether a page is all zeros.
pub(super) fn is_zero(page: &[u8]) -> bool {
    page == &[0; PAGE_BYTES][..page.len()]
}

fn broken(problem: String) -> PageFileError {
    PageFileError::Broken(problem)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    /// A page file of a guest with 100 pages. A page with a byte is stored.
    fn file(pages: impl IntoIterator<Item = (u64, Option<u8>)>) -> Vec<u8> {
        let file = tempfile::tempfile().expect("a file");
        let mut writer = PageFileWriter::new(file.try_clone().expect("cloned"), 100).expect("not too large");
        for (page, content) in pages {
            match content {
                None => writer.push_zero(page),
                Some(byte) => {
                    writer.push_stored(page);
                    writer.write_stored(&[byte; PAGE_BYTES]).expect("written");
                }
            }
        }
        let size = writer.finish().expect("written");
        let mut bytes = vec![0; size as usize];
        file.read_exact_at(&mut bytes, 0).expect("reads");
        assert_eq!(file.metadata().expect("is there").len(), size);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<PageIndex, PageFileError> {
        PageIndex::read(&mut Cursor::new(bytes))
    }

    fn problem(bytes: &[u8]) -> String {
        match read(bytes).expect_err("is broken") {
            PageFileError::Broken(problem) => problem,
            PageFileError::Io(error) => panic!("{error}"),
        }
    }

    /// Three pages, the second of which is not stored.
    fn three() -> Vec<u8> {
        file([(5, Some(1)), (7, None), (9, Some(2))])
    }

    const THREE_INDEX: usize = HEADER_BYTES + 2 * PAGE_BYTES;

    fn set(bytes: &mut [u8], place: usize, value: u64) {
        bytes[place..place + 8].copy_from_slice(&value.to_le_bytes());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(pages in btree_map(0_u64..100, any::<Option<u8>>(), 0..100)) {
            let bytes = file(pages.clone());
            let index = read(&bytes).expect("reads");
            prop_assert_eq!((index.guest_pages(), index.len()), (100, pages.len()));
            for page in 0..110 {
                let content = index.find(page).map(|content| match content {
                    Content::Zero => None,
                    Content::At(place) => Some(bytes[place as usize]),
                });
                prop_assert_eq!(content, pages.get(&page).copied());
            }
        }

        #[test]
        fn damage_is_refused_or_read_without_a_panic(damage in vec((0..THREE_INDEX + 24, any::<u8>()), 1..8), end in any::<usize>()) {
            let mut bytes = three();
            damage.into_iter().for_each(|(place, byte)| bytes[place] = byte);
            drop(read(&bytes));
            bytes.truncate(end % bytes.len());
            read(&bytes).expect_err("is too short");
        }
    }

    #[test]
    fn the_format_does_not_change() {
        let saved = include_bytes!("../../../../../fuzz/seeds/snapshot_pages/stored_and_zeros");
        let index = read(saved).expect("reads");
        assert_eq!((index.guest_pages(), index.len()), (65536, 3));
        let found = [0, 7, 9, 10].map(|page| index.find(page));
        assert_eq!(found, [Some(Content::At(4096)), Some(Content::Zero), Some(Content::At(8192)), None]);
        assert_eq!(read_page_file(saved), Ok(3));
        assert_eq!(read_page_file(&saved[1..]), Err("the file is not a page file".into()));
    }

    #[test]
    fn a_page_file_may_have_no_pages() {
        assert_eq!(read(&file([])).expect("reads").len(), 0);
    }

    #[test]
    fn a_wrong_length_is_refused() {
        let mut bytes = three();
        bytes.push(0);
        assert_eq!(problem(&bytes), "has 12313 bytes, but its header requires 12312");
        bytes.truncate(THREE_INDEX + 23);
        assert_eq!(problem(&bytes), "has 12311 bytes, but its header requires 12312");
        assert_eq!(problem(&bytes[..100]), "has 100 bytes, less than a header");
        assert_eq!(problem(&[]), "has 0 bytes, less than a header");
    }

    #[test]
    fn another_kind_of_file_is_refused() {
        let mut bytes = three();
        bytes[12..16].copy_from_slice(&16384_u32.to_le_bytes());
        assert_eq!(problem(&bytes), "has pages of 16384 bytes, not 4096");
        bytes[8] = 9;
        assert_eq!(problem(&bytes), "has version 9, not 1");
        bytes[0] = b'X';
        assert_eq!(problem(&bytes), "is not a page file");
    }

    #[test]
    fn an_index_out_of_order_or_beyond_the_guest_is_refused() {
        let mut bytes = three();
        set(&mut bytes, THREE_INDEX + 16, 6);
        assert_eq!(problem(&bytes), "has page 6 after page 7");
        set(&mut bytes, THREE_INDEX + 16, 7);
        assert_eq!(problem(&bytes), "has page 7 after page 7");
        set(&mut bytes, THREE_INDEX + 16, 100);
        assert_eq!(problem(&bytes), "has page 100, but the guest has 100 pages");
        set(&mut bytes, THREE_INDEX + 16, !ZERO_BIT);
        assert_eq!(problem(&bytes), "has page 9223372036854775807, but the guest has 100 pages");
    }

    #[test]
    fn wrong_counts_are_refused() {
        let mut bytes = three();
        set(&mut bytes, THREE_INDEX + 8, 7);
        assert_eq!(problem(&bytes), "has 2 pages and an index of 3");
        set(&mut bytes, 24, 4);
        assert_eq!(problem(&bytes), "has 12312 bytes, but its header requires 12320");
        set(&mut bytes, 24, u64::MAX);
        assert!(problem(&bytes).starts_with("has a header that makes no sense"));
        set(&mut bytes, 24, 3);
        set(&mut bytes, 16, u64::MAX);
        assert!(problem(&bytes).starts_with("has a header that makes no sense"));
        set(&mut bytes, 16, 100);
        bytes[4000] = 1;
        assert!(problem(&bytes).starts_with("has a header that makes no sense"));
    }

    #[test]
    fn a_sparse_file_of_terabytes_takes_no_memory() {
        let file = tempfile::tempfile().expect("a file");
        let header = Header { guest_pages: GUEST_PAGES_MAX, entries: GUEST_PAGES_MAX, stored: 1 << 28 };
        file.write_all_at(&header.to_bytes(), 0).expect("written");
        file.set_len(header.file_bytes()).expect("sparse");
        match PageIndex::read(&mut &file).expect_err("is broken") {
            PageFileError::Broken(problem) => assert_eq!(problem, "has page 0 after page 0"),
            PageFileError::Io(error) => panic!("{error}"),
        }
    }
}
