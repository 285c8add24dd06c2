//! Writes the pages of a chain's diffs into the memory of a VMM that maps the chain's root.

use super::chain::ChainMemory;
use super::error::MemoryError;
use super::mapping::Mapping;
use super::page_file::PAGE_BYTES;
use super::page_runs::{BATCH_BYTES, batches, page_count};
use super::process_memory;
use super::save::check_size;

/// Turns a private mapping of the chain's root into the chain's memory. The process must not run its guest yet.
pub(crate) fn apply(pid: u32, mapping: Mapping, chain: &ChainMemory) -> Result<(), MemoryError> {
    check_size(pid, mapping, chain)?;
    let mut buffer = vec![0; BATCH_BYTES];
    for runs in batches(chain.diff_pages()) {
        let contents = &mut buffer[..page_count(&runs) as usize * PAGE_BYTES];
        chain.read_pages(&runs, contents)?;
        process_memory::write_pages(pid, mapping, &runs, contents)
            .map_err(MemoryError::process("write the memory of", pid))?;
    }
    Ok(())
}
