//! The memory of a chain: the memory file of a full snapshot, and the page files of its diffs. The newest page counts.

use std::cmp::Ordering;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use camino::{Utf8Path, Utf8PathBuf};

use super::error::MemoryError;
use super::page_file::{Content, PAGE_BYTES, PageFileError, PageIndex, Slot};
use super::page_runs::pages;

/// A chain's memory, open for reading.
#[derive(Debug)]
pub(crate) struct ChainMemory {
    guest_bytes: u64,
    root: Layer,
    /// Less than the guest's memory if that ends in zeros.
    root_bytes: u64,
    /// The oldest first.
    diffs: Vec<Layer>,
    /// The pages of all diffs, ascending. Each is from the newest diff that has it.
    merged: Vec<Merged>,
}

#[derive(Debug)]
struct Layer {
    file: File,
    path: Utf8PathBuf,
}

#[derive(Debug, Clone, Copy)]
struct Merged {
    slot: Slot,
    diff: u32,
}

/// The file and offset that bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Root(u64),
    Diff(u32, u64),
    Zero,
}

/// A part of a buffer, and the source of its content.
#[derive(Debug)]
struct Piece {
    source: Source,
    place: Range<usize>,
}

impl ChainMemory {
    /// Opens and checks the files of a chain, the oldest diff first. The guest has `guest_bytes` of memory.
    pub(crate) fn open(root: &Utf8Path, diffs: &[impl AsRef<Utf8Path>], guest_bytes: u64) -> Result<Self, MemoryError> {
        let root = Layer::open(root)?;
        let root_bytes = root.file.metadata().map_err(MemoryError::file("inspect", &root.path))?.len();
        if root_bytes > guest_bytes {
            return Err(root.broken(format!("has {root_bytes} bytes for a guest with {guest_bytes}")));
        }
        let mut chain = Self { guest_bytes, root, root_bytes, diffs: Vec::new(), merged: Vec::new() };
        diffs.iter().try_for_each(|path| chain.add(path.as_ref()))?;
        Ok(chain)
    }

    fn add(&mut self, path: &Utf8Path) -> Result<(), MemoryError> {
        let layer = Layer::open(path)?;
        let index = PageIndex::read(&mut &layer.file).map_err(|error| match error {
            PageFileError::Broken(problem) => layer.broken(problem),
            PageFileError::Io(source) => MemoryError::file("read", path)(source),
        })?;
        if index.guest_pages().checked_mul(PAGE_BYTES as u64) != Some(self.guest_bytes) {
            let problem = format!("is of a guest with {} pages, not {} bytes", index.guest_pages(), self.guest_bytes);
            return Err(layer.broken(problem));
        }
        let diff = u32::try_from(self.diffs.len()).expect("a chain has some dozens of links");
        self.merged = merge(&self.merged, index.slots().iter().map(|&slot| Merged { slot, diff }));
        self.diffs.push(layer);
        Ok(())
    }

    /// Size of the guest's memory in bytes.
    pub(crate) fn guest_bytes(&self) -> u64 {
        self.guest_bytes
    }

    /// Pages that a diff has, ascending, each once.
    pub(crate) fn diff_pages(&self) -> impl ExactSizeIterator<Item = u64> {
        self.merged.iter().map(Merged::page)
    }

    /// Reads one page.
    #[cfg(test)]
    pub(crate) fn read_page(&self, page: u64, buffer: &mut [u8; PAGE_BYTES]) -> Result<(), MemoryError> {
        self.read_pages(std::slice::from_ref(&(page..page + 1)), buffer)
    }

    /// Reads the given pages one after another into `buffer`. Neighbouring pages take one system call.
    pub(super) fn read_pages(&self, runs: &[Range<u64>], buffer: &mut [u8]) -> Result<(), MemoryError> {
        let Some(first) = runs.first() else { return Ok(()) };
        let above = self.merged.partition_point(|merged| merged.page() < first.start);
        let mut merged = self.merged[above..].iter().peekable();
        let mut pending = Piece { source: Source::Zero, place: 0..0 };
        for page in pages(runs) {
            while merged.next_if(|merged| merged.page() < page).is_some() {}
            let source = match merged.next_if(|merged| merged.page() == page) {
                Some(merged) => merged.source(),
                None => Source::Root(page * PAGE_BYTES as u64),
            };
            if pending.is_continued_by(source) {
                pending.place.end += PAGE_BYTES;
            } else {
                self.read_piece(&pending, buffer)?;
                pending = Piece { source, place: pending.place.end..pending.place.end + PAGE_BYTES };
            }
        }
        self.read_piece(&pending, buffer)
    }

    fn read_piece(&self, piece: &Piece, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let buffer = &mut buffer[piece.place.clone()];
        match piece.source {
            Source::Zero => buffer.fill(0),
            Source::Root(offset) => {
                let inside = self.root_bytes.saturating_sub(offset).min(buffer.len() as u64) as usize;
                let (inside, beyond) = buffer.split_at_mut(inside);
                self.root.read(inside, offset)?;
                beyond.fill(0);
            }
            Source::Diff(diff, offset) => self.diffs[diff as usize].read(buffer, offset)?,
        }
        Ok(())
    }

    /// The root's file.
    pub(super) fn root(&self) -> &File {
        &self.root.file
    }
}

