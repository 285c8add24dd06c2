//! Scans real consoles: trimmed logs of machines that were made to crash.
//!
//! `fixtures/README.md` describes how the logs were made.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_detect::{ConsoleLine, Finding, Kind, Lines, Scanner, Severity};

/// Characters of an extract's line in snapshots. The rest is registers and code bytes.
const SHOWN_CHARS_MAX: usize = 100;

/// Fewer fixtures than this means that they were not found.
const FIXTURES_MIN: usize = 30;

fn scan(console: &[u8]) -> Vec<Finding> {
    let mut lines = Lines::new();
    let mut rows = lines.push(console);
    rows.extend(lines.finish());
    scan_rows(rows.iter().map(String::as_str))
}

fn scan_rows<'a>(rows: impl IntoIterator<Item = &'a str>) -> Vec<Finding> {
    let mut scanner = Scanner::new();
    let mut findings = Vec::new();
    let mut before = Duration::ZERO;
    for text in rows {
        let row = ConsoleLine::saved(text.to_owned(), before);
        before = row.at;
        findings.extend(scanner.push(&row));
    }
    findings.extend(scanner.finish());
    findings
}

fn titles(rows: &str) -> Vec<String> {
    scan_rows(rows.lines()).into_iter().map(|finding| finding.title).collect()
}

/// A finding in the form of the snapshots.
fn shown(finding: &Finding) -> String {
    let Finding { title, alternatives, kind, crash_type, severity, function, corrupted, extract, row, at } = finding;
    let function = function.as_deref().unwrap_or("-");
    let mut text = format!(
        "{title}\n  {kind:?} {crash_type} {severity:?} in row {row} at {at:?} function={function} corrupted={corrupted}\n"
    );
    for alternative in alternatives {
        text.push_str(&format!("  or {alternative}\n"));
    }
    let cut = |line: &String| line.chars().take(SHOWN_CHARS_MAX).collect::<String>();
    let (first, last) = (extract.first().map(cut).unwrap_or_default(), extract.last().map(cut).unwrap_or_default());
    text.push_str(&format!("  {} lines: {first:?} … {last:?}\n", extract.len()));
    text
}

#[test]
fn every_real_crash_is_found_and_named() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut fixtures: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    fixtures.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    fixtures.sort();
    assert!(fixtures.len() >= FIXTURES_MIN, "only {} fixtures", fixtures.len());

    let read = |path: &PathBuf| std::fs::read(path).expect("the fixture was just listed");
    let all = fixtures.iter().map(|path| {
        let found: String = scan(&read(path)).iter().map(shown).collect();
        format!("== {}\n{}", path.file_stem().unwrap().display(), if found.is_empty() { "nothing\n" } else { &found })
    });
    insta::assert_snapshot!(all.collect::<String>());
}

#[test]
fn the_finding_of_an_open_report_is_pending() {
    let mut scanner = Scanner::new();
    let at = Duration::from_secs(3);
    for text in
        ["[    3.000000] BUG: kernel NULL pointer dereference, address: 08", "[    3.000001] RIP: 0010:f+0x1/0x2"]
    {
        assert_eq!(scanner.push(&ConsoleLine { text: text.to_owned(), at }), None);
    }
    let pending = scanner.pending().expect("the report is open");
    assert_eq!(pending.title, "BUG: unable to handle kernel NULL pointer dereference in f");
    assert!(pending.corrupted, "no stack came");
    assert_eq!(scanner.finish(), [pending]);
    assert_eq!(scanner.pending(), None);
}

#[test]
fn the_most_severe_finding_is_pending() {
    let mut scanner = Scanner::new();
    let rows = [
        "[    3.000000][  T1] WARNING: CPU: 0 PID: 1 at a.c:1 f+0x1/0x2",
        "[    3.000001][  T2] Kernel panic - not syncing: No working init found.",
        "[    3.000002][  T3] INFO: task a:1 blocked for more than 120 seconds.",
    ];
    for text in rows {
        scanner.push(&ConsoleLine { text: text.to_owned(), at: Duration::from_secs(3) });
    }
    assert_eq!(scanner.pending().map(|finding| finding.severity), Some(Severity::Fatal));
    assert_eq!(scanner.finish().len(), 3);
}

#[test]
fn a_panic_that_a_program_prints_is_not_a_finding() {
    let rows = "[    1.000000] Run /init as init process\nKernel panic - not syncing: I am a program\n";
    assert_eq!(titles(rows), [""; 0]);
    assert_eq!(titles("Kernel panic - not syncing: no stamps at all"), ["kernel panic: no stamps at all"]);
}

