//! Output of suites as they print it, right and broken.

use super::*;
use crate::plan::SuiteKind;

/// Each case as a line, then the problem.
fn read(kind: SuiteKind, output: &str, exit_code: i32) -> String {
    let whole = read_in_pieces(kind, output, exit_code, usize::MAX);
    for piece_bytes in [1, 7] {
        assert_eq!(read_in_pieces(kind, output, exit_code, piece_bytes), whole);
    }
    whole
}

fn read_in_pieces(kind: SuiteKind, output: &str, exit_code: i32, piece_bytes: usize) -> String {
    let mut reader = Reader::new(kind);
    let mut cases: Vec<_> = output.as_bytes().chunks(piece_bytes).flat_map(|piece| reader.push(piece)).collect();
    let (rest, problem) = reader.finish(exit_code);
    cases.extend(rest);
    let mut lines: Vec<_> = cases.iter().map(shown).collect();
    lines.extend(problem.map(|problem| format!("problem: {problem}")));
    lines.join("\n")
}

fn shown(case: &CaseResult) -> String {
    let CaseResult { name, outcome, message, duration } = case;
    let duration = duration.map_or_else(String::new, |duration| format!(" {duration:?}"));
    let message = if message.is_empty() { String::new() } else { format!(": {}", message.replace('\n', " | ")) };
    format!("{outcome:?} {name}{duration}{message}")
}

#[test]
fn tap_has_results_reasons_and_diagnostics() {
    let output = "TAP version 14\n1..6\nok 1 - opens a file\nnot ok 2 - writes to it\n  ---\n  message: no space\n  at: 7\n  ...\n\
                  ok 3 - links # SKIP no links here\nnot ok 4 locks # todo not written yet\nok\n# a remark\n\
                  not ok 6 - has \\# in its name\n# got 1\n# wanted 2\n";
    insta::assert_snapshot!(read(SuiteKind::Tap, output, 1));
}

#[test]
fn subtests_of_tap_are_cases_below_the_whole() {
    let output = "1..2\n# Subtest: mount\n    1..2\n    ok 1 - ext4\n    not ok 2 - xfs\nnot ok 1 - mount\n\
                  # Subtest: umount\n    1..1\n        ok 1 - deep\n    ok 1 - busy\nnot ok 2 - umount # leaks\n";
    insta::assert_snapshot!(read(SuiteKind::Tap, output, 1));
}

#[test]
fn ktap_is_read_from_a_kernel_log_too() {
    let output = "[    1.204000] KTAP version 1\n[    1.204100] 1..1\n[    1.205000]     KTAP version 1\n\
                  [    1.205100]     # Subtest: list-kunit-test\n[    1.205200]     1..3\n\
                  [    1.206000]     ok 1 list_test_list_init\n\
                  [    1.206100]     # list_test_list_add: EXPECTATION FAILED at lib/list-test.c:57\n\
                  [    1.206200]     not ok 2 list_test_list_add\n<6>[    1.206300]     ok 3 list_test_del # SKIP no debug\n\
                  [    1.206400] # list-kunit-test: pass:1 fail:1 skip:1 total:3\n[    1.206500] not ok 1 list-kunit-test\n";
    insta::assert_snapshot!(read(SuiteKind::Ktap, output, 0));
}

#[test]
fn results_that_did_not_come_are_a_problem_of_the_suite() {
    let cases = [
        ("1..3\nok 1\nok 2\n", 0),
        ("ok 1\nBail out! the disk is gone\nok 2\n", 255),
        ("ok 1\nok 2\n", 3),
        ("hello\n", 0),
        ("1..0 # SKIP no root\n", 0),
        ("1..1\n# Subtest: a\n    1..2\n    ok 1 - b\nok 1 - a\n", 0),
        ("1..1\n    ok 1 - b\n", 139),
        ("", 0),
    ];
    let read: Vec<_> =
        cases.iter().map(|(output, code)| format!("{output:?}\n{}", read(SuiteKind::Tap, output, *code))).collect();
    insta::assert_snapshot!(read.join("\n\n"));
}

