//! Runs that end early, and runs that continue.

use kiln_e2e::until_booted;
use rustix::process::Signal;
use serde_json::Value;

use crate::runs::Lab;

/// Three cases one after the other. The second one takes long enough to be interrupted.
const PLAN: &str = r#"
[plan]
name = "three"
[[suite]]
kind = "command"
name = "first"
run = "true"
[[suite]]
kind = "command"
name = "waits"
run = "sleep 8"
[[suite]]
kind = "command"
name = "last"
run = "true"
"#;

#[test]
fn ctrl_c_while_a_vm_is_prepared_leaves_nothing() {
    let plan = format!("{PLAN}\n[prepare]\nrun = [\"sleep 60\"]\n");
    let lab = Lab::new(&plan);
    let before = lab.home.snapshot_names();
    let mut running = lab.kiln(&["run", "plan.toml"]).start();
    until_booted("a VM", || lab.home.vmm());
    running.signal(Signal::INT);
    assert_eq!(running.wait(), 130);
    lab.assert_no_vm();
    assert_eq!(lab.home.snapshot_names(), before);
    assert_eq!(lab.events().last().expect("some")["stopped"], "interrupted");
}

#[test]
fn a_run_that_was_killed_is_resumed_with_what_has_no_verdict() {
    let lab = Lab::new(PLAN);
    let mut running = lab.kiln(&["run", "plan.toml"]).start();
    until_booted("the second case", || lab.has_begun("waits"));
    let busy = lab.kiln(&["resume", "last"]).run();
    assert_eq!(busy.code, 1, "{}", busy.stderr);
    assert!(busy.stderr.contains("still runs in another process"), "{}", busy.stderr);
    running.signal(Signal::KILL);
    assert_eq!(running.wait(), 137);
    assert_eq!(lab.ended(), ["first"]);
    let listed: Value = serde_json::from_slice(&lab.kiln(&["runs", "--json"]).run().stdout).expect("a list");
    assert_eq!((&listed[0]["state"], &listed[0]["cases"]), (&"killed".into(), &1.into()), "{listed}");

    // What the plan says now is of no effect.
    std::fs::write(lab.directory.path().join("plan.toml"), "").expect("is written");
    let resumed = lab.kiln(&["resume", "last", "--report", "md,junit,csv,json"]).run();
    assert_eq!(resumed.code, 0, "{}", resumed.stderr);
    assert!(resumed.text().contains("3 cases: 3 pass"), "{}", resumed.text());
    assert_eq!(lab.ended(), ["first", "waits", "last"], "the first case keeps its verdict");
    for (name, words) in [
        ("report.md", "# three"),
        ("junit.xml", "tests=\"3\""),
        ("report.csv", ",waits,,pass,"),
        ("report.json", "\"exit_code\":0"),
    ] {
        let text = std::fs::read_to_string(lab.runs()[0].join(name)).expect("is written");
        assert!(text.contains(words), "{name}: {text}");
    }
    let again = lab.kiln(&["resume", "last"]).run();
    assert_eq!((again.code, lab.ended().len()), (0, 3), "nothing is left: {}", again.stderr);
    let report = lab.kiln(&["report", "last", "--format", "junit"]).run();
    assert!(report.code == 0 && report.text().starts_with("<?xml"), "{}", report.text());
    let csv = lab.kiln(&["report", "last", "--format", "csv"]).run();
    assert_eq!(csv.stdout, std::fs::read(lab.runs()[0].join("report.csv")).expect("is written"));
    lab.assert_no_vm();
}
