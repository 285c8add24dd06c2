//! A hostile page file of a diff snapshot: it is refused, or all that its index says is in the file.
#![no_main]

use kiln_engine::snapshot::read_page_file;
use libfuzzer_sys::fuzz_target;

/// Bytes of an entry in the index.
const ENTRY_BYTES: usize = 8;

fuzz_target!(|file: &[u8]| {
    if let Ok(pages) = read_page_file(file) {
        assert!(pages * ENTRY_BYTES <= file.len());
    }
});
