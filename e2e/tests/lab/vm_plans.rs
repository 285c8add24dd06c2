//! Whole plans in real VMs: each suite has its verdict, whatever it does to its guest.

use std::fs;
use std::io::{BufRead as _, BufReader};

use rustix::process::Signal;
use serde_json::Value;

use crate::runs::Lab;

const PLAN: &str = r#"
[plan]
name = "verdicts"
[vm]
disks = [{ name = "scratch", size = "8M" }]
[prepare]
run = ["echo prepared > /tmp/file"]
[[suite]]
kind = "command"
name = "good"
run = "cat /tmp/file; test -b $KILN_DISK_scratch && rm /tmp/file"
expect = { stdout = "prepared" }
[[suite]]
kind = "command"
name = "fork"
run = "cat /tmp/file"
[[suite]]
kind = "tap"
name = "tap"
run = "echo 1..3; echo ok 1 - one; echo not ok 2 - two; echo 'ok 3 - three # SKIP no device'"
[[suite]]
kind = "command"
name = "crash"
run = "echo c > /proc/sysrq-trigger"
[[suite]]
kind = "command"
name = "fake"
run = "echo 'BUG: unable to handle page fault for address: 0000000000000008'"
[[suite]]
kind = "command"
name = "endless"
run = "sleep 1000"
timeout = "2s"
[[suite]]
kind = "command"
name = "off"
run = "echo o > /proc/sysrq-trigger; sleep 100"
"#;

#[test]
fn a_suite_has_its_verdict_whatever_it_does_to_its_guest() {
    let lab = Lab::new(PLAN);
    let ran = lab.kiln(&["run", "plan.toml", "-j", "2", "--json"]).run();
    assert_eq!(ran.code, 100, "{}", ran.stderr);
    let report: Value = serde_json::from_slice(&ran.stdout).expect("an object");
    let cases = report["cases"].as_array().expect("cases");
    let text = |case: &Value, key: &str| case[key].as_str().unwrap_or_default().to_owned();
    let mut seen: Vec<_> = cases
        .iter()
        .map(|case| format!("{} {}: {}", text(case, "suite"), text(case, "case"), text(case, "verdict")))
        .collect();
    seen.sort();
    let expected = [
        "crash : crash",
        "endless : timeout",
        "fake : pass",
        "fork : pass",
        "good : pass",
        "off : fail",
        "tap one: pass",
        "tap three: skip",
        "tap two: fail",
    ];
    assert_eq!(seen, expected);
    let crash = cases.iter().find(|case| case["suite"] == "crash").expect("is there");
    assert!(text(crash, "message").contains("sysrq triggered crash"), "{crash}");
    assert_eq!(lab.home.vms(), [""; 0]);
    assert!(lab.events().len() > expected.len());
}

#[test]
fn ctrl_c_ends_a_run_with_a_report_and_without_vms() {
    let lab = Lab::new(PLAN);
    let mut running = lab.kiln(&["run", "plan.toml", "--filter", "good", "--filter", "endless", "--json"]).start();
    let lines = BufReader::new(running.0.stderr.take().expect("is piped")).lines();
    // The report is for stdout, and what happens goes to stderr.
    let reader = std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
    kiln_e2e::until_booted("an attempt that has ended", || {
        let runs = fs::read_dir(lab.home.path().join("lab")).ok()?.flatten();
        let texts = runs.filter_map(|entry| fs::read_to_string(entry.path().join("events.jsonl")).ok());
        texts.into_iter().any(|text| text.contains("\"good\"") && text.contains("pass")).then_some(())
    });
    running.signal(Signal::INT);
    assert_eq!(running.wait(), 130);
    reader.join().expect("ends with kiln");
    let mut report = Vec::new();
    std::io::Read::read_to_end(&mut running.0.stdout.take().expect("is piped"), &mut report).expect("reads");
    let report: Value = serde_json::from_slice(&report).expect("a report");
    assert_eq!(report["cases"][0]["verdict"], "pass", "{report}");
    assert_eq!(lab.home.vms(), [""; 0]);
}
