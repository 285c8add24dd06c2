//! A hostile page file of a diff snapshot: it is refused, or all pages of its index are in the file.
#![no_main]

use kiln_engine::snapshot::read_page_file;
use libfuzzer_sys::fuzz_target;

/// Size of an entry in the index.
const ENTRY_BYTES: usize = 8;

fuzz_target!(|file: &[u8]| {
    if let Ok(pages) = read_page_file(file) {
        assert!(pages * ENTRY_BYTES <= file.len());
    }
});