impl Layer {
    fn open(path: &Utf8Path) -> Result<Self, MemoryError> {
        let file = File::open(path).map_err(MemoryError::file("open", path))?;
        Ok(Self { file, path: path.to_owned() })
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), MemoryError> {
        self.file.read_exact_at(buffer, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.broken("became shorter while it was in use".into()),
            _ => MemoryError::file("read", &self.path)(error),
        })
    }

    fn broken(&self, problem: String) -> MemoryError {
        MemoryError::Broken { path: self.path.clone(), problem }
    }
}

impl Merged {
    fn page(&self) -> u64 {
        self.slot.page()
    }

    fn source(&self) -> Source {
        match self.slot.content() {
            Content::Zero => Source::Zero,
            Content::At(offset) => Source::Diff(self.diff, offset),
        }
    }
}

impl Piece {
    fn is_continued_by(&self, next: Source) -> bool {
        let bytes = self.place.len() as u64;
        match (self.source, next) {
            (Source::Zero, Source::Zero) => true,
            (Source::Root(offset), Source::Root(next)) => offset + bytes == next,
            (Source::Diff(diff, offset), Source::Diff(next_diff, next)) => diff == next_diff && offset + bytes == next,
            _ => false,
        }
    }
}

/// Both inputs ascend. If both have a page, the newer one's is taken.
fn merge(older: &[Merged], newer: impl ExactSizeIterator<Item = Merged>) -> Vec<Merged> {
    let mut merged = Vec::with_capacity(older.len() + newer.len());
    let (mut older, mut newer) = (older.iter().peekable(), newer.peekable());
    while let (Some(old), Some(new)) = (older.peek(), newer.peek()) {
        match old.page().cmp(&new.page()) {
            Ordering::Less => merged.extend(older.next()),
            Ordering::Greater => merged.extend(newer.next()),
            Ordering::Equal => drop(older.next()),
        }
    }
    merged.extend(older);
    merged.extend(newer);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::memory::testing::{Here, here, pattern, zeros};

    /// Pages 0..6: the root has four, the first diff 1 and 2, the second 2, 3 and 4.
    fn chain(home: &Here) -> ChainMemory {
        let root = home.root(&[pattern(0), pattern(1), pattern(2), pattern(3)]);
        let first = home.pages("first", 6, &[(1, pattern(11)), (2, pattern(12))]);
        let second = home.pages("second", 6, &[(2, zeros()), (3, pattern(23)), (4, pattern(24))]);
        ChainMemory::open(&root, &[first, second], 6 * 4096).expect("opens")
    }

    #[test]
    fn the_newest_layer_wins_and_beyond_the_root_are_zeros() {
        let home = here();
        let chain = chain(&home);
        let wanted = [pattern(0), pattern(11), zeros(), pattern(23), pattern(24), zeros()];
        for (page, wanted) in (0..).zip(&wanted) {
            let mut buffer = pattern(99);
            chain.read_page(page, &mut buffer).expect("reads");
            assert!(buffer == *wanted, "page {page}");
        }
        let mut buffer = vec![99; 6 * PAGE_BYTES];
        chain.read_pages(std::slice::from_ref(&(0..6)), &mut buffer).expect("reads");
        assert!(buffer == wanted.concat());
        let mut buffer = vec![99; 4 * PAGE_BYTES];
        chain.read_pages(&[0..1, 2..4, 5..6], &mut buffer).expect("reads");
        assert!(buffer == [pattern(0), zeros(), pattern(23), zeros()].concat());
        assert_eq!(chain.diff_pages().collect::<Vec<_>>(), [1, 2, 3, 4]);
    }

    #[test]
    fn only_requested_pages_are_read() {
        let home = here();
        let diff = home.pages("diff", 6, &[(0, pattern(10)), (1, pattern(11)), (2, pattern(12))]);
        let chain = ChainMemory::open(&home.root(&[]), &[diff], 6 * 4096).expect("opens");
        let mut buffer = vec![99; 2 * PAGE_BYTES];
        chain.read_pages(&[0..1, 2..3], &mut buffer).expect("reads");
        assert!(buffer == [pattern(10), pattern(12)].concat());
    }

    #[test]
    fn a_root_that_is_too_large_is_refused() {
        let home = here();
        let root = home.root(&[pattern(0), pattern(1)]);
        let error = ChainMemory::open(&root, &[] as &[&Utf8Path], 4096).expect_err("is too large");
        assert!(matches!(error, MemoryError::Broken { path, .. } if path == root));
    }

    #[test]
    fn a_diff_of_another_guest_or_of_garbage_is_refused_by_name() {
        let home = here();
        let root = home.root(&[pattern(0)]);
        let other = home.pages("other", 7, &[]);
        let error = ChainMemory::open(&root, &[&other], 6 * 4096).expect_err("is another's");
        assert!(matches!(error, MemoryError::Broken { path, .. } if path == other));
        let error = ChainMemory::open(&root, &[&root], 6 * 4096).expect_err("is not a diff");
        assert!(matches!(error, MemoryError::Broken { path, .. } if path == root));
        let nowhere = home.path("nowhere");
        let error = ChainMemory::open(&root, &[&nowhere], 6 * 4096).expect_err("is not there");
        assert!(matches!(error, MemoryError::File { path, .. } if path == nowhere));
    }

    #[test]
    fn a_file_that_becomes_shorter_is_broken() {
        let home = here();
        let chain = chain(&home);
        File::options().write(true).open(home.path("second")).and_then(|file| file.set_len(5000)).expect("cut");
        let error = chain.read_page(3, &mut zeros()).expect_err("is cut");
        assert!(matches!(error, MemoryError::Broken { path, .. } if path == home.path("second")));
    }
}