#[test]
fn a_panic_after_a_prompt_is_a_finding() {
    let rows = "[    1.000000] Run /init as init process\n/ # [    9.000000] Kernel panic - not syncing: really";
    assert_eq!(titles(rows), ["kernel panic: really"]);
}

#[test]
fn a_fault_of_a_program_is_not_a_finding() {
    let rows = "[    1.000000] a[7]: segfault at 4cb420 ip 00000000004cb420 sp 00007f27fd37a250 error 15 in a[4c9000+3000]\n\
                [    1.000001] traps: a[7] general protection fault ip:4cb420 sp:7f27fd37a250 error:0 in a[4c9000+3000]\n\
                [    1.000002] audit: comm=\"BUG: unable\" exe=\"INFO: task x blocked for more than 9 s\"\n\
                [    1.000003] INFO: lockdep is turned off.";
    assert_eq!(titles(rows), [""; 0]);
}

#[test]
fn reports_of_interleaved_tasks_are_separate_findings() {
    let rows = "[    1.000000][  T1] WARNING: CPU: 0 PID: 1 at a.c:1 first+0x1/0x2\n\
                [    1.000000][  T2] WARNING: CPU: 1 PID: 2 at b.c:1 second+0x1/0x2\n\
                [    1.000001][  T1] RIP: 0010:first+0x1/0x2\n[    1.000001][  T2] RIP: 0010:second+0x1/0x2\n\
                [    1.000001][  T1] Call Trace:\n[    1.000001][  T2] Call Trace:\n\
                [    1.000001][  T2]  second_caller+0x1/0x2\n[    1.000001][  T1]  first_caller+0x1/0x2\n\
                [    1.000002][  T2] ---[ end trace 0 ]---\n[    1.000002][  T1] ---[ end trace 0 ]---";
    let findings = scan_rows(rows.lines());
    assert_eq!(
        findings.iter().map(|finding| finding.title.as_str()).collect::<Vec<_>>(),
        ["WARNING in second", "WARNING in first"]
    );
    assert!(findings.iter().all(|finding| !finding.corrupted && finding.extract.len() == 5));
}

#[test]
fn a_finding_is_returned_with_the_last_line_of_its_report() {
    let mut scanner = Scanner::new();
    let rows = ["kernel BUG at fs/a.c:1!", "invalid opcode: 0000 [#1]", "RIP: 0010:f+0x1/0x2", " g+0x1/0x2"];
    for text in rows {
        assert_eq!(scanner.push(&ConsoleLine { text: text.to_owned(), at: Duration::ZERO }), None);
    }
    let end = ConsoleLine { text: "---[ end trace 0123456789abcdef ]---".to_owned(), at: Duration::ZERO };
    let finding = scanner.push(&end).expect("the report is complete");
    assert_eq!((finding.title.as_str(), finding.kind), ("kernel BUG in f", Kind::Bug));
    assert_eq!(finding.extract.len(), 5);
}

#[test]
fn a_report_ends_when_its_caller_is_quiet() {
    let mut scanner = Scanner::new();
    let row = |text: &str, seconds| ConsoleLine { text: text.to_owned(), at: Duration::from_secs(seconds) };
    assert_eq!(scanner.push(&row("INFO: task a:1 blocked for more than 120 seconds.", 1)), None);
    assert_eq!(scanner.push(&row("Call Trace:", 2)), None);
    let finding = scanner.push(&row("login:", 60)).expect("nothing came for a minute");
    assert_eq!(finding.kind, Kind::HungTask);
    assert_eq!(finding.extract.len(), 2);
}

#[test]
fn a_panic_that_follows_from_a_report_is_a_part_of_it() {
    let warned = "[    1.000000] WARNING: CPU: 0 PID: 1 at a.c:1 f+0x1/0x2\n\
                  [    1.000001] Kernel panic - not syncing: panic_on_warn set ...\n\
                  [    1.000002] Call Trace:\n[    1.000002]  panic+0x1/0x2\n[    1.000002]  __warn+0x1/0x2\n[    1.000002]  f+0x1/0x2";
    let findings = scan_rows(warned.lines());
    assert_eq!(findings.len(), 1);
    assert_eq!((findings[0].title.as_str(), findings[0].severity), ("WARNING in f", Severity::Fatal));

    let oopsed = "[    1.000000] general protection fault: 0000 [#1]\n[    1.000001] RIP: 0010:f+0x1/0x2\n\
                  [    1.000002]  g+0x1/0x2\n[    1.000003] ---[ end trace 0 ]---\n\
                  [    1.000004] Kernel panic - not syncing: Fatal exception";
    assert_eq!(titles(oopsed), ["general protection fault in f"]);

    let alone = scan_rows(["[    1.000004] Kernel panic - not syncing: Fatal exception"]);
    assert!(alone[0].corrupted, "the report before the panic was lost");
}

