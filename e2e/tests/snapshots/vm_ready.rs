//! Ready-made snapshots: made once for each spec, and again if one is broken.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::thread;

use kiln_e2e::{Outcome, TestHome, is_running, until, until_booted};
use rustix::process::Signal;
use serde_json::Value;

fn report(outcome: &Outcome) -> Value {
    serde_json::from_slice(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {}", outcome.stderr))
}

#[test]
fn four_first_runs_at_once_make_one_snapshot() {
    let home = TestHome::with_image();
    let reports: Vec<Value> = thread::scope(|scope| {
        let runs: Vec<_> =
            (0..4).map(|_| scope.spawn(|| report(&home.kiln(["run", "--json", "--", "true"]).run()))).collect();
        runs.into_iter().map(|run| run.join().expect("no panic")).collect()
    });
    for report in &reports {
        assert_eq!((&report["exit_code"], &report["start"]), (&0.into(), &"fork".into()), "{report}");
    }
    let (id, listed) = (home.only_snapshot(), home.snapshots());
    assert_eq!(
        (&listed[0]["sealed"], &listed[0]["ready_made"], &listed[0]["in_use"]),
        (&true.into(), &true.into(), &false.into())
    );
    assert_eq!((home.vms(), home.snapshot_names()), (vec![], vec![id]));
}

#[test]
fn each_size_of_vm_has_its_own_snapshot() {
    let home = TestHome::with_ready_made();
    let outcome = home.kiln(["run", "--json", "--memory", "300", "--", "cat", "/proc/meminfo"]).run();
    let report = report(&outcome);
    assert_eq!(report["start"], "fork", "{}", outcome.stderr);
    assert!(report["ready_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{report}");
    let total = report["stdout"].as_str().and_then(|text| text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok());
    assert!(total.is_some_and(|kib| kib > 256 << 10), "{report}");
    let mut sizes: Vec<_> = home.snapshots().iter().map(|one| one["memory_mib"].as_u64()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [Some(256), Some(300)]);
}

#[test]
fn a_broken_snapshot_is_named_and_made_again() {
    let home = TestHome::with_ready_made();
    let before = home.only_snapshot();
    flip_a_byte(&home, &before);

    let verified = home.kiln(["snapshot", "verify", &before[..6]]).run();
    assert_eq!(verified.code, 1, "{}", verified.stderr);
    assert!(verified.stderr.contains(&before) && verified.stderr.contains("`memory`"), "{}", verified.stderr);

    let outcome = home.kiln(["run", "--json", "--", "true"]).run();
    assert_eq!((outcome.code, &report(&outcome)["start"]), (0, &"fork".into()), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(&before) && outcome.stderr.contains("`memory`"), "{}", outcome.stderr);
    let after = home.only_snapshot();
    assert_ne!(after, before);
    let again = home.kiln(["run", "--json", "--", "true"]).run();
    assert_eq!((again.stderr.as_str(), &report(&again)["ready_ms"]), ("", &Value::Null));
    assert_eq!(home.kiln(["snapshot", "verify", "--all"]).run().code, 0);
}

#[test]
fn a_run_boots_with_a_warning_if_no_snapshot_can_be_kept() {
    let home = TestHome::with_image();
    fs::write(home.path().join("snapshots"), "no directory").expect("written");
    let outcome = home.kiln(["run", "--json", "--", "true"]).run();
    assert_eq!((outcome.code, &report(&outcome)["start"]), (0, &"boot".into()), "{}", outcome.stderr);
    assert_eq!(outcome.stderr.matches("booting, because no fork could be made").count(), 1, "{}", outcome.stderr);
}

#[test]
fn ctrl_c_on_first_use_leaves_nothing_and_other_runs_continue() {
    let home = TestHome::with_image();
    let mut maker = home.kiln(["run", "--", "true"]).start();
    let vmm = until("a VMM", || home.vmm());
    let mut waiting = home.kiln(["run", "--", "true"]).start();
    let ready = home.path().join("snapshots/ready");
    until("the lock", || fs::read_dir(&ready).ok()?.next().map(drop));
    waiting.signal(Signal::INT);
    assert_eq!(waiting.wait(), 130);
    assert!(is_running(vmm), "the one that makes it goes on");
    maker.signal(Signal::INT);
    assert_eq!(maker.wait(), 130);
    assert!(!is_running(vmm));
    assert_eq!((home.vms().len(), home.snapshot_names().len()), (0, 0));
    assert_eq!(fs::read_dir(&ready).expect("lists").count(), 0, "no lock is left");
}

#[test]
fn ctrl_c_during_a_save_leaves_a_whole_snapshot_or_nothing() {
    let home = TestHome::with_image();
    let mut maker = home.kiln(["run", "--", "true"]).start();
    until_booted("the snapshot", || home.snapshot_names().first().cloned());
    maker.signal(Signal::INT);
    assert_eq!(maker.wait(), 130);
    assert_eq!(home.vms().len(), 0);
    let outcome = home.kiln(["run", "--json", "--", "true"]).run();
    assert_eq!(report(&outcome)["start"], "fork", "{}", outcome.stderr);
    home.only_snapshot();
}

#[test]
fn warm_makes_a_snapshot_again_and_rm_of_the_image_removes_it() {
    let home = TestHome::with_ready_made();
    let before = home.only_snapshot();
    let outcome = home.kiln(["image", "warm", "mini", "--json"]).run();
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let warmed: Value = serde_json::from_slice(&outcome.stdout).expect("one JSON object");
    let after = home.only_snapshot();
    assert_ne!(after, before);
    assert_eq!(warmed["id"], after.as_str());
    assert!(warmed["bytes_on_disk"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{warmed}");

    let run = home.kiln(["run", "--json", "--", "true"]).run();
    assert_eq!(report(&run)["ready_ms"], Value::Null, "it is there: {}", run.stderr);
    assert_eq!(home.kiln(["image", "rm", "mini"]).run().code, 0);
    assert_eq!(home.snapshot_names().len(), 0);
}

fn flip_a_byte(home: &TestHome, snapshot: &str) {
    let memory = home.file(snapshot, "memory");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&memory, mode).expect("set");
    let at = 16 << 20;
    let byte = fs::read(&memory).expect("reads")[at];
    let mut file = fs::OpenOptions::new().write(true).open(&memory).expect("opens");
    file.seek(SeekFrom::Start(at as u64)).expect("seeks");
    file.write_all(&[!byte]).expect("written");
}
