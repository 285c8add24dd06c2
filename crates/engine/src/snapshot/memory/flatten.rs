//! Makes one memory file of a chain, for a full snapshot.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use camino::Utf8Path;

use super::chain::ChainMemory;
use super::copy::{Stretch, copy_sparse, stretches, write_hole};
use super::error::MemoryError;
use super::page_file::PAGE_BYTES;
use super::page_runs::{BATCH_BYTES, batches, page_count};

use crate::files::private_file;

/// Writes the chain's memory to a new file at `path`, with holes for zeros. If the filesystem shares blocks, only the
/// diffs' pages take new space.
pub(crate) fn flatten(chain: &ChainMemory, path: &Utf8Path) -> Result<(), MemoryError> {
    let file =
        private_file::create_new(path).map(fs_err::File::into_file).map_err(MemoryError::file("create", path))?;
    copy_sparse(chain.root(), &file).map_err(MemoryError::file("copy the root's memory to", path))?;
    file.set_len(chain.guest_bytes()).map_err(MemoryError::file("resize", path))?;
    let mut buffer = vec![0; BATCH_BYTES];
    for runs in batches(chain.diff_pages()) {
        let contents = &mut buffer[..page_count(&runs) as usize * PAGE_BYTES];
        chain.read_pages(&runs, contents)?;
        write(&file, &runs, contents).map_err(MemoryError::file("write", path))?;
    }
    Ok(())
}

/// Writes runs of pages, whose contents follow one another in `contents`.
fn write(file: &File, runs: &[Range<u64>], mut contents: &[u8]) -> io::Result<()> {
    for run in runs {
        let bytes = (run.end - run.start) as usize * PAGE_BYTES;
        let (these, rest) = contents.split_at(bytes);
        for (place, stretch) in stretches(these) {
            let offset = run.start * PAGE_BYTES as u64 + place as u64;
            match stretch {
                Stretch::Zeros(bytes) => write_hole(file, offset..offset + bytes as u64)?,
                Stretch::Data(data) => file.write_all_at(data, offset)?,
            }
        }
        contents = rest;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::snapshot::memory::testing::{here, pattern, zeros};

    #[test]
    fn zero_pages_become_holes() {
        let home = here();
        let root = home.root(&(0..64).map(pattern).collect::<Vec<_>>());
        let zero = (0..60).map(|page| (page, zeros())).chain([(80, pattern(80))]).collect::<Vec<_>>();
        let diff = home.pages("diff", 100, &zero);
        let chain = ChainMemory::open(&root, &[diff], 100 * PAGE_BYTES as u64).expect("opens");
        let flat = home.path("flat");
        flatten(&chain, &flat).expect("flattens");
        let pages = (0..100).map(|page| if (60..64).contains(&page) || page == 80 { pattern(page) } else { zeros() });
        assert!(std::fs::read(&flat).expect("reads") == pages.collect::<Vec<_>>().concat());
        assert!(std::fs::metadata(&flat).expect("is there").blocks() * 512 <= 16 * PAGE_BYTES as u64);
    }

    #[test]
    fn an_existing_file_is_not_overwritten() {
        let home = here();
        let root = home.root(&[pattern(0)]);
        let chain = ChainMemory::open(&root, &[] as &[&Utf8Path], PAGE_BYTES as u64).expect("opens");
        let error = flatten(&chain, &root).expect_err("is there");
        assert!(matches!(error, MemoryError::File { path, .. } if path == root));
    }
}
