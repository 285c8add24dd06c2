//! Compares the scanner with its simplest form, which matches each line with each pattern and reads byte by byte. Both
//! must find the same in every fixture and in random mixes of the table's headings.

use std::cell::Cell;

use proptest::prelude::*;

use crate::headings::SIGNATURES;
use crate::{ConsoleLine, Finding, LINE_BYTES_MAX, Lines, SavedLog, Scanner};

thread_local! {
    static IS_ENABLED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread uses the simplest form.
pub(crate) fn is_enabled() -> bool {
    IS_ENABLED.get()
}

/// Scans `log` as a saved log and as a live console, in pieces of `piece_bytes`. Returns the findings of the saved log
/// and whether it has kernel lines, then the findings and rows of the console.
fn found(log: &[u8], piece_bytes: usize) -> (Vec<Finding>, bool, Vec<Finding>, Vec<String>) {
    let (mut saved, mut in_saved) = (SavedLog::new(), Vec::new());
    let (mut lines, mut rows) = (Lines::new(), Vec::new());
    for piece in log.chunks(piece_bytes) {
        in_saved.extend(saved.push(piece));
        rows.extend(lines.push(piece));
    }
    in_saved.extend(saved.finish());
    rows.extend(lines.finish());
    let (mut scanner, mut live) = (Scanner::new(), Vec::new());
    let mut before = std::time::Duration::ZERO;
    for text in &rows {
        let row = ConsoleLine::saved(text.clone(), before);
        before = row.at;
        live.extend(scanner.push(&row));
    }
    live.extend(scanner.finish());
    (in_saved, saved.has_kernel_lines(), live, rows)
}

/// Asserts that the simplest form finds the same. Returns the number of findings.
fn compare(log: &[u8], piece_bytes: usize) -> usize {
    let quick = found(log, piece_bytes);
    IS_ENABLED.set(true);
    let simple = found(log, piece_bytes);
    IS_ENABLED.set(false);
    assert_eq!(quick, simple);
    quick.0.len()
}

fn fixtures() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let paths = std::fs::read_dir(folder).expect("the fixtures").map(|entry| entry.expect("an entry").path());
    let logs = paths.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.map(|path| std::fs::read(path).expect("a fixture")).collect()
}

#[test]
fn both_forms_find_the_same_in_every_fixture() {
    let fixtures = fixtures();
    assert!(fixtures.len() > 30);
    let found: usize = fixtures.iter().map(|log| compare(log, 4096) + compare(log, 7)).sum();
    assert!(found > fixtures.len(), "{found}");
}

/// A heading of the table with its holes filled, with or without its beginning.
fn heading() -> impl Strategy<Value = String> {
    let hole = prop_oneof![Just("f+0x1/0x2"), Just(""), Just("a/b.c"), Just("12"), Just("[#1] SMP"), Just("x y: z")];
    let holes = prop::collection::vec(hole, 4);
    (0..SIGNATURES.len(), holes, 0..40_usize, any::<bool>()).prop_map(|(index, holes, cut, is_cut)| {
        let pattern = SIGNATURES[index].heading.trim_start_matches('^');
        let mut holes = holes.into_iter();
        let parts = pattern.split('{').map(|part| match part.split_once('}') {
            Some((_, literal)) => format!("{}{literal}", holes.next().unwrap_or("")),
            None => part.to_owned(),
        });
        let whole: String = parts.collect();
        if is_cut { whole.chars().skip(cut).collect() } else { whole }
    })
}

fn row() -> impl Strategy<Value = String> {
    let prefix = prop_oneof![
        4 => (0..60_u32).prop_map(|second| format!("[{second:5}.000000] ")),
        1 => Just("[    2.500000][  T7] ".to_owned()),
        1 => Just("<0>[    3.000000] ".to_owned()),
        1 => Just("Nov  1 12:00:00 host kernel: ".to_owned()),
        1 => Just(String::new()),
    ];
    let before = prop_oneof![4 => Just(""), 1 => Just("watchdog: "), 1 => Just("[ "), 1 => Just("a b: "), 1 => Just("  "), 1 => Just("é")];
    let text = prop_oneof![
        4 => heading(),
        1 => Just("Linux version 6.1.0".to_owned()),
        1 => Just("reboot: Restarting system".to_owned()),
        1 => Just(" f+0x1/0x2".to_owned()),
        1 => Just("---[ end trace 0 ]---".to_owned()),
        1 => "[ -~]{0,60}",
        1 => Just("x".repeat(LINE_BYTES_MAX - 20)),
    ];
    let end = prop_oneof![6 => Just("\n"), 1 => Just("\r\n"), 1 => Just("\r\r\n"), 1 => Just("\r"), 1 => Just("")];
    (prefix, before, text, end).prop_map(|(prefix, before, text, end)| format!("{prefix}{before}{text}{end}"))
}

proptest! {
    // The simplest form is slow, even more so in a build without optimisation.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn both_forms_find_the_same_in_mixes_of_headings(rows in prop::collection::vec(row(), 0..30), piece_bytes in 1..200_usize) {
        compare(rows.concat().as_bytes(), piece_bytes);
    }

    #[test]
    fn both_forms_find_the_same_in_mixes_of_fixtures(parts in prop::collection::vec((0..30_usize, 0..200_usize, 1..40_usize), 1..8)) {
        let fixtures = fixtures();
        let rows = parts.iter().flat_map(|&(log, start, count)| {
            fixtures[log].split_inclusive(|byte| *byte == b'\n').skip(start).take(count)
        });
        compare(&rows.flatten().copied().collect::<Vec<u8>>(), 4096);
    }

    #[test]
    fn both_forms_find_the_same_in_any_bytes(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n')], 0..5000), piece_bytes in 1..5000_usize) {
        compare(&bytes, piece_bytes);
    }
}
