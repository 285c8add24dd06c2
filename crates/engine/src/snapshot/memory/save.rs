//! Writes the page file of a diff snapshot from the memory of a paused VMM.

use std::ops::Range;

use camino::Utf8Path;

use super::chain::ChainMemory;
use super::error::MemoryError;
use super::mapping::Mapping;
use super::page_file::{PAGE_BYTES, PageFileWriter, is_zero};
use super::page_runs::{BATCH_BYTES, batches, page_count, pages, union};
use super::process_memory;

use crate::files::private_file;

/// Counts of a save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SavedPages {
    /// Pages that the process owns.
    pub(crate) own: u64,
    /// Of these, pages that differ from the parent's: the pages of the file.
    pub(crate) changed: u64,
    /// Of these, pages that are all zeros and take no space.
    pub(crate) zero: u64,
    /// The file's size.
    pub(crate) bytes: u64,
}

/// Writes the pages of a paused process that differ from the `parent`'s to a new file at `path`. `own` are the pages
/// that the process owns. A failed save leaves a file that can't be read as a page file.
pub(crate) fn save(
    pid: u32,
    mapping: Mapping,
    own: &[Range<u64>],
    parent: &ChainMemory,
    path: &Utf8Path,
) -> Result<SavedPages, MemoryError> {
    check_size(pid, mapping, parent)?;
    let file =
        private_file::create_new(path).map(fs_err::File::into_file).map_err(MemoryError::file("create", path))?;
    let mut writer = PageFileWriter::new(file, mapping.pages()).map_err(MemoryError::file("write", path))?;
    let mut saved = SavedPages { own: page_count(own), changed: 0, zero: 0, bytes: 0 };
    let (mut new, mut old) = (vec![0; BATCH_BYTES], vec![0; BATCH_BYTES]);
    // All pages of the parent's diffs are compared too. Usually the process owns them, because `apply` wrote them. But
    // if the guest gave one back, the process does not own it, and it has the root's content again, which differs from
    // the parent's.
    for runs in batches(union(pages(own), parent.diff_pages())) {
        let bytes = page_count(&runs) as usize * PAGE_BYTES;
        let (new, old) = (&mut new[..bytes], &mut old[..bytes]);
        process_memory::read_pages(pid, mapping, &runs, new)
            .map_err(MemoryError::process("read the memory of", pid))?;
        parent.read_pages(&runs, old)?;
        let stored = keep_changed(&runs, new, old, &mut writer, &mut saved);
        writer.write_stored(&new[..stored]).map_err(MemoryError::file("write", path))?;
    }
    saved.bytes = writer.finish().map_err(MemoryError::file("write", path))?;
    Ok(saved)
}

/// Checks that the mapping has the size of that memory.
pub(super) fn check_size(pid: u32, mapping: Mapping, chain: &ChainMemory) -> Result<(), MemoryError> {
    let (mapped, saved) = (mapping.bytes, chain.guest_bytes());
    if mapped == saved { Ok(()) } else { Err(MemoryError::OtherSize { pid, mapped, saved }) }
}

/// Moves the contents to store to the front of `new`, and counts. Returns the bytes there.
fn keep_changed(
    runs: &[Range<u64>],
    new: &mut [u8],
    old: &[u8],
    writer: &mut PageFileWriter,
    saved: &mut SavedPages,
) -> usize {
    let mut stored = 0;
    for (place, page) in pages(runs).enumerate() {
        let place = place * PAGE_BYTES..(place + 1) * PAGE_BYTES;
        let content = &new[place.clone()];
        if content == &old[place.clone()] {
            continue;
        }
        saved.changed += 1;
        if is_zero(content) {
            saved.zero += 1;
            writer.push_zero(page);
        } else {
            writer.push_stored(page);
            if stored != place.start {
                new.copy_within(place, stored);
            }
            stored += PAGE_BYTES;
        }
    }
    stored
}
