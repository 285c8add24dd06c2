//! Writes the page file of a diff snapshot from a paused VMM's memory.

use std::ops::Range;

use camino::Utf8Path;

use super::chain::ChainMemory;
use super::error::MemoryError;
use super::mapping::Mapping;
use super::page_file::{PAGE_BYTES, PageFileWriter, is_zero};
use super::page_runs::{BATCH_BYTES, batches, page_count, pages, union};
use super::process_memory;

use crate::files::private_file;

/// What became of the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SavedPages {
    /// The process's own.
    pub(crate) own: u64,
    /// Of these, the ones that differ from the parent's: the pages of the file.
    pub(crate) changed: u64,
    /// Of these, the ones that are all zeros and take no space.
    pub(crate) zero: u64,
    /// Size of the file.
    pub(crate) bytes: u64,
}

/// Writes what `own` pages of a paused process differ from the `parent` in to a new file at `path`. After a failure the
/// file is there, but is none that can be read.
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
    // A page that the parent's diffs have is the process's own, unless it gave it back: then it is the root's again.
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

/// The mapping has to be of that memory.
pub(super) fn check_size(pid: u32, mapping: Mapping, chain: &ChainMemory) -> Result<(), MemoryError> {
    let (mapped, saved) = (mapping.bytes, chain.guest_bytes());
    if mapped == saved { Ok(()) } else { Err(MemoryError::OtherSize { pid, mapped, saved }) }
}

/// Moves the contents to be stored to the front of `new`, and counts: the bytes there.
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
