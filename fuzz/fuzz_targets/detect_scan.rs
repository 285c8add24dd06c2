//! Any bytes on a console, live or saved: lines and findings stay bounded, and do not depend on how the bytes are cut.
#![no_main]

use std::time::Duration;

use kiln_detect::{ConsoleLine, EXTRACT_LINES_MAX, Finding, LINE_BYTES_MAX, Lines, SavedLog, Scanner};
use libfuzzer_sys::fuzz_target;

/// Odd, so that the cuts are at different places of the rows.
const CUT_BYTES: usize = 7;

fuzz_target!(|console: &[u8]| {
    let whole = findings(&[console]);
    let pieces: Vec<&[u8]> = console.chunks(CUT_BYTES).collect();
    assert_eq!(whole, findings(&pieces));
    assert_eq!(saved(&[console]), saved(&pieces));
});

fn saved(pieces: &[&[u8]]) -> Vec<Finding> {
    let mut log = SavedLog::new();
    let mut found: Vec<Finding> = pieces.iter().flat_map(|piece| log.push(piece)).collect();
    found.extend(log.finish());
    found
}

fn findings(pieces: &[&[u8]]) -> Vec<Finding> {
    let mut lines = Lines::new();
    let mut rows: Vec<String> = pieces.iter().flat_map(|piece| lines.push(piece)).collect();
    rows.extend(lines.finish());

    let mut scanner = Scanner::new();
    let mut found = Vec::new();
    let mut before = Duration::ZERO;
    for text in rows {
        assert!(text.chars().count() <= LINE_BYTES_MAX);
        let row = ConsoleLine::saved(text, before);
        before = row.at;
        found.extend(scanner.push(&row));
        assert!(scanner.pending().is_none_or(|finding| finding.extract.len() <= EXTRACT_LINES_MAX));
    }
    found.extend(scanner.finish());
    found
}
