//! Commands that exceed their limits or the guest's memory.

use kiln_e2e::Kiln;

#[test]
fn a_memory_eater_is_killed_and_the_agent_is_not() {
    let outcome = Kiln::new(["run", "--", "tail", "/dev/zero"]).run();
    assert_eq!(outcome.code, 137, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("out of memory"), "{}", outcome.stderr);
}

#[test]
fn a_shell_gets_the_signal_that_killed_its_child() {
    let outcome = Kiln::shell(&["--limit-memory", "64M", "--json"], "tail /dev/zero").run();
    let report: serde_json::Value = serde_json::from_slice(&outcome.stdout).expect("one JSON object");
    assert_eq!((outcome.code, &report["oom_killed"]), (137, &true.into()), "{report}");
}

#[test]
fn the_agent_survives_a_fork_bomb() {
    let outcome = Kiln::shell(&["--timeout", "4s"], "f() { f | f & }; f; sleep 60").run();
    assert!([124, 137, 2].contains(&outcome.code), "{}: {}", outcome.code, outcome.stderr);
}

#[test]
fn processes_are_counted() {
    let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 5 & done; wait";
    let outcome = Kiln::shell(&["--limit-pids", "4"], script).run();
    assert_ne!(outcome.code, 0);
    assert!(outcome.stderr.contains("fork"), "{}", outcome.stderr);
}

#[test]
fn cpu_time_is_counted() {
    let outcome = Kiln::shell(&["--limit-cpu", "500ms"], "while :; do :; done").run();
    assert_eq!(outcome.code, 124, "{}", outcome.stderr);
}

#[test]
fn output_beyond_the_limit_is_dropped() {
    let outcome = Kiln::shell(&["--limit-output", "1000"], "head -c 5000000 /dev/zero").run();
    assert_eq!((outcome.code, outcome.stdout.len()), (0, 1000));
    assert!(outcome.stderr.contains("dropped"), "{}", outcome.stderr);
}
