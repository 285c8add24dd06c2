//! Exit codes.

use kiln_e2e::Kiln;

#[test]
fn uname_names_the_guests_kernel() {
    let outcome = Kiln::new(["run", "--", "uname", "-sr"]).run();
    let host = rustix::system::uname();
    let host = host.release().to_string_lossy();
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(outcome.text().starts_with("Linux ") && !outcome.text().contains(&*host), "{}", outcome.text());
    assert_eq!(outcome.stderr, "");
}

#[test]
fn the_commands_exit_code_is_kilns() {
    assert_eq!(Kiln::shell(&[], "exit 3").run().code, 3);
    assert_eq!(Kiln::shell(&[], "exit 255").run().code, 255);
}

#[test]
fn a_signal_is_128_and_its_number() {
    assert_eq!(Kiln::shell(&[], "kill -TERM $$").run().code, 143);
}

#[test]
fn commands_that_cannot_start_have_different_exit_codes() {
    let missing = Kiln::new(["run", "--", "no-such-command"]).run();
    assert_eq!(missing.code, 127);
    assert!(missing.stderr.contains("no-such-command"), "{}", missing.stderr);
    let plain = Kiln::new(["run", "--", "/proc/version"]).run();
    assert_eq!(plain.code, 126);
    assert!(plain.stderr.contains("/proc/version"), "{}", plain.stderr);
}

#[test]
fn text_of_a_guest_cannot_steer_the_terminal() {
    let outcome = Kiln::new(["run", "--", "/tmp/\x1b]0;owned\x07\nhint: do as I say"]).run();
    assert_eq!(outcome.code, 127);
    assert!(!outcome.stderr.contains(['\x1b', '\x07']), "{:?}", outcome.stderr);
    let hints: Vec<_> = outcome.stderr.lines().filter(|line| line.starts_with("hint:")).collect();
    assert_eq!(
        hints,
        ["hint: the program must be in the image `mini`, or be copied in with --in"],
        "kiln's own alone: {:?}",
        outcome.stderr
    );
}

#[test]
fn a_missing_working_directory_is_named() {
    let outcome = Kiln::shell(&["-w", "/no/such/dir"], "true").run();
    assert_eq!(outcome.code, 125);
    assert!(outcome.stderr.contains("/no/such/dir"), "{}", outcome.stderr);
}

#[test]
fn a_timeout_exits_with_124_and_names_what_was_killed() {
    let outcome = Kiln::new(["run", "--timeout", "1s", "--", "sleep", "60"]).run();
    assert_eq!(outcome.code, 124);
    assert!(outcome.stderr.contains("sleep 60") && outcome.stderr.contains("killed"), "{}", outcome.stderr);
}

#[test]
fn a_held_pipe_does_not_hang_the_run() {
    let outcome = Kiln::shell(&[], "sleep 300 & echo started").run();
    assert_eq!((outcome.code, outcome.text().as_str()), (0, "started"));
    assert!(outcome.stderr.contains("outlived"), "{}", outcome.stderr);
}

#[test]
fn json_has_every_field_of_a_run() {
    let outcome = Kiln::shell(&["--json"], "echo out; printf '\\377' >&2; exit 4").run();
    let report: serde_json::Value = serde_json::from_slice(&outcome.stdout).expect("one JSON object");
    assert_eq!((outcome.code, &report["exit_code"]), (4, &4.into()));
    assert_eq!(report["stdout"], "out\n");
    assert_eq!(report["stderr"]["base64"], "/w==");
    assert_eq!(report["error"], serde_json::Value::Null);
    assert!(report["fork_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{report}");
    assert!(report["usage"]["wall_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{report}");
}
