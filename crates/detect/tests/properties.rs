//! Properties that hold for every console, also for hostile ones, and for any way in which its bytes are cut.

use std::time::Duration;

use kiln_detect::{
    ConsoleLine, EXTRACT_LINES_MAX, Finding, LINE_BYTES_MAX, Lines, OPEN_REPORTS_MAX, REPORT_LINES_MAX, SavedLog,
    Scanner,
};
use proptest::prelude::*;

/// Findings of a console whose bytes came in these pieces.
fn findings(pieces: &[&[u8]]) -> Vec<Finding> {
    let mut lines = Lines::new();
    let mut scanner = Scanner::new();
    let mut found = Vec::new();
    let mut before = Duration::ZERO;
    let mut scan = |scanner: &mut Scanner, text: String| {
        let row = ConsoleLine::saved(text, before);
        before = row.at;
        found.extend(scanner.push(&row));
    };
    for piece in pieces {
        for text in lines.push(piece) {
            scan(&mut scanner, text);
        }
    }
    if let Some(text) = lines.finish() {
        scan(&mut scanner, text);
    }
    found.extend(scanner.finish());
    found
}

/// Rows that kernels print, rows that look similar, and random bytes.
fn row() -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop_oneof![
        Just("[    1.000000] "),
        Just("[    2.500000][  T7] "),
        Just("[   50.000000][    C1] "),
        Just("<0>[    3.000000] "),
        Just("Kernel panic - not syncing: Fatal exception"),
        Just("Kernel panic - not syncing: "),
        Just("BUG: KASAN: use-after-free in f+0x1/0x2"),
        Just("Read of size 8 at addr ffff88002db3cf50"),
        Just("BUG: soft lockup - CPU#0 stuck for 22s! [a:1]"),
        Just("INFO: task a:1 blocked for more than 120 seconds."),
        Just("WARNING: CPU: 0 PID: 1 at a/b.c:1 f+0x1/0x2"),
        Just("kernel BUG at lib/list_debug.c:30!"),
        Just("general protection fault: 0000 [#1] SMP"),
        Just("a invoked oom-killer: gfp_mask=0x0"),
        Just("Linux version 6.1.0"),
        Just("Run /init as init process"),
        Just(" at: "),
        Just(" f+0x1/0x2"),
        Just("RIP: 0010:g.isra.0+0x1/0x2"),
        Just("---[ end trace 0 ]---"),
        Just("NMI backtrace for cpu 1"),
        Just("\x1b[31m"),
        Just("\x1b]0;"),
        Just("é"),
    ];
    let text = prop::collection::vec(fragment, 0..5).prop_map(|fragments| fragments.concat().into_bytes());
    let noise = prop::collection::vec(any::<u8>(), 0..40);
    let end = prop_oneof![Just("\n"), Just("\r\n"), Just("\r")];
    (prop_oneof![4 => text, 1 => noise], end).prop_map(|(text, end)| [text.as_slice(), end.as_bytes()].concat())
}

/// Prefixes that programs put before a row when they save a log, and text that is similar.
fn saved_prefix() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("<4>"),
        Just("1 "),
        Just("Nov  1 12:00:00 "),
        Just("Nov 1 12:0"),
        Just("2026-11-01T12:00:00.5+01:00 "),
        Just("[Sun Nov  1 12:00:00 2026] "),
        Just("[    1.000000 <    0.1>] "),
        Just("Sun 2026-11-01 12:00:00 UTC "),
        Just("1793534400.123456 "),
        Just("kern  :warn  : "),
        Just("4,339,5,-,caller=C0;"),
        Just("web-1 "),
        Just("kern.warn "),
        Just("kernel: "),
        Just("app[7]: "),
        Just("    1.000000] "),
        Just("[ T1] "),
        Just("é. 1 12:00:00 "),
        Just("- - - "),
        Just("[+"),
    ];
    prop::collection::vec(part, 0..5).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn findings_do_not_depend_on_how_bytes_are_cut(rows in prop::collection::vec(row(), 0..60), cut_bytes in 1_usize..50) {
        let console = rows.concat();
        let pieces: Vec<&[u8]> = console.chunks(cut_bytes).collect();
        prop_assert_eq!(findings(&pieces), findings(&[&console]));
    }

    #[test]
    fn findings_of_a_saved_log_do_not_depend_on_how_bytes_are_cut(
        rows in prop::collection::vec((saved_prefix(), row()), 0..40),
        cut_bytes in 1_usize..50,
    ) {
        let log: Vec<u8> = rows.into_iter().flat_map(|(prefix, row)| [prefix.as_bytes(), &row].concat()).collect();
        let scan = |pieces: &[&[u8]]| {
            let mut saved = SavedLog::new();
            let mut found: Vec<Finding> = pieces.iter().flat_map(|piece| saved.push(piece)).collect();
            found.extend(saved.finish());
            (found, saved.has_kernel_lines())
        };
        let pieces: Vec<&[u8]> = log.chunks(cut_bytes).collect();
        prop_assert_eq!(scan(&pieces), scan(&[&log]));
    }

    #[test]
    fn any_bytes_give_bounded_lines_without_control_characters(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
        let mut lines = Lines::new();
        let mut all = lines.push(&bytes);
        all.extend(lines.finish());
        for line in all {
            prop_assert!(line.chars().count() <= LINE_BYTES_MAX);
            prop_assert!(line.chars().all(|character| character == '\t' || !character.is_control()));
        }
    }

    #[test]
    fn every_finding_is_bounded(rows in prop::collection::vec(row(), 0..100)) {
        for finding in findings(&[&rows.concat()]) {
            prop_assert!(!finding.title.is_empty());
            prop_assert!(!finding.title.contains(['{', '}']), "{}", finding.title);
            prop_assert!(finding.title.chars().count() < 300);
            prop_assert!((1..=EXTRACT_LINES_MAX).contains(&finding.extract.len()));
        }
    }

    #[test]
    fn a_heading_with_a_stamp_is_never_lost(noise in prop::collection::vec(row(), 0..20)) {
        let mut console = noise.concat();
        console.extend(b"\n[   99.000000] BUG: kernel NULL pointer dereference, address: 0000000000000008\n");
        let found = findings(&[&console]);
        prop_assert!(found.iter().any(|finding| finding.title.contains("NULL pointer dereference")));
    }
}

#[test]
fn reports_without_an_end_stay_within_the_bounds() {
    let mut scanner = Scanner::new();
    let mut returned = 0;
    for number in 0..OPEN_REPORTS_MAX * REPORT_LINES_MAX * 3 {
        let caller = number % (OPEN_REPORTS_MAX * 2);
        let text = format!("[    1.000000][  T{caller}] BUG: KASAN: use-after-free in f+0x1/0x2 {number}");
        returned += usize::from(scanner.push(&ConsoleLine { text, at: Duration::ZERO }).is_some());
    }
    assert!(returned > OPEN_REPORTS_MAX);
    assert!(scanner.finish().len() <= OPEN_REPORTS_MAX);
}

#[test]
fn a_full_queue_drops_the_least_severe_findings() {
    let mut scanner = Scanner::new();
    let row = "[    1.000000] kmemleak: 1 new suspected memory leaks".repeat(60);
    let fatal = "[    1.000000] Kernel panic - not syncing: out of everything";
    let found = scanner.push(&ConsoleLine { text: format!("{fatal}{row}"), at: Duration::ZERO });
    let rest = scanner.finish();
    assert!(rest.len() < 40);
    assert!(found.iter().chain(&rest).any(|finding| finding.title == "kernel panic: out of everything"));
}