#[test]
fn libtest_and_nextest_have_results_times_and_output() {
    let output = r#"{"type":"suite","event":"started","test_count":4}
{"type":"test","event":"started","name":"a::passes"}
{"type":"test","name":"a::passes","event":"ok","exec_time":0.25}
text of a test
{"type":"test","event":"started","name":"a::fails"}
{"type":"test","name":"a::fails","event":"failed","stdout":"thread panicked\nat x.rs:7\n"}
{"type":"test","event":"started","name":"a::slow"}
{"type":"test","event":"timeout","name":"a::slow"}
{"type":"test","event":"ignored","name":"a::ignored","message":"needs root"}
"#;
    let whole = format!("{output}{}", r#"{"type":"suite","event":"failed","passed":1}"#);
    insta::assert_snapshot!(format!(
        "{}\n\n{}",
        read(SuiteKind::Libtest, output, 101),
        read(SuiteKind::Libtest, &whole, 101)
    ));
}

#[test]
fn junit_of_each_dialect_is_read() {
    let output = r#"running
<?xml version="1.0"?>
<testsuites><testsuite name="s" tests="4">
<testcase classname="a.b" name="passes" time="1,000.5"/>
<testcase name="fails &amp; more"><failure message="want &lt;1&gt;" type="E">line 1
line 2</failure><system-out>noise</system-out></testcase>
<testcase name="is skipped"><skipped message="no root"/></testcase>
<testcase name="breaks"><error><![CDATA[a <raw> text]]></error></testcase>
</testsuite></testsuites>"#;
    let alone = "<testsuite><testcase name='x'></testcase></testsuite>";
    let cut = "<testsuite><testcase name='x'><failure>and";
    let wrong = "<testsuite><testcase name='x'></testsuite>";
    let all: Vec<_> = [output, alone, cut, wrong].map(|output| read(SuiteKind::Junit, output, 1)).into();
    insta::assert_snapshot!(all.join("\n\n"));
}

#[test]
fn a_suite_that_prints_garbage_or_without_end_is_bounded() {
    let mut reader = Reader::new(SuiteKind::Tap);
    let mut cases = 0;
    for _ in 0..1100 {
        cases += reader.push("ok\n".repeat(100).as_bytes()).len();
    }
    let (rest, problem) = reader.finish(0);
    assert_eq!((cases + rest.len(), problem), (CASES_MAX, Some("more than 100000 results came".into())));

    let mut reader = Reader::new(SuiteKind::Tap);
    reader.push(b"not ok 1 - ");
    (0..1000).for_each(|_| assert!(reader.push(&[b'x'; 4096]).len() <= 1));
    reader.push("\n# a line of a diagnostic\n".repeat(10_000).as_bytes());
    let (rest, _) = reader.finish(0);
    let case = rest.into_iter().next_back().expect("the last");
    assert!(case.name.len() <= NAME_BYTES_MAX && case.message.len() <= MESSAGE_BYTES_MAX, "{}", case.message.len());
}

#[test]
fn the_text_of_all_results_is_bounded() {
    let message = format!("# {}\n", "x".repeat(1000)).repeat(16);
    for indent in ["", "    "] {
        let case = format!("{indent}not ok\n{}", message.replace('#', &format!("{indent}#")));
        let mut reader = Reader::new(SuiteKind::Tap);
        let mut results: Vec<CaseResult> = (0..3000).flat_map(|_| reader.push(case.as_bytes())).collect();
        results.extend(reader.push(b"not ok 1 - all\n"));
        let (rest, problem) = reader.finish(1);
        results.extend(rest);
        assert!(results.len() >= 3000, "{}", results.len());
        let bytes: usize = results.iter().map(|case| case.name.len() + case.message.len()).sum();
        assert!((TEXT_BYTES_MAX / 2..=TEXT_BYTES_MAX).contains(&bytes), "{bytes}");
        assert!(problem.is_some());
    }
}

proptest::proptest! {
    #[test]
    fn results_do_not_depend_on_how_the_output_is_cut(
        lines in proptest::collection::vec(proptest::prop_oneof![
            "( {0,8})(not )?ok( [0-9]{1,3})?( - )?[a-z #]{0,8}",
            "( {0,8})1\\.\\.[0-9]{1,2}( # SKIP x)?",
            " {0,4}(---|\\.\\.\\.|# Subtest: a|Bail out!|<testcase name='a'/>|\\{\"type\":\"test\"\\})",
            "(?s).{0,20}",
        ], 0..30),
        piece_bytes in 1..50_usize,
    ) {
        let output = lines.join("\n");
        for kind in [SuiteKind::Tap, SuiteKind::Ktap, SuiteKind::Junit, SuiteKind::Libtest] {
            let whole = read_in_pieces(kind, &output, 0, usize::MAX);
            proptest::prop_assert_eq!(read_in_pieces(kind, &output, 0, piece_bytes), whole);
        }
    }
}