#[test]
fn a_second_boot_that_was_not_requested_is_a_finding() {
    let first = "[    0.000000] Linux version 6.1.0\n[    1.000000] Run /init as init process\nhello\n";
    let second = "[    0.000000] Linux version 6.1.0\n[    1.000001] Run /init as init process\nhello\n";
    assert_eq!(titles(&format!("{first}{second}")), ["unexpected reboot"]);
    assert_eq!(titles(&format!("{first}[    2.000000] reboot: Restarting system\n{second}")), [""; 0]);
    let panicked = format!("{first}[    2.000000] Kernel panic - not syncing: x\n{second}");
    assert_eq!(titles(&panicked), ["kernel panic: x"]);
}

#[test]
fn a_log_that_is_printed_again_adds_no_findings() {
    let mut log = "[    0.000000] Linux version 6.1.0\n".to_owned();
    for number in 0..20 {
        log.push_str(&format!("[    1.{number:06}] line {number}\n"));
    }
    log.push_str("[    2.000000] WARNING: CPU: 0 PID: 1 at a.c:1 f+0x1/0x2\n[    2.000001] RIP: 0010:f+0x1/0x2\n");
    log.push_str("[    2.000002] ---[ end trace 0 ]---\n");
    assert_eq!(titles(&log), ["WARNING in f"]);
    assert_eq!(titles(&log.repeat(3)), ["WARNING in f"]);
}

#[test]
fn stacks_of_other_cpus_are_a_part_of_the_stall() {
    let rows = "[    9.000000][    C0] rcu: INFO: rcu_sched detected stalls on CPUs/tasks:\n\
                [    9.000001][    C1] NMI backtrace for cpu 1\n\
                [    9.000001][    C1] Call Trace:\n[    9.000001][    C1]  sysvec_apic_timer_interrupt+0x1/0x2\n\
                [    9.000002][    C1]  spin+0x1/0x2\n[    9.000003][    C1]  ext4_write_iter+0x1/0x2\n\
                [    9.000004][    C1]  vfs_write+0x1/0x2";
    let findings = scan_rows(rows.lines());
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].title, "INFO: rcu detected stall in ext4_write_iter");
}

#[test]
fn kasan_names_who_called_the_machinery() {
    let rows = "BUG: KASAN: slab-use-after-free in __list_del_entry_valid+0x1/0x2\n\
                Read of size 8 at addr ffff88002db3cf50 by task a/1\n\
                Call Trace:\n dump_stack+0x1/0x2\n kasan_report+0x1/0x2\n __list_del_entry_valid+0x1/0x2\n guilty.cold+0x1/0x2\n\
                Allocated by task 1:\n innocent+0x1/0x2";
    let findings = scan_rows(rows.lines());
    assert_eq!(findings[0].title, "KASAN: slab-use-after-free Read in guilty");
    assert_eq!(findings[0].function.as_deref(), Some("guilty"));
    assert_eq!(findings[0].severity, Severity::Fatal);
}

#[test]
fn a_deadlock_is_named_after_where_the_lock_is_wanted() {
    let rows = "WARNING: possible circular locking dependency detected\na/1 is trying to acquire lock:\n\
                ffff8800 (&a->b){+.+.}, at: mutex_lock_nested+0x1/0x2\n\
                ffff8800 (&a->c){+.+.}, at: [<ffffffff8232bf0e>] wanted+0x1/0x2\nstack backtrace:\nCall Trace:\n dump_stack+0x1/0x2";
    assert_eq!(titles(rows), ["possible deadlock in wanted"]);
}

#[test]
fn a_finding_with_lost_lines_is_corrupted() {
    let rows = "[    1.000000] BUG: KASAN: use-after-free in f+0x1/0x2\n[    1.000001]  g+0x1/0x2\n\
                ** 3764 printk messages dropped ** [    1.000002] ** 12 printk messages dropped **";
    assert!(scan_rows(rows.lines())[0].corrupted);
}

#[test]
fn numbers_are_replaced_in_the_title_of_a_panic() {
    let row = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)";
    assert_eq!(titles(row), ["kernel panic: VFS: Unable to mount root fs on unknown-block(NUM,NUM)"]);
}

#[test]
fn severities_are_ordered() {
    assert!([Severity::Warning, Severity::Error, Severity::Fatal].is_sorted());
}
