//! Guests that crash, power off, or do not boot.

use kiln_e2e::Kiln;

#[test]
fn a_panic_ends_the_run_with_its_title_and_log() {
    let outcome = Kiln::shell(&[], "echo c > /proc/sysrq-trigger; sleep 60").run();
    assert_eq!(outcome.code, 125, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("the guest crashed: "), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("sysrq triggered crash"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("Call Trace"), "the log is shown: {}", outcome.stderr);
}

#[test]
fn a_panic_is_in_the_json() {
    let outcome = Kiln::shell(&["--json"], "echo c > /proc/sysrq-trigger; sleep 60").run();
    let report: serde_json::Value = serde_json::from_slice(&outcome.stdout).expect("one JSON object");
    assert_eq!(report["exit_code"], 125);
    assert_eq!(report["findings"][0]["severity"], "fatal", "{report}");
}

#[test]
fn a_guest_that_powers_off_or_reboots_ends_the_run() {
    for (command, word) in [("poweroff -f", "powered off"), ("reboot -f", "rebooted")] {
        let outcome = Kiln::shell(&[], command).run();
        assert_eq!(outcome.code, 125, "{command}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(word), "{command}: {}", outcome.stderr);
    }
}

#[test]
fn a_guest_that_does_not_come_up_ends_at_its_deadline() {
    let outcome = Kiln::shell(&["--cold", "--boot-timeout", "300ms"], "true").run();
    assert_eq!(outcome.code, 125);
    assert!(outcome.stderr.contains("did not come up within 300ms"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("console"), "{}", outcome.stderr);
}
