//! `kiln verify fork`, each time in a home of its own.

use kiln_e2e::{TestHome, until_booted};
use rustix::process::Signal;
use serde_json::Value;

/// The checks of the report.
const CLAIMS: [&str; 17] = [
    "forks answer",
    "random bytes differ",
    "uuids differ",
    "random draws of a running process differ",
    "machine ids differ",
    "boot ids differ",
    "host names differ",
    "network addresses differ",
    "clocks are the host's",
    "new certificates are valid",
    "a process keeps running",
    "a connection stays open",
    "unsynced writes are in all forks",
    "a fork's writes stay its own",
    "a later fork has no files of earlier ones",
    "a later fork has the later time",
    "snapshots of forks do not mix",
];

#[track_caller]
fn nothing_is_left(home: &TestHome) {
    assert_eq!((home.snapshot_names(), home.vms()), (vec![], vec![]));
}

#[test]
fn eight_forks_are_complete_and_independent() {
    let home = TestHome::with_image();
    let outcome = home.kiln(["verify", "fork", "--json"]).run();
    let report: Value = serde_json::from_slice(&outcome.stdout).unwrap_or_else(|_| panic!("{}", outcome.stderr));
    let held = |check: &Value| check["ok"] == true;
    let checks = report["checks"].as_array().expect("a list of checks");
    let failed: Vec<_> = checks.iter().filter(|check| !held(check)).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(checks.iter().map(|check| check["name"].as_str().expect("a name")).collect::<Vec<_>>(), CLAIMS);
    assert_eq!((outcome.code, &report["ok"], &report["forks"]), (0, &true.into(), &8.into()));
    for time in ["boot_ms", "save_ms", "fork_p50_ms", "fork_max_ms", "total_ms"] {
        assert!(report[time].as_f64().is_some_and(|ms| ms > 0.0), "{time}: {report}");
    }
    nothing_is_left(&home);
}

#[test]
fn a_report_has_a_line_for_each_check_and_nothing_on_stderr() {
    let home = TestHome::with_image();
    let outcome = home.kiln(["verify", "fork", "--forks", "2"]).run();
    let text = outcome.text();
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{text}");
    for claim in CLAIMS {
        assert!(text.lines().any(|line| line.starts_with(&format!("ok    {claim} "))), "{claim}: {text}");
    }
    assert!(text.contains("17 of 17 checks hold, with 2 forks of mini"), "{text}");
    assert!(text.contains("PID 1"), "it says what forks share: {text}");
    nothing_is_left(&home);
}

#[test]
fn ctrl_c_while_it_forks_leaves_nothing() {
    let home = TestHome::with_image();
    let mut running = home.kiln(["verify", "fork"]).start();
    until_booted("its forks", || (running.vmms().len() > 2).then_some(()));
    running.signal(Signal::INT);
    assert_eq!(running.wait(), 130);
    assert_eq!(running.vmms(), [0; 0]);
    nothing_is_left(&home);
}

#[test]
fn leftovers_of_a_killed_verify_are_removed_by_the_next() {
    let home = TestHome::with_image();
    let mut running = home.kiln(["verify", "fork"]).start();
    until_booted("its forks", || (running.vmms().len() > 2).then_some(()));
    running.signal(Signal::KILL);
    assert_eq!((running.wait(), home.snapshot_names().len()), (137, 1));
    assert_eq!(home.kiln(["verify", "fork", "--forks", "2"]).run().code, 0);
    nothing_is_left(&home);
}

#[test]
fn a_missing_vmm_exits_with_69_and_one_fork_is_wrong_usage() {
    let home = TestHome::with_image();
    let missing = home.kiln(["verify", "fork"]).env("KILN_QEMU", "/nowhere/qemu").run();
    assert_eq!(missing.code, 69, "{}", missing.stderr);
    for forks in ["0", "1", "10000", "x"] {
        assert_eq!(home.kiln(["verify", "fork", "--forks", forks]).run().code, 2);
    }
    nothing_is_left(&home);
}
