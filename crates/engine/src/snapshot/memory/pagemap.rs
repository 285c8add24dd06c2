//! Finds the pages of a private mapping that a process has written, in `/proc/<pid>/pagemap`.
//!
//! The format is in the kernel's `admin-guide/mm/pagemap`: eight bytes for each page of the address space. A page that
//! was written is anonymous. A page that was only read is the file's.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::error::MemoryError;
use super::mapping::Mapping;
use super::page_file::PAGE_BYTES;
use super::page_runs::{PageRuns, push_page};

const ENTRY_BYTES: usize = 8;
/// Bytes that are read at once: the entries of 32 MiB of memory.
const CHUNK_BYTES: usize = 64 << 10;
/// The page is a file's, or shared.
const FILE_BIT: u64 = 1 << 61;
/// The page is anonymous and swapped out.
const SWAPPED_BIT: u64 = 1 << 62;
/// The page is in memory.
const PRESENT_BIT: u64 = 1 << 63;

/// The pages of a private mapping that belong to the process. The process must be paused, or the result is out of date
/// at once.
pub(crate) fn own_pages(pid: u32, mapping: Mapping) -> Result<PageRuns, MemoryError> {
    scan(pid, mapping).map_err(MemoryError::process("find the written pages of", pid))
}

fn scan(pid: u32, mapping: Mapping) -> io::Result<PageRuns> {
    if rustix::param::page_size() != PAGE_BYTES {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "this host's pages don't have 4096 bytes"));
    }
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let (mut runs, mut buffer) = (Vec::new(), vec![0; CHUNK_BYTES]);
    let mut page = 0;
    while page < mapping.pages() {
        let left = (mapping.pages() - page).saturating_mul(ENTRY_BYTES as u64);
        let chunk = &mut buffer[..left.min(CHUNK_BYTES as u64) as usize];
        let place = mapping.address(page) / PAGE_BYTES as u64 * ENTRY_BYTES as u64;
        pagemap.read_exact_at(chunk, place)?;
        let (entries, _) = chunk.as_chunks();
        for &entry in entries {
            if is_own(u64::from_ne_bytes(entry)) {
                push_page(&mut runs, page);
            }
            page += 1;
        }
    }
    Ok(runs)
}

/// Whether a page may differ from the file.
fn is_own(entry: u64) -> bool {
    // A page must never be missed here: a diff without it would restore the old content. A page too many only costs a
    // comparison with the parent. So each state is judged for that:
    //
    // - Present, without the file bit: the kernel has copied the page at a write. It is the process's own.
    // - Present, with the file bit: the page cache's page. The process has only read it.
    // - Swapped: an anonymous page on a swap device. Pages of files are never swapped, they are dropped and read again.
    //   But a page that just moves between memory nodes looks swapped too, even a page of a file. It counts as own.
    // - None of these: the process has not touched the page, or has dropped its copy. A read returns the file's
    //   content.
    entry & SWAPPED_BIT != 0 || entry & (PRESENT_BIT | FILE_BIT) == PRESENT_BIT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::memory::mapping::Sharing;
    use crate::snapshot::memory::testing::{Memory, here, pattern};

    #[test]
    fn written_pages_are_own_and_read_or_untouched_ones_are_not() {
        let home = here();
        let pages = (0..20).map(pattern).collect::<Vec<_>>();
        let mut memory = Memory::map(&home.root(&pages));
        let mapping = memory.find(Sharing::Private).expect("found");
        assert_eq!(memory.page(4), pattern(4));
        assert_eq!(own_pages(std::process::id(), mapping).expect("reads"), []);
        for page in [0, 3, 5, 6, 7, 19] {
            memory.write(page, &pattern(99));
        }
        let own = own_pages(std::process::id(), mapping).expect("reads");
        assert_eq!(own, [0..1, 3..4, 5..8, 19..20]);
    }

    #[test]
    fn a_swapped_page_is_own() {
        assert!(is_own(PRESENT_BIT) && is_own(SWAPPED_BIT));
        assert!(!is_own(0) && !is_own(FILE_BIT | PRESENT_BIT));
    }

    #[test]
    fn a_process_that_is_gone_is_named() {
        let mapping = Mapping { start: 0x1000, bytes: 0x1000 };
        let error = own_pages(u32::MAX, mapping).expect_err("no such process");
        assert!(error.to_string().contains(&u32::MAX.to_string()));
    }
}
