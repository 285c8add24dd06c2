//! Verdicts of cases in real VMs.

use std::fs;

use serde_json::Value;

use crate::runs::Lab;

/// A file of the host, a scratch disk that each case changes, and a crash that must come beside one that must not.
const PLAN: &str = r#"
[plan]
name = "a disk"
[vm]
disks = [{ name = "scratch", size = "64M" }]
[prepare]
copy = [{ from = "data", to = "/job" }]
run = ["test -b $KILN_DISK_scratch", "cat /job/file > $KILN_DISK_scratch", "sync"]
[[suite]]
kind = "command"
name = "fine"
run = "head -c 5 $KILN_DISK_scratch | grep -q hello && test ! -e /tmp/mark && touch /tmp/mark && echo other > $KILN_DISK_scratch"
[[suite]]
kind = "command"
name = "alone"
run = "head -c 5 $KILN_DISK_scratch | grep -q hello && test ! -e /tmp/mark && touch /tmp/mark"
[[suite]]
kind = "command"
name = "boom"
run = "echo c > /proc/sysrq-trigger; sleep 60"
[[suite]]
kind = "command"
name = "expected"
run = "echo c > /proc/sysrq-trigger; sleep 60"
expect = { finding = "*sysrq*" }
"#;

#[test]
fn each_case_has_the_disk_as_it_was_prepared_and_a_crash_keeps_its_files() {
    let lab = Lab::new(PLAN);
    fs::create_dir(lab.directory.path().join("data")).expect("is new");
    fs::write(lab.directory.path().join("data/file"), "hello").expect("is written");
    let run = lab.kiln(&["run", "plan.toml", "-j", "2", "--json"]).run();
    assert_eq!(run.code, 100, "{}", run.stderr);
    let report: Value = serde_json::from_slice(&run.stdout).expect("one JSON object");
    let cases = report["cases"].as_array().expect("a list");
    let verdict = |suite: &str, case: &str| {
        let found = cases.iter().find(|one| one["suite"] == suite && one["case"].as_str().unwrap_or("") == case);
        let found = found.unwrap_or_else(|| panic!("{suite} {case}: {report}"));
        (found["verdict"].as_str().expect("text"), found["message"].as_str().expect("text").to_owned(), found.clone())
    };
    for (suite, case, expected, message) in [
        ("fine", "", "pass", ""),
        ("alone", "", "pass", ""),
        ("boom", "", "crash", "kernel panic: sysrq triggered crash"),
        ("expected", "", "pass", "kernel panic: sysrq triggered crash"),
    ] {
        let (verdict, words, _) = verdict(suite, case);
        assert_eq!((verdict, words.as_str()), (expected, message), "{suite} {case}");
    }
    assert_eq!(report["findings"].as_array().map(Vec::len), Some(1), "{report}");
    assert_eq!(report["findings"][0]["count"], 2, "{report}");

    let (.., boom) = verdict("boom", "");
    let artifacts = lab.runs()[0].join(boom["artifacts"].as_str().expect("a directory"));
    let kept = |name: &str| fs::read_to_string(artifacts.join(name)).expect("is kept");
    assert!(kept("console").contains("sysrq triggered crash"), "{}", kept("console"));
    assert!(kept("findings").starts_with("kernel panic: sysrq triggered crash\n    "), "{}", kept("findings"));
    assert!(verdict("fine", "").2["artifacts"].is_null());
    lab.assert_no_vm();
}

#[test]
fn a_plan_that_names_what_is_not_here_could_not_be_run_and_its_other_cells_are() {
    let lab = Lab::new(
        "[plan]\nname = 'x'\n[matrix]\nimage = ['mini', 'no-such-image']\n\
         [[suite]]\nkind = 'command'\nname = 'one'\nrun = 'true'\n",
    );
    let run = lab.kiln(&["run", "plan.toml"]).run();
    assert_eq!(run.code, 69, "{}", run.stderr);
    let text = run.text();
    assert!(text.contains("cells that could not be prepared") && text.contains("no-such-image"), "{text}");
    assert!(text.contains("1 case: 1 pass"), "{text}");
    assert!(run.stderr.contains("ready image=mini"), "{}", run.stderr);
}

#[test]
fn a_case_that_passes_at_its_second_attempt_is_flaky() {
    let lab = Lab::new(
        "[plan]\nname = 'x'\n[isolate]\nper = 'cell'\n[[suite]]\nkind = 'command'\nname = 'second'\n\
         run = 'test -e /tmp/first || { touch /tmp/first; exit 1; }'\n",
    );
    let once = lab.kiln(&["run", "plan.toml"]).run();
    assert_eq!(once.code, 100, "{}", once.stderr);
    let twice = lab.kiln(&["run", "plan.toml", "--retry", "1"]).run();
    assert_eq!(twice.code, 0, "{}", twice.stderr);
    assert!(twice.text().contains("flaky    second"), "{}", twice.text());
}
